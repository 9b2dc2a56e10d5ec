"""ONNX files: written, checked, timed."""

from fxdecomp.export.export_report import ExportReport
from fxdecomp.export.metadata import FileMetadata, read_metadata
from fxdecomp.export.parity import check_parity
from fxdecomp.export.writing import to_onnx

__all__ = ["ExportReport", "FileMetadata", "check_parity", "read_metadata", "to_onnx"]
