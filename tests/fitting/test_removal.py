"""Channels are removed where the reader misses them least, and the others make up for them."""

import itertools

import pytest
import torch
from torch import Tensor

from fxdecomp.calibration.moments import Moments
from fxdecomp.fitting.removal import remove_channels


def drawn(channels: int, kernel: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Moments]:
    generator = torch.Generator().manual_seed(seed)
    d = channels * int(torch.tensor(kernel).prod())
    rows = torch.randn(40, d, generator=generator).double() @ torch.randn(d, d, generator=generator).double()
    weight = torch.randn(5, channels, *kernel, generator=generator).double()
    return weight, Moments(rows.T @ rows / 40, rows[0], 40)


def least_error(weight: Tensor, moments: Moments, kept: tuple[int, ...]) -> tuple[Tensor, float]:
    """The best weight on some channels, by torch's own least squares, and its error."""
    flat = weight.flatten(1)
    taps = flat.shape[1] // weight.shape[1]
    columns = [channel * taps + tap for channel in kept for tap in range(taps)]
    root = torch.linalg.cholesky(moments.covariance).T
    best = torch.linalg.lstsq(root[:, columns], root @ flat.T).solution.T
    rest = flat.clone()
    rest[:, columns] -= best
    return best, float((root @ rest.T).square().sum() / (root @ flat.T).square().sum())


@pytest.mark.parametrize("kernel", [(), (2, 2)])
@pytest.mark.parametrize("keep", range(1, 7))
def test_the_reader_is_the_least_squares_on_what_stays(kernel: tuple[int, ...], keep: int) -> None:
    weight, moments = drawn(6, kernel)
    found = remove_channels(weight, moments, keep)
    best, error = least_error(weight, moments, tuple(found.kept.tolist()))
    assert found.kept.tolist() == sorted(set(found.kept.tolist()))
    assert torch.allclose(found.weight.flatten(1), best, atol=1e-6)
    assert found.error == pytest.approx(error, rel=1e-5, abs=1e-9)
    errors = [least_error(weight, moments, kept)[1] for kept in itertools.combinations(range(6), keep)]
    assert found.error <= sorted(errors)[len(errors) // 5] + 1e-9  # greedy, and among the best
    full = torch.zeros_like(weight)
    full[:, found.kept] = found.weight
    assert torch.allclose(found.shift, (weight - full).flatten(1) @ moments.mean)


def test_a_single_removal_is_the_best_one_and_many_keep_to_it_when_matrices_shrink() -> None:
    weight, moments = drawn(40, (), seed=3)
    (gone,) = set(range(40)) - set(remove_channels(weight, moments, 39).kept.tolist())
    errors = [least_error(weight, moments, tuple(c for c in range(40) if c != each))[1] for each in range(40)]
    assert errors[gone] == pytest.approx(min(errors), rel=1e-6)
    kept: list[int] = list(range(40))  # the same step by step, on matrices made anew
    for _ in range(25):
        losses = [least_error(weight, moments, tuple(c for c in kept if c != each))[1] for each in kept]
        kept.pop(losses.index(min(losses)))
    assert remove_channels(weight, moments, 15).kept.tolist() == kept


def test_full_width_is_the_layer_itself_and_doubles_cost_nothing() -> None:
    weight, moments = drawn(6, (3,))
    whole = remove_channels(weight, moments, 6)
    assert torch.equal(whole.weight, weight)
    assert (whole.error, float(whole.shift.abs().max())) == (0.0, 0.0)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(50, 4, generator=generator).double().repeat_interleave(2, 1)
    rows[:, ::2] *= 3  # every channel has a smaller double
    twice = Moments(rows.T @ rows / 50, rows.mean(0), 50)
    found = remove_channels(torch.randn(5, 8, generator=generator).double(), twice, 4)
    assert {int(each) // 2 for each in found.kept} == {0, 1, 2, 3}
    assert found.error < 1e-9


def test_inputs_that_vary_apart_go_by_what_they_bring() -> None:
    weight, _ = drawn(6, (2,))
    variances = torch.rand(12, generator=torch.Generator().manual_seed(2)).double() + 0.1
    slow = Moments(torch.diag(variances) + 1e-13 * (1 - torch.eye(12)), torch.zeros(12).double(), 9)
    quick = Moments(torch.diag(variances), torch.zeros(12).double(), 9)
    for keep in (1, 3, 5):
        one, other = (remove_channels(weight, moments, keep) for moments in (slow, quick))
        assert one.kept.tolist() == other.kept.tolist()
        assert torch.allclose(one.weight, other.weight)
        assert one.error == pytest.approx(other.error)


def test_inputs_that_do_not_vary_are_no_obstacle() -> None:
    weight, _ = drawn(6, ())
    found = remove_channels(weight, Moments(torch.zeros(6, 6).double(), torch.ones(6).double(), 1), 2)
    assert found.error == 0
    assert torch.isfinite(found.weight).all()
