"""Half precision for GPU providers, with fp32 islands where the range or the precision does not suffice.

The converter is ONNX Runtime's own. Inputs and outputs of the file stay in fp32. A node whose values come
near the end of the range of fp16 (65504) on the calibration batches stays in fp32, and so do sines of large
angles with what feeds them, and whatever else it takes to keep the error at the output, found as for int8.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fxdecomp.errors import ExportError
from fxdecomp.export.onnx_layers import OnnxLayers
from fxdecomp.export.quantization import Quantization, lower_precision, split_batches
from fxdecomp.export.running import Feed, outputs_of, overflowing_nodes, relative_distance
from fxdecomp.progress import Progress, silent

_LARGEST = 65504 / 4
"""Values above it are taken for a danger: other inputs may be four times as large."""

_LARGEST_ANGLE = 16.0
_OF_ANGLES = ("Sin", "Cos")


@dataclass(frozen=True, slots=True)
class Fp16:
    """How a model is brought to half precision.

    Attributes:
        max_error: Largest `||y' - y|| / ||y - mean(y)||` of the outputs that it may cause.

    Example:
        >>> from fxdecomp.export import Fp16
        >>> Fp16(max_error=0.01).max_error
        0.01
    """

    kind: ClassVar[str] = "fp16"
    max_error: float = 0.01

    def __post_init__(self) -> None:
        if not self.max_error > 0:
            raise ExportError(f"max_error is {self.max_error}; wanted a number above 0, such as 0.01")


def write_fp16(
    source: Path, target: Path, feeds: Sequence[Feed], options: Fp16, *, progress: Progress = silent
) -> Quantization:
    """Write the half-precision form of a file, and measure it on the CPU.

    Args:
        source: A float ONNX file.
        target: The file to write.
        feeds: Batches; the last quarter of them measures the error.
        options: How.
        progress: Told of every stage that is tried alone.

    Raises:
        ExportError: If not a single stage bears it.
    """
    import onnx
    import onnx_ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    calibration, held_out = split_batches(feeds)
    dangerous = overflowing_nodes(source, calibration, _LARGEST)
    layers = OnnxLayers(source).by_name
    wanted = outputs_of(source, held_out)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
    turned = _turned_factors(model.graph)
    large = overflowing_nodes(source, calibration, _LARGEST_ANGLE)
    angles = _angles(
        model.graph, large, {name for name, layer in layers.items() if 1 not in layer.weight_shape}
    )

    stages = [name for name in layers if name not in dangerous | angles]

    def error_of(lowered: Sequence[str]) -> float:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        blocked = dangerous | turned | angles | (set(layers) - set(lowered))
        with warnings.catch_warnings():
            # The converter warns of every weight that it rounds to zero; the error at the output tells more.
            warnings.simplefilter("ignore", UserWarning)
            half = convert_float_to_float16(copy, keep_io_types=True, node_block_list=sorted(blocked))
        del half.graph.value_info[:]  # the converter leaves some types as they were
        lowered_model = onnx_ir.from_proto(half)
        _join_islands(lowered_model.graph)
        lowered_model.graph.sort()  # the converter appends its casts at the end
        onnx_ir.save(lowered_model, target)
        return relative_distance(wanted, outputs_of(target, held_out))

    found = lower_precision("fp16", stages, error_of, options.max_error, progress)
    kept = (*(name for name in layers if name in dangerous | angles), *found.kept)
    return Quantization("fp16", found.error, kept, found.alone, weight_bits=16)


def _angles(graph: Any, large: Set[str], layers: Set[str]) -> set[str]:
    """Names of the nodes that compute sines of large angles, back to the layers before them.

    In fp16 whole numbers end at 2048, and an angle of 16 is off by a hundredth already.

    Args:
        graph: The graph of an `onnx.ModelProto`.
        large: Names of the nodes that read or give large values.
        layers: Names of the nodes that hold weights, which end the way back.
    """
    producers = {output: node for node in graph.node for output in node.output}
    front = [node for node in graph.node if node.op_type in _OF_ANGLES and node.name in large]
    found: set[str] = set()
    while front:
        node = front.pop()
        if node.name in found or node.name in layers:
            continue
        found.add(node.name)
        front += [producers[name] for name in node.input if name in producers]
    return found


def _turned_factors(graph: Any) -> set[str]:
    """Names of the Transposes before a MatMul, which stay in fp32.

    ONNX Runtime 1.32 makes one operator of a Transpose and a MatMul in half precision on the CPU, and dies of
    it (a segmentation fault) while it optimises the graph.
    """
    factors = {name for node in graph.node if node.op_type == "MatMul" for name in node.input}
    return {node.name for node in graph.node if node.op_type == "Transpose" and factors & {*node.output}}


def _join_islands(graph: Any) -> None:
    """Let neighbours in fp32 pass fp32: the converter casts between them to half and back, which overflows.

    Args:
        graph: An `onnx_ir.Graph`, changed in place.
    """
    for node in list(graph):
        back = node.inputs[0].producer() if node.name.endswith("_cast_to_fp32_node") else None
        if back is not None and back.name.endswith("_cast_to_fp16_node"):
            node.outputs[0].replace_all_uses_with(back.inputs[0])
            graph.remove(node, safe=True)
            if not back.outputs[0].uses() and not back.outputs[0].is_graph_output():
                graph.remove(back, safe=True)
