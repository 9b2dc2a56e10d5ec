"""Words of Python are names of layers like any others."""

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp import Policy, Rule
from tests.nets import drawn, image, relative_difference

X = image(2, 4, 8)


class Branches(nn.Module):
    """Layers `from.class`, `from.lambda` and `import`, as configurations name them; one is two words."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.add_module("from", nn.ModuleDict({"class": nn.Linear(8, 8), "lambda": nn.Linear(8, 8)}))
        self.add_module(
            "import", nn.MultiheadAttention(8, 2, batch_first=True) if attention else nn.Linear(8, 8)
        )
        self.register_parameter("global", nn.Parameter(torch.ones(8)))
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        layers = getattr(self, "from")
        x = layers["lambda"](layers["class"](x).relu()) * getattr(self, "global")
        last = getattr(self, "import")
        return last(x, x, x)[0] if self.attention else last(x)


POLICY = Policy(rules=[Rule("from.class", "svd", 3), Rule("from.lam*", "svd", 2)], exclude=["import*"])


@pytest.mark.parametrize("attention", [False, True], ids=["symbolic_trace", "torch.export"])
def test_layers_may_be_called_by_words_of_python(attention: bool, tmp_path: Path) -> None:
    net = drawn(Branches(attention))
    gm = fxdecomp.trace(net, X)
    assert fxdecomp.report(gm).record.traced_with == ("torch.export" if attention else "symbolic_trace")
    assert relative_difference(net, gm, X) < 1e-6
    small = fxdecomp.transform(gm, POLICY)
    report = fxdecomp.report(small)
    assert [(done.site, done.rank) for done in report.applied] == [
        ("from.class", (3,)),
        ("from.lambda", (2,)),
    ]
    assert "from.class.pointwise_in" in fxdecomp.graph_diff(gm, small)
    again = fxdecomp.transform(gm, Policy.from_plan(report.plan))
    assert torch.equal(again(X), small(X))
    small.recompile()
    assert torch.equal(copy.deepcopy(small)(X), small(X))
    path = tmp_path / "small.onnx"
    assert fxdecomp.export.to_onnx(small, X, path).dynamic_batch
    assert relative_difference(small, fxdecomp.importing.from_onnx(path).gm, X) < 1e-5


def test_they_survive_a_pickle() -> None:
    small = fxdecomp.transform(fxdecomp.trace(drawn(Branches(False)), X), POLICY)
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(X), small(X))


def test_torch_is_left_as_it_was() -> None:
    kept = torch.fx.graph._format_target
    fxdecomp.trace(Branches(False), X)
    assert torch.fx.graph._format_target is kept
    with pytest.raises(SyntaxError):
        torch.fx.symbolic_trace(Branches(False))
