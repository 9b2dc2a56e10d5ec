"""ONNX files as torch.fx graphs: for those who have only the file."""

from fxdecomp.importing.fixing import fix_inputs
from fxdecomp.importing.onnx_file import ImportedModel, from_onnx

__all__ = ["ImportedModel", "fix_inputs", "from_onnx"]
