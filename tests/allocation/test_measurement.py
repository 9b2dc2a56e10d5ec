"""What a budget of time tells of how it was measured."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Latency, Policy, PolicyError, Rule
from fxdecomp.allocation import timed
from fxdecomp.export import Ratio
from fxdecomp.latency import quickest_options
from fxdecomp.latency.cache import Taken
from fxdecomp.latency.chain_times import ChainTimes
from fxdecomp.latency.place import Place
from fxdecomp.layers import LayerSpec

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def gm() -> GraphModule:
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1)]
    return fxdecomp.trace(nn.Sequential(*layers).eval(), torch.randn(1, 8, 12, 12))


class Machine:
    """A nanosecond a multiply-accumulate; whole networks take what it is told."""

    def __init__(self) -> None:
        self.dense_s = iter(100 * [1e-2])
        self.width = 0.01
        self.asked: list[dict[str, Any]] = []
        self.priced = 0
        self.slowdown = 1.0

    def benchmark(self, models: dict[str, Path], **asked: Any) -> Any:
        self.asked.append({"models": list(models), **asked})
        dense_s = next(self.dense_s)
        return SimpleNamespace(
            problems=(),
            median_s={name: dense_s if name == "dense" else dense_s / 2 for name in models},
            ratio=lambda *_: Ratio(2.0, 2.0 - self.width, 2.0 + self.width),
        )

    def measure(self, chain: tuple[LayerSpec, ...]) -> Taken:
        self.priced += 1
        return Taken(1e-9 * sum(spec.macs for spec in chain))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    found = Machine()
    monkeypatch.setenv("FXDECOMP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(ChainTimes, "_measure", lambda _, chain: found.measure(chain))
    monkeypatch.setattr(ChainTimes, "_slowdown", lambda *_: found.slowdown)
    monkeypatch.setattr("fxdecomp.latency.chain_times._PAUSE_S", 0.0)
    monkeypatch.setattr(timed.LatencyPlanner, "fixed_s", lambda *_: 1e-6)
    monkeypatch.setattr(timed, "benchmark", found.benchmark)
    monkeypatch.setattr(timed, "write_mock", lambda *_: None)
    return found


def planned(gm: GraphModule, target: float = 0.5) -> fxdecomp.Report:
    policy = Policy(made_up=False, budget=Latency(target), rules=[Rule("*", "channel_svd")])
    return fxdecomp.report(fxdecomp.transform(gm, policy))


def told(report: fxdecomp.Report) -> str:
    return "; ".join(report.record.notes)


def test_an_idle_machine_gives_no_warning(gm: GraphModule, machine: Machine) -> None:
    report = planned(gm)
    assert "disturbed" not in told(report)
    assert report.record.latency is not None
    assert report.record.latency.disturbed == ()


def test_layers_that_were_never_timed_in_peace_are_told(gm: GraphModule, machine: Machine) -> None:
    machine.slowdown = 2.0
    report = planned(gm)
    assert "time(s) of layers were taken while the machine was up to 2.0 times slower" in told(report)
    assert report.record.latency is not None
    assert report.record.latency.disturbed


def test_rounds_that_disagree_are_repeated_and_told(gm: GraphModule, machine: Machine) -> None:
    machine.width = 0.4
    report = planned(gm)
    rounds = [asked["rounds"] for asked in machine.asked if "small" in asked["models"]]
    assert rounds[1] == 2 * rounds[0]
    assert "disturbed timings: rounds of the check disagree (2.00x [1.60, 2.40])" in told(report)


def test_a_dense_network_that_takes_another_time_afterwards_has_its_layers_timed_again(
    gm: GraphModule, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgot: list[bool] = []
    real = ChainTimes.forget
    monkeypatch.setattr(ChainTimes, "forget", lambda self: (forgot.append(True), real(self))[1])
    machine.dense_s = iter([1e-2, 2e-2, *(100 * [2e-2])])
    assert "disturbed" not in told(planned(gm))
    assert forgot == [True]
    machine.dense_s = iter([1e-2, 2e-2, *(100 * [1e-2])])
    assert "the dense network took 0.50 times as long after its layers as before them" in told(planned(gm))


def test_a_refusal_from_disturbed_times_says_so(gm: GraphModule, machine: Machine) -> None:
    with pytest.raises(PolicyError) as calm:
        planned(gm, 0.001)
    assert "disturbed" not in str(calm.value)
    machine.dense_s = iter([1e-2, 2e-2, 1e-2])
    with pytest.raises(PolicyError, match=r"cannot be met: .*; disturbed timings: the dense network took"):
        planned(gm, 0.001)


def test_the_quickest_options_are_used_for_dense_and_small_alike_and_told(
    gm: GraphModule, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quickest(place: Place, _: object) -> Place:
        return Place(place.provider, place.threads, {"layout": "nhwc"})

    keys: list[dict[str, Any]] = []
    measure: Callable[..., Taken] = machine.measure
    monkeypatch.setattr(quickest_options, "with_quickest_options", quickest)
    monkeypatch.setattr(
        ChainTimes, "_measure", lambda self, chain: (keys.append(self.place.key()), measure(chain))[1]
    )
    report = planned(gm)
    wanted = {"CPUExecutionProvider": {"layout": "nhwc"}}
    assert [asked["provider_options"] for asked in machine.asked] == [wanted] * len(machine.asked)
    assert "dense and small network alike ran with layout=nhwc" in told(report)
    assert {tuple(key["options"].items()) for key in keys} == {(("layout", "nhwc"),)}
    assert report.record.latency is not None
    assert report.record.latency.provider_options == wanted
