from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxdecomp import PolicyError
from fxdecomp.decompositions import method_named
from fxdecomp.export.sessions import thread_count
from fxdecomp.latency import place
from fxdecomp.latency.cache import LatencyCache, Taken
from fxdecomp.latency.chain_graphs import chain_graph, chains_and_ends
from fxdecomp.latency.chain_times import ChainTimes, _plain
from fxdecomp.latency.node_times import _inside_s
from fxdecomp.latency.place import Place
from fxdecomp.layers import LayerSpec, Recurrence
from fxdecomp.providers import Provider

pytest.importorskip("onnxruntime")

CONV = LayerSpec(32, 48, (3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), input_size=(14, 12), positions=2)
SPECS = {
    "conv": CONV,
    "grouped": replace(CONV, groups=2),
    "linear": LayerSpec(24, 40, positions=3),
    "conv1d": LayerSpec(16, 24, (5,), padding=((2, 2),), input_size=(30,)),
    "conv3d": LayerSpec(8, 8, (3, 3, 3), input_size=(6, 6, 6)),
    "transposed": replace(CONV, transposed=True, output_padding=(1, 1)),
}


def stages(method: str, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[LayerSpec, ...]:
    return tuple(stage.spec for stage in method_named(method).form(spec, rank).stages)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("chained", [False, True])
def test_the_small_graph_computes_what_the_layer_does(name: str, chained: bool, tmp_path: Path) -> None:
    import onnx

    from fxdecomp.export.sessions import open_session

    spec = SPECS[name]
    method = "svd" if spec.is_linear else "channel_svd"
    chain = stages(method, spec, (8,)) if chained else (spec,)
    networks = (chain_graph(chain), *chains_and_ends(chain, 2))
    outputs = []
    for network in networks:
        onnx.save(network.model, str(tmp_path / "x.onnx"))
        feed = {name: np.ones(shape, np.float32) for name, shape in network.inputs.items()}
        outputs.append(open_session(tmp_path / "x.onnx").run(None, feed))
    shape = (spec.positions, spec.out_channels, *spec.output_size)
    assert outputs[0][0].shape == shape
    np.testing.assert_array_equal(*outputs[1])
    before, after = outputs[2]
    narrow = (16,) if spec.ndim == 2 else ()
    assert outputs[1][0].shape == (shape[0], *(narrow or shape[1:2]), *shape[2:]) == after.shape
    assert before.shape == (shape[0], *(narrow or (spec.in_channels,)), *spec.input_size)


RECURRENT = [
    Recurrence("LSTM", 6, steps=5),
    Recurrence("GRU", 6, directions=2, steps=5),
    Recurrence("LSTM", 6, directions=2, levels=3, steps=5),
]


@pytest.mark.parametrize("recurrence", RECURRENT, ids=lambda r: f"{r.kind}{r}")
@pytest.mark.parametrize("chained", [False, True])
def test_the_small_graph_of_a_recurrent_layer_too(
    recurrence: Recurrence, chained: bool, tmp_path: Path
) -> None:
    import onnx

    from fxdecomp.export.sessions import open_session

    spec = LayerSpec(24, recurrence.products, positions=15, recurrence=recurrence)
    network = chain_graph(stages("svd", spec, (8,)) if chained else (spec,))
    model, shape = network.model, network.inputs["x"]
    assert shape == (5, 3, 24)
    assert [node.op_type for node in model.graph.node].count(recurrence.kind) == recurrence.levels
    onnx.save(model, str(tmp_path / "x.onnx"))
    (y,) = open_session(tmp_path / "x.onnx").run(None, {"x": np.ones(shape, np.float32)})
    assert y.shape == (5, recurrence.directions, 3, 6)


def test_times_of_other_layers_are_found_where_they_were() -> None:
    assert "recurrence" not in _plain(CONV)
    spec = LayerSpec(24, 48, recurrence=Recurrence("GRU", 16, steps=7))
    assert _plain(spec)["recurrence"]["steps"] == 7


def test_what_runs_between_the_neighbours_counts_with_its_own_reorders() -> None:
    def run(*names: str) -> list[dict[str, Any]]:
        return [{"name": f"{name}_kernel_time", "dur": 10.0**i} for i, name in enumerate(names)]

    borders = run(
        "ReorderInput", "before_nchwc", "stage.0", "Reorder", "stage.1", "after_nchwc", "ReorderOutput"
    )
    assert _inside_s(borders) == pytest.approx(1e-6 * (100 + 1000 + 10000))
    assert _inside_s(run("stage.0", "stage.1")) == pytest.approx(1e-6 * 11)


def test_every_time_is_measured_once_and_an_interruption_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains = [stages("channel_svd", CONV, (rank,)) for rank in (8, 16, 24)]
    taken: list[tuple[LayerSpec, ...]] = []

    def measure(self: ChainTimes, chain: tuple[LayerSpec, ...]) -> Taken:
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(chain)
        return Taken(1e-3 * len(taken))

    monkeypatch.setattr(ChainTimes, "_slowdown", lambda *_: 1.0)
    monkeypatch.setattr(ChainTimes, "_measure", measure)
    first = ChainTimes(cache=LatencyCache(tmp_path))
    assert first.time_s(chains[0]) == first.time_s(chains[0]) == 1e-3
    assert first.time_s(chains[1]) == 2e-3
    with pytest.raises(KeyboardInterrupt):
        first.time_s(chains[2])
    monkeypatch.setattr(ChainTimes, "_measure", lambda *_: Taken(7.0))
    again = ChainTimes(cache=LatencyCache(tmp_path))
    assert [again.time_s(chain) for chain in chains] == [1e-3, 2e-3, 7.0]
    assert again.measured == 1
    other = ChainTimes(Place(threads=2), cache=LatencyCache(tmp_path))
    assert other.time_s(chains[0]) == 7.0


def test_all_cores_are_as_many_threads_as_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChainTimes, "_measure", lambda *_: Taken(1.0))
    ChainTimes(Place(threads=0), cache=LatencyCache(tmp_path)).time_s((CONV,))
    monkeypatch.setattr(ChainTimes, "_measure", lambda *_: Taken(2.0))
    assert ChainTimes(Place(threads=thread_count(0)), cache=LatencyCache(tmp_path)).time_s((CONV,)) == 1.0


def test_a_measured_time_is_a_time(tmp_path: Path) -> None:
    times = ChainTimes(cache=LatencyCache(tmp_path))
    for spec in SPECS.values():
        assert 0 < times.time_s((spec,)) < 1
    assert times.measured == len(SPECS)


@pytest.mark.parametrize(("true", "found"), [(16, 16), (8, 8), (4, 4), (1, 1)])
def test_the_good_multiple_is_the_largest_that_is_paid_in_full(
    true: int, found: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(self: ChainTimes, chain: tuple[LayerSpec, ...]) -> Taken:
        return Taken(float(-(-chain[0].out_channels // true) * true))

    monkeypatch.setattr(ChainTimes, "_measure", measure)
    # Three quarters of 32 are 24, seven eighths are 28, fifteen sixteenths 30: a block of 1 pays for each.
    assert ChainTimes(cache=LatencyCache(tmp_path)).good_multiple() == found


@pytest.mark.parametrize(
    ("precision", "true", "found"), [("float16", 32, 32), ("float16", 64, 64), ("float32", 32, 16)]
)
def test_multiples_are_measured_for_the_type_that_is_computed_in(
    precision: str, true: int, found: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = Provider(
        "CPUExecutionProvider", multiples={"float32": (16, 8), "float16": (64, 32)}, trial=(512, 56)
    )
    seen: list[tuple[LayerSpec, ...]] = []

    def measure(self: ChainTimes, chain: tuple[LayerSpec, ...]) -> Taken:
        seen.append(chain)
        return Taken(float(-(-chain[0].out_channels // true) * true))

    monkeypatch.setattr(place, "described", lambda _: kind)
    monkeypatch.setattr(ChainTimes, "_slowdown", lambda *_: 1.0)
    monkeypatch.setattr(ChainTimes, "_measure", measure)
    times = ChainTimes(Place(precision=precision), LatencyCache(tmp_path))
    assert times.good_multiple() == found
    assert {(chain[0].in_channels, chain[0].input_size) for chain in seen} == {(512, (56, 56))}
    assert times.place.key() != Place().key() or precision == "float32"


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_shorter_type_is_timed_as_such(precision: str, tmp_path: Path) -> None:
    times = ChainTimes(Place(precision=precision), LatencyCache(tmp_path))
    assert 0 < times.time_s((replace(CONV, stride=(1, 1)),)) < 1


def test_a_provider_that_is_not_there_is_named() -> None:
    with pytest.raises(PolicyError, match=r"no NoSuchProvider; it has .*CPUExecutionProvider"):
        Place("NoSuchProvider")
