"""Does an ONNX file compute what the PyTorch graph computes? ONNX Runtime's optimisations off, and on.

An element agrees when `|a - b| <= tolerance * max(|a|, rms(a))`, a from PyTorch and b from ONNX Runtime:
relative where values are large, absolute at the scale of the whole output where they are small. A network
that magnifies rounding gets a tolerance of its own: ten times what its outputs differ by where nothing but
rounding is another, the most of three: the file with optimisations off and on, the file on inputs whose last
bit is another, the graph in single and double precision.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxdecomp.errors import ExportError, ParityError
from fxdecomp.export.agreement import TOLERANCES, Agreement, agree, distance
from fxdecomp.export.examples import as_inputs, flat_graph
from fxdecomp.export.sessions import open_session
from fxdecomp.export.tensor_runs import run_on_tensors
from fxdecomp.graphs.inputs import ExampleInputs
from fxdecomp.graphs.origins import origin_of
from fxdecomp.graphs.untouched import copied, evaluating, one_at_a_time, unchanged_buffers
from fxdecomp.sites.opaque import Opaque

_MARGIN = 10.0
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
    given = [as_inputs(gm, value)[1] for value in inputs]
    gm = flat_graph(gm)
    expected = [_leaves(gm, value) for value in given]
    lowest = _lowest_precision(gm)
    sessions = {True: _open(Path(path), True)}
    try:
        sessions = {False: _open(Path(path), False), **sessions}
    except ExportError:
        if origin_of(gm) is None:
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
        noise: list[float] = []
        for optimised, got in found.items():
            for index, ((name, b), a) in enumerate(zip(got, wanted, strict=True)):
                options: dict[str, Any] = {"lowest": lowest, "optimised": optimised, "shapes": shapes}
                try:
                    rows.append(agree(name, a, b, **options))
                except ParityError:
                    noise = noise or _noise(gm, sessions[True], value, wanted, found)
                    rows.append(agree(name, a, b, least=_MARGIN * noise[index], **options))
    return tuple(rows)


def _noise(
    gm: GraphModule,
    session: Any,
    value: Sequence[Any],
    wanted: Sequence[Any],
    found: Mapping[bool, list[tuple[str, Any]]],
) -> list[float]:
    """How far each output is from itself where nothing but rounding is another."""
    usual = [each for _, each in found[True]]
    others = [(usual, [each for _, each in found[min(found)]])]
    with suppress(Exception):  # what is a little less than a whole number may be no input
        others.append((usual, pytree.tree_leaves(run_on_tensors(session, [_nudged(each) for each in value]))))
    with suppress(Exception):  # not every operator has a form in double precision
        exact = _InDouble(copy.deepcopy(gm).double()).run(
            *map(_in_double, copied(tuple(value))), enable_io_processing=False
        )
        others.append((list(wanted), pytree.tree_leaves(exact)))
    found_noise = [max(distance(a[index], b[index]) for a, b in others) for index in range(len(wanted))]
    return [max(noise, _of_a_probability(a, gm)) for noise, a in zip(found_noise, wanted, strict=True)]


class _InDouble(fx.Interpreter):
    """Runs a graph in double precision, but for the leaves that hold a piece of a file."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(self.fetch_attr(target), Opaque):
            return super().call_module(target, args, kwargs)
        single = pytree.tree_map_only(Tensor, lambda t: t.float() if t.dtype is torch.float64 else t, args)
        found = super().call_module(target, single, kwargs)
        return pytree.tree_map_only(Tensor, _in_double, found)


def _of_a_probability(value: Any, gm: GraphModule) -> float:
    """What an output between 0 and 1 is uncertain by, where it comes from a sigmoid or a softmax.

    ONNX Runtime computes them to 1.2e-7 of 1, however small they are.
    """
    if not isinstance(value, Tensor) or value.dtype is not torch.float32 or not value.numel():
        return 0.0
    bounded = bool((value >= 0).all() and (value <= 1).all())
    kinds = (torch.sigmoid, torch.softmax, torch.nn.functional.softmax)
    leaves = any(isinstance(module, Opaque | nn.Sigmoid | nn.Softmax) for module in gm.modules())
    if not bounded or not (leaves or any(node.target in kinds for node in gm.graph.nodes)):
        return 0.0
    size = float(value.double().square().mean().sqrt())
    return torch.finfo(torch.float32).eps / size if size else 0.0


def _nudged(value: Any) -> Any:
    """A tensor with the last bit of every other number changed."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    sign = torch.ones(value.numel(), dtype=value.dtype).reshape(value.shape)
    sign.view(-1)[::2] = -1
    return value.cpu() * (1 + sign * torch.finfo(value.dtype).eps)


def _in_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


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
        # Not `gm(...)`, which writes its own account of an error to standard error.
        leaves = pytree.tree_leaves(nn.Module.__call__(gm, *copied(tuple(inputs))))
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
