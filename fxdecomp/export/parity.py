"""Does an ONNX file compute what the PyTorch graph computes? ONNX Runtime's optimisations off, and on.

An element agrees when `|a - b| <= tolerance * max(|a|, rms(a))`, a from PyTorch and b from ONNX Runtime:
relative where values are large, absolute at the scale of the whole output where they are small. What differs
by more may still be rounding, which `rounding.fair_tolerances` finds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxdecomp.errors import ExportError, ParityError
from fxdecomp.export.agreement import TOLERANCES, Agreement, agree
from fxdecomp.export.examples import as_inputs, flat_graph
from fxdecomp.export.rounding import fair_tolerances
from fxdecomp.export.sessions import open_session
from fxdecomp.export.tensor_runs import run_on_tensors
from fxdecomp.graphs.inputs import ExampleInputs
from fxdecomp.graphs.origins import origin_of
from fxdecomp.graphs.untouched import called, copied, evaluating, one_at_a_time, unchanged_buffers

_CASTS = {"half": torch.float16, "bfloat16": torch.bfloat16}


@one_at_a_time
def check_parity(gm: GraphModule, path: Path | str, inputs: Sequence[ExampleInputs]) -> tuple[Agreement, ...]:
    """Compare a file with the graph that it was made from, on the CPU, by `TOLERANCES`.

    Args:
        gm: The graph; it is run in evaluation mode and left as it is.
        path: The ONNX file.
        inputs: Several inputs of the graph, of any shapes that both accept.

    Returns:
        One row per output, input and optimisation level.

    Raises:
        ParityError: If an output differs; says where and by how much.
        ExportError: If onnxruntime is missing or cannot run the file.

    Example:
        >>> import tempfile, torch, fxdecomp
        >>> from pathlib import Path
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "small.onnx"
        ...     _ = fxdecomp.export.to_onnx(gm, torch.randn(1, 64), path)
        ...     rows = fxdecomp.export.check_parity(gm, path, [[torch.randn(3, 64)]])
        >>> all(row.max_relative < 1e-4 for row in rows)
        True
    """
    origin = origin_of(gm)
    tolerance = None if origin is None else origin.tolerance
    given = [as_inputs(gm, value)[1] for value in inputs]
    gm = flat_graph(gm)
    expected = [_leaves(gm, value) for value in given]
    lowest = _lowest_precision(gm)
    sessions = {True: _open(Path(path), True)}
    try:
        sessions = {False: _open(Path(path), False), **sessions}
    except ExportError:
        if origin is None:
            raise  # else a file of others, some of whose operators are run in their optimised form alone
    count = len(sessions[True].get_inputs())
    rows = []
    for value, wanted in zip(given, expected, strict=True):
        if count != len(value):
            raise ParityError(f"{path} takes {count} inputs, the graph takes {len(value)}")
        found = {on: _named(session, _run(session, Path(path), value)) for on, session in sessions.items()}
        if len(found[True]) != len(wanted):
            raise ParityError(f"{path} gives {len(found[True])} outputs, the graph gives {len(wanted)}")
        shapes = tuple(tuple(item.shape) for item in value if isinstance(item, Tensor))
        fair: list[float] = []
        for optimised, got in found.items():
            for index, ((name, b), a) in enumerate(zip(got, wanted, strict=True)):
                options: dict[str, Any] = {"lowest": lowest, "optimised": optimised, "shapes": shapes}
                options["tolerance"] = tolerance
                try:
                    rows.append(agree(name, a, b, **options))
                except ParityError:
                    if tolerance is not None:
                        raise
                    outputs = [[each for _, each in each_of] for each_of in found.values()]
                    fair = fair or fair_tolerances(
                        gm, Path(path), sessions[True], value, wanted=wanted, found=outputs
                    )
                    rows.append(agree(name, a, b, least=fair[index], **options))
    return tuple(rows)


def _named(session: Any, values: Sequence[Any]) -> list[tuple[str, Any]]:
    """The outputs of a session by name, those of sequences one by one."""
    names = [item.name for item in session.get_outputs()]
    return [
        (name, leaf) for name, value in zip(names, values, strict=True) for leaf in pytree.tree_leaves(value)
    ]


def run_graph(gm: GraphModule, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
    """The tensors that a graph gives in evaluation mode, flattened out of whatever structure they come in.

    It runs on copies, and leaves the buffers as they were: a network may change both in place.
    """
    return tuple(leaf.detach() for leaf in _leaves(gm, inputs) if isinstance(leaf, Tensor))


def _leaves(gm: GraphModule, inputs: Sequence[Any]) -> list[Any]:
    """What a graph gives: tensors, and of a file's graph text and nothing too."""
    with evaluating(gm), unchanged_buffers(gm), torch.no_grad():
        leaves = pytree.tree_leaves(called(gm, copied(tuple(inputs)), {}))
    return [leaf for leaf in leaves if leaf is None or isinstance(leaf, Tensor | np.ndarray)]


def _lowest_precision(gm: GraphModule) -> torch.dtype | None:
    """The coarsest floating-point type that a graph computes in, None where it names none."""
    found = {tensor.dtype for tensor in (*gm.parameters(), *gm.buffers())}
    for node in gm.graph.nodes:
        found |= {
            each for each in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(each, torch.dtype)
        }
        found |= {_CASTS[node.target]} if node.op == "call_method" and node.target in _CASTS else set()
        value = node.meta.get("tensor_meta")
        found |= {value.dtype} if hasattr(value, "dtype") else set()
    return max((dtype for dtype in found if dtype in TOLERANCES), key=TOLERANCES.__getitem__, default=None)


def _open(path: Path, optimised: bool) -> Any:
    try:
        return open_session(path, threads=0, optimise=optimised)
    except ExportError:
        raise
    except Exception as error:
        state = "on" if optimised else "off"
        raise ExportError(f"ONNX Runtime cannot load {path} with optimisations {state}: {error}") from error


def _run(session: Any, path: Path, values: Sequence[Any]) -> list[Any]:
    try:
        return run_on_tensors(session, values)
    except Exception as error:
        shapes = [tuple(value.shape) for value in values if isinstance(value, Tensor)]
        raise ExportError(f"ONNX Runtime cannot run {path} on inputs {shapes}: {error}") from error


def to_numpy(value: Tensor) -> NDArray[Any]:
    """The values of a tensor on the CPU; bfloat16 as float32, which numpy has; what is none as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    array: NDArray[Any] = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    return array
