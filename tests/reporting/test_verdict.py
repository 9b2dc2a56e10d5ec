"""Which network is to be shipped."""

from dataclasses import replace

import pytest

from fxdecomp.export import BenchmarkReport, Timing
from fxdecomp.quality import OutputDistance, Quality
from fxdecomp.reporting import Variant
from fxdecomp.reporting.verdict import verdict_of


def judged(error: float) -> Quality:
    return Quality("held-out calibration, 8 inputs", 8, True, (OutputDistance("output", error, 0.95),))


def timed(**seconds: float) -> BenchmarkReport:
    return BenchmarkReport(
        tuple(Timing(name, "CPUExecutionProvider", 1, 1, (s, s, s), s, s, s) for name, s in seconds.items())
    )


DENSE, SMALL = Variant("dense", {}, 100, 10, 8_000_000), Variant("small", {}, 40, 5, 4_000_000, judged(0.1))
INT8, WORSE = (
    Variant("small.int8", {}, 40, 5, 1_000_000, judged(0.2)),
    Variant("small.int8", {}, 1, 1, 1, judged(0.9)),
)


@pytest.mark.parametrize(
    ("benchmark", "variants", "ship", "parts"),
    [
        (
            timed(dense=4, small=2),
            [DENSE, SMALL],
            "small",
            ["2.00x [2.00, 2.00] as fast as dense (CPU, 1 thread)"],
        ),
        (
            timed(dense=4, small=2),
            [DENSE, SMALL],
            "small",
            ["differs from the original by 10.0% and decides alike in 95.0%", "4.00 MB instead of 8.00 MB"],
        ),
        (timed(**{"dense": 4, "small": 2, "small.int8": 1}), [DENSE, SMALL, INT8], "small.int8", ["4.00x"]),
        (timed(**{"dense": 4, "small": 2, "small.int8": 3}), [DENSE, SMALL, INT8], "small", ["2.00x"]),
        (timed(**{"dense": 4, "small": 2, "small.int8": 1}), [DENSE, SMALL, WORSE], "small", ["2.00x"]),
        (timed(dense=2, small=4), [DENSE, SMALL], "dense", ["small is not shown to be faster, 0.50x"]),
        (timed(**{"dense": 4, "small.int8": 1}), [DENSE, WORSE], "dense", ["agrees with it by 0.19 only"]),
        (None, [DENSE, SMALL, INT8], "small.int8", ["not timed", "differs"]),
        (None, [DENSE, Variant("small", {}, 40, 5)], "small", ["not timed, 50% of the parameters"]),
    ],
)
def test_the_fastest_that_agrees_is_shipped_and_else_the_original(benchmark, variants, ship, parts) -> None:
    verdict = verdict_of(benchmark, variants)
    assert verdict is not None
    assert verdict.ship == ship
    for part in parts:
        assert part in verdict.sentence
    assert verdict.to_dict()["sentence"] == verdict.sentence


def test_what_the_user_allows_decides_before_the_distance() -> None:
    times = timed(**{"dense": 4, "small": 2, "small.int8": 1})
    scored = replace(DENSE, quality={"metric": "0.91"})
    allowed = replace(WORSE, quality={"metric": "0.90"}, allowed=True)
    verdict = verdict_of(times, [scored, SMALL, allowed])
    assert verdict is not None
    assert verdict.ship == "small.int8"
    assert "metric 0.90, was 0.91" in verdict.why
    refused = [scored, replace(SMALL, allowed=False)]
    verdict = verdict_of(times, refused)
    assert verdict is not None
    assert (verdict.ship, verdict.why) == ("dense", "small loses more than is allowed")


def test_there_is_no_verdict_of_one_network() -> None:
    assert verdict_of(None, [DENSE]) is None
    absent = BenchmarkReport((Timing("dense", "CUDAExecutionProvider", 1, 1, problem="absent"),))
    verdict = verdict_of(absent, [DENSE, SMALL])
    assert verdict is not None
    assert not verdict.timed
