"""Example inputs: checked, resized along the batch, and drawn anew from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.errors import ExportError


def as_inputs(
    gm: GraphModule, example_inputs: Tensor | Sequence[Tensor]
) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """The names of a graph's inputs and one tensor for each.

    Args:
        gm: The graph whose placeholders are fed.
        example_inputs: A tensor, or one tensor per input in the order of the placeholders.

    Returns:
        Names and tensors, of equal length. Trailing placeholders with a default may go without a tensor.

    Raises:
        ExportError: If the tensors do not fit the placeholders, or are no tensors.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    for index, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            raise ExportError(
                f"example input {index} is a {type(value).__name__}, wanted a Tensor; "
                "bind other arguments in a wrapper module before tracing"
            )
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    required = sum(not node.args for node in placeholders)
    if not required <= len(inputs) <= len(placeholders) or not inputs:
        names = ", ".join(str(node.target) for node in placeholders) or "none"
        raise ExportError(
            f"the graph's inputs are {names}, got {len(inputs)} example input(s); give one for each"
        )
    return tuple(str(node.target) for node in placeholders[: len(inputs)]), inputs


def has_batch(inputs: Sequence[Tensor]) -> tuple[bool, ...]:
    """Which inputs carry the batch: those whose first axis is as long as the first input's."""
    sizes = [value.shape[0] for value in inputs if value.ndim]
    return tuple(bool(sizes) and value.ndim > 0 and value.shape[0] == sizes[0] for value in inputs)


def with_batch(inputs: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    """The inputs with their rows repeated, or cut off, to the given batch size."""
    return tuple(
        value[torch.arange(batch, device=value.device) % value.shape[0]] if batched else value
        for value, batched in zip(inputs, has_batch(inputs), strict=True)
    )


def resized(inputs: Sequence[Tensor], axes: Mapping[int, int]) -> tuple[Tensor, ...]:
    """The inputs with their content repeated, or cut off, to other lengths along axes after the first.

    Args:
        inputs: The inputs; those without the axes stay as they are.
        axes: Axis -> length.
    """
    values = list(inputs)
    for axis, length in axes.items():
        for index, value in enumerate(values):
            if value.ndim > axis:
                positions = torch.arange(length, device=value.device) % value.shape[axis]
                values[index] = value.index_select(axis, positions)
    return tuple(values)


def drawn_like(inputs: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Random tensors of the same shapes, types and ranges.

    Floating-point tensors are normal with the mean and deviation of the example (deviation 1 where the
    example is constant); integers and booleans are drawn from the example's own entries, so that indices stay
    valid.

    Args:
        inputs: The example inputs.
        seed: Seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for value in inputs:
        if value.is_floating_point():
            example = value.detach().double().cpu()
            deviation = float(example.std()) if example.numel() > 1 else 0.0
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            new = float(example.mean()) + (deviation or 1.0) * noise
            drawn.append(new.to(value.device, value.dtype))
        else:
            picks = torch.randint(value.numel(), (value.numel(),), generator=generator)
            drawn.append(value.flatten()[picks.to(value.device)].reshape(value.shape))
    return tuple(drawn)
