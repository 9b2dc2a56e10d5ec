"""`KernelMap`: how fast a provider runs each kind of kernel, against what the machine could do (a roofline).

With the GEMM peak P (operations a second) and the memory bandwidth B (bytes a second), both measured on the
same provider, a kernel of I operations a byte can reach `min(P, B * I)` (Williams et al. 2009, doi
10.1145/1498765.1498785).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxdecomp.errors import BenchmarkError
from fxdecomp.files import check_file


@dataclass(frozen=True, slots=True)
class KernelPoint:
    """One kernel of one size.

    Attributes:
        kind: `pointwise`, `depthwise 3x1`, `depthwise 1x3`, `depthwise 3x3` or `core 3x3`.
        channels: Channels in and out.
        size: Height and width of the input.
        time_s: Median time, in seconds.
        macs: Multiply-accumulates.
        bytes: Input, weight and output, each once.
        bound_gflops: What the roofline allows, in GFLOP/s.

    Example:
        >>> from fxdecomp.export import KernelPoint
        >>> point = KernelPoint("pointwise", 64, 28, 1e-4, 3_211_264, 421_888, 80.0)
        >>> round(point.gflops, 1), f"{point.reached:.0%}"
        (64.2, '80%')
    """

    kind: str
    channels: int
    size: int
    time_s: float
    macs: int
    bytes: int
    bound_gflops: float

    @property
    def gflops(self) -> float:
        """Speed in GFLOP/s, a multiply-accumulate counted as two operations."""
        return 2e-9 * self.macs / self.time_s

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return 2 * self.macs / self.bytes

    @property
    def reached(self) -> float:
        """Part of the roofline that is reached; caches can bring it above 1."""
        return self.gflops / self.bound_gflops

    def to_dict(self) -> dict[str, Any]:
        """The point as JSON data."""
        return asdict(self) | {"gflops": self.gflops, "intensity": self.intensity, "reached": self.reached}


@dataclass(frozen=True, slots=True)
class KernelMap:
    """What a provider does well on a machine.

    Attributes:
        points: One row per kind, channels and size.
        peak_gflops: Speed of a large matrix product, in GFLOP/s.
        bandwidth_gbytes: Speed of a large copy, read and written bytes, in GB/s.
        provider: The execution provider.
        precision: float32, float16 or int8.
        threads: Intra-op threads.
        machine: Processor, cores and versions.

    Example:
        >>> from fxdecomp.export import KernelMap, KernelPoint
        >>> points = (KernelPoint("pointwise", 64, 28, 1e-4, 3_211_264, 421_888, 80.0),)
        >>> print(KernelMap(points, 80.0, 10.0, "CPUExecutionProvider", "float32", 1, {}))
        CPUExecutionProvider, float32, 1 thread(s): matrix product 80.0 GFLOP/s, memory 10.0 GB/s
        kernel         channels  size        ms  GFLOP/s  of roofline
        pointwise            64    28     0.100     64.2          80%
    """

    points: tuple[KernelPoint, ...]
    peak_gflops: float
    bandwidth_gbytes: float
    provider: str
    precision: str
    threads: int
    machine: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The map as JSON data."""
        return asdict(self) | {"points": [point.to_dict() for point in self.points]}

    def __str__(self) -> str:
        lines = [
            f"{self.provider}, {self.precision}, {self.threads} thread(s): matrix product "
            f"{self.peak_gflops:.1f} GFLOP/s, memory {self.bandwidth_gbytes:.1f} GB/s",
            f"{'kernel':<14} channels  size        ms  GFLOP/s  of roofline",
        ]
        lines += [
            f"{point.kind:<14} {point.channels:>8} {point.size:>5} {point.time_s * 1e3:>9.3f} "
            f"{point.gflops:>8.1f} {point.reached:>12.0%}"
            for point in self.points
        ]
        return "\n".join(lines)

    def plot(self, path: Path | str) -> None:
        """Draw the roofline and the kernels under it.

        Args:
            path: The picture to write; its ending says in which format.

        Raises:
            BenchmarkError: If matplotlib is not installed, or does not know the ending.
        """
        check_picture(path)
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        self.draw(figure.subplots())
        figure.savefig(path)

    def draw(self, axes: Any) -> None:
        """Draw the roofline and the kernels under it on matplotlib axes."""
        ridge = self.peak_gflops / self.bandwidth_gbytes
        spread = [point.intensity for point in self.points] + [ridge]
        ends = [min(spread) / 2, ridge, max(spread) * 2]
        axes.loglog(ends, [min(self.peak_gflops, self.bandwidth_gbytes * x) for x in ends], color="black")
        for kind in dict.fromkeys(point.kind for point in self.points):
            chosen = [point for point in self.points if point.kind == kind]
            axes.loglog([p.intensity for p in chosen], [p.gflops for p in chosen], "o", label=kind)
        axes.set_xlabel("operations a byte")
        axes.set_ylabel("GFLOP/s")
        axes.set_title(f"{self.provider}, {self.precision}, {self.threads} thread(s)")
        axes.legend()


def check_picture(path: Path | str) -> None:
    """Raise where a picture could not be drawn, before the work on what it is to show.

    Raises:
        BenchmarkError: matplotlib is not installed, or does not know the ending.
        OutputError: The file cannot be written.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise BenchmarkError("a plot needs matplotlib; install `fxdecomp[plots]`") from error
    path = Path(path)
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in known:
        raise BenchmarkError(f"{path}: no picture ends in {path.suffix}; use .svg, .png or .pdf")
    check_file(path)
