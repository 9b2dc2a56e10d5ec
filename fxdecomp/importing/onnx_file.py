"""`from_onnx`: an ONNX file as a torch.fx graph, compared with the file before anybody changes it.

The file is brought to one operator set and its constants are folded; then each node becomes a module or a
call. Convolutions, Linears, normalisations and recurrent layers become PyTorch's own modules under the names
of their weights, so that everything else of this package meets what it knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.errors import ExportError, FxdecompError, ParityError, first_line
from fxdecomp.export.agreement import Agreement
from fxdecomp.export.parity import check_parity
from fxdecomp.export.sessions import open_session
from fxdecomp.export.tensor_runs import run_on_tensors
from fxdecomp.graphs.drawing import drawn_like
from fxdecomp.graphs.origins import attach_origin
from fxdecomp.graphs.records import Record, attach_record
from fxdecomp.graphs.untouched import one_at_a_time, same_chance
from fxdecomp.importing.carried import Carried
from fxdecomp.importing.example_inputs import given_inputs, random_inputs
from fxdecomp.importing.origin import OnnxOrigin

_QUANTISED = re.compile(r"^QLinear|[Qq]uantizeLinear$|Integer$|^DynamicQuantize|^MatMulNBits$")

_REPAIRS = 32
"""So many nodes that are converted to something else are carried instead, before that is an error."""


@dataclass(frozen=True, slots=True, eq=False)
class ImportedModel:
    """A file as a graph.

    Attributes:
        gm: The graph; one output as it is, several as a dictionary by their names in the file.
        example_inputs: Inputs that it was compared with, in the order of the file.
        input_names: Names of the file's inputs.
        output_names: Names of its outputs.
        parity: How well graph and file agree.
        carried: The operators that run in ONNX Runtime where they stand, leaf by leaf.
    """

    gm: GraphModule
    example_inputs: tuple[Any, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    parity: tuple[Agreement, ...]
    carried: tuple[str, ...] = ()


@one_at_a_time
def from_onnx(
    path: Path | str,
    *,
    shapes: Sequence[tuple[int, ...]] = (),
    inputs: Mapping[str, Any] | Sequence[Any] | None = None,
    seed: int = 0,
    tolerance: float | None = None,
) -> ImportedModel:
    """Convert an ONNX file, and compare the result with the file under ONNX Runtime.

    Operators without a counterpart in PyTorch are carried: leaves of the graph run them in ONNX Runtime, and
    `to_onnx` writes them as they are.

    Args:
        path: The file.
        shapes: Shapes of the example inputs, in the order of the file's inputs. By default the shapes that
            the file fixes, or was made with; 1 for a batch that it leaves open.
        inputs: Example inputs of your own, by name or in the order of the file, instead of random ones.
        seed: Seed of the random inputs.
        tolerance: Largest difference from the file that passes, relative to `max(|a|, rms(a))` of an output
            that is no whole number; here and for what is written of the graph. None for
            `fxdecomp.export.agreement.TOLERANCES`, or what the file differs from itself by.

    Raises:
        ExportError: If the file is no model, ONNX Runtime cannot run it, or the tolerance is not above 0.
        ParityError: If the graph computes something else than the file.
        BenchmarkError: If the length of an input's axis is not known.
    """
    path = Path(path)
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ExportError(f"the tolerance is {tolerance!r}; wanted a number above 0, such as 0.001")
    session = _session(path)  # first: what ONNX Runtime refuses need not be read any further
    with _naming_damage(path):
        origin = OnnxOrigin.of(path, tolerance)
        proto = origin.model()
    declared = session.get_inputs()
    names = tuple(item.name for item in declared)
    if inputs is not None:
        example = given_inputs(declared, path, inputs)
        try:
            run_on_tensors(session, example)
        except Exception as error:
            raise ExportError(
                f"ONNX Runtime cannot run {path} on these inputs: {first_line(error)}"
            ) from error
    else:
        example = random_inputs(session, path, proto, shapes, seed)
    fixed = {
        name: tuple(value.shape)
        for name, value in zip(names, example, strict=True)
        if (shapes or inputs is not None) and isinstance(value, Tensor)
    }
    with _naming_damage(path), same_chance(()):  # modules are drawn before they get their weights
        origin, gm = origin.understood(dict(zip(names, example, strict=True)), fixed)
    tests = [example]
    if inputs is None:
        tests += [drawn for i in (1, 2) if _runs(session, drawn := drawn_like(example, seed + i))]
    gm, parity = _compared(origin, gm, path, tests)
    outputs = tuple(item.name for item in session.get_outputs())
    attach_record(gm, Record(notes=_notes(gm, proto)))
    leaves = tuple(module.contents for module in gm.modules() if isinstance(module, Carried))
    return ImportedModel(gm, example, names, outputs, parity, leaves)


def _notes(gm: GraphModule, proto: Any) -> tuple[str, ...]:
    """What the reader of a report is told of a file."""
    notes = [
        f"{name} runs in ONNX Runtime: {module.contents}"
        for name, module in gm.named_modules()
        if isinstance(module, Carried)
    ]
    if any(
        module.layers and "If" in module.contents for module in gm.modules() if isinstance(module, Carried)
    ):
        notes.append(
            "layers in the branches of an If are left alone, as the file chooses a branch whenever it runs; "
            "where an input chooses it, such as a sampling rate, give that one value with "
            "fxdecomp.importing.fix_inputs"
        )
    quantised = [node.op_type for node in proto.graph.node if _QUANTISED.search(node.op_type)]
    if quantised:
        kinds = ", ".join(sorted(set(quantised)))
        notes.append(
            f"the file is quantised already: {len(quantised)} nodes ({kinds}); decompose the file that it "
            "was made of, and quantise that"
        )
    return tuple(notes)


def _compared(
    origin: OnnxOrigin, gm: GraphModule, path: Path, tests: Sequence[tuple[Any, ...]]
) -> tuple[GraphModule, tuple[Agreement, ...]]:
    """A graph that computes what its file computes: what is converted to something else is carried."""
    for _ in range(_REPAIRS):
        attach_origin(gm, origin)
        try:
            return gm, check_parity(gm, path, tests)
        except Exception as error:  # noqa: BLE001 - a graph that PyTorch cannot run may raise anything
            wrong = error
        with _naming_damage(path), same_chance(()):
            more = (found for values in tests if (found := origin.carrying_more(values)) is not None)
            better = next(more, None)
            if better is None:
                break
            origin, gm = better, better.graph()
    if isinstance(wrong, ParityError):
        quantised = [note for note in _notes(gm, origin.model()) if "quantised" in note]
        raise ParityError(
            "; ".join(
                [f"{path} was converted to PyTorch, and computes something else there: {wrong}", *quantised]
            )
        ) from wrong
    if isinstance(wrong, ExportError):
        raise wrong
    shapes = [tuple(value.shape) for value in tests[0] if isinstance(value, Tensor)]
    raise ExportError(
        f"{path} was converted to PyTorch, which cannot run it on {shapes}: {first_line(wrong)}"
    ) from wrong


def _runs(session: Any, values: Sequence[Any]) -> bool:
    try:
        run_on_tensors(session, values)
    except Exception:  # noqa: BLE001 - what is drawn need not be what the file takes
        return False
    return True


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
