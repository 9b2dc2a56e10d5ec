"""Does an ONNX file compute what the PyTorch graph computes? ONNX Runtime's optimisations off, and on.

An element agrees when `|a - b| <= tolerance * max(|a|, rms(a))`, a from PyTorch and b from ONNX Runtime:
relative where values are large, absolute at the scale of the whole output where they are small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxdecomp.errors import ExportError, ParityError
from fxdecomp.export.examples import as_inputs, flat_graph
from fxdecomp.export.sessions import open_session
from fxdecomp.graphs.inputs import ExampleInputs
from fxdecomp.graphs.untouched import copied, evaluating, one_at_a_time, unchanged_buffers

TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
"""Largest allowed difference of an output by the lowest precision on the way to it; outputs of types that are
not listed must be equal."""

_CASTS = {"half": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well one output agrees for one input, at one optimisation level.

    Attributes:
        output: Name of the output in the file.
        optimised: Whether ONNX Runtime's graph optimisations were on.
        shapes: Shapes of the inputs.
        max_absolute: Largest `|a - b|`.
        max_relative: Largest `|a - b| / max(|a|, rms(a))`.
    """

    output: str
    optimised: bool
    shapes: tuple[tuple[int, ...], ...]
    max_absolute: float
    max_relative: float


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
    tensors = [as_inputs(gm, value)[1] for value in inputs]
    gm = flat_graph(gm)
    expected = [run_graph(gm, value) for value in tensors]
    lowest = _lowest_precision(gm)
    rows = []
    for optimised in (False, True):
        session = _open(Path(path), optimised)
        names = [item.name for item in session.get_inputs()]
        outputs = [item.name for item in session.get_outputs()]
        for value, wanted in zip(tensors, expected, strict=True):
            if len(names) != len(value) or len(outputs) != len(wanted):
                raise ParityError(
                    f"{path} takes {len(names)} inputs and gives {len(outputs)} outputs, "
                    f"the graph takes {len(value)} and gives {len(wanted)}"
                )
            got = _run(session, Path(path), dict(zip(names, map(to_numpy, value), strict=True)))
            shapes = tuple(tuple(item.shape) for item in value)
            for name, a, b in zip(outputs, wanted, got, strict=True):
                rows.append(_agree(name, a, b, lowest, optimised=optimised, shapes=shapes))
    return tuple(rows)


def run_graph(gm: GraphModule, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors that a graph gives in evaluation mode, flattened out of whatever structure they come in.

    It runs on copies, and leaves the buffers as they were: a network may change both in place.
    """
    with evaluating(gm), unchanged_buffers(gm), torch.no_grad():
        # Not `gm(...)`, which writes its own account of an error to standard error.
        leaves = pytree.tree_leaves(nn.Module.__call__(gm, *copied(tuple(inputs))))
    return tuple(leaf.detach() for leaf in leaves if isinstance(leaf, Tensor))


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


def _run(session: Any, path: Path, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    try:
        result: list[NDArray[Any]] = session.run(None, feed)
    except Exception as error:
        shapes = {name: value.shape for name, value in feed.items()}
        raise ExportError(f"ONNX Runtime cannot run {path} on inputs {shapes}: {error}") from error
    return result


def to_numpy(value: Tensor) -> NDArray[Any]:
    """The values of a tensor on the CPU; bfloat16, which numpy does not have, as float32."""
    value = value.detach().cpu()
    array: NDArray[Any] = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    return array


def _agree(
    name: str,
    wanted: Tensor,
    got: NDArray[Any],
    lowest: torch.dtype | None,
    *,
    optimised: bool,
    shapes: tuple[tuple[int, ...], ...],
) -> Agreement:
    where = (
        f"output {name!r} with ONNX Runtime's optimisations {'on' if optimised else 'off'}, inputs {shapes}"
    )
    kind = to_numpy(wanted).dtype
    if got.dtype != kind and wanted.dtype is not torch.bfloat16:  # numpy has no bfloat16
        raise ParityError(f"{where}: type {got.dtype}, PyTorch gives {kind}")
    a = to_numpy(wanted).astype(np.float64)
    b = np.asarray(got).astype(np.float64)
    if a.shape != b.shape:
        raise ParityError(f"{where}: shape {b.shape}, PyTorch gives {a.shape}")
    if not a.size:
        return Agreement(name, optimised, shapes, 0.0, 0.0)
    tolerance, decisive = TOLERANCES.get(wanted.dtype, 0.0), wanted.dtype
    if tolerance and lowest is not None and TOLERANCES[lowest] > tolerance:
        tolerance, decisive = TOLERANCES[lowest], lowest
    finite = np.isfinite(a)
    rms = math.sqrt(float(np.mean(np.square(a[finite])))) if finite.any() else 0.0
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        absolute = np.where(same, 0.0, np.abs(a - b))
        relative = np.where(same, 0.0, absolute / np.maximum(np.abs(a), rms))
    # A difference with NaN or infinity on one side only is infinite, so that it can never pass.
    absolute, relative = (np.nan_to_num(x, nan=np.inf, posinf=np.inf) for x in (absolute, relative))
    worst = np.unravel_index(int(relative.argmax()), relative.shape)
    if relative[worst] > tolerance:
        raise ParityError(
            f"{where}: at index {tuple(int(i) for i in worst)} PyTorch gives {a[worst]:.9g}, ONNX Runtime "
            f"{b[worst]:.9g}; largest absolute difference {absolute.max():.3g}, largest relative difference "
            f"{relative[worst]:.3g}, tolerance {tolerance:g} for {str(decisive).removeprefix('torch.')}; "
            f"{float((relative > tolerance).mean()):.2%} of the elements differ"
        )
    return Agreement(name, optimised, shapes, float(absolute.max()), float(relative.max()))
