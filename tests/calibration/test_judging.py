"""The distance to the original: on inputs that nothing was fitted to, and loud where it is bad."""

import json
import logging
import math

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import OutputDistance, Policy, Quality
from fxdecomp.calibration import Calibration
from fxdecomp.calibration.splitting import split
from tests.nets import drawn, image, small_vgg

X = image(16, 3, 16, 16)
POLICY = Policy(method="tucker2", rank=0.5)


@pytest.mark.parametrize(
    ("sizes", "fitted", "held"),
    [
        ((4, 4, 4, 4), (4, 4, 4), (4,)),
        ((1,) * 9, (1,) * 7, (1, 1)),
        ((1,) * 8, (1,) * 7, (1,)),
        ((2, 16), (2, 14), (2,)),
        ((7,), (6,), (1,)),
        ((4,), (3,), (1,)),
        ((9, 3), (9, 3), ()),
        ((1,), (1,), ()),
    ],
)
def test_an_eighth_is_held_out(
    sizes: tuple[int, ...], fitted: tuple[int, ...], held: tuple[int, ...]
) -> None:
    rows = torch.arange(sum(sizes))
    data = Calibration(list(rows.split(list(sizes))), samples=7, seed=3)
    left, kept = split(data)
    assert tuple(map(len, left.batches)) == fitted
    assert tuple(map(len, kept)) == held
    assert torch.equal(torch.cat([*left.batches, *kept]), rows)
    assert (left.samples, left.seed) == (7, 3)


def test_dicts_and_tuples_are_split_by_their_first_axis_and_others_are_not() -> None:
    _, (held,) = split(Calibration([{"x": torch.arange(8), "y": (torch.arange(8) + 1,), "flag": True}]))
    assert held["x"].tolist() == [7]
    assert held["y"][0].tolist() == [8]
    assert held["flag"] is True
    for batch in ((torch.ones(8), torch.ones(2)), (torch.ones(8), torch.tensor(1.0))):
        assert split(Calibration([batch]))[1] == ()


def by_hand(gm: GraphModule, small: GraphModule, x: Tensor) -> tuple[float, float]:
    with torch.no_grad():
        wanted, got = gm(x).double(), small(x).double()
    error = ((wanted - got).square().sum() / (wanted - wanted.mean()).square().sum()).sqrt()
    return float(error), float((wanted.argmax(-1) == got.argmax(-1)).double().mean())


def test_the_quality_is_that_of_the_held_out_inputs() -> None:
    gm = fxdecomp.trace(small_vgg(), X[:1])
    small = fxdecomp.transform(gm, POLICY, calibration=list(X.split(4)))
    quality = fxdecomp.report(small).quality
    error, alike = by_hand(gm, small, X[12:])
    (output,) = quality.outputs
    assert (output.name, output.same_decisions) == ("output", alike)
    assert output.relative_error == pytest.approx(error, rel=1e-6)
    assert (quality.inputs, quality.count, quality.held_out) == ("held-out calibration, 4 inputs", 4, True)
    fitted = fxdecomp.transform(gm, POLICY, calibration=[*X[:12].split(4), torch.zeros(4, 3, 16, 16)])
    state = fitted.state_dict()  # what is held out has no part in the weights
    assert all(torch.equal(value, state[name]) for name, value in small.state_dict().items())


def test_without_calibration_it_is_that_of_the_example_inputs() -> None:
    gm = fxdecomp.trace(small_vgg(), X)
    small = fxdecomp.transform(gm, POLICY)
    quality = fxdecomp.report(small).quality
    error, alike = by_hand(gm, small, X)
    (output,) = quality.outputs
    assert (output.name, output.same_decisions) == ("output", alike)
    assert output.relative_error == pytest.approx(error, rel=1e-6)
    assert quality.inputs == "the example inputs of trace, 16 inputs"


def test_where_there_is_nothing_to_hold_out_it_says_so() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.view(8, 12))

    gm = fxdecomp.trace(drawn(Fixed()), image(8, 12))
    small = fxdecomp.transform(gm, Policy(method="svd", rank=2), calibration=[image(8, 12, seed=3)])
    assert fxdecomp.report(small).quality.inputs == "the calibration inputs themselves, 8 inputs"


def test_the_full_rank_is_the_original() -> None:
    gm = fxdecomp.trace(small_vgg(), X)
    full = Policy(method="tucker2", rank=1.0, require_saving=False)
    quality = fxdecomp.report(fxdecomp.transform(gm, full)).quality
    assert quality.relative_error < 1e-5
    assert quality.same_decisions == 1.0
    assert quality.warning == ""


def test_a_loss_is_loud_and_names_the_layers(caplog: pytest.LogCaptureFixture) -> None:
    gm = fxdecomp.trace(small_vgg(), X)
    with caplog.at_level(logging.WARNING, "fxdecomp"):
        small = fxdecomp.transform(gm, Policy(method="tucker2", rank=1))
    told = fxdecomp.report(small)
    errors = {o.site: o.relative_error for o in told.applied}
    worst = sorted(errors, key=lambda site: -errors[site])[:3]
    assert told.quality.costly == tuple(worst)
    assert told.quality.warning in caplog.text
    assert str(told).splitlines()[-1] == told.quality.warning
    for part in (", ".join(worst), "below 0.9", "recover"):
        assert part in told.quality.warning
    caplog.clear()
    quiet = fxdecomp.transform(gm, Policy(method="tucker2", rank=1), least_agreement=0.0)
    assert fxdecomp.report(quiet).quality.warning == caplog.text == ""
    strict = fxdecomp.transform(gm, POLICY, least_agreement=1.0)
    assert "below 1;" in fxdecomp.report(strict).quality.warning


def test_a_second_run_that_changes_nothing_keeps_what_was_measured() -> None:
    gm = fxdecomp.trace(small_vgg(), X)
    once = fxdecomp.transform(gm, POLICY)
    assert fxdecomp.report(fxdecomp.transform(once, POLICY)).quality == fxdecomp.report(once).quality
    first = fxdecomp.transform(gm, Policy(rules=[fxdecomp.Rule("4", "tucker2", 0.5)]))
    second = fxdecomp.report(fxdecomp.transform(first, Policy(rules=[fxdecomp.Rule("7", "tucker2", 0.5)])))
    assert "against the compressed network that was given" in second.quality.inputs


def test_measuring_changes_neither_buffers_nor_modes_nor_chance() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 16)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return x.add_(self.fc(x))

    x = image(8, 16)
    kept = x.clone()
    gm = fxdecomp.trace(drawn(Counting()), x)
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    small = fxdecomp.transform(gm, Policy(method="svd", rank=2), calibration=list(x.split(2)))
    assert torch.equal(torch.rand(4), wanted)
    assert gm.calls == small.calls == 0
    assert torch.equal(x, kept)
    assert fxdecomp.report(small).quality.relative_error > 0.1


class Odd(nn.Module):
    """Outputs that are constant, masked, whole numbers and huge."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.fc(x)
        masked = y.masked_fill(torch.arange(16) > 12, -math.inf)
        return {"zero": y[:, :1] * 0, "masked": masked, "top": y.argmax(-1), "huge": y.square() * 1e37}


def test_reports_are_json_whatever_the_outputs_are() -> None:
    x = image(8, 16)
    small = fxdecomp.transform(fxdecomp.trace(drawn(Odd()), x), Policy(method="svd", rank=1))
    told = fxdecomp.report(small)
    assert [o.name for o in told.quality.outputs] == ["output['zero']", "output['masked']", "output['huge']"]
    assert told.quality.outputs[0].relative_error == 0.0
    assert 0 < told.quality.outputs[1].relative_error < 2
    data = json.loads(json.dumps(told.to_dict(), allow_nan=False))
    assert Quality.from_dict(data["quality"]) == told.quality


def test_a_network_without_numbers_to_compare_has_no_quality() -> None:
    class Top(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).argmax(-1)

    small = fxdecomp.transform(fxdecomp.trace(drawn(Top()), image(4, 16)), Policy(method="svd", rank=1))
    assert fxdecomp.report(small).quality is None


def test_recovery_measures_anew() -> None:
    x = image(32, 3, 16, 16)
    gm = fxdecomp.trace(small_vgg(), x[:1])
    small = fxdecomp.transform(gm, Policy(method="tucker2", rank=0.3))
    better = fxdecomp.recover(small, gm, list(x.split(4)), block_steps=20, steps=20)
    told, before = fxdecomp.report(better), fxdecomp.report(small)
    assert told.quality.inputs == "batches that recovery did not train on, 8 inputs"
    assert told.quality.relative_error < before.quality.relative_error


@pytest.mark.parametrize("error", [math.nan, math.inf, -1.0, "1"])
def test_a_distance_is_a_number(error: float) -> None:
    with pytest.raises(ValueError, match="distances are numbers from 0 on"):
        OutputDistance("output", error)
    with pytest.raises(ValueError, match="no quality"):
        Quality("inputs", 1, True, ())


def test_a_network_that_was_converted_after_tracing_is_not_measured_on_its_examples() -> None:
    gm = fxdecomp.trace(small_vgg(), X[:1]).double()
    assert fxdecomp.report(fxdecomp.transform(gm, POLICY)).quality is None
    small = fxdecomp.transform(gm, POLICY, calibration=list(X.double().split(4)))
    assert fxdecomp.report(small).quality.precision == "fp64"


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (
            OutputDistance("output", 0.2, 1.0, decisions=7),
            "how many decisions an error of 20% costs",
        ),
        (OutputDistance("output", 0.09, 1.0, decisions=1), ""),
        (OutputDistance("output", 0.2, 1.0, decisions=8), ""),
        (OutputDistance("output", 0.2), ""),
        (OutputDistance("output", 0.5, 1.0, decisions=7), "agrees with the original by 0.75 only"),
    ],
)
def test_few_decisions_that_are_alike_are_no_proof(output: OutputDistance, told: str) -> None:
    quality = Quality("held-out calibration, 7 inputs", 7, True, (output,))
    assert told in quality.warning
    assert bool(told) == bool(quality.warning)
    assert quality.is_poor == ("agrees" in told)
