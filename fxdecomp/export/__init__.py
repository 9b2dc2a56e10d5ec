"""ONNX files: written, checked, timed."""

from fxdecomp.export.auditing import LayoutAudit, audit_layout
from fxdecomp.export.benchmark_report import BenchmarkReport, Timing
from fxdecomp.export.comparing import Comparison, compare
from fxdecomp.export.export_report import ExportReport
from fxdecomp.export.fp16 import Fp16
from fxdecomp.export.int8 import Int8
from fxdecomp.export.kernel_bench import bench_kernels
from fxdecomp.export.kernel_map import KernelMap, KernelPoint
from fxdecomp.export.kernels import Kernel
from fxdecomp.export.metadata import FileMetadata, read_metadata
from fxdecomp.export.parity import check_parity
from fxdecomp.export.quantization import Quantization
from fxdecomp.export.ratios import Ratio
from fxdecomp.export.timing import benchmark
from fxdecomp.export.writing import to_onnx

__all__ = [
    "BenchmarkReport",
    "Comparison",
    "ExportReport",
    "FileMetadata",
    "Fp16",
    "Int8",
    "Kernel",
    "KernelMap",
    "KernelPoint",
    "LayoutAudit",
    "Quantization",
    "Ratio",
    "Timing",
    "audit_layout",
    "bench_kernels",
    "benchmark",
    "check_parity",
    "compare",
    "read_metadata",
    "to_onnx",
]
