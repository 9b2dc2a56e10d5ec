"""`from_onnx`: an ONNX file as a torch.fx graph, compared with the file before anybody changes it.

The file is brought to one operator set and its constants are folded; then each node becomes a module or a
call. Convolutions, Linears, normalisations and recurrent layers become PyTorch's own modules under the names
of their weights, so that everything else of this package meets what it knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.errors import ExportError, FxdecompError, ParityError, first_line
from fxdecomp.export.examples import drawn_like
from fxdecomp.export.feeds import make_feed, random_feed
from fxdecomp.export.metadata import read_metadata
from fxdecomp.export.parity import Agreement, check_parity
from fxdecomp.export.sessions import onnxruntime, open_session
from fxdecomp.graphs.untouched import one_at_a_time, same_chance
from fxdecomp.importing.arranging import ARRANGING
from fxdecomp.importing.building import Builder, Unconvertible
from fxdecomp.importing.elementwise import ELEMENTWISE
from fxdecomp.importing.layers import LAYERS, Handler
from fxdecomp.importing.operands import Operands

_OPSET = 13
"""Older files are brought to this operator set first."""

_HANDLERS: Mapping[str, Handler] = {**LAYERS, **ELEMENTWISE, **ARRANGING}


@dataclass(frozen=True, slots=True, eq=False)
class ImportedModel:
    """A file as a graph.

    Attributes:
        gm: The graph; one output as it is, several as a dictionary by their names in the file.
        example_inputs: Random inputs that it was compared with, in the order of the file.
        input_names: Names of the file's inputs.
        output_names: Names of its outputs.
        parity: How well graph and file agree.
    """

    gm: GraphModule
    example_inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    parity: tuple[Agreement, ...]


@one_at_a_time
def from_onnx(path: Path | str, *, shapes: Sequence[tuple[int, ...]] = (), seed: int = 0) -> ImportedModel:
    """Convert an ONNX file, and compare the result with the file under ONNX Runtime.

    Args:
        path: The file.
        shapes: Shapes of the example inputs, in the order of the file's inputs. By default the shapes that
            the file fixes, or was made with; 1 for a batch that it leaves open.
        seed: Seed of the example inputs.

    Raises:
        ExportError: If the file is no model, or holds operators that cannot be converted; names them.
        ParityError: If the graph computes something else than the file.
        BenchmarkError: If the length of an input's axis is not known.
    """
    path = Path(path)
    session = _session(path)  # first: what ONNX Runtime refuses need not be read any further
    with _naming_damage(path), same_chance(()):  # modules are drawn before they get their weights
        gm = _converted(_prepared(path), path)
    inputs = _examples(session, path, shapes, seed)
    tests = [inputs, drawn_like(inputs, seed + 1), drawn_like(inputs, seed + 2)]
    try:
        parity = check_parity(gm, path, tests)
    except ParityError as error:
        raise ParityError(
            f"{path} was converted to PyTorch, and computes something else there: {error}"
        ) from error
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"{path} was converted to PyTorch, which cannot run it on {[tuple(x.shape) for x in inputs]}: "
            f"{first_line(error)}"
        ) from error
    names = [tuple(item.name for item in items) for items in (session.get_inputs(), session.get_outputs())]
    return ImportedModel(gm, inputs, names[0], names[1], parity)


def _session(path: Path) -> Any:
    """A session of the file.

    Raises:
        ExportError: There is no file, or it is no model that ONNX Runtime loads.
    """
    if not path.is_file():
        raise ExportError(f"{path} cannot be read as an ONNX model: there is no such file")
    if not path.stat().st_size:
        raise ExportError(f"{path} cannot be read as an ONNX model: it is empty; copy or download it again")
    try:
        return open_session(path)
    except ExportError:
        raise
    except Exception as error:
        why = str(error).replace(f"Load model from {path} failed:", "").strip()
        raise ExportError(f"{path} cannot be read as an ONNX model: {why[:500]}") from error


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Say which file it was where a library meets what it does not expect."""
    try:
        yield
    except FxdecompError:
        raise
    except Exception as error:
        raise ExportError(
            f"{path} cannot be converted to PyTorch, it is damaged or holds what is not foreseen: "
            f"{first_line(error)}; see what onnx.checker.check_model says of it"
        ) from error


def _prepared(path: Path) -> Any:
    """The file as an `onnx_ir.Model`, constants folded, in a recent operator set, with shapes."""
    import onnx
    import onnx_ir
    from onnx import version_converter
    from onnxscript import optimizer

    try:
        proto = onnx.load(str(path))
    except Exception as error:
        raise ExportError(f"{path} cannot be read as an ONNX model: {error}") from error
    opset = next((item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")), _OPSET)
    if opset < _OPSET:
        try:
            proto = version_converter.convert_version(proto, _OPSET)
        except Exception as error:
            raise ExportError(
                f"{path} is of operator set {opset} and cannot be brought to {_OPSET}: {error}"
            ) from error
    if opset < 11:
        _keep_old_resizing(proto.graph)
    if proto.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
        proto = onnx.shape_inference.infer_shapes(proto)
    model = onnx_ir.from_proto(proto)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    return model


def _keep_old_resizing(graph: Any) -> None:
    """Say how resizing rounded before operator set 11: onnx's converter leaves it to the new defaults."""
    import onnx

    meant = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    for node in graph.node:
        if node.op_type == "Resize":
            others = [item for item in node.attribute if item.name not in meant]
            del node.attribute[:]
            node.attribute.extend(others + [onnx.helper.make_attribute(*item) for item in meant.items()])


def _converted(model: Any, path: Path) -> GraphModule:
    kinds = {
        f"{node.domain}.{node.op_type}".strip(".")
        for node in model.graph
        if node.op_type != "Constant"
        and (node.domain not in ("", "ai.onnx") or node.op_type not in _HANDLERS)
    }
    if kinds:
        raise ExportError(
            f"{path} holds operators that cannot be converted to PyTorch: {', '.join(sorted(kinds))}; "
            "give the PyTorch model instead, as package.module:callable"
        )
    builder = Builder()
    for name, value in model.graph.initializers.items():
        builder.values[name] = np.asarray(value.const_value.numpy())
    for value in model.graph.inputs:
        if value.name not in builder.values:  # older files list their weights among the inputs
            builder.placeholder(value.name)
    merged: dict[Any, str] = {}
    for node in model.graph:
        try:
            _convert(builder, node, merged)
        except Unconvertible as reason:
            raise ExportError(
                f"{path}: node {node.name or node.outputs[0].name!r} ({node.op_type}) cannot be converted to "
                f"PyTorch: {reason}; give the PyTorch model instead, as package.module:callable"
            ) from reason
    try:
        return builder.finish([value.name for value in model.graph.outputs])
    except Unconvertible as reason:
        raise ExportError(
            f"{path}: an output cannot be converted to PyTorch: {reason}; give the PyTorch model instead, as "
            "package.module:callable"
        ) from reason


def _convert(builder: Builder, node: Any, merged: dict[Any, str]) -> None:
    if node in merged:
        builder.values[node.outputs[0].name] = builder.values[merged[node]]
        return
    if node.op_type == "Constant":
        builder.values[node.outputs[0].name] = _constant(node)
        return
    found = _HANDLERS[node.op_type](builder, Operands(node, builder.values, merged))
    values = found if isinstance(found, tuple) else (found,)
    for output in node.outputs[len(values) :]:
        if output.uses() or output.is_graph_output():
            raise Unconvertible(f"its output {output.name!r} is used")
    for output, value in zip(node.outputs, values, strict=False):
        builder.values[output.name] = value


def _constant(node: Any) -> Any:
    for name, attribute in node.attributes.items():
        if name == "value":
            return np.asarray(attribute.value.numpy())
        if name in ("value_int", "value_ints"):
            return np.asarray(attribute.value, np.int64)
        if name in ("value_float", "value_floats"):
            return np.asarray(attribute.value, np.float32)
    raise Unconvertible("its value is neither a tensor nor a number")


def _examples(session: Any, path: Path, shapes: Sequence[tuple[int, ...]], seed: int) -> tuple[Tensor, ...]:
    declared = session.get_inputs()
    if shapes and len(shapes) != len(declared):
        raise ExportError(f"{path} takes {len(declared)} inputs, {len(shapes)} shapes were given")
    for item, shape in zip(declared, shapes, strict=False):
        fixed = [a == b for a, b in zip(item.shape, shape, strict=False) if isinstance(a, int)]
        if not all(fixed) or len(item.shape) not in (0, len(shape)):  # an open number of axes reads as none
            raise ExportError(f"input {item.name!r} of {path} has shape {item.shape}; {shape} was given")
    metadata = read_metadata(path)
    known = metadata.inputs if metadata else {}
    batch = next((shape[0] for shape in known.values() if shape), 1)
    quiet = onnxruntime().RunOptions()
    quiet.log_severity_level = 4
    for largest in (1, 0):  # zeros alone would hide most that is wrong; a table of one row takes nothing else
        if shapes:
            feed = random_feed(declared, shapes, seed=seed, largest=largest)
        else:
            feed = make_feed(declared, batch=batch, axes={}, example_shapes=known, seed=seed, largest=largest)
        try:
            session.run(None, feed, quiet)
            break
        except Exception as error:  # noqa: BLE001 - whatever the file raises, it takes nothing of the kind
            refusal = error
    else:
        told = {name: value.shape for name, value in feed.items()}
        raise ExportError(f"ONNX Runtime cannot run {path} on inputs {told}: {refusal}") from refusal
    return tuple(torch.from_numpy(feed[item.name]) for item in declared)
