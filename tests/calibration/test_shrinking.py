"""Moments of few inputs: what they do not show is taken from the identity."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn

import fxdecomp
from fxdecomp.calibration.moments import Moments, MomentsSum


def rows(count: int, d: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(count, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn * 0.9 ** torch.arange(d) + 1


def shrunk(given: Tensor, owners: Tensor) -> Moments:
    total = MomentsSum()
    total.add(given, owners)
    return total.shrunk()


@pytest.mark.parametrize(("count", "d"), [(20, 40), (60, 40), (500, 40)])
def test_independent_rows_are_shrunk_as_ledoit_and_wolf_do(count: int, d: int) -> None:
    given = rows(count, d)
    given -= given.mean(0)  # about their mean, as scikit-learn takes them
    found = shrunk(given, torch.arange(count))
    plain = given.T @ given / count
    wanted = ledoit_wolf(given.numpy())[1] * count / (count - 1)  # ours allows for the mean being estimated
    rho = found.ridge * d / float(plain.trace())
    assert rho == pytest.approx(min(1.0, wanted), rel=1e-6)
    assert torch.allclose(
        found.dense(), (1 - rho) * plain + found.ridge * torch.eye(d, dtype=torch.float64), atol=1e-12
    )
    matrix = rows(3, d, seed=1)
    assert torch.allclose(found.output_covariance(matrix), matrix @ found.dense() @ matrix.T)
    assert found.output_variance(matrix) == pytest.approx(float((matrix @ found.dense() @ matrix.T).trace()))


@pytest.mark.parametrize("sizes", [(1,) * 20, (3, 17), (20,)])
def test_how_inputs_come_in_batches_does_not_matter(sizes: tuple[int, ...]) -> None:
    """Inputs are compared with their mean, not with the first of them."""
    given = rows(20, 40)
    total = MomentsSum()
    for part in given.split(list(sizes)):
        total.add(part, torch.arange(len(part)))
    assert total.shrunk().ridge == pytest.approx(shrunk(given, torch.arange(20)).ridge, rel=0.2)


def test_shrunk_moments_add_up() -> None:
    left, right = (shrunk(rows(8, 30, seed), torch.arange(8)) for seed in (0, 1))
    gap = left.mean - right.mean
    wanted = (left.dense() + right.dense()) / 2 + torch.outer(gap, gap) / 4
    assert left.ridge > 0
    assert torch.allclose((left + right).dense(), wanted, atol=1e-12)


def test_rows_of_one_input_count_as_one_observation() -> None:
    given = rows(8, 30).repeat_interleave(50, 0)  # fifty patches of each input, all alike
    one_by_one = shrunk(rows(8, 30), torch.arange(8))
    by_input = shrunk(given, torch.arange(8).repeat_interleave(50))
    as_if_independent = shrunk(given, torch.arange(400))
    assert by_input.ridge == pytest.approx(one_by_one.ridge, rel=1e-9)
    assert as_if_independent.ridge < 0.2 * by_input.ridge


def test_a_single_input_leaves_the_metric_of_the_weight() -> None:
    several = shrunk(rows(64, 6), torch.zeros(64, dtype=torch.long))
    assert torch.allclose(several.dense(), several.ridge * torch.eye(6, dtype=torch.float64), atol=1e-12)
    one = shrunk(rows(1, 6), torch.zeros(1, dtype=torch.long))
    assert one.ridge > 0
    assert torch.equal(one.dense(), one.ridge * torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("count", [8, 60])
@pytest.mark.parametrize("others", [5, 60])
def test_few_inputs_are_shrunk_towards_the_moments_of_others(count: int, others: int) -> None:
    """By Ledoit and Wolf's share for a fixed target; roots and products alike."""
    d = 30
    given, target = rows(count, d), shrunk(3 * rows(others, d, seed=1), torch.arange(others))
    total = MomentsSum()
    total.add(given, torch.arange(count))
    found, plain = total.shrunk(target), total.moments().dense()
    goal = target.dense() * plain.trace() / target.dense().trace()
    towards_identity = shrunk(given, torch.arange(count))
    sphere = torch.eye(d, dtype=torch.float64) * plain.trace() / d
    beta = towards_identity.ridge * d / plain.trace() * (plain - sphere).square().sum()
    rho = float(beta / (plain - goal).square().sum())
    assert 0 < rho < 1
    assert torch.allclose(found.dense(), (1 - rho) * plain + rho * goal, atol=1e-12)
    assert torch.allclose(found.mean, (1 - rho) * total.moments().mean + rho * target.mean)


def test_of_a_single_input_nothing_is_known_but_the_target() -> None:
    target = shrunk(rows(40, 6), torch.arange(40))
    total = MomentsSum()
    total.add(rows(64, 6, seed=1), torch.zeros(64, dtype=torch.long))
    found = total.shrunk(target)
    assert torch.allclose(found.dense() / found.trace, target.dense() / target.trace)
    one = MomentsSum()
    one.add(rows(1, 6), torch.zeros(1, dtype=torch.long))
    assert torch.equal(one.shrunk(target).dense(), target.dense())


@pytest.mark.parametrize(("a", "b"), [(5, 5), (5, 60), (60, 5), (60, 60)])
def test_products_and_traces_of_moments(a: int, b: int) -> None:
    one, other = (shrunk(rows(n, 20, seed), torch.arange(n)) for seed, n in enumerate((a, b)))
    assert one.product(other) == pytest.approx(float((one.dense() * other.dense()).sum()))
    assert one.product(one) == pytest.approx(float(one.dense().square().sum()))
    assert one.trace == pytest.approx(float(one.dense().trace()))


def pictures(count: int, seed: int) -> Tensor:
    """Noise with a 1/f spectrum."""
    drawn = np.random.default_rng(seed).standard_normal((count, 3, 16, 16))
    f = np.fft.fftfreq(16)
    spectrum = np.sqrt(f[:, None] ** 2 + f[None] ** 2) + 1 / 16
    values = np.fft.ifft2(np.fft.fft2(drawn) / spectrum).real
    return torch.from_numpy((values / values.std()).astype(np.float32))


def small_network() -> nn.Sequential:
    """Whose outputs have no mean, so that errors are shares of what varies."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(1024, 64, bias=False),
        nn.Tanh(),
        nn.Linear(64, 10, bias=False),
    )
    return model.eval()


@pytest.mark.parametrize("count", [2, 8, 32])
def test_few_inputs_are_no_worse_than_none(count: int) -> None:
    model, unseen = small_network(), pictures(200, 7)
    gm = fxdecomp.trace(model, unseen[:1])

    @torch.no_grad()
    def explained(calibration: list[Tensor] | None) -> float:
        policy = fxdecomp.Policy(budget=fxdecomp.MACs(0.5), made_up=False)
        wanted, got = model(unseen), fxdecomp.transform(gm, policy, calibration=calibration)(unseen)
        return 1 - float((wanted - got).square().sum() / wanted.square().sum())

    assert explained(list(pictures(count, 3).split(16))) >= explained(None) - 0.01
