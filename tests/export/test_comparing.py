from dataclasses import replace

import numpy as np
import pytest

from fxdecomp.errors import BenchmarkError
from fxdecomp.export import BenchmarkReport, Timing, compare


def timing(model: str, seconds: float, *, threads: int = 1, problem: str = "") -> Timing:
    rounds = tuple(seconds * np.random.default_rng(len(model)).normal(1, 0.01, 20))
    return Timing(model, "CPUExecutionProvider", threads, 1, rounds, seconds, seconds, problem=problem)


BEFORE = BenchmarkReport(
    (timing("dense", 0.4), timing("small", 0.2), timing("old", 0.1), timing("broken", 0.1, problem="no")),
    machine={"processor": "A", "versions": {"onnxruntime": "1.31.0", "torch": "2.13.0"}},
    settings={"rounds": 20},
)
AFTER = BenchmarkReport(
    (timing("dense", 0.4), timing("small", 0.1), timing("small", 0.05, threads=2), timing("broken", 0.1)),
    machine={"processor": "A", "versions": {"onnxruntime": "1.32.0", "torch": "2.13.0"}},
    settings={"rounds": 20},
)


def test_what_both_timed_is_compared_and_the_rest_is_listed() -> None:
    found = compare(BEFORE, AFTER)
    assert [(row.model, row.threads) for row in found.rows] == [("dense", 1), ("small", 1)]
    assert found.rows[0].speedup.low <= 1.0 <= found.rows[0].speedup.high
    assert found.rows[1].speedup.value == pytest.approx(2.0, rel=0.05)
    assert found.rows[1].speedup.low > 1.9
    assert found.only_before == ("old on CPUExecutionProvider, 1 thread(s), batch 1",)
    assert found.only_after == (
        "small on CPUExecutionProvider, 2 thread(s), batch 1",
        "broken on CPUExecutionProvider, 1 thread(s), batch 1",
    )
    assert found.differences == {"machine.versions.onnxruntime": ("1.31.0", "1.32.0")}
    text = str(found)
    assert "differs: machine.versions.onnxruntime: 1.31.0 -> 1.32.0" in text
    assert "small  CPUExecutionProvider            1     1    200.000   100.000  2.0" in text
    assert found.to_dict()["rows"][1]["before_s"] == 0.2


def test_reports_without_common_ground_are_an_error() -> None:
    other = replace(AFTER, timings=(timing("other", 1.0),))
    with pytest.raises(BenchmarkError, match="nothing was timed in both"):
        compare(BEFORE, other)
