"""Bad input, each with what is said of it. Nothing is changed, nothing hangs, no bare assertion shows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp import Policy, PolicyError, Reason, Rule
from tests.nets import FULL, HALF, drawn, image, small_vgg

X = image(2, 3, 16, 16)


def poisoned(value: float) -> nn.Module:
    model = drawn(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))
    with torch.no_grad():
        model[2].weight[1, 2, 0, 1] = value
    return model


def zeroed() -> nn.Module:
    model = poisoned(0.0)
    nn.init.zeros_(model[2].weight)
    return model


@pytest.mark.parametrize(
    ("build", "reason", "text"),
    [
        (lambda: poisoned(float("nan")), Reason.NOT_FINITE, "the weight holds NaN or infinity"),
        (lambda: poisoned(float("inf")), Reason.NOT_FINITE, "the weight holds NaN or infinity"),
        (lambda: poisoned(-float("inf")), Reason.NOT_FINITE, "the weight holds NaN or infinity"),
        (
            lambda: poisoned(1e20),
            Reason.NOT_FINITE,
            "the weight holds NaN or infinity: or numbers above 1e+17, whose products overflow",
        ),
        (zeroed, Reason.ZERO_WEIGHT, "the weight is all zero"),
    ],
    ids=["nan", "inf", "-inf", "huge", "zero"],
)
@pytest.mark.parametrize("method", ["tucker2", "cp", "spatial_svd", "channel_svd", "tensor_train"])
def test_a_bad_weight_is_left_alone_and_the_others_are_not(
    build: Callable[[], nn.Module], reason: Reason, text: str, method: str
) -> None:
    gm = fxdecomp.trace(build(), X)
    before = {key: value.clone() for key, value in gm.state_dict().items()}
    small = fxdecomp.transform(gm, Policy(rules=[Rule("*", method, 2)]))
    report = fxdecomp.report(small)
    assert [(s.site, s.reason, s.sentence) for s in report.skipped] == [("2", reason, text)]
    assert [a.site for a in report.applied] == ["0"]
    assert all(torch.equal(v, before[k]) | v.isnan().any() for k, v in gm.state_dict().items())


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_zero_sized_layer(exported: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 0), nn.Linear(0, 4))
    x = image(2, 6)
    gm = fxdecomp.trace(torch.export.export(model, (x,)) if exported else model, x)
    small = fxdecomp.transform(gm, FULL)
    assert {s.reason for s in fxdecomp.report(small).skipped} == {Reason.UNSUPPORTED_TENSOR}
    assert len(fxdecomp.report(small).skipped) == 2


def test_an_empty_batch() -> None:
    gm = fxdecomp.trace(small_vgg(), image(0, 3, 16, 16))
    report = fxdecomp.report(fxdecomp.transform(gm, FULL))
    assert len(report.outcomes) == 5
    assert report.macs_before == report.macs_after == 0


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (
            Policy(method="tucker2", rank=(96, 80)),
            '"0" (Conv2d 3->16, 3x3): rank (96, 80) exceeds (16, 3) in mode 0; lower it, or use Energy(0.9)',
        ),
        (
            Policy(method="tucker2", rank=(16, 4)),
            '"0" (Conv2d 3->16, 3x3): rank (16, 4) exceeds (16, 3) in mode 1; lower it, or use Energy(0.9)',
        ),
        (
            Policy(rules=[Rule("14", method="svd", rank=11)]),
            '"14" (Linear 64->10): rank 11 exceeds 10; lower it, or use Energy(0.9)',
        ),
        (
            Policy(rules=[Rule("4", method="tucker2", rank=(8, 4, 2))]),
            '"4" (Conv2d 16->32, 3x3): rank (8, 4, 2) has 3 entries, tucker2 takes 2',
        ),
        (
            Policy(rules=[Rule("clasifier.*", method="svd", rank=4)]),
            "pattern 'clasifier.*' matches no layer; the layers are 0, 4, 7, 11, 14",
        ),
        (
            Policy("svd", 2, exclude=["head"]),
            "pattern 'head' matches no layer; the layers are 0, 4, 7, 11, 14",
        ),
        (
            Policy(rules=[Rule("1*", method="svd", rank=4), Rule("*4", method="svd", rank=5)]),
            "layer \"14\" matches both '1*' and '*4', which want different things; "
            "make the patterns disjoint",
        ),
    ],
    ids=["rank too high", "in mode 1", "svd", "length", "no match", "exclude", "conflict"],
)
def test_a_policy_that_does_not_fit_the_network(policy: Policy, text: str) -> None:
    gm = fxdecomp.trace(small_vgg(), X)
    code, before = gm.code, {key: value.clone() for key, value in gm.state_dict().items()}
    with pytest.raises(PolicyError) as caught:
        fxdecomp.transform(gm, policy)
    assert str(caught.value) == text
    assert gm.code == code
    assert all(torch.equal(value, before[key]) for key, value in gm.state_dict().items())


def test_a_network_without_a_layer() -> None:
    gm = fxdecomp.trace(nn.Sequential(nn.ReLU(), nn.Flatten()), X)
    with pytest.raises(PolicyError, match="the graph has no Conv or Linear; there is nothing to decompose"):
        fxdecomp.transform(gm, HALF)
    assert fxdecomp.report(gm).outcomes == ()


def test_a_model_in_train_mode_is_traced_in_eval_mode() -> None:
    model = small_vgg().train()
    gm = fxdecomp.trace(model, X)
    wanted = model.eval()(X)
    assert torch.equal(gm(X), wanted)


def test_a_model_that_hangs_on_nothing() -> None:
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.forward(self.fc(x))

    with pytest.raises(
        fxdecomp.TraceError, match=r"the network does not run on the example inputs: RecursionError"
    ):
        fxdecomp.trace(Recursive(), image(1, 4))


@pytest.mark.parametrize("wrong", [nn.Linear(4, 4), None, 3])
def test_what_is_no_graph_module(wrong: object) -> None:
    with pytest.raises((TypeError, fxdecomp.FxdecompError)) as caught:
        fxdecomp.transform(wrong, HALF)
    assert "fxdecomp.trace" in str(caught.value)


@pytest.mark.parametrize("wrong", ["model.pt", 3, None, lambda x: x])
def test_what_is_no_model(wrong: object) -> None:
    with pytest.raises(fxdecomp.TraceError) as caught:
        fxdecomp.trace(wrong, X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, X)])
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:.torch.jit:FutureWarning")
def test_a_script_module(make: Callable[[nn.Module], nn.Module]) -> None:
    model = make(small_vgg())
    with pytest.raises(fxdecomp.TraceError) as caught:
        fxdecomp.trace(model, X)
    assert str(caught.value) == (
        "a ScriptModule cannot be traced; give the torch.nn.Module that it was made from"
    )


def test_inputs_that_can_be_read_once_only() -> None:
    with pytest.raises(fxdecomp.TraceError, match="a tensor, a tuple, a list or a dict, got generator"):
        fxdecomp.trace(small_vgg(), (x for x in (X,)))


def test_a_network_in_place_of_a_graph() -> None:
    model, said = small_vgg(), "takes a GraphModule, got Sequential; use fxdecomp.trace"
    gm = fxdecomp.trace(model, X)
    with pytest.raises(fxdecomp.FxdecompError, match=f"report {said}"):
        fxdecomp.report(model)
    with pytest.raises(fxdecomp.FxdecompError, match=f"graph_diff {said}"):
        fxdecomp.graph_diff(model, gm)
    with pytest.raises(fxdecomp.FxdecompError, match=f"graph_diff {said}"):
        fxdecomp.graph_diff(gm, model)


def test_what_is_no_calibration() -> None:
    with pytest.raises(fxdecomp.CalibrationError, match="calibration is of int, wanted an iterable"):
        fxdecomp.transform(fxdecomp.trace(small_vgg(), X), HALF, calibration=3)


class FixedBatch(nn.Module):
    """Takes two inputs at a time and no other number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).reshape(2, 8, 8)


def test_a_batch_that_does_not_fit_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    gm = fxdecomp.trace(FixedBatch().eval(), torch.randn(2, 64))
    wrong = [torch.randn(3, 64)] * 4
    with pytest.raises(fxdecomp.CalibrationError, match="calibration batch"):
        fxdecomp.transform(gm, HALF, calibration=wrong)
    small = fxdecomp.transform(gm, Policy(budget=fxdecomp.MACs(0.5)))  # made-up inputs do not fit either
    with pytest.raises(fxdecomp.FxdecompError, match="does not fit"):
        fxdecomp.recover(small, gm, wrong, steps=1)
    with pytest.raises(fxdecomp.FxdecompError, match="does not fit"):
        fxdecomp.search(gm, torch.randn(2, 64), calibration=wrong, evaluations=1)
    assert "Call using an FX-traced Module" not in capfd.readouterr().err


def test_what_is_no_policy() -> None:
    gm = fxdecomp.trace(small_vgg(), X)
    with pytest.raises((TypeError, PolicyError), match="Policy"):
        fxdecomp.transform(gm, "tucker2")
