"""Static int8 by ONNX Runtime's own quantiser (QDQ, per channel); stages that cannot bear it stay in fp32.

The ranges of the activations come from calibration batches; the error is measured at the output of the
network, on batches that the ranges were not taken from. There is no static form of an LSTM: its weights are
int8, and its input and state are quantised as it runs (ONNX Runtime's DynamicQuantizeLSTM).
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from fxdecomp.errors import ExportError
from fxdecomp.export.machine import machine
from fxdecomp.export.onnx_layers import OnnxLayers
from fxdecomp.export.quantization import Quantization, lower_precision, split_batches
from fxdecomp.export.running import Feed, outputs_of, relative_distance
from fxdecomp.progress import Progress, silent

# What ONNX Runtime's CPU provider runs in int8, and what passes it through. ConvTranspose has no such kernel.
_LAYERS = ("Conv", "Gemm", "MatMul")
_RECURRENT = "LSTM"
_OTHERS = ("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Relu")


@dataclass(frozen=True, slots=True)
class Int8:
    """How a model is quantised.

    Attributes:
        max_error: Largest `||y' - y|| / ||y - mean(y)||` of the outputs that quantisation may cause.
        weight_bits: 8, or 7 for processors whose int8 products saturate (x86 without VNNI); by default as
            this machine needs it.
        balance: Whether to balance the scales between neighbouring linear stages first.
        recurrent: Whether LSTMs are quantised too. The operator that they become is ONNX Runtime's own, and
            only its CPU provider has it: False keeps the file for other providers.

    Example:
        >>> from fxdecomp.export import Int8
        >>> Int8(max_error=0.05, weight_bits=7)
        Int8(max_error=0.05, weight_bits=7, balance=True, recurrent=True)
    """

    kind: ClassVar[str] = "int8"
    max_error: float = 0.1
    weight_bits: int | None = None
    balance: bool = True
    recurrent: bool = True

    def __post_init__(self) -> None:
        if not self.max_error > 0:
            raise ExportError(f"max_error is {self.max_error}; wanted a number above 0, such as 0.1")
        if self.weight_bits not in (None, 7, 8):
            raise ExportError(f"weight_bits is {self.weight_bits}; wanted 7 or 8")


def quantize_int8(
    source: Path, target: Path, feeds: Sequence[Feed], options: Int8, *, progress: Progress = silent
) -> Quantization:
    """Write the int8 form of a file.

    Args:
        source: A float ONNX file, its scales balanced if they shall be.
        target: The file to write.
        feeds: Calibration batches; the last quarter of them measures the error.
        options: How.
        progress: Told of every stage that is tried alone.

    Returns:
        What was quantised and the error.

    Raises:
        ExportError: If no stage can be quantised within the error.
    """
    stages = _stages(source, recurrent=options.recurrent)
    if not stages:
        raise ExportError("there is nothing to quantise: the model has no Conv, Gemm or MatMul with a weight")
    calibration, held_out = split_batches(feeds)
    bits = options.weight_bits or (7 if _saturates() else 8)
    writer = _Writer(source, target, calibration, bits)
    wanted = outputs_of(source, held_out)

    def error_of(quantised: Sequence[str]) -> float:
        writer.write(quantised)
        return relative_distance(wanted, outputs_of(target, held_out))

    found = lower_precision("int8", stages, error_of, options.max_error, progress)
    return replace(found, weight_bits=bits)


def _stages(source: Path, *, recurrent: bool) -> list[str]:
    """Names of the layers that can be quantised.

    ONNX Runtime's quantiser replaces the weights of an LSTM: one that shares them stays as it is.
    """
    import onnx

    nodes = onnx.load(str(source), load_external_data=False).graph.node
    reads = Counter(name for node in nodes for name in node.input)
    sole = {node.name for node in nodes if node.op_type == _RECURRENT and reads[node.input[1]] == 1}
    return [
        name
        for name, layer in OnnxLayers(source).by_name.items()
        if layer.op in _LAYERS or (recurrent and name in sole)
    ]


def _saturates() -> bool:
    """Whether int8 products overflow 16 bits on this machine: x86 before VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return False
    return not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(machine()["features"])


class _Writer:
    """Writes int8 forms of one file, with the ranges taken once."""

    def __init__(self, source: Path, target: Path, calibration: Sequence[Feed], bits: int) -> None:
        import onnx
        from onnxruntime.quantization import calibrate, quant_utils

        self._target = target
        self._bits = bits
        self._model = quant_utils.load_model_with_shape_infer(source)
        self._constants = {item.name for item in self._model.graph.initializer}
        self._onnx = onnx
        augmented = source.with_name(f"{source.name}.ranges")
        calibrator = calibrate.create_calibrator(source, list(_LAYERS + _OTHERS), str(augmented))
        try:
            calibrator.collect_data(_Reader(calibration))
            self._ranges = calibrator.compute_data()
        finally:
            del calibrator
            augmented.unlink(missing_ok=True)

    def write(self, quantised: Sequence[str]) -> None:
        """Write the file with these stages, and what lies between them, in int8."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        chosen = set(quantised)
        model = self._with_lstms(chosen)
        excluded = [node.name for node in model.graph.node if self._is_excluded(node, chosen)]
        signed = platform.machine().lower() in ("aarch64", "arm64")
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=self._bits == 7,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if signed else QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=excluded,
            op_types_to_quantize=list(_LAYERS + (_OTHERS if len(chosen) > 1 else ())),
            # Outputs of linear layers go on in fp32 unless another int8 layer takes them: the network's own
            # outputs and the sums with a bias keep their precision.
            extra_options={
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
            },
        )
        quantizer.quantize_model()
        _read_shapes_unquantised(quantizer.model.model.graph)
        quantizer.model.save_model_to_file(str(self._target), False)

    def _with_lstms(self, chosen: set[str]) -> Any:
        """A copy of the model, the chosen ones among its LSTMs in int8."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
        from onnxruntime.quantization.quant_utils import QuantizationMode

        model = self._onnx.ModelProto()
        model.CopyFrom(self._model)
        lstms = [node.name for node in model.graph.node if node.op_type == _RECURRENT and node.name in chosen]
        if not lstms:
            return model
        quantizer = ONNXQuantizer(
            model,
            per_channel=True,
            reduce_range=self._bits == 7,
            mode=QuantizationMode.IntegerOps,
            static=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=None,
            nodes_to_quantize=lstms,
            nodes_to_exclude=[],
            op_types_to_quantize=[_RECURRENT],
        )
        quantizer.quantize_model()
        for node in quantizer.model.model.graph.node:
            if node.op_type == f"DynamicQuantize{_RECURRENT}":
                node.name = node.name.removesuffix("_quant")
        return quantizer.model.model

    def _is_excluded(self, node: Any, chosen: set[str]) -> bool:
        if node.op_type in _LAYERS:
            return node.name not in chosen
        return node.op_type == "Add" and any(name in self._constants for name in node.input)


class _Reader:
    """Calibration batches in the form that the quantiser takes them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def _read_shapes_unquantised(graph: Any) -> None:
    """Let Shape read a value itself, not its dequantised copy, which would have to be computed."""
    producers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type != "Shape":
            continue
        back = producers.get(node.input[0])
        if back is not None and back.op_type == "DequantizeLinear":
            forth = producers.get(back.input[0])
            if forth is not None and forth.op_type == "QuantizeLinear":
                node.input[0] = forth.input[0]
