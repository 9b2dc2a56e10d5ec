"""Networks that users met: a file that is right at every size that it takes, or one sentence why not."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp.export import to_onnx
from fxdecomp.graphs.drawing import drawn_like
from tests.nets import drawn, image


def outputs(path: Path, *inputs: Tensor) -> list[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    return session.run(None, dict(zip(names, (value.numpy() for value in inputs), strict=True)))


class Patches(nn.Module):
    """Patches of an image straight into self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


@pytest.mark.parametrize(
    ("make", "shape", "rows"),
    [(Patches, (3, 16, 16), 1), (Patches, (3, 16, 16), 2), (Encoder, (5, 32), 3)],
)
def test_attention_is_right_at_every_batch(
    make: type[nn.Module], shape: tuple[int, ...], rows: int, tmp_path: Path
) -> None:
    net = drawn(make()).eval()
    gm = fxdecomp.trace(net, image(rows, *shape))
    small = fxdecomp.transform(gm, fxdecomp.Policy("svd", 8), calibration=[image(1, *shape)])
    assert fxdecomp.report(small).modified
    for graph in (gm, small):
        report = to_onnx(graph, image(rows, *shape), tmp_path / "a.onnx", dynamic_batch=True)
        assert report.dynamic_batch
        for batch in (1, 2, 5):
            x = image(batch, *shape, seed=batch)
            wanted = net(x) if graph is gm else small(x)
            got = outputs(tmp_path / "a.onnx", x)[0]
            np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)


class Deciding(nn.Module):
    """Computes something else for so many rows, of its own will; attention makes torch.export trace it."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(x, x, x)[0]
        return y * 2 if x.shape[0] == self.rows else y


@pytest.mark.parametrize("rows", [1, 3])
def test_a_condition_of_the_networks_own_is_kept(rows: int, tmp_path: Path) -> None:
    """Of one row torch.export says nothing: it takes a free size for two at least."""
    net = drawn(Deciding(rows)).eval()
    gm = fxdecomp.trace(net, image(2, 5, 8))
    with pytest.raises(fxdecomp.TraceError, match=rf"the graph holds where x\.shape\[0\] != {rows}, which"):
        gm(image(rows, 5, 8))
    assert torch.allclose(gm(image(5, 5, 8)), net(image(5, 5, 8)), atol=1e-6)
    report = to_onnx(gm, image(2, 5, 8), tmp_path / "a.onnx")
    assert not report.dynamic_batch
    told = f"the batch size is fixed to the example's: PyTorch fails at batch {rows}: the graph holds where"
    assert report.notes[0].startswith(told)


class Graph(nn.Module):
    """Node features and an edge list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.second(torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]))


class Bags(nn.Module):
    """Bags of words with offsets, which must begin with 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(50, 16, mode="sum"), nn.Linear(16, 4)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.out(self.bag(ids, offsets))


EDGES = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
IDS = torch.arange(14) * 3 % 50


@pytest.mark.parametrize(
    ("net", "inputs"), [(Graph(), (image(6, 8), EDGES)), (Bags(), (IDS, torch.tensor([0, 5])))]
)
def test_a_network_that_takes_no_other_batch_has_a_fixed_one(
    net: nn.Module, inputs: tuple[Tensor, ...], tmp_path: Path
) -> None:
    net = drawn(net).eval()
    report = to_onnx(fxdecomp.trace(net, inputs), inputs, tmp_path / "a.onnx")
    assert not report.dynamic_batch
    assert report.notes[0].startswith("the batch size is fixed to the example's: PyTorch fails at batch 1: ")
    assert len(report.parity) == 6  # three inputs, with ONNX Runtime's optimisations off and on
    wanted = net(*inputs).detach().numpy()
    np.testing.assert_allclose(outputs(tmp_path / "a.onnx", *inputs)[0], wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(
        fxdecomp.ExportError, match="the batch size cannot be dynamic: PyTorch fails at batch 1"
    ):
        to_onnx(fxdecomp.trace(net, inputs), inputs, tmp_path / "a.onnx", dynamic_batch=True)


class Choosy(nn.Module):
    """Takes only whole numbers that sum to six."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        return torch.repeat_interleave(self.fc(x), counts, 0, output_size=6)


def test_a_network_that_refuses_what_is_drawn_is_compared_on_the_example(tmp_path: Path) -> None:
    inputs = (image(3, 8), torch.tensor([1, 4, 1]))
    try:
        report = to_onnx(
            fxdecomp.trace(drawn(Choosy()), inputs), inputs, tmp_path / "a.onnx", dynamic_batch=False
        )
    except fxdecomp.ExportError as error:
        assert "torch.onnx.export refuses the graph" in str(error)  # noqa: PT017 - the exporter's own limit
        return
    assert "the network refuses inputs that are drawn like the example" in report.notes[-1]


@pytest.mark.parametrize("example", [[0, 5], [0, 0, 3, 9], [2, 3, 7, 40, 41], [0, 1, 2, 3]])
def test_integers_that_ascend_ascend_again_between_the_same_ends(example: list[int]) -> None:
    value = torch.tensor(example)
    strict = len(set(example)) == len(example)
    seen = set()
    for seed in range(20):
        (new,) = drawn_like([value], seed)
        steps = new.diff()
        assert new.dtype == value.dtype
        assert (int(new[0]), int(new[-1]), len(new)) == (example[0], example[-1], len(example))
        assert bool((steps > 0).all() if strict else (steps >= 0).all())
        seen.add(tuple(new.tolist()))
    assert len(seen) > 1 or example in ([0, 5], [0, 1, 2, 3])


class Sequence(nn.Module):
    """A recurrent layer of any kind, and a head."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def recurrent(name: str) -> nn.Module:
    return {
        "lstm": lambda: nn.LSTM(16, 16, batch_first=True),
        "time first": lambda: nn.LSTM(16, 16),
        "two layers, both ways": lambda: nn.LSTM(16, 8, 2, bidirectional=True, batch_first=True),
        "without bias": lambda: nn.LSTM(16, 16, bias=False, batch_first=True),
        "gru": lambda: nn.GRU(16, 8, bidirectional=True, batch_first=True),
    }[name]()


@pytest.fixture
def without_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where torch goes through a sequence step by step."""

    def steps(*_: object, **__: object) -> None:
        raise AssertionError("the steps were gone through one by one")

    for each in ("one_layer_lstm", "one_layer_rnn"):
        monkeypatch.setattr(torch._decomp.decompositions, each, steps)


@pytest.mark.usefixtures("without_steps")
@pytest.mark.parametrize("name", ["lstm", "time first", "two layers, both ways", "without bias", "gru"])
def test_a_recurrent_layer_is_exported_whole_and_its_axes_are_free(name: str, tmp_path: Path) -> None:
    net, x = drawn(Sequence(recurrent(name))).eval(), image(2, 12, 16)
    to_onnx(fxdecomp.trace(net, x), x, tmp_path / "a.onnx", dynamic_batch=True, dynamic_axes=(1,))
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    assert [item.shape for item in session.get_inputs()] == [["batch", "axis_1", 16]]
    assert [item.shape for item in session.get_outputs()] == [["batch", "axis_1", 8]]
    for shape in [(1, 12, 16), (2, 30, 16), (5, 1, 16)]:
        wanted = net(image(*shape, seed=3)).detach().numpy()
        got = outputs(tmp_path / "a.onnx", image(*shape, seed=3))[0]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # of torch.export, for its own users
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_recurrent_layer_of_an_exported_graph_too(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    net, x = drawn(Sequence(recurrent(name))).eval(), image(2, 12, 16)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    gm = fxdecomp.trace(program, x)
    assert any(node.target in RECURRENT for node in gm.graph.nodes)
    request.getfixturevalue("without_steps")
    assert to_onnx(gm, x, tmp_path / "a.onnx", dynamic_batch=True).max_relative < 1e-4


RECURRENT = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)


@pytest.mark.filterwarnings("ignore:The tensor attributes", "ignore:LSTM with projections")
@pytest.mark.parametrize("aten", [False, True])
def test_an_lstm_that_projects_is_named(aten: bool, tmp_path: Path) -> None:
    net, x = Sequence(nn.LSTM(16, 32, proj_size=16)), image(5, 2, 16)
    gm = fxdecomp.trace(torch.export.export(net, (x,)) if aten else net, x)
    name = "lstm" if aten else "rnn"
    with pytest.raises(
        fxdecomp.ExportError, match=rf'^"{name}" is an LSTM with proj_size, and the LSTM of ONNX'
    ):
        to_onnx(gm, x, tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (nn.MaxPool2d(2, 2, 1, ceil_mode=True), (3, 3)),  # a last window would begin in the padding
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (6, 7)),
        (nn.MaxPool2d(2, 3, 1, ceil_mode=True), (5, 6)),
        (nn.MaxPool2d(3, 2, 1, dilation=2, ceil_mode=True), (9, 8)),
        (nn.AvgPool2d(2, 2, 1, ceil_mode=True), (3, 3)),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (6, 7)),
        (nn.AvgPool2d(2, 2, 1, ceil_mode=True, count_include_pad=False), (3, 3)),
    ],
    ids=str,
)
def test_a_pool_has_the_windows_that_pytorch_gives_it(
    pool: nn.Module, size: tuple[int, int], tmp_path: Path
) -> None:
    net, x = drawn(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), pool)).eval(), image(2, 3, *size)
    to_onnx(fxdecomp.trace(net, x), x, tmp_path / "a.onnx", dynamic_batch=True)
    wanted = net(x).detach().numpy()
    np.testing.assert_allclose(outputs(tmp_path / "a.onnx", x)[0], wanted, rtol=1e-4, atol=1e-6)


class Detecting(nn.Module):
    """Lists in a dictionary, and things that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.fc(x)
        return {"boxes": [y, y + 1], "scores": [y * 2], "rows": x.shape[0], "version": 3}


class Measuring(nn.Module):
    """A tensor, its sizes, and one of them doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, torch.Size, int]:
        return self.fc(x), x.shape, x.size(0) * 2


@pytest.mark.parametrize("exported", [False, True])
def test_outputs_are_called_by_the_keys_on_the_way_to_them(exported: bool, tmp_path: Path) -> None:
    net, x = drawn(Detecting()), image(2, 8)
    free = ({0: torch.export.Dim.AUTO},)
    gm = fxdecomp.trace(torch.export.export(net, (x,), dynamic_shapes=free) if exported else net, x)
    report = to_onnx(gm, x, tmp_path / "a.onnx", dynamic_batch=True)
    assert report.outputs == ("boxes_0", "boxes_1", "scores_0")
    assert report.notes == ("outputs that are no tensors are not in the file: ['rows'], ['version']",)
    wanted, got = net(x), outputs(tmp_path / "a.onnx", x)
    for one, other in zip([*wanted["boxes"], *wanted["scores"]], got, strict=True):
        np.testing.assert_allclose(other, one.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_sizes_among_the_outputs_are_left_out_with_a_note(tmp_path: Path) -> None:
    gm, x = fxdecomp.trace(drawn(Measuring()), image(2, 8)), image(2, 8)
    report = to_onnx(gm, x, tmp_path / "a.onnx")
    assert report.outputs == ("output",)
    assert report.dynamic_batch
    assert report.notes == ("outputs that are no tensors are not in the file: [1], [2]",)
