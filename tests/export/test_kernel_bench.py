from pathlib import Path

import pytest

from fxdecomp.errors import BenchmarkError
from fxdecomp.export import KernelMap, KernelPoint, bench_kernels, kernel_bench


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bench, "_GEMM", 64)
    monkeypatch.setattr(kernel_bench, "_COPY_FLOATS", 1 << 16)
    monkeypatch.setattr(kernel_bench, "_TRIES", 1)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_every_kind_is_timed_and_counted(quick: None, precision: str) -> None:
    steps = []
    found = bench_kernels(
        precision=precision,  # type: ignore[arg-type]
        channels=(16, 32),
        sizes=(8,),
        runs=3,
        progress=lambda _, done, total: steps.append((done, total)),
    )
    counted = {(point.kind, point.channels): (point.macs, point.bytes) for point in found.points}
    item = {"float32": 4, "int8": 1}[precision]
    pixels = 64
    assert counted[("pointwise", 16)] == (16 * 16 * pixels, (16 * 16 + 2 * 16 * pixels) * item)
    assert counted[("depthwise 3x1", 32)] == (32 * 3 * pixels, (32 * 3 + 2 * 32 * pixels) * item)
    assert counted[("depthwise 1x3", 32)] == counted[("depthwise 3x1", 32)]
    assert counted[("depthwise 3x3", 16)] == (16 * 9 * pixels, (16 * 9 + 2 * 16 * pixels) * item)
    assert counted[("core 3x3", 32)] == (32 * 32 * 9 * pixels, (32 * 32 * 9 + 2 * 32 * pixels) * item)
    assert len(found.points) == 10
    assert steps[-1] == (10, 10)
    assert all(0 < point.time_s < 0.1 for point in found.points)
    assert found.peak_gflops > 0
    assert found.bandwidth_gbytes > 0
    assert (found.provider, found.precision, found.threads) == ("CPUExecutionProvider", precision, 1)


def test_the_roofline_bounds_by_memory_first_and_by_arithmetic_then() -> None:
    light = KernelPoint("depthwise 3x3", 16, 8, 1e-3, 500_000, 1_000_000, bound_gflops=10.0)
    assert light.gflops == pytest.approx(1.0)
    assert light.intensity == pytest.approx(1.0)
    assert light.reached == pytest.approx(0.1)
    found = KernelMap((light,), 100.0, 10.0, "CPUExecutionProvider", "float32", 1, {})
    assert str(found) == (
        "CPUExecutionProvider, float32, 1 thread(s): matrix product 100.0 GFLOP/s, memory 10.0 GB/s\n"
        "kernel         channels  size        ms  GFLOP/s  of roofline\n"
        "depthwise 3x3        16     8     1.000      1.0          10%"
    )
    assert found.to_dict()["points"][0]["reached"] == pytest.approx(0.1)


def test_bounds_come_from_peak_and_bandwidth(quick: None) -> None:
    found = bench_kernels(channels=(16,), sizes=(8,), runs=2, kinds=("pointwise", "depthwise 3x3"))
    for point in found.points:
        assert point.bound_gflops == pytest.approx(
            min(found.peak_gflops, found.bandwidth_gbytes * point.intensity)
        )


def test_the_map_is_drawn(tmp_path: Path) -> None:
    points = tuple(
        KernelPoint(kind, 16, size, 1e-4, 10**5 * size, 10**5, 5.0)
        for kind in ("pointwise", "core 3x3")
        for size in (8, 16)
    )
    KernelMap(points, 100.0, 10.0, "CPUExecutionProvider", "float32", 1, {}).plot(tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    assert "<svg" in text
    assert len(text) > 5000


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(BenchmarkError, match="there is no 'core'; wanted some of"):
        bench_kernels(kinds=("pointwise", "core"))
    with pytest.raises(BenchmarkError, match="there is no 'int4'; wanted some of"):
        bench_kernels(precision="int4")  # type: ignore[arg-type]
    with pytest.raises(BenchmarkError, match="FancyExecutionProvider is not available; there are"):
        bench_kernels(provider="FancyExecutionProvider")
