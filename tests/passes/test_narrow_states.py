"""Recurrent layers with fewer states: calibration, plans, budgets, recovery, export."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import MACs, Policy, Rule
from fxdecomp.export import to_onnx
from fxdecomp.importing import from_onnx
from tests.nets import drawn
from tests.passes.settled import assert_settled
from tests.passes.test_recurrent import Reader, batches, error

FEWER = Policy(rules=[Rule("rnn", width=0.5)])


def traced(kind: type[nn.RNNBase] = nn.LSTM) -> GraphModule:
    return fxdecomp.trace(drawn(Reader(kind)), batches()[0])


def test_rows_tell_of_both_layers() -> None:
    gm = traced()
    small = fxdecomp.transform(gm, FEWER, calibration=batches())
    told = fxdecomp.report(small)
    rows = {o.site: o for o in told.applied}
    assert {name: (row.method, row.rank) for name, row in rows.items()} == {
        "rnn": ("width", (8,)),
        "head": ("width", (16,)),
    }
    assert rows["rnn"].layer == "LSTM 32->16, both directions"
    assert 0 < (rows["head"].output_error or 0) < 1
    assert told.params_after == sum(p.numel() for p in small.parameters())
    assert told.params_before == sum(p.numel() for p in gm.parameters())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_with_inputs_what_is_left_makes_up_for_what_is_gone(kind: type[nn.RNNBase]) -> None:
    gm, data = traced(kind), batches()
    plain, fitted = (fxdecomp.transform(gm, FEWER, calibration=given) for given in (None, data))
    assert error(fitted, gm) < 0.5 * error(plain, gm)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_second_transform_changes_nothing_and_a_plan_replays(calibrated: bool, tmp_path: Path) -> None:
    assert_settled(traced(), FEWER, batches() if calibrated else None, tmp_path / "plan.json")


def test_it_may_be_decomposed_besides_and_budgets_count_from_the_whole() -> None:
    gm, data = traced(), batches()
    both = Policy(rules=[Rule("rnn", width=0.5), Rule("rnn", "svd", 6)])
    small = fxdecomp.transform(gm, both, calibration=data)
    row = next(o for o in fxdecomp.report(small).applied if o.site == "rnn")
    assert (row.method, row.rank, row.layer) == ("svd", (6,), "LSTM 32->16, both directions")
    assert small.get_submodule("rnn.pointwise_out").hidden_size == 8
    budget = Policy(rules=[Rule("rnn", width=0.5)], budget=MACs(0.35), multiple_of=1)
    told = fxdecomp.report(fxdecomp.transform(gm, budget, calibration=data))
    assert told.macs_before == fxdecomp.report(gm).macs_before
    assert 0.3 < told.macs_after / told.macs_before <= 0.35


def test_a_budget_finds_no_states_by_itself() -> None:
    policy = Policy(rules=[Rule("*", width="auto")], budget=MACs(0.6), multiple_of=1)
    small = fxdecomp.transform(traced(), policy, calibration=batches())
    layers = [m for m in small.modules() if isinstance(m, nn.LSTM)]
    assert [layer.hidden_size for layer in layers] == [16]


def test_recovery_trains_what_is_left() -> None:
    gm, data = traced(), batches()
    small = fxdecomp.transform(gm, FEWER, calibration=data)
    better = fxdecomp.recover(small, gm, data, block_steps=20, steps=60)
    assert error(better, gm) < 0.95 * error(small, gm)
    assert not torch.equal(better.rnn.weight_hh_l0, small.rnn.weight_hh_l0)


def test_what_trains_and_what_is_frozen_stays_so() -> None:
    model = drawn(Reader())
    model.rnn.weight_hh_l0.requires_grad_(False)
    small = fxdecomp.transform(fxdecomp.trace(model, batches()[0]), FEWER)
    trains = {name: p.requires_grad for name, p in small.rnn.named_parameters()}
    assert [name for name, each in trains.items() if not each] == ["weight_hh_l0"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_file_has_the_same_nodes_with_fewer_states(kind: type[nn.RNNBase], tmp_path: Path) -> None:
    gm, x = traced(kind), batches()[0]
    to_onnx(gm, x, tmp_path / "a.onnx")
    imported = from_onnx(tmp_path / "a.onnx")
    read = fxdecomp.trace(imported.gm, imported.example_inputs)
    small = fxdecomp.transform(read, FEWER, calibration=batches())
    report = to_onnx(small, x, tmp_path / "b.onnx")  # compared with the graph
    assert not any("was not used" in note for note in report.notes)
    graph = onnx.load(tmp_path / "b.onnx").graph  # without what made zeros for the states to begin with
    before, behind = (
        ["MatMul", "Add", "Relu", "Transpose"],
        ["Transpose", "Reshape", "Transpose", "MatMul", "Add"],
    )
    assert [node.op_type for node in graph.node] == [*before, kind.__name__, *behind]
    sizes = [tuple(i.dims) for i in graph.initializer]
    assert (2, 8 * (4 if kind is nn.LSTM else 3), 8) in sizes


def test_a_network_of_their_own(tmp_path: Path) -> None:
    class Own(nn.Module):
        """Steps first, no biases; the classes of the last step."""

        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 12, bias=False), nn.Linear(12, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x.transpose(0, 1))[0][-1])

    gm = fxdecomp.trace(drawn(Own()), batches()[0])
    plain = fxdecomp.transform(gm, FEWER)
    assert plain.rnn.bias is False
    fitted = fxdecomp.transform(gm, FEWER, calibration=batches())
    assert fitted.rnn.bias  # which keep the means
    assert error(fitted, gm) < 0.7 * error(plain, gm)
    to_onnx(fitted, batches()[0], tmp_path / "own.onnx")
