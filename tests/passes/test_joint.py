"""Layers that share all stages but the last: exact, calibrated, planned, budgeted, in reports and files."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxdecomp
from fxdecomp import MACs, Params, Plan, Policy, Ratio, Rule
from fxdecomp.cli.policies import parse_rule
from fxdecomp.export import to_onnx
from fxdecomp.graphs.records import Record, record_of
from fxdecomp.importing import from_onnx
from fxdecomp.passes import DecomposeLayers, JoinInputs, PartOutputs
from fxdecomp.passes.join_inputs import Joint
from fxdecomp.recovery.blocks import block_student, blocks_of
from tests.nets import drawn, image, relative_difference, targets


class Attending(nn.Module):
    """Attention between two residual layers, a gated MLP and a head; takes `[n, 5, 16]`."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 24)
        self.out, self.gate, self.up = nn.Linear(24, 16), nn.Linear(16, 32), nn.Linear(16, 32)
        self.down, self.head = nn.Linear(32, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(torch.softmax(self.q(x) @ self.k(x).mT / 4, -1) @ self.v(x))
        return self.head((x + self.down(F.silu(self.gate(x)) * self.up(x))).mean(1))


class Branching(nn.Module):
    """Branches of two kinds over one value, with norms; takes `[n, 4, 8, 8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.Conv2d(4, 6, 3, padding=1)
        self.c, self.d, self.norm = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 5, 1, bias=False), nn.BatchNorm2d(8)
        self.act, self.last = nn.ReLU(inplace=True), nn.Conv2d(27, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        branches = [self.norm(self.a(x)), self.b(x), self.c(x), self.d(x)]
        return self.last(torch.cat([self.act(each) for each in branches], 1)).mean((2, 3))


SHARE = Rule("*", share="input")
FULL = Policy(method="channel_svd", rank=1.0, rules=[SHARE], require_saving=False)
ATTENTION = Policy(
    rules=[
        Rule("[qkv]", share="input", rank=6),
        Rule("gate", share="input", rank=8),
        Rule("up", share="input", rank=8),
    ]
)
NETS: dict[str, tuple[Callable[[], nn.Module], Tensor, list[set[str]]]] = {
    "attention": (Attending, image(2, 5, 16), [{"q", "k", "v"}, {"gate", "up"}]),
    "branches": (Branching, image(2, 4, 8, 8), [{"a", "b"}, {"c", "d"}]),
}


def batches(count: int = 10, seed: int = 0) -> list[Tensor]:
    return list(
        image(count, 8, 5, 6, seed=seed) @ image(6, 16, seed=99) + 0.2 * image(count, 8, 5, 16, seed=seed + 1)
    )


def traced() -> GraphModule:
    return fxdecomp.trace(drawn(Attending()), batches(1)[0])


def groups(small: GraphModule) -> list[set[str]]:
    told = [{o.site, *o.shares} for o in fxdecomp.report(small).applied if o.shares and not o.before_own]
    assert all({o.site, *o.shares} in told for o in fxdecomp.report(small).applied if o.shares)
    return told


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("attention", "symbolic"),
        ("attention", "decomposed"),
        ("attention", "file"),
        ("branches", "exported"),
        ("branches", "file"),
    ],
)
def test_exact_at_full_rank(name: str, dialect: str, tmp_path: Path) -> None:
    build, x, wanted = NETS[name]
    model = drawn(build())
    gm = fxdecomp.trace(model, x)
    if dialect == "file":
        to_onnx(gm, x, tmp_path / "a.onnx")
        gm = fxdecomp.trace(from_onnx(tmp_path / "a.onnx").gm, x)
    elif dialect != "symbolic":
        model, x = model.double(), x.double()
        program = torch.export.export(model, (x,))
        program = program.run_decompositions() if dialect == "decomposed" else program
        gm = fxdecomp.trace(program.module(), x)
    small = fxdecomp.transform(gm, FULL)
    assert groups(small) == wanted
    assert all(node.users for node in small.graph.nodes if node.op == "call_function")
    assert relative_difference(gm, small, x) < (1e-12 if x.dtype == torch.float64 else 1e-5)
    if x.dtype == torch.float64:
        return  # which ONNX Runtime has no convolution for
    narrower = fxdecomp.transform(gm, Policy(rules=[Rule("*", share="input", rank=3)], require_saving=False))
    report = to_onnx(narrower, x, tmp_path / "b.onnx")  # compared with the graph
    nodes = [node.name for node in onnx.load(tmp_path / "b.onnx").graph.node]
    for group in wanted:
        first = next(o for o in fxdecomp.report(narrower).applied if o.site in group)
        kept = {f"{name}.{stage}" for name in group for stage in first.stages}
        assert kept & set(nodes) == {*first.stage_names, *(f"{name}.pointwise_out" for name in first.shares)}
    assert not any("was not used" in note for note in report.notes)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Two to four layers on one value, in any order, with others between, and one that reads all."""
    seed, count = draw(st.integers(0, 99)), draw(st.integers(2, 4))
    size, spatial = draw(st.integers(1, 7)), draw(st.booleans())
    kernel, stride, dilation = (draw(st.integers(1, most)) for most in (3, 2, 2))
    padding = draw(st.integers(0, 2)) if kernel > 1 else 0
    outs = [draw(st.integers(1, 9)) for _ in range(count)]
    biases = [draw(st.booleans()) for _ in range(count)]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(
                nn.Conv2d(size, out, kernel, stride, padding, dilation, bias=bias)
                if spatial
                else nn.Linear(size, out, bias=bias)
                for out, bias in zip(outs, biases, strict=True)
            )
            self.mixed = nn.Conv2d(sum(outs), 3, 1) if spatial else nn.Linear(sum(outs), 3)

        def forward(self, x: Tensor) -> Tensor:
            found = [F.relu(part(x), inplace=True) for part in self.parts]
            return self.mixed(torch.cat(found, 1 if spatial else -1))

    return drawn(Block(), seed).double(), image(2, size, *((9, 8) if spatial else ()), seed=seed).double()


@settings(max_examples=20, deadline=None)
@given(blocks())
def test_exact_on_drawn_blocks(drawn_block: tuple[nn.Module, Tensor]) -> None:
    block, x = drawn_block
    gm = fxdecomp.trace(block, x)
    for method in ("channel_svd",) if x.ndim == 2 else ("channel_svd", "tucker2"):
        policy = Policy(method=method, rank=Ratio(1.0), rules=[SHARE], require_saving=False)
        small = fxdecomp.transform(gm, policy)
        assert relative_difference(gm, small, x) < 1e-11
        told = fxdecomp.report(small)
        assert told.params_after == sum(p.numel() for p in small.parameters())
        assert any(o.shares for o in told.applied)


def test_rows_count_the_shared_stage_once() -> None:
    small = fxdecomp.transform(traced(), ATTENTION)
    told = fxdecomp.report(small)
    rows = {o.site: o for o in told.applied}
    assert [rows[name].stages for name in "qkv"] == [
        ("pointwise_in", "pointwise_out"),
        *[("pointwise_out",)] * 2,
    ]
    assert rows["k"].all_stage_names == ("q.pointwise_in", "k.pointwise_out")
    assert [rows[name].rank for name in ("q", "k", "v", "gate", "up")] == [(6,), (6,), (6,), (8,), (8,)]
    assert [rows[name].macs_after for name in "qkv"] == [8 * 5 * 6 * 32, 8 * 5 * 6 * 16, 8 * 5 * 6 * 24]
    assert [rows[name].params_after for name in "qkv"] == [6 * 32 + 16, 6 * 16, 6 * 24 + 24]
    assert told.params_after == sum(p.numel() for p in small.parameters())
    assert told.macs_after == sum(o.macs_after for o in told.outcomes)
    weight = {name: small.get_submodule(f"{name}.pointwise_out").weight for name in "qkv"}
    shared = small.get_submodule("q.pointwise_in").weight
    for name in "qkv":
        whole = traced().get_submodule(name).weight
        error = float(((weight[name] @ shared - whole).norm() / whole.norm()).detach())
        assert rows[name].relative_error == pytest.approx(error, rel=1e-3)
    assert "svd, shared with k, v" in str(told)


def test_the_stage_is_the_best_for_all_of_them_together() -> None:
    gm = traced()
    small = fxdecomp.transform(gm, ATTENTION)
    weights = [gm.get_submodule(name).weight.detach() for name in "qkv"]
    stacked = torch.cat([weight / weight.norm() for weight in weights])  # relative errors count alike
    least = float(torch.linalg.svdvals(stacked)[6:].square().sum())
    rows = [o for o in fxdecomp.report(small).applied if o.site in "qkv"]
    assert sum(o.relative_error**2 for o in rows) == pytest.approx(least, rel=1e-4)


def test_calibration_weighs_parts_by_what_they_do_and_replays_bit_for_bit(tmp_path: Path) -> None:
    gm, data = traced(), batches()
    small = fxdecomp.transform(gm, ATTENTION, calibration=data)
    assert groups(small) == [{"q", "k", "v"}, {"gate", "up"}]
    plain = fxdecomp.transform(gm, ATTENTION)
    fresh = torch.cat(batches(4, seed=20))
    with torch.no_grad():
        errors = [float((net(fresh) - gm(fresh)).square().mean()) for net in (small, plain)]
    assert errors[0] < 0.7 * errors[1]
    plan = fxdecomp.report(small).plan
    assert [choice.share for choice in plan.choices] == [*["input"] * 3, None, "input", "input", None, None]
    plan.save(tmp_path / "plan.json")
    again = fxdecomp.transform(gm, Policy.from_plan(Plan.load(tmp_path / "plan.json")), calibration=data)
    assert same(again, small)
    twice = fxdecomp.transform(small, ATTENTION, calibration=data)
    assert fxdecomp.report(twice).outcomes == fxdecomp.report(small).outcomes
    assert same(twice, small)
    assert Policy.from_dict(ATTENTION.to_dict()) == ATTENTION


@pytest.mark.parametrize("budget", [MACs(0.6), Params(0.6)])
def test_a_budget_finds_their_rank(budget: fxdecomp.MACs) -> None:
    gm, data = traced(), batches()
    policy = Policy(budget=budget, rules=[SHARE], multiple_of=2)
    small = fxdecomp.transform(gm, policy, calibration=data)
    told = fxdecomp.report(small)
    assert getattr(told, f"{budget.name}_after") <= 0.6 * getattr(told, f"{budget.name}_before")
    assert told.params_before == sum(p.numel() for p in Attending().parameters())
    assert groups(small)
    again = fxdecomp.transform(gm, Policy.from_plan(told.plan), calibration=data)
    assert same(again, small)


@pytest.mark.parametrize("dialect", ["symbolic", "decomposed"])
def test_layers_that_a_budget_leaves_come_back_as_they_were(dialect: str) -> None:
    gm = traced()
    if dialect == "decomposed":
        program = torch.export.export(drawn(Attending()), (batches(1)[0],)).run_decompositions()
        gm = fxdecomp.trace(program.module(), batches(1)[0])
    small = fxdecomp.transform(gm, Policy(budget=MACs(1.0), rules=[SHARE]), calibration=batches())
    called = [sorted(f"{n.op} {n.target}" for n in net.graph.nodes) for net in (small, gm)]
    assert called[0] == called[1]
    assert same(small, gm)
    told = fxdecomp.report(small)
    assert not told.applied
    assert told.params_before == told.params_after == sum(p.numel() for p in gm.parameters())
    assert {s.site for s in told.skipped} == {"q", "k", "v", "out", "gate", "up", "down", "head"}


def test_a_joint_layer_computes_what_its_layers_do() -> None:
    gm = traced()
    joints = (Joint(("q", "k", "v"), (1.0, 0.25, 3.0)),)
    joined = JoinInputs(joints)(gm)
    assert targets(joined)[:2] == ["q", "out"]
    assert relative_difference(gm, joined, batches(1)[0]) < 1e-6
    parted = PartOutputs(gm)(DecomposeLayers(Policy(rules=[Rule("v")]))(joined))
    assert same(parted, gm)
    assert relative_difference(gm, parted, batches(1)[0]) == 0
    record = record_of(joined)
    assert record is not None
    assert Record.from_dict(record.to_dict()).joints == joints


class Behind(nn.Module):
    """Readers right behind a layer that gets a chain as well, one of them last of all; takes `[n, 5, 16]`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 12), nn.Linear(12, 8), nn.Linear(12, 8)
        self.d, self.e = nn.Linear(8, 8), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.d(self.b(y.flatten(0, 1)) * self.c(y.flatten(0, 1))) + self.e(y.flatten(0, 1))


def test_readers_of_a_layer_that_became_a_chain() -> None:
    x = batches(1)[0]
    gm = fxdecomp.trace(drawn(Behind()), x)
    small = fxdecomp.transform(gm, FULL)
    assert groups(small) == [{"b", "c", "e"}]
    assert relative_difference(gm, small, x) < 1e-5
    assert [o.site for o in fxdecomp.report(small).outcomes] == ["a", "b", "c", "d", "e"]
    assert not {"a", "b", "c", "d", "e"} & set(targets(small))
    assert fxdecomp.report(fxdecomp.transform(small, FULL)).outcomes == fxdecomp.report(small).outcomes


def test_half_precision_and_a_frozen_layer() -> None:
    model = drawn(Attending()).half()
    model.q.weight.requires_grad_(requires_grad=False)
    small = fxdecomp.transform(fxdecomp.trace(model, batches(1)[0].half()), ATTENTION)
    assert groups(small) == [{"k", "v"}, {"gate", "up"}]  # q is frozen
    assert {p.dtype for p in small.parameters()} == {torch.float16}


def test_recovery_trains_the_shared_stage_with_all_its_layers() -> None:
    gm, data = traced(), batches()
    small = fxdecomp.transform(gm, ATTENTION)
    blocks = {block.site: block for block in blocks_of(small, gm)}
    assert {name for name, block in blocks.items() if block.is_alone} == set()
    alone = block_student(small, (blocks["k"],))
    alone(data[0])[0].square().sum().backward()
    assert alone.get_submodule("q.pointwise_in").weight.grad is not None
    better = fxdecomp.recover(small, gm, data, block_steps=1, steps=0)
    fresh = torch.cat(batches(4, seed=20))
    with torch.no_grad():
        errors = [float((net(fresh) - gm(fresh)).square().mean()) for net in (better, small)]
    assert errors[0] < errors[1]  # its stages compute at the first step what they did


def test_the_page_and_the_diff_name_them(tmp_path: Path) -> None:
    gm = traced()
    small = fxdecomp.transform(gm, ATTENTION, calibration=batches())
    fxdecomp.report(small, before=gm).to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "svd, shared with k, v" in page
    added = [line for line in fxdecomp.graph_diff(gm, small).splitlines() if line.startswith("+")]
    assert sum("= q.pointwise_in(x)" in line for line in added) == 1
    assert sum("= k.pointwise_out(q_pointwise_in)" in line for line in added) == 1


def test_what_a_rule_may_say() -> None:
    assert parse_rule("*.q=share") == Rule("*.q", share="input")
    assert parse_rule("*.q=share:0.5") == Rule("*.q", rank=0.5, share="input")
    assert parse_rule("*.q=share:auto") == Rule("*.q", share="auto")
    with pytest.raises(fxdecomp.PolicyError, match="has the share 'output'; wanted 'input', or 'auto'"):
        Rule("*", share="output")
    with pytest.raises(fxdecomp.PolicyError, match="share 'auto' needs a budget"):
        Policy(rules=[Rule("*", share="auto")])
    with pytest.raises(fxdecomp.PolicyError, match="which give it different shares"):
        Policy(budget=MACs(0.5), rules=[Rule("*", share="auto"), SHARE]).share_of("q")
