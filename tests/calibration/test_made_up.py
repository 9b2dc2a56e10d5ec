"""Inputs that are made up where there are none, and what a budget makes of them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import CalibrationError, MACs, Policy, PolicyError, Rule
from fxdecomp.calibration import made_up
from fxdecomp.calibration.stored_statistics import matched
from fxdecomp.graphs.drawing import is_noise, natural_like
from fxdecomp.plans import Plan
from tests.nets import drawn, image, relative_difference, small_vgg

HALF = Policy(budget=MACs(0.5))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def notes(small: GraphModule) -> str:
    return " ".join(fxdecomp.report(small).record.notes)


def is_equal(one: GraphModule, other: GraphModule) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("shape", "power"), [((1, 3, 64, 64), 2.0), ((1, 1, 4096), 1.0)])
def test_pictures_and_signals_have_the_spectrum_of_such(shape: tuple[int, ...], power: float) -> None:
    made = natural_like(image(*shape), 64, generator()).double()
    length = shape[-1]
    axes = tuple(range(2, made.ndim))
    spectrum = torch.fft.fftn(made, dim=axes).abs().square().mean((0, 1))
    if len(axes) == 2:
        spectrum = spectrum[0]  # along one axis of the picture
    slope = torch.log(spectrum[length // 8] / spectrum[2]) / torch.log(torch.tensor(length / 16))
    assert abs(float(slope) + power) < 0.2


def test_mean_spread_and_range_are_those_of_the_example() -> None:
    example = torch.rand(4, 3, 32, 32, generator=generator()) * 50 + 100
    made = natural_like(example, 64, generator())
    assert made.shape == (64, 3, 32, 32)
    assert abs(float(made.mean() - example.mean())) < 2
    assert 0.8 < float(made.std() / example.std()) < 1.1
    assert float(made.min()) >= float(example.min())
    assert float(made.max()) <= float(example.max())


def test_inputs_are_made_like_the_few_that_are_fitted_to() -> None:
    gm = fxdecomp.trace(drawn(nn.Sequential(nn.Conv2d(3, 32, 3))), image(1, 3, 16, 16))
    given = 5 + 0.1 * image(8, 3, 16, 16)
    given[-1] += 50  # of eight the last is held out, and nothing of it may be seen
    prior = fxdecomp.study(gm, [given]).joined.prior
    assert prior is not None
    for data in (made_up(gm, like=given[:-1]), prior):
        assert float(torch.cat(list(data.batches)).mean()) == pytest.approx(5, abs=0.1)


def test_of_inputs_that_are_only_judged_on_nothing_is_taken(vgg: GraphModule) -> None:
    known = fxdecomp.study(vgg, [5 + image(2, 3, 16, 16)])
    assert known.judged is not None
    assert known.judged.held_out
    data = known.joined.calibration
    assert data is not None
    assert data.made_up
    assert abs(float(torch.cat(list(data.batches)).mean())) < 1


def test_few_inputs_are_joined_where_widths_are_given_too() -> None:
    layers = (nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32))
    x = image(12, 4) @ image(4, 32, seed=1)  # of few directions, which the weights alone do not know
    policy = Policy(budget=MACs(0.6), rules=[Rule("0", width=48)])
    small = fxdecomp.transform(fxdecomp.trace(drawn(nn.Sequential(*layers)), x[:1]), policy, calibration=[x])
    assert "so few inputs were joined with" in notes(small)
    assert fxdecomp.report(small).plan.made_up


def test_colours_share_their_brightness() -> None:
    made = natural_like(image(1, 3, 32, 32), 64, generator())
    between = torch.corrcoef(made.movedim(1, 0).flatten(1))[0, 1]
    assert 0.85 < float(between) < 0.95  # 1 / (1 + (1/3)^2)


def test_noise_is_told_from_pictures() -> None:
    example = image(1, 3, 32, 32)
    assert is_noise(example)
    assert is_noise(torch.zeros(1, 3, 32, 32))
    assert not is_noise(natural_like(example, 4, generator()))
    assert not is_noise(image(4, 32))  # features: nothing is known


class Tokens(nn.Module):
    """Words and the kinds of their segments, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(500, 32), nn.Embedding(2, 32)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, ids: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        x = (self.words(ids) + self.kinds(kinds)) * mask.unsqueeze(-1)
        y: Tensor = self.down(torch.relu(self.up(x)))
        return y


def tokens(rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    shape = (rows, 12)
    ids, kinds = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    return ids, kinds, torch.ones(shape, dtype=torch.long)


@pytest.mark.parametrize("dialect", ["modules", "aten"])
def test_whole_numbers_come_from_their_table(dialect: str) -> None:
    model = drawn(Tokens())
    if dialect == "aten":
        model = torch.export.export(model, tokens(), strict=False).module()  # type: ignore[assignment]
    gm = fxdecomp.trace(model, tokens())
    ids, kinds, mask = made_up(gm).batches[0]
    assert int(ids.max()) > 450
    assert int(ids.min()) < 50
    assert not kinds.any()  # two rows are kinds: the example has the right ones
    assert bool((mask == 1).all())  # of no table: the example's own


def test_a_network_of_one_batch_size_gets_batches_of_that_size() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x.reshape(2, 16))
            return y

    data = made_up(fxdecomp.trace(drawn(Fixed()), image(2, 16)), count=10)
    assert [tuple(batch.shape) for batch in data.batches] == [(2, 16)] * 5


def test_inputs_are_moved_towards_what_the_batchnorms_saw() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))
    x = image(64, 3, 16, 16) * torch.tensor([1.0, 0.1, 3.0]).view(1, 3, 1, 1)  # not alike in every channel
    for _ in range(80):
        model(x)
    gm = fxdecomp.trace(model.eval(), image(1, 3, 16, 16))
    before = natural_like(image(8, 3, 16, 16) * 3, 8, generator())
    state = {name: value.clone() for name, value in gm.state_dict().items()}
    (after,) = matched(gm, [before])
    assert all(torch.equal(value, gm.state_dict()[name]) for name, value in state.items())
    assert after.grad is None
    assert not after.requires_grad

    def gap(batch: Tensor) -> float:
        norm = gm.get_submodule("1")
        seen = gm.get_submodule("0")(batch).detach()
        mean = (seen.mean((0, 2, 3)) - norm.running_mean) / norm.running_var.sqrt()
        spread = seen.std((0, 2, 3)) / norm.running_var.sqrt() - 1
        return float((mean.square() + spread.square()).mean())

    assert gap(after) < 0.3 * gap(before)


def test_a_network_without_statistics_or_gradients_keeps_its_inputs() -> None:
    batch = image(8, 3, 16, 16)
    plain = fxdecomp.trace(drawn(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())), batch)
    assert matched(plain, [batch])[0] is batch

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.conv(x.round().long().float()))
            return y

    assert torch.equal(matched(fxdecomp.trace(drawn(Cut()), batch), [batch])[0], batch)


class Timed(nn.Module):
    """A picture, and one number beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))

    def forward(self, time: Tensor, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) * time
        return y


@pytest.mark.parametrize("time", [torch.tensor(0.5), torch.tensor([0.5])])
def test_an_input_of_one_number_has_no_spread_and_stops_nothing(time: Tensor) -> None:
    gm = fxdecomp.trace(drawn(Timed()), (time, image(1, 3, 16, 16)))
    batch = (time, image(1, 3, 16, 16, seed=3))
    ((unmoved, moved),) = matched(gm, [batch])
    assert torch.equal(unmoved, time)
    assert not torch.equal(moved, batch[1])
    small = fxdecomp.transform(gm, Policy(budget=MACs(0.9)), calibration=made_up(gm, count=8))
    assert fxdecomp.report(small).macs_after <= 0.9 * fxdecomp.report(small).macs_before


@pytest.fixture(scope="module")
def vgg() -> GraphModule:
    return fxdecomp.trace(small_vgg(), image(1, 3, 16, 16))


@pytest.fixture(scope="module")
def small(vgg: GraphModule) -> GraphModule:
    return fxdecomp.transform(vgg, HALF)


def test_a_budget_makes_inputs_up_and_says_so(vgg: GraphModule, small: GraphModule) -> None:
    assert "made-up inputs; real ones are better (calibration=)" in notes(small)
    assert all(each.output_error is not None for each in fxdecomp.report(small).applied)
    off = fxdecomp.transform(vgg, Policy(budget=MACs(0.5), made_up=False))
    assert "made-up" not in notes(off)
    assert all(each.output_error is None for each in fxdecomp.report(off).applied)


def test_a_fixed_rank_stays_the_decomposition_of_the_weight_unless_asked(vgg: GraphModule) -> None:
    plain = fxdecomp.transform(vgg, Policy("tucker2", 0.5))
    assert all(each.output_error is None for each in fxdecomp.report(plain).applied)
    asked = fxdecomp.transform(vgg, Policy("tucker2", 0.5, made_up=True))
    assert all(each.output_error is not None for each in fxdecomp.report(asked).applied)
    given = fxdecomp.transform(vgg, Policy("tucker2", 0.5), calibration=made_up(vgg, count=16))
    assert {each.site for each in fxdecomp.report(given).applied} == {
        each.site for each in fxdecomp.report(asked).applied
    }


def test_a_plan_replays_bit_for_bit_with_the_same_made_up_inputs(
    vgg: GraphModule, small: GraphModule
) -> None:
    plan = fxdecomp.report(small).plan
    assert plan.made_up
    assert is_equal(fxdecomp.transform(vgg, Policy.from_plan(Plan.from_dict(plan.to_dict()))), small)


def test_few_inputs_are_joined_with_made_up_ones_under_a_budget(vgg: GraphModule) -> None:
    few = list(image(12, 3, 16, 16).split(4))
    half = replace(HALF, method="tucker2")
    joined = fxdecomp.transform(vgg, half, calibration=few)
    assert "so few inputs were joined with" in notes(joined)
    plan = fxdecomp.report(joined).plan
    assert plan.made_up
    assert is_equal(fxdecomp.transform(vgg, Policy.from_plan(plan), calibration=few), joined)
    alone = fxdecomp.transform(vgg, replace(half, made_up=False), calibration=few)
    assert "joined" not in notes(alone)
    assert not is_equal(alone, joined)


def test_many_inputs_are_never_replaced_nor_joined(vgg: GraphModule) -> None:
    real = list(image(32, 3, 16, 16).split(4))
    one = fxdecomp.transform(vgg, Policy("tucker2", 0.5), calibration=real)
    other = fxdecomp.transform(vgg, Policy("tucker2", 0.5, made_up=True), calibration=real)
    assert is_equal(one, other)
    assert not fxdecomp.report(other).plan.made_up


def test_a_graph_that_knows_no_example_uses_its_weights_and_says_so(vgg: GraphModule) -> None:
    bare = fxdecomp.trace(small_vgg(), image(1, 3, 16, 16))
    bare.meta.clear()
    small = fxdecomp.transform(bare, HALF)
    assert "the weights alone were used: the graph does not know its example inputs" in notes(small)
    with pytest.raises(CalibrationError, match=r"make it with fxdecomp\.trace"):
        made_up(bare)


def test_heads_stay_where_no_real_input_tells_of_them() -> None:
    wide = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    model = drawn(nn.Sequential(*wide))
    small = fxdecomp.transform(fxdecomp.trace(model, image(1, 64)), Policy(budget=MACs(0.8)))
    assert "4" not in {each.site for each in fxdecomp.report(small).applied}


def test_made_up_is_kept_in_a_policy_file_and_checked() -> None:
    policy = Policy(budget=MACs(0.5), made_up=False)
    assert Policy.from_dict(policy.to_dict()) == policy
    with pytest.raises(PolicyError, match="made_up is true or false"):
        Policy(budget=MACs(0.5), made_up="no")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="made_up is true or false"):
        Plan.from_dict({"format": "fxdecomp plan", "version": 1, "choices": [], "made_up": 1})


def test_the_same_seed_makes_the_same_inputs_and_leaves_the_random_state(vgg: GraphModule) -> None:
    before = torch.get_rng_state()
    one, other = made_up(vgg, count=8), made_up(vgg, count=8)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.batches, other.batches, strict=True))
    assert not torch.equal(made_up(vgg, count=8, seed=1).batches[0], one.batches[0])


def test_a_network_that_takes_nothing_of_the_kind_is_told_why() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(torch.log(x - 1e6))
            return y

    gm = fxdecomp.trace(drawn(Picky()), image(1, 16))
    with pytest.raises(CalibrationError, match="its outputs are not finite; give calibration"):
        made_up(gm)


def test_what_comes_out_is_nearer_on_inputs_of_the_kind(vgg: GraphModule) -> None:
    pictures = natural_like(image(1, 3, 16, 16), 32, torch.Generator().manual_seed(7))
    fitted = fxdecomp.transform(vgg, Policy("tucker2", budget=MACs(0.3)))
    plain = fxdecomp.transform(vgg, Policy("tucker2", budget=MACs(0.3), made_up=False))
    assert relative_difference(vgg, fitted, pictures) < relative_difference(vgg, plain, pictures)
