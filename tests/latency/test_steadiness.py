from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fxdecomp.latency import chain_times, place
from fxdecomp.latency.cache import LatencyCache, Taken
from fxdecomp.latency.chain_times import ChainTimes
from fxdecomp.latency.steadiness import Watch
from fxdecomp.layers import LayerSpec
from fxdecomp.providers import Provider

pytest.importorskip("onnxruntime")

SLOWDOWN = ChainTimes._slowdown
A, B = ((LayerSpec(8, 8 * n),) for n in (1, 2))


def test_the_watch_compares_with_its_quickest_time_that_of_earlier_processes_too(tmp_path: Path) -> None:
    now = [2.0]
    cache = LatencyCache(tmp_path)
    watch = Watch(lambda: now[0], cache, {"watched": 1})
    assert watch.slowdown() == 1
    now[0] = 3.0
    assert watch.slowdown() == 1.5
    now[0] = 1.0
    assert watch.slowdown() == 1
    now[0] = 4.0
    assert Watch(lambda: now[0], cache, {"watched": 1}).slowdown() == 4
    assert Watch(lambda: now[0], cache, {"watched": 2}).slowdown() == 1


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Machine":
    found = Machine(ChainTimes(cache=LatencyCache(tmp_path)))
    monkeypatch.setattr(ChainTimes, "_measure", lambda *_: found.measure())
    monkeypatch.setattr(ChainTimes, "_slowdown", lambda *_: found.slowdown)
    monkeypatch.setattr(chain_times, "_PAUSE_S", 0.0)
    return found


class Machine:
    """A second a chain, times what other work makes of it."""

    def __init__(self, times: ChainTimes) -> None:
        self.times, self.calls = times, 0
        self.work: Iterator[float] = iter(())

    def measure(self) -> Taken:
        self.calls += 1
        self.slowdown = next(self.work, 1.0)
        return Taken(self.slowdown)


def test_a_chain_that_other_work_slowed_is_timed_again(machine: Machine) -> None:
    machine.work = iter((2.0, 5.0, 1.1))
    assert machine.times.time_s(A) == 1.1
    assert (machine.calls, machine.times.again, machine.times.disturbed) == (3, 2, 0)
    assert ChainTimes(cache=machine.times.cache).time_s(A) == 1.1
    assert machine.calls == 3


def test_what_was_never_timed_in_peace_is_counted_and_not_kept(machine: Machine) -> None:
    machine.work = iter((5.0, 2.0, 3.0))
    assert machine.times.time_s(A) == 2.0
    assert (machine.times.disturbed, machine.times.slowest) == (1, 2.0)
    assert machine.times.cache.summary() == {}
    assert machine.times.time_s(A) == 2.0
    machine.times.time_s(B)
    machine.times.forget()
    assert machine.times.disturbed == 0
    assert machine.times.time_s(A) == 1.0
    assert machine.times.time_s(B) == 1.0
    assert machine.calls == 5


def test_on_a_machine_that_is_never_idle_times_come_to_an_end(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_times, "_MOST_AGAIN", 2)
    machine.work = iter(100 * [2.0])
    for width in range(1, 11):
        machine.times.time_s((LayerSpec(8, width),))
    assert (machine.times.again, machine.times.disturbed, machine.calls) == (5, 10, 15)


@pytest.mark.parametrize(("device", "again"), [(None, 1), ("cuda", 0)])
def test_a_chain_during_which_others_had_the_processor_is_timed_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, device: str | None, again: int
) -> None:
    """Not where a device does the work: it is waited for without a processor."""
    wall, cpu = iter((0.0, 0.03, 1.0, 1.02)), iter((0.0, 0.01, 1.0, 1.02))
    clock = SimpleNamespace(
        perf_counter=lambda: next(wall), process_time=lambda: next(cpu), sleep=lambda _: None
    )
    monkeypatch.setattr(ChainTimes, "_slowdown", SLOWDOWN)
    monkeypatch.setattr(ChainTimes, "_watched", lambda _: 1.0)
    monkeypatch.setattr(chain_times, "time", clock)
    monkeypatch.setattr(place, "described", lambda name: Provider(name, device=device))
    machine.times.time_s(A)
    assert machine.times.again == again
    assert machine.times.disturbed == 0
