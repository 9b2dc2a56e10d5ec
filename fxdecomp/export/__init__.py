"""ONNX files: written, checked, timed."""

from fxdecomp.export.auditing import LayoutAudit, audit_layout
from fxdecomp.export.benchmark_report import BenchmarkReport, Ratio, Timing
from fxdecomp.export.export_report import ExportReport
from fxdecomp.export.fp16 import Fp16
from fxdecomp.export.int8 import Int8
from fxdecomp.export.kernels import Kernel
from fxdecomp.export.metadata import FileMetadata, read_metadata
from fxdecomp.export.parity import check_parity
from fxdecomp.export.quantization import Quantization
from fxdecomp.export.timing import benchmark
from fxdecomp.export.writing import to_onnx

__all__ = [
    "BenchmarkReport",
    "ExportReport",
    "FileMetadata",
    "Fp16",
    "Int8",
    "Kernel",
    "LayoutAudit",
    "Quantization",
    "Ratio",
    "Timing",
    "audit_layout",
    "benchmark",
    "check_parity",
    "read_metadata",
    "to_onnx",
]
