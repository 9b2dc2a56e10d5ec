"""`from_onnx`: an ONNX file as a torch.fx graph, compared with the file before anybody changes it.

The file is brought to one operator set and its constants are folded; then each node becomes a module or a
call. Convolutions, Linears, normalisations and recurrent layers become PyTorch's own modules under the names
of their weights, so that everything else of this package meets what it knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.errors import ExportError, FxdecompError, ParityError, first_line
from fxdecomp.export.examples import drawn_like
from fxdecomp.export.feeds import make_feed, random_feed
from fxdecomp.export.metadata import read_metadata
from fxdecomp.export.parity import Agreement, check_parity
from fxdecomp.export.sessions import onnxruntime, open_session
from fxdecomp.graphs.origins import attach_origin
from fxdecomp.graphs.untouched import one_at_a_time, same_chance
from fxdecomp.importing.origin import OnnxOrigin


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
        origin = OnnxOrigin.of(path)
        gm = origin.graph()
    attach_origin(gm, origin)
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
