"""A BatchNorm is folded where that keeps the function, and left with its reason where it would not."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxdecomp
from fxdecomp.outcomes import Folded
from fxdecomp.passes import FoldBatchNorm
from tests.nets import drawn, image, relative_difference

X = image(2, 4, 6, 6).double()


def folded(gm: GraphModule) -> tuple[GraphModule, tuple[Folded, ...]]:
    result = FoldBatchNorm()(gm)
    return result, fxdecomp.report(result).record.folds


def check(model: nn.Module, x: Tensor = X) -> tuple[Folded, ...]:
    model = drawn(model).double()
    gm = fxdecomp.trace(model, x)
    result, folds = folded(gm)
    assert relative_difference(model, result, x) < 1e-13
    again, _ = folded(result)
    assert fxdecomp.graph_diff(result, again) == ""
    return folds


class Net(nn.Module):
    """Two layers and two BatchNorms, wired by each test."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def conv(**options: object) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, **options)


@pytest.mark.parametrize(
    ("layer", "norm", "x"),
    [
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), image(2, 4, 8)),
        (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), image(2, 4, 8, 8)),
        (nn.Conv2d(4, 6, 3, bias=False, groups=2), nn.BatchNorm2d(6, affine=False), image(2, 4, 8, 8)),
        (nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), image(2, 4, 5, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), image(2, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), image(2, 4, 5, 5)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), image(3, 4)),
        (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6, eps=0.1), image(3, 4)),
    ],
    ids=str,
)
def test_folded(layer: nn.Module, norm: nn.Module, x: Tensor) -> None:
    assert check(nn.Sequential(layer, norm), x.double()) == (Folded("1", "0"),)


def test_the_same_layer_and_norm_at_two_places() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(F.relu(self.norm(self.conv(x)))))

    assert check(Twice(conv=conv(), norm=nn.BatchNorm2d(4))) == (Folded("norm", "conv"),)


def test_one_layer_and_two_norms() -> None:
    class Shared(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm2(self.conv(F.relu(self.norm1(self.conv(x)))))

    folds = check(Shared(conv=conv(), norm1=nn.BatchNorm2d(4), norm2=nn.BatchNorm2d(4)))
    assert [fold.into for fold in folds] == [None, None]
    assert folds[0].reason == "conv is applied at 2 places, not all followed by this BatchNorm"


def test_one_norm_after_two_layers() -> None:
    class Shared(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv2(F.relu(self.norm(self.conv1(x)))))

    folds = check(Shared(conv1=conv(), conv2=conv(), norm=nn.BatchNorm2d(4)))
    assert folds == (Folded("norm", "conv1, conv2"),)


def test_one_norm_that_can_be_folded_at_one_of_two_places() -> None:
    class Shared(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(F.relu(self.norm(self.conv(x))))

    folds = check(Shared(conv=conv(), norm=nn.BatchNorm2d(4)))
    assert folds == (Folded("norm", "conv", "no Conv or Linear that can be changed stands before it"),)


def test_the_layers_output_is_used_elsewhere() -> None:
    class Branch(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    (fold,) = check(Branch(conv=conv(), norm=nn.BatchNorm2d(4)))
    assert fold == Folded("norm", None, "the output of conv is also used elsewhere")


def test_the_layers_output_is_an_output_too() -> None:
    class Both(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return self.norm(y), y

    gm = fxdecomp.trace(drawn(Both(conv=conv(), norm=nn.BatchNorm2d(4))).double(), X)
    result, (fold,) = folded(gm)
    assert fold.reason == "the output of conv is also used elsewhere"
    assert all(torch.equal(a, b) for a, b in zip(gm(X), result(X), strict=True))


def test_train_mode_is_left_alone() -> None:
    gm = fxdecomp.trace(drawn(nn.Sequential(conv(), nn.BatchNorm2d(4))).double(), X)
    gm.get_submodule("1").train()
    _, (fold,) = folded(gm)
    assert fold == Folded("1", None, "it is in train mode; call eval() before tracing")


def test_no_running_statistics() -> None:
    (fold,) = check(nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)))
    assert fold == Folded("1", None, "it keeps no running statistics")


def test_another_axis() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    (fold,) = check(model, image(2, 4, 6).double())
    assert fold.into is None
    assert fold.reason == "0 is a Linear over more than one axis, and the BatchNorm works on another one"


def test_nothing_stands_before_it() -> None:
    (fold,) = check(nn.Sequential(nn.BatchNorm2d(4), conv()))
    assert fold == Folded("0", None, "no Conv or Linear that can be changed stands before it")


def test_an_activation_between() -> None:
    (fold,) = check(nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4)))
    assert fold.into is None


def test_a_tied_weight() -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__(conv1=conv(), conv2=conv(), norm=nn.BatchNorm2d(4))
            self.conv2.weight = self.conv1.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv1(x)) + self.conv2(x)

    (fold,) = check(Tied())
    assert fold.into is None


@pytest.mark.parametrize("decomposed", [False, True])
def test_in_the_graphs_of_torch_export(decomposed: bool) -> None:
    model = drawn(
        nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(bias=False), nn.BatchNorm2d(4))
    ).double()
    program = torch.export.export(model, (X,))
    gm = fxdecomp.trace(program.run_decompositions() if decomposed else program, X)
    result, folds = folded(gm)
    assert folds == (Folded("1", "0"), Folded("4", "3"))
    assert relative_difference(model, result, X) < 1e-13
    assert "batch_norm" not in str(result.graph)


def test_the_functional_batch_norm() -> None:
    class Functional(Net):
        def __init__(self) -> None:
            super().__init__(conv=conv(), norm=nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            n = self.norm
            return F.batch_norm(
                self.conv(x), n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, 1e-3
            )

    assert check(Functional()) == (Folded("norm", "conv"),)


def test_half_precision_folds_in_its_own_type() -> None:
    model = drawn(nn.Sequential(conv(), nn.BatchNorm2d(4))).bfloat16()
    gm = fxdecomp.trace(model, X.bfloat16())
    result, folds = folded(gm)
    assert folds == (Folded("1", "0"),)
    assert {parameter.dtype for parameter in result.parameters()} == {torch.bfloat16}
    assert relative_difference(model, result, X.bfloat16()) < 0.02


def test_two_norms_behind_one_layer_are_folded_in_one_run() -> None:
    folds = check(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)))
    assert folds == tuple(Folded(name, "0") for name in "123")


def test_a_second_norm_that_must_stay_keeps_its_reason() -> None:
    second = nn.BatchNorm2d(8, track_running_stats=False)
    folds = check(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), second, nn.BatchNorm2d(8)))
    assert [fold.into for fold in folds] == ["0", None, None]
    assert folds[1].reason == "it keeps no running statistics"
    assert folds[2].reason == "no Conv or Linear that can be changed stands before it"


@pytest.mark.parametrize("method", ["tucker2", "spatial_svd", "channel_svd", "tensor_train", "cp", "cp3"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_scales_that_training_drove_towards_zero(method: str, calibrated: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(model[0].weight.shape, generator=generator) * 0.1)
        model[1].weight[:12] = 10.0 ** (-20 * torch.rand(12, generator=generator))
    x = image(8, 16, 7, 7)
    gm = fxdecomp.trace(model, x)
    data = [x[:4], x[4:]] if calibrated else None
    policy = fxdecomp.Policy(method=method, rank=0.75, require_saving=False)
    small = fxdecomp.transform(gm, policy, calibration=data)
    (done,) = fxdecomp.report(small).applied
    if not calibrated:
        assert done.relative_error < (0.9 if method in ("cp", "cp3") else 0.4)
    assert bool(small(x).isfinite().all())
