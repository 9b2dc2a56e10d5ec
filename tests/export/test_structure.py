"""What a decomposed network looks like in its ONNX file: nothing is left over around a chain."""

import copy
import itertools
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Policy, Rule
from fxdecomp.decompositions import METHODS
from fxdecomp.export import check_parity, to_onnx
from fxdecomp.graphs.records import record_of
from fxdecomp.outcomes import Applied

SPATIAL = [method.name for method in METHODS if method.name != "svd"]


class EveryMethod(nn.Module):
    """A 3x3 layer with BatchNorm for each method, added to its input; then a 1x1 layer and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
                )
                for name in SPATIAL
            }
        )
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.head = nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in SPATIAL:
            x = x + self.body[name](x)
        return self.head(torch.relu(self.pointwise(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> GraphModule:
    torch.manual_seed(0)
    net = EveryMethod().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    rules = [Rule(f"body.{name}.*", method=name, rank=6) for name in SPATIAL]
    rules += [Rule(site, method="svd", rank=6) for site in ("pointwise", "head")]
    return fxdecomp.transform(fxdecomp.trace(net, image()), Policy(rules=rules))


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)).to(dtype)


def chains(gm: GraphModule) -> list[Applied]:
    record = record_of(gm)
    assert record is not None
    return [outcome for outcome in record.outcomes if isinstance(outcome, Applied)]


def test_every_chain_is_its_stages_in_a_row_and_nothing_else(small: GraphModule, tmp_path: Path) -> None:
    to_onnx(small, image(), tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    nodes = {node.name: node for node in graph.node}
    readers = {
        value: [n.name for n in graph.node if value in n.input] for n in graph.node for value in n.output
    }
    assert len(chains(small)) == len(SPATIAL) + 2
    for chain in chains(small):
        stages = [f"{chain.site}.{stage}" for stage in chain.stages]
        for before, after in itertools.pairwise(stages):
            assert readers[nodes[before].output[0]] == [after]
        for stage in stages:
            assert nodes[stage].op_type == ("Gemm" if chain.site == "head" else "Conv")
            assert nodes[stage].input[1] == f"{stage}.weight"
            # The bias is an input of the last stage, and of no other.
            assert list(nodes[stage].input[2:]) == ([f"{stage}.bias"] if stage == stages[-1] else [])


def test_no_operator_is_left_over(small: GraphModule, tmp_path: Path) -> None:
    to_onnx(small, image(), tmp_path / "net.onnx")
    counted: dict[str, int] = {}
    for node in onnx.load(tmp_path / "net.onnx").graph.node:
        counted[node.op_type] = counted.get(node.op_type, 0) + 1
    stages = sum(len(chain.stages) for chain in chains(small))
    assert counted == {
        "Conv": 1 + stages - 2,
        "Relu": len(SPATIAL) + 1,
        "Add": len(SPATIAL),
        "ReduceMean": 1,
        "Gemm": 2,
    }


@pytest.mark.parametrize("opset", range(18, 24))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 5e-3)])
def test_every_method_agrees_in_every_opset_and_type(
    small: GraphModule, tmp_path: Path, opset: int, dtype: torch.dtype, tolerance: float
) -> None:
    report = to_onnx(cast(small, dtype), image(dtype), tmp_path / "net.onnx", opset=opset)
    assert report.opset == opset
    assert 0 < report.max_relative < tolerance
    assert report.dynamic_batch
    weights = [item for item in onnx.load(tmp_path / "net.onnx").graph.initializer if "weight" in item.name]
    stored = onnx.helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=dtype).numpy().dtype)
    assert {item.data_type for item in weights} == {stored}


@pytest.mark.parametrize("opset", [18, 23])
def test_every_method_agrees_at_every_batch_and_size(small: GraphModule, tmp_path: Path, opset: int) -> None:
    path = tmp_path / "net.onnx"
    report = to_onnx(small, image(), path, dynamic_batch=True, dynamic_axes=(2, 3), opset=opset)
    assert (report.dynamic_batch, report.dynamic_axes) == (True, (2, 3))
    others = [torch.randn(batch, 3, height, width) for batch, height, width in ((1, 9, 17), (5, 16, 8))]
    assert max(row.max_relative for row in check_parity(small, path, others)) < 1e-5


@pytest.mark.parametrize("opset", [18, 23])
def test_every_method_bears_int8_and_half_precision(small: GraphModule, tmp_path: Path, opset: int) -> None:
    batches = [torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    for kind, most in (("int8", 0.1), ("fp16", 0.005)):
        report = to_onnx(
            small, image(), tmp_path / f"{kind}.onnx", opset=opset, quantize=kind, calibration=batches
        )
        assert report.max_relative < 1e-5  # the model before
        assert report.quantization.kept == ()
        assert 0 < report.quantization.error < most


def test_linear_chains_agree_in_double_precision(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24)).double()
    example = torch.randn(4, 24, dtype=torch.float64)
    gm = fxdecomp.transform(fxdecomp.trace(net, example), Policy(rules=[Rule("*", "svd", 4)]))
    assert len(chains(gm)) == 2
    report = to_onnx(gm, example, tmp_path / "net.onnx")
    assert report.max_relative < 1e-12


def test_a_type_that_the_runtime_lacks_is_a_clear_error(small: GraphModule, tmp_path: Path) -> None:
    with pytest.raises(fxdecomp.errors.ExportError, match="Could not find an implementation for Conv"):
        to_onnx(cast(small, torch.float64), image(torch.float64), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def cast(gm: GraphModule, dtype: torch.dtype) -> GraphModule:
    return copy.deepcopy(gm).to(dtype)
