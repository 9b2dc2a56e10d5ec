"""Every geometry through `transform`: full rank is exact, and what is reported is what the graph takes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp.decompositions import method_for, method_named
from fxdecomp.sites import survey
from fxdecomp.sites.modules import Layer
from tests.nets import drawn, image, relative_difference

# Of torch's own, at the first even kernel with padding "same" in a process.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(5, 7, 5, stride=2, padding=3, dilation=2), (2, 5, 20)),
    "conv1d same": (lambda: nn.Conv1d(5, 7, 4, padding="same", bias=False), (2, 5, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, padding=1), (2, 6, 7, 8)),
    "per axis": (
        lambda: nn.Conv2d(6, 4, (3, 5), stride=(2, 1), padding=(0, 3), dilation=(1, 2)),
        (2, 6, 11, 13),
    ),
    "stride over kernel": (lambda: nn.Conv2d(6, 4, 2, stride=3, padding=1), (2, 6, 11, 13)),
    "same, even kernel": (lambda: nn.Conv2d(6, 4, (2, 4), padding="same", dilation=(3, 1)), (2, 6, 9, 9)),
    "valid": (lambda: nn.Conv2d(6, 4, 3, padding="valid"), (2, 6, 7, 7)),
    "even kernel": (lambda: nn.Conv2d(6, 4, 4, padding=1), (2, 6, 7, 7)),
    "reflect": (lambda: nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode="reflect"), (2, 6, 7, 7)),
    "replicate": (lambda: nn.Conv2d(6, 4, 3, padding=2, padding_mode="replicate"), (2, 6, 7, 7)),
    "circular": (lambda: nn.Conv2d(6, 4, 3, padding=(2, 1), padding_mode="circular", stride=2), (2, 6, 7, 7)),
    "reflect same": (lambda: nn.Conv2d(6, 4, 4, padding="same", padding_mode="reflect"), (2, 6, 7, 7)),
    "groups": (lambda: nn.Conv2d(6, 9, 3, padding=1, groups=3), (2, 6, 7, 7)),
    "1xk": (lambda: nn.Conv2d(6, 4, (1, 5), padding=(0, 2)), (2, 6, 7, 7)),
    "kx1": (lambda: nn.Conv2d(6, 4, (3, 1), stride=2), (2, 6, 7, 7)),
    "1x1 strided": (lambda: nn.Conv2d(6, 4, 1, stride=2), (2, 6, 7, 7)),
    "1x1 padded": (lambda: nn.Conv2d(6, 4, 1, padding=1), (2, 6, 7, 7)),
    "kernel over input": (lambda: nn.Conv2d(6, 4, 7, padding=3), (2, 6, 3, 2)),
    "1 to 7 channels": (lambda: nn.Conv2d(1, 7, 3), (2, 1, 7, 7)),
    "7 to 1 channels": (lambda: nn.Conv2d(7, 1, 3, bias=False), (2, 7, 7, 7)),
    "3 channels": (lambda: nn.Conv2d(3, 3, 3), (2, 3, 7, 7)),
    "no batch axis": (lambda: nn.Conv2d(6, 4, 3), (6, 7, 7)),
    "conv3d": (
        lambda: nn.Conv3d(4, 5, (3, 2, 3), stride=(1, 2, 1), padding=(1, 0, 2), dilation=(1, 1, 2)),
        (2, 4, 5, 6, 7),
    ),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), (2, 4, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 6)),
    "transposed per axis": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=(1, 3), padding=(2, 0), dilation=(2, 1), bias=False),
        (2, 4, 5, 6),
    ),
    "transposed groups": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 6)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(3, 4, 2, stride=2), (1, 3, 3, 4, 2)),
    "linear": (lambda: nn.Linear(7, 5), (3, 7)),
    "linear over three axes": (lambda: nn.Linear(7, 5, bias=False), (2, 3, 4, 7)),
    "linear over none": (lambda: nn.Linear(7, 5), (7,)),
}
METHODS = ("tucker2", "spatial_svd", "channel_svd", "tensor_train")


def counted_macs(gm: GraphModule, x: Tensor) -> int:
    """Multiply-accumulates by what flows through the modules."""
    counts = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        flowing = inputs[0] if getattr(module, "transposed", False) else output
        counts.append(module.weight.numel() * flowing.numel() // module.weight.shape[0])

    def count_grouped(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if getattr(module, "transposed", False):
            counts.append(module.weight.numel() * inputs[0].numel() // module.in_channels)
        else:
            count(module, inputs, output)

    handles = [m.register_forward_hook(count_grouped) for m in gm.modules() if isinstance(m, Layer)]
    gm(x)
    for handle in handles:
        handle.remove()
    return sum(counts)


def at_full_rank(gm: GraphModule, method: str) -> GraphModule:
    (site,) = survey(gm).sites
    chosen = method_for(method_named(method), site.spec.per_group)
    rank = 1 if chosen.refusal(site.spec.per_group) else chosen.rank_limits(site.spec.per_group)
    return fxdecomp.transform(gm, fxdecomp.Policy(method=method, rank=rank, require_saving=False))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_full_rank_is_exact_and_the_report_is_true(name: str, method: str) -> None:
    build, shape = CONVOLUTIONS[name]
    model = drawn(nn.Sequential(build())).double()
    x = image(*shape).double()
    gm = fxdecomp.trace(model, x)
    small = at_full_rank(gm, method)
    (outcome,) = fxdecomp.report(small).outcomes
    if isinstance(outcome, fxdecomp.Skipped):
        assert outcome.reason is fxdecomp.Reason.UNSUITED, outcome.sentence
        assert outcome.detail
        assert fxdecomp.graph_diff(gm, small) == ""
        return
    assert relative_difference(model, small, x) < 1e-12
    assert outcome.relative_error < 1e-12
    assert outcome.macs_before == counted_macs(gm, x)
    assert outcome.macs_after == counted_macs(small, x)
    assert outcome.params_before == sum(p.numel() for p in model.parameters())
    assert outcome.params_after == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_what_suits_no_method_is_little(method: str) -> None:
    """The geometries that a method refuses, by name: none may be added by accident."""
    refused = set()
    for name, (build, shape) in CONVOLUTIONS.items():
        model = drawn(nn.Sequential(build()))
        policy = fxdecomp.Policy(method=method, rank=1.0, require_saving=False)
        report = fxdecomp.report(fxdecomp.transform(fxdecomp.trace(model, image(*shape)), policy))
        if report.skipped:
            refused.add(name)
    assert refused == REFUSED[method], refused


REFUSED: dict[str, set[str]] = {
    "tucker2": set(),
    "spatial_svd": {"conv1d", "conv1d same", "conv3d", "transposed 1d", "transposed 3d"},
    "channel_svd": set(),
    "tensor_train": set(),
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("method", ["tucker2", "cp", "cp3", "spatial_svd", "channel_svd"])
def test_the_reported_error_is_that_of_the_layer_applied_to_unit_impulses(method: str, rank: int) -> None:
    """With every unit vector as input, the output is the weight itself: the error can be measured there."""
    conv = drawn(nn.Sequential(nn.Conv2d(6, 4, 3, bias=False))).double()
    impulses = torch.eye(6 * 9, dtype=torch.float64).reshape(54, 6, 3, 3)
    gm = fxdecomp.trace(conv, impulses)
    small = fxdecomp.transform(gm, fxdecomp.Policy(method=method, rank=rank, require_saving=False))
    (outcome,) = fxdecomp.report(small).applied
    with torch.no_grad():
        measured = torch.linalg.vector_norm(gm(impulses) - small(impulses)) / torch.linalg.vector_norm(
            gm(impulses)
        )
    assert outcome.relative_error == pytest.approx(float(measured), rel=1e-9)


def test_depthwise_is_skipped() -> None:
    model = drawn(
        nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 8, 3))
    )
    small = fxdecomp.transform(
        fxdecomp.trace(model, image(1, 6, 9, 9)), fxdecomp.Policy(rules=[fxdecomp.Rule("*", "tucker2", 2)])
    )
    report = fxdecomp.report(small)
    assert [s.reason for s in report.skipped] == [fxdecomp.Reason.DEPTHWISE] * 2
    assert [a.site for a in report.applied] == ["2"]


def test_no_saving_is_left_alone_with_its_numbers() -> None:
    model = drawn(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)))
    gm = fxdecomp.trace(model, image(1, 8, 4, 4))
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="tucker2", rank=8))
    (skipped,) = fxdecomp.report(small).skipped
    assert skipped.sentence == (
        "the chain would not take fewer multiply-accumulates: "
        "tucker2 at rank (8, 8) takes 11,264, the layer 9,216"
    )
    assert fxdecomp.graph_diff(gm, small) == ""


def test_a_layer_at_two_sizes_counts_both() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.conv(x), self.conv(self.pool(x))

    gm = fxdecomp.trace(drawn(Pyramid()), image(1, 8, 8, 8))
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="tucker2", rank=2))
    (applied,) = fxdecomp.report(small).applied
    assert applied.calls == 2
    assert applied.macs_before == 8 * 8 * 9 * (64 + 16)
    assert applied.macs_after == (16 + 36 + 16) * (64 + 16)
    assert applied.params_after == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)],
    ids=str,
)
def test_every_floating_type_comes_back_in_its_own(dtype: torch.dtype, tolerance: float) -> None:
    model = drawn(
        nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 6))
    )
    model, x = model.to(dtype), image(2, 8, 6, 6).to(dtype)
    small = fxdecomp.transform(
        fxdecomp.trace(model, x), fxdecomp.Policy(method="tucker2", rank=1.0, require_saving=False)
    )
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert relative_difference(model, small, x) < tolerance
    assert all(a.relative_error < max(tolerance, 1e-6) for a in fxdecomp.report(small).applied)


@pytest.mark.parametrize("layout", ["channels_last", "strided", "transposed"])
def test_weights_that_are_not_contiguous(layout: str) -> None:
    model = drawn(nn.Sequential(nn.Conv2d(8, 12, 3, padding=1))).double()
    weight = model[0].weight.detach()
    if layout == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    elif layout == "strided":
        model[0].weight = nn.Parameter(torch.stack([weight, weight], -1)[..., 0])
    else:
        model[0].weight = nn.Parameter(weight.transpose(0, 1).contiguous().transpose(0, 1))
    assert not model[0].weight.is_contiguous()
    x = image(2, 8, 6, 6).double()
    small = fxdecomp.transform(
        fxdecomp.trace(model, x), fxdecomp.Policy(method="tucker2", rank=1.0, require_saving=False)
    )
    assert relative_difference(model, small, x) < 1e-13


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 1), nn.ConvTranspose2d(8, 12, 3)]
)
def test_outputs_lie_in_memory_as_before(conv: nn.Module) -> None:
    class Flattening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = conv, nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(self.conv(x).permute(0, 2, 3, 1).view(-1, 12))
            return y

    model = drawn(Flattening()).double().to(memory_format=torch.channels_last)
    x = image(2, 8, 6, 6).double()
    gm = fxdecomp.trace(model, x)
    for calibration in (None, [x]):
        small = fxdecomp.transform(
            gm,
            fxdecomp.Policy(method="tucker2", rank=1.0, require_saving=False),
            calibration=calibration,
        )
        assert relative_difference(model, small, x) < 1e-7
