"""Layers with fewer outputs: what becomes of them under calibration, plans, budgets, recovery and export."""

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
from fxdecomp import MACs, Params, Policy, Reason, Rule
from fxdecomp.calibration import Calibration
from fxdecomp.cli.policies import parse_rule
from fxdecomp.export import to_onnx
from fxdecomp.graphs.records import Record, record_of
from fxdecomp.importing import from_onnx
from tests.nets import drawn, image
from tests.passes.settled import assert_settled


class Tower(nn.Module):
    """Two blocks, an MLP and a head; takes `[n, 3, 8, 8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first, self.second = nn.Conv2d(12, 24, 3, padding=1), nn.Conv2d(24, 12, 3, padding=1)
        self.norm, self.fc1, self.fc2 = nn.BatchNorm2d(24), nn.Linear(12, 48), nn.Linear(48, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = y + self.second(F.relu(self.norm(self.first(y))))
        tokens = y.flatten(2).mT
        tokens = tokens + self.fc2(F.gelu(self.fc1(tokens)))
        return self.head(tokens.mean(1))


HALF = Policy(rules=[Rule("first", width=0.5), Rule("fc1", width=20)])


def batches(count: int = 10, seed: int = 0) -> list[Tensor]:
    mixed = image(count, 8, 2, 8, 8, seed=seed).movedim(2, -1) @ image(2, 3, seed=9)
    return list(mixed.movedim(-1, 2) + 0.2 * image(count, 8, 3, 8, 8, seed=seed + 1))


def traced() -> GraphModule:
    return fxdecomp.trace(drawn(Tower()), batches(1)[0])


def error(small: nn.Module, gm: nn.Module) -> float:
    fresh = torch.cat(batches(4, seed=20))
    with torch.no_grad():
        return float((small(fresh) - gm(fresh)).square().mean() / gm(fresh).var())


def test_rows_tell_of_the_layers_as_they_were_and_as_they_are() -> None:
    gm = traced()
    small = fxdecomp.transform(gm, HALF)
    told = fxdecomp.report(small)
    rows = {o.site: o for o in told.applied}
    assert {name: (row.method, row.rank) for name, row in rows.items()} == {
        "first": ("width", (12,)),
        "second": ("width", (12,)),
        "fc1": ("width", (20,)),
        "fc2": ("width", (20,)),
    }
    assert (rows["fc1"].layer, rows["fc1"].params_before, rows["fc1"].params_after) == (
        "Linear 12->48",
        624,
        260,
    )
    assert (rows["fc2"].macs_before, rows["fc2"].macs_after) == (8 * 64 * 48 * 12, 8 * 64 * 20 * 12)
    assert rows["fc1"].stage_names == ("fc1",)
    assert told.params_before == sum(p.numel() for p in Tower().parameters())
    assert told.params_after == sum(p.numel() for p in small.parameters())
    shapes = {name: tuple(p.shape) for name, p in small.named_parameters()}
    assert (shapes["first.weight"], shapes["second.weight"]) == ((12, 12, 3, 3), (12, 12, 3, 3))
    record = record_of(small)
    assert record is not None
    assert Record.from_dict(record.to_dict()) == record
    assert "width" in str(told)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_second_transform_changes_nothing_and_a_plan_replays(calibrated: bool, tmp_path: Path) -> None:
    assert_settled(traced(), HALF, batches() if calibrated else None, tmp_path / "plan.json")


def test_with_inputs_the_readers_make_up_for_what_is_gone() -> None:
    gm, data = traced(), batches()
    plain, fitted = (fxdecomp.transform(gm, HALF, calibration=given) for given in (None, data))
    assert error(fitted, gm) < 0.5 * error(plain, gm)
    rows = {o.site: o for o in fxdecomp.report(fitted).applied}
    assert rows["first"].output_error is None
    assert 0 < (rows["second"].output_error or 0) < 0.5


def test_narrower_layers_may_be_decomposed_and_budgets_count_from_the_whole() -> None:
    gm, data = traced(), batches()
    whole = fxdecomp.report(gm).macs_before
    both = Policy(rules=[Rule("first", width=0.5), Rule("first", "spatial_svd", 4), Rule("second", "svd", 4)])
    with pytest.raises(fxdecomp.PolicyError, match="no layer"):
        fxdecomp.transform(gm, Policy(rules=[*both.rules, Rule("absent", width=0.5)]))
    rows = {o.site: o for o in fxdecomp.report(fxdecomp.transform(gm, both, calibration=data)).applied}
    assert (rows["first"].method, rows["first"].layer) == ("spatial_svd", "Conv2d 12->24, 3x3")
    assert rows["second"].method == "width"  # svd does not suit a 3x3 kernel
    both = Policy(rules=[Rule("fi*", width=0.5), Rule("fc*", width=0.5), Rule("fc*", "svd", 4)])
    once = fxdecomp.transform(gm, both)
    assert fxdecomp.report(fxdecomp.transform(once, both)).outcomes == fxdecomp.report(once).outcomes
    budget = Policy(rules=[Rule("fc1", width=0.5)], budget=MACs(0.5), multiple_of=2, method="channel_svd")
    told = fxdecomp.report(fxdecomp.transform(gm, budget, calibration=data))
    assert told.macs_before == whole
    assert 0.45 * whole < told.macs_after <= 0.5 * whole
    budget = Policy(rules=[Rule("fc1", width=0.5)], budget=Params(0.5), multiple_of=2, method="channel_svd")
    small = fxdecomp.transform(gm, budget, calibration=data)
    count = sum(p.numel() for p in gm.parameters())
    assert 0.45 * count < sum(p.numel() for p in small.parameters()) <= 0.5 * count


def test_reasons_of_an_earlier_run_stay_though_their_layers_have_other_names() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 16), nn.Linear(12, 6)
            self.d = nn.Linear(16, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x))
            return self.c(y) + self.d(F.relu(self.b(y)))

    gm = fxdecomp.trace(drawn(Fork()), image(5, 6))
    policy = Policy(rules=[Rule("*", width=0.5), Rule("c", "svd", 2)])
    small = fxdecomp.transform(gm, policy)
    told = fxdecomp.report(small)
    assert next(o for o in told.skipped if o.site == "a").detail == "c and b both read them"
    assert fxdecomp.report(fxdecomp.transform(small, policy)).outcomes == told.outcomes


def test_what_a_sum_needs_of_either_side_stays() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.other, self.b = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x) + self.other(x)))

    model, x = drawn(Sum()).double(), image(5, 6).double()
    with torch.no_grad():
        model.a.weight[:4] = 0  # those of the other layer count
        model.b.weight[:, 4:] *= 1e-3
    gm = fxdecomp.trace(model, x)
    small = fxdecomp.transform(gm, Policy(rules=[Rule("a", width=4)]))
    with torch.no_grad():
        assert float((small(x) - gm(x)).abs().max()) < 0.05 * float(gm(x).std())


def test_recovery_trains_what_is_left() -> None:
    gm, data = traced(), batches()
    small = fxdecomp.transform(gm, HALF)
    better = fxdecomp.recover(small, gm, data, block_steps=40, steps=40)
    assert error(better, gm) < 0.8 * error(small, gm)


def test_the_file_has_the_same_nodes_with_fewer_channels(tmp_path: Path) -> None:
    gm = traced()
    x = batches(1)[0]
    to_onnx(gm, x, tmp_path / "a.onnx")
    imported = from_onnx(tmp_path / "a.onnx")
    read = fxdecomp.trace(imported.gm, imported.example_inputs)
    small = fxdecomp.transform(read, HALF)
    report = to_onnx(small, x, tmp_path / "b.onnx")  # compared with the graph
    assert not any("was not used" in note for note in report.notes)
    kinds = [[n.op_type for n in onnx.load(tmp_path / name).graph.node] for name in ("a.onnx", "b.onnx")]
    assert kinds[0] == kinds[1]
    sizes = [tuple(i.dims) for i in onnx.load(tmp_path / "b.onnx").graph.initializer]
    assert sizes.count((12, 12, 3, 3)) == 2


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (lambda: Rule("a", width=0.0), "wanted a share of the outputs"),
        (lambda: Rule("a", width=1.5), "wanted a share of the outputs"),
        (lambda: Rule("a", width=True), "wanted a share of the outputs"),
        (lambda: Rule("a", width="half"), "wanted a share of the outputs"),
        (
            lambda: Policy(rules=[Rule("a", width=0.5), Rule("*", width=0.4)]).width_of("a"),
            "different widths",
        ),
    ],
)
def test_widths_that_cannot_be_meant(rule: object, told: str) -> None:
    with pytest.raises(fxdecomp.PolicyError, match=told):
        rule()  # type: ignore[operator]


def test_the_command_line_has_words_for_widths() -> None:
    found = [parse_rule(text) for text in ("mlp.*=width:0.5", "a=width:32", "*=width:auto")]
    assert found == [Rule("mlp.*", width=0.5), Rule("a", width=32), Rule("*", width="auto")]
    with pytest.raises(fxdecomp.PolicyError, match="a width is a share"):
        parse_rule("a=width:half")


def test_policies_with_widths_are_saved_and_say_nothing_of_methods() -> None:
    policy = Policy(
        method="svd", rank=4, rules=[Rule("fc*", width=0.5), Rule("head", None)], exclude=["stem"]
    )
    assert Policy.from_dict(policy.to_dict()) == policy
    assert policy.width_of("fc1") == 0.5
    assert policy.select("fc1") == policy.select("other")
    assert policy.select("head") is None
    assert policy.width_of("head") is None
    assert Policy(rules=[Rule("s*", width=0.5)], exclude=["stem"]).width_of("stem") is None


def test_widths_are_multiples_and_whole_ones_stay() -> None:
    gm = traced()
    policy = Policy(rules=[Rule("fc1", width=0.3), Rule("first", width=1.0)], multiple_of=8)
    told = fxdecomp.report(fxdecomp.transform(gm, policy))
    rows = {o.site: o for o in told.outcomes}
    assert rows["fc1"].rank == (16,)
    assert (rows["first"].reason, rows["first"].detail) == (Reason.WIDTH, "all 24 of them stay")


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.sampled_from([1, 2]),
    act=st.sampled_from([F.relu, torch.tanh, F.silu]),
    deep=st.booleans(),
    gate=st.sampled_from([None, F.sigmoid, F.hardsigmoid]),
    pooled=st.booleans(),
    keep=st.integers(1, 7),
)
def test_drawn_blocks_lose_nothing_with_channels_that_nothing_depends_on(
    kernel: int, stride: int, act: object, deep: bool, gate: object, pooled: bool, keep: int
) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, kernel, stride, padding=1)
            self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
            self.b = nn.Conv2d(8, 4, kernel, padding=kernel // 2)

        def forward(self, x: Tensor) -> Tensor:
            y = act(self.a(x))  # type: ignore[operator]
            y = act(self.deep(y)) if deep else y  # type: ignore[operator]
            if gate:
                inner = act(self.squeeze(y.mean((2, 3), keepdim=True)))  # type: ignore[operator]
                y = y * gate(self.excite(inner))  # type: ignore[operator]
            return self.b(F.max_pool2d(y, 2) if pooled else y)

    model, x = drawn(Block()).double(), image(4, 3, 9, 9).double()
    with torch.no_grad():
        model.b.weight[:, keep:] = 0
        model.squeeze.weight[:, keep:] = 0
    gm = fxdecomp.trace(model, x)
    for data in (None, [x[:2], x[2:]]):
        small = fxdecomp.transform(gm, Policy(rules=[Rule("a", width=keep)]), calibration=data)
        assert fxdecomp.report(small).applied[0].rank == (keep,)
        with torch.no_grad():
            assert float((small(x) - gm(x)).abs().max()) < 1e-11


class Mobile(nn.Module):
    """An inverted residual with a gate (Howard et al. 2019, MobileNetV3); takes `[n, 6, 8, 8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv2d(6, 24, 1), nn.Conv2d(24, 6, 1)
        self.deep = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.squeeze, self.excite = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.deep(F.hardswish(self.expand(x))))
        inner = F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))
        return x + self.project(y * F.hardsigmoid(self.excite(inner)))


def test_what_squeezes_makes_up_for_the_channels_that_go_from_a_gate() -> None:
    gm = fxdecomp.trace(drawn(Mobile()), image(4, 6, 8, 8))
    data = [image(16, 6, 8, 8, seed=seed) + image(16, 6, 1, 1, seed=-seed) for seed in range(1, 11)]
    policy = Policy(rules=[Rule("expand", width=0.5)])
    told = fxdecomp.report(fxdecomp.transform(gm, policy, calibration=Calibration(data, refit=False)))
    rows = {o.site: o for o in told.applied}
    assert {name: row.rank for name, row in rows.items()} == {
        **dict.fromkeys(("expand", "squeeze", "excite", "project"), (12,)),
        "deep": (12,),
    }
    assert rows["squeeze"].output_error < 0.1
