"""LSTM and GRU layers that go through the exporter whole, whatever the length of their sequences.

PyTorch finds out the shapes of an LSTM by going through its steps one by one, in Python: minutes for some
hundred steps, though the file holds one node, and a free length becomes that of the example. While the
exporter runs, the layers are operators of this package's own, whose shapes are known at once; what they
become in the file is the exporter's own translation of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from fxdecomp.errors import ExportError


@torch.library.custom_op("fxdecomp::lstm", mutates_args=())
def _lstm(  # noqa: PLR0917 - torch's own operator
    input: Tensor,  # noqa: A002 - the names of torch's own operator
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    options = (has_biases, num_layers, dropout, train, bidirectional, batch_first)
    y, h, c = torch.ops.aten.lstm.input(input, hx, params, *options)
    return y, h, c


@_lstm.register_fake
def _(  # noqa: PLR0917 - torch's own operator
    input: Tensor,  # noqa: A002
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs_like(input, hx[0], bidirectional), torch.empty_like(hx[0]), torch.empty_like(hx[1])


@torch.library.custom_op("fxdecomp::gru", mutates_args=())
def _gru(  # noqa: PLR0917 - torch's own operator
    input: Tensor,  # noqa: A002
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    options = (has_biases, num_layers, dropout, train, bidirectional, batch_first)
    y, h = torch.ops.aten.gru.input(input, hx, params, *options)
    return y, h


@_gru.register_fake
def _(  # noqa: PLR0917 - torch's own operator
    input: Tensor,  # noqa: A002
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    return _outputs_like(input, hx, bidirectional), torch.empty_like(hx)


def _outputs_like(sequence: Tensor, state: Tensor, bidirectional: bool) -> Tensor:
    """The outputs of all steps, `[*, *, directions * state]`."""
    return sequence.new_empty(*sequence.shape[:-1], state.shape[-1] * (2 if bidirectional else 1))


class WholeLayers(TorchFunctionMode):
    """Takes LSTM and GRU layers for this package's operators, in modules and in graphs of torch.export."""

    _KINDS: Mapping[Any, Callable[..., Any]] = {
        torch._VF.lstm: _lstm,
        torch.ops.aten.lstm.input: _lstm,
        torch._VF.gru: _gru,
        torch.ops.aten.gru.input: _gru,
    }

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        whole = self._KINDS.get(func)
        if whole is None or not isinstance(args[3], bool):  # of packed sequences, sizes come second
            return func(*args, **(kwargs or {}))
        return whole(*args, **(kwargs or {}))


def check_recurrent(gm: GraphModule) -> None:
    """Raise where a layer is none that ONNX has.

    Raises:
        ExportError: An LSTM projects its outputs; names it.
    """
    for node in gm.graph.nodes:
        layer = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        projects = isinstance(layer, nn.LSTM) and layer.proj_size > 0
        if node.target is torch.ops.aten.lstm.input:
            projects = any("weight_hr_l" in str(weight.target) for weight in node.args[2])
        if projects:
            name = node.name if layer is None else node.target
            raise ExportError(
                f'"{name}" is an LSTM with proj_size, and the LSTM of ONNX projects nothing; '
                "replace it by an LSTM without, or export the network in two parts"
            )


def translations() -> dict[Any, Any]:
    """What the operators become, by the exporter's own functions for the layers."""
    from onnxscript.function_libs.torch_lib.ops import core

    return {torch.ops.fxdecomp.lstm.default: core.aten_lstm, torch.ops.fxdecomp.gru.default: core.aten_gru}


GATES: Mapping[type[nn.Module], tuple[int, ...]] = {nn.LSTM: (0, 2, 3, 1), nn.GRU: (1, 0, 2)}
"""Where ONNX has each of PyTorch's gates: those of an LSTM are i, o, f, c there and i, f, c, o here, those of
a GRU z, r, h and r, z, h."""


def onnx_weights(module: nn.Module) -> list[NDArray[Any]]:
    """W `[directions, gates * hidden, inputs]`, R and B of ONNX, of a layer of one level."""
    order = GATES[type(module)]
    tensors = dict(module.named_parameters())

    def stacked(key: str) -> NDArray[Any]:
        ways = [tensors[name] for name in (f"{key}_l0", f"{key}_l0_reverse") if name in tensors]
        return np.stack([_onnx_gates(way.detach().cpu().numpy(), order) for way in ways])

    weights = [stacked("weight_ih"), stacked("weight_hh")]
    if "bias_ih_l0" in tensors:
        weights.append(np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1))
    return weights


def _onnx_gates(array: NDArray[Any], order: Sequence[int]) -> NDArray[Any]:
    parts = dict(zip(order, np.split(array, len(order)), strict=True))
    return np.concatenate([parts[gate] for gate in range(len(order))])
