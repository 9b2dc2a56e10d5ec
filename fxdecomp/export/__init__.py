"""ONNX files: written, checked, timed."""
