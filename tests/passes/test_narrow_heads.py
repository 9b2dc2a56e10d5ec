"""Narrower heads: what calibration, plans, budgets, recovery and export make of them, and drawn layouts."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxdecomp
from fxdecomp import MACs, Policy, Rule
from fxdecomp.export import to_onnx
from fxdecomp.importing import from_onnx
from tests.nets import drawn, image
from tests.passes.settled import assert_settled

HEADS, SIZE, WIDTH = 2, 8, 16


class Block(nn.Module):
    """Attention with a layer each for queries, keys and values, an MLP and a head; takes `[n, 6, 16]`."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for each in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


HALF = Policy(rules=[Rule("q", width=0.5), Rule("v", width=8)])


def batches(count: int = 10, seed: int = 0) -> list[Tensor]:
    mixed = image(count, 8, 6, 4, seed=seed) @ image(4, WIDTH, seed=9)
    return list(mixed + 0.1 * image(count, 8, 6, WIDTH, seed=seed + 1) + 0.5)


def traced() -> GraphModule:
    model = drawn(Block())
    with torch.no_grad():
        for layer in (model.q, model.k):
            layer.weight *= 3
    return fxdecomp.trace(model, batches(1)[0])


@torch.no_grad()
def error(small: nn.Module, gm: nn.Module) -> float:
    fresh = torch.cat(batches(4, seed=20))
    return float((small(fresh) - gm(fresh)).square().mean() / gm(fresh).var())


def test_rows_tell_of_all_layers_that_have_the_heads() -> None:
    gm = traced()
    small = fxdecomp.transform(gm, HALF)
    told = fxdecomp.report(small)
    assert {o.site: (o.method, o.rank) for o in told.applied} == dict.fromkeys("qkvo", ("width", (8,)))
    assert told.params_after == sum(p.numel() for p in small.parameters())
    attention = next(node for node in small.graph.nodes if "scaled_dot" in str(node.target))
    assert attention.kwargs["scale"] == SIZE**-0.5
    assert "scale" not in next(n for n in gm.graph.nodes if "scaled_dot" in str(n.target)).kwargs


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_second_transform_changes_nothing_and_a_plan_replays(calibrated: bool, tmp_path: Path) -> None:
    assert_settled(traced(), HALF, batches() if calibrated else None, tmp_path / "plan.json")


def test_inputs_tell_which_directions_matter_and_what_errors_are() -> None:
    gm, data = traced(), batches()
    plain, fitted = (fxdecomp.transform(gm, HALF, calibration=given) for given in (None, data))
    assert error(fitted, gm) < 0.5 * error(plain, gm)
    rows = {o.site: o.output_error for o in fxdecomp.report(fitted).applied}
    assert rows["q"] == rows["k"]
    assert rows["v"] is None
    assert 0 < (rows["q"] or 0) < 0.3
    assert 0 < (rows["o"] or 0) < 0.3


class Inverse(Block):
    """Scores whose inverse softmax sees, so that what all keys have in common matters."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for each in (self.q, self.k, self.v))
        return self.o(((100 / (q @ k.mT + 1000)).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("block", "width"), [(Block, 0.25), (Inverse, 0.375)])
def test_what_keys_have_in_common_needs_no_dimension_before_softmax(
    block: type[nn.Module], width: float
) -> None:
    model = drawn(block()).double()
    with torch.no_grad():
        for layer in (model.q, model.k):
            layer.weight.view(HEADS, SIZE, WIDTH)[:, 2:] = 0
        model.k.bias.copy_(20 * image(WIDTH, seed=4))
    gm = fxdecomp.trace(model, batches(1)[0].double())
    small = fxdecomp.transform(
        gm, Policy(rules=[Rule("k", width=width)]), calibration=[x.double() for x in batches()]
    )
    assert error_of(small, gm) < 1e-12


@torch.no_grad()
def error_of(small: nn.Module, gm: nn.Module) -> float:
    x = batches(1, seed=30)[0].double()
    return float((small(x) - gm(x)).abs().max() / gm(x).abs().max())


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_weights_that_say_nothing(value: float) -> None:
    model = drawn(Block())
    with torch.no_grad():
        model.k.weight.fill_(value)
        model.o.weight.zero_()
    gm = fxdecomp.trace(model, batches(1)[0])
    small = fxdecomp.transform(gm, HALF)
    rows = {o.site: o for o in fxdecomp.report(small).outcomes}
    assert rows["v"].rank == (8,)
    if value == 0:
        assert rows["q"].relative_error == 0
        assert error(small, gm) < 1e-10
    else:
        assert rows["q"].detail == "the weight of k holds NaN or infinity"


def test_narrower_heads_may_be_decomposed_and_rules_may_be_of_the_other_layer() -> None:
    gm, data = traced(), batches()
    policy = Policy(rules=[Rule("[kv]", width=0.5), Rule("q", "svd", 4), Rule("o", "svd", 4)])
    rows = {o.site: o for o in fxdecomp.report(fxdecomp.transform(gm, policy, calibration=data)).applied}
    assert {name: row.method for name, row in rows.items()} == {
        "q": "svd",
        "k": "width",
        "v": "width",
        "o": "svd",
    }
    assert rows["q"].layer == "Linear 16->16"
    told = fxdecomp.report(fxdecomp.transform(gm, Policy(rules=[Rule("*", width=0.3)], multiple_of=4)))
    assert {o.site: o.rank for o in told.applied}["q"] == (8,)


def test_a_budget_weighs_heads_against_chains() -> None:
    model = drawn(Block())
    with torch.no_grad():
        for layer in (model.q, model.k):
            layer.weight.view(HEADS, SIZE, WIDTH)[:, 3:] *= 0.01
            layer.bias.view(HEADS, SIZE)[:, 3:] *= 0.01
    gm, data = fxdecomp.trace(model, batches(1)[0]), batches(8)
    policies = [
        Policy(budget=MACs(0.7), multiple_of=2, rules=rules) for rules in ((), (Rule("*", width="auto"),))
    ]
    plain, weighed = (fxdecomp.transform(gm, policy, calibration=data) for policy in policies)
    told = fxdecomp.report(weighed)
    assert {row.site for row in told.record.widths if row.outputs} >= {"q", "k"}
    assert told.macs_after <= 0.7 * told.macs_before
    assert error(weighed, gm) < error(plain, gm)
    assert any("fewer inner channels" in note for note in told.record.notes)


def test_recovery_trains_what_is_left_and_files_agree(tmp_path: Path) -> None:
    gm, data = traced(), batches()
    small = fxdecomp.transform(gm, Policy(rules=[Rule("q", width=0.25), Rule("v", width=0.25)]))
    better = fxdecomp.recover(small, gm, data, block_steps=10, steps=60)
    assert error(better, gm) < 0.8 * error(small, gm)
    x = batches(1, seed=5)[0]
    to_onnx(better, x, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert float((torch.from_numpy(got) - better(x)).abs().max()) < 1e-5


class Fused(nn.Module):
    """One layer for queries, keys and values, in parts that a file cuts out; takes `[n, 6, 16]`."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).split(WIDTH, -1)
        q, k, v = (each.view(-1, 6, HEADS, SIZE).transpose(1, 2) for each in parts)
        return self.o((((q @ k.mT) / 3).softmax(-1) @ v).transpose(1, 2).reshape(-1, 6, WIDTH))


def test_a_file_is_written_as_it_was_with_narrower_heads(tmp_path: Path) -> None:
    x = image(2, 6, WIDTH)
    to_onnx(fxdecomp.trace(drawn(Fused()), x), x, tmp_path / "a.onnx")
    imported = from_onnx(tmp_path / "a.onnx")
    read = fxdecomp.trace(imported.gm, imported.example_inputs)
    small = fxdecomp.transform(read, Policy(rules=[Rule("qkv", width=0.5)]))
    report = to_onnx(small, x, tmp_path / "b.onnx")  # compared with the graph
    assert not any("was not used" in note for note in report.notes)
    names = [{n.name for n in onnx.load(tmp_path / name).graph.node} for name in ("a.onnx", "b.onnx")]
    assert len(names[0] & names[1]) > 6  # what is not between the layer and its products
    sizes = [tuple(i.dims) for i in onnx.load(tmp_path / "b.onnx").graph.initializer]
    assert (WIDTH, 3 * WIDTH // 2) in sizes


LAYOUT = st.permutations(["part", "head", "size"])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    layout=LAYOUT,
    heads=st.sampled_from([1, 2, 3]),
    size=st.sampled_from([3, 4, 5]),
    kept=st.integers(1, 2),
    attention=st.sampled_from(["node", "products", "einsum"]),
    bias=st.booleans(),
    calibrated=st.booleans(),
)
def test_drawn_layouts_lose_nothing_with_dimensions_that_no_head_has(
    layout: list[str], heads: int, size: int, kept: int, attention: str, bias: bool, calibrated: bool
) -> None:
    lengths = [{"part": 3, "head": heads, "size": size}[each] for each in layout]
    order = [layout.index(each) for each in ("part", "head", "size")]
    turned = [2 + order[0], 0, 2 + order[1], 1, 2 + order[2]]

    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(7, 3 * heads * size, bias=bias)
            self.out = nn.Linear(heads * size, 7, bias=bias)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, lengths).permute(turned).unbind(0)
            if attention == "node":
                mixed = F.scaled_dot_product_attention(q, k, v)
            elif attention == "products":
                mixed = (q @ k.mT / 3).softmax(-1) @ v
            else:
                scores = torch.einsum("bhtd,bhsd->bhts", q, k)
                mixed = torch.einsum("bhts,bhsd->bhtd", scores.softmax(-1), v)
            return self.out(mixed.transpose(1, 2).flatten(2))

    model, x = drawn(Drawn()).double(), image(8, 4, 7).double()
    with torch.no_grad():
        places = torch.arange(3 * heads * size).view(lengths).permute(order).reshape(3 * heads, size)
        plane = torch.linalg.qr(image(3 * heads, size, kept, seed=2).double()).Q
        for parameter in model.qkv.parameters():
            blocks = parameter[places.flatten()].reshape(3 * heads, size, -1)
            parameter[places.flatten()] = (plane @ (plane.mT @ blocks)).reshape(-1, *parameter.shape[1:])
    gm = fxdecomp.trace(model, x)
    data = [image(8, 4, 7, seed=seed).double() for seed in (3, 4)] if calibrated else None
    policy = Policy(rules=[Rule("qkv", width=3 * heads * kept)])
    small = fxdecomp.transform(gm, policy, calibration=data)
    assert fxdecomp.report(small).applied[0].rank == (3 * heads * kept,)
    with torch.no_grad():
        assert float((small(x) - gm(x)).abs().max()) < 1e-11
