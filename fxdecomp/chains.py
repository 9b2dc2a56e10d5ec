"""`Form` and `Chain`: the stages that stand for one layer, before and after their weights are known.

    x --stage 0--> --stage 1--> ... --stage n--> y  (+ bias)

A *form* names and prices the stages that a method gives at a rank. A *chain* is a form with weights, kept in
the layout `[out_channels, in_channels // groups, *kernel]` for every kind of layer. Along each spatial axis
at most one stage is wider than 1, so that a chain composes to one kernel: a product of channel matrices,
with the stages' kernels broadcast over each other's axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from fxdecomp.layers import LayerSpec, StageSpec


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One small layer with its tensors. The bias, if any, has shape `[out_channels]`."""

    name: str
    spec: LayerSpec
    weight: Tensor
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        _check_shape(self.name, self.spec, self.weight)


@dataclass(frozen=True, slots=True)
class Form:
    """The stages that a method gives at a rank, in the order in which they are applied.

    Attributes:
        method: Name of the method.
        rank: Its rank(s), of each group.
        stages: The stages over all groups.
        groups: How many chains of this rank stand side by side.

    Raises:
        ValueError: There are no stages, or one does not take what the stage before it gives.
    """

    method: str
    rank: tuple[int, ...]
    stages: tuple[StageSpec, ...]
    groups: int = 1

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a chain needs at least one stage")
        for before, after in itertools.pairwise(self.stages):
            got = (before.spec.out_channels, before.spec.output_size, before.spec.positions)
            wanted = (after.spec.in_channels, after.spec.input_size, after.spec.positions)
            if got != wanted:
                raise ValueError(f"stage {after.name!r} takes {wanted}, but {before.name!r} gives {got}")

    @property
    def names(self) -> tuple[str, ...]:
        """The stages' names."""
        return tuple(stage.name for stage in self.stages)

    @property
    def params(self) -> int:
        """Number of weights, without biases."""
        return sum(stage.spec.params for stage in self.stages)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all stages."""
        return sum(stage.spec.macs for stage in self.stages)

    @property
    def per_group(self) -> Form:
        """The form of the chain of one group."""
        if self.groups == 1:
            return self
        stages = tuple(
            StageSpec(
                stage.name,
                replace(
                    stage.spec,
                    in_channels=stage.spec.in_channels // self.groups,
                    out_channels=stage.spec.out_channels // self.groups,
                    groups=stage.spec.groups // self.groups,
                ),
            )
            for stage in self.stages
        )
        return replace(self, stages=stages, groups=1)

    def last(self, count: int) -> Form:
        """The last stages alone."""
        return replace(self, stages=self.stages[len(self.stages) - count :])


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A form with weights: the one value from factorising to fitting, assembling and reporting.

    Attributes:
        form: Names and geometry of the stages.
        weights: One a stage.
        bias: `[out_channels]` of the last stage, or None.

    Raises:
        ValueError: A weight has not the shape that its stage states.
    """

    form: Form
    weights: tuple[Tensor, ...]
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        for stage, weight in zip(self.form.stages, self.weights, strict=True):
            _check_shape(stage.name, stage.spec, weight)

    @property
    def params(self) -> int:
        """Number of weights and biases."""
        return self.form.params + (0 if self.bias is None else self.form.stages[-1].spec.bias_params)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all stages."""
        return self.form.macs

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages with their tensors; the bias is on the last, behind every padding."""
        biases = [None] * (len(self.weights) - 1) + [self.bias]
        parts = zip(self.form.stages, self.weights, biases, strict=True)
        return tuple(Stage(stage.name, stage.spec, weight, bias) for stage, weight, bias in parts)

    def by_group(self) -> tuple[Chain, ...]:
        """The chains of the groups, each as that of an ungrouped layer."""
        groups, form = self.form.groups, self.form.per_group
        if groups == 1:
            return (self,)
        weights = zip(*(weight.chunk(groups) for weight in self.weights), strict=True)
        biases = [None] * groups if self.bias is None else self.bias.chunk(groups)
        return tuple(Chain(form, parts, bias) for parts, bias in zip(weights, biases, strict=True))

    @staticmethod
    def joined(form: Form, parts: Sequence[Chain]) -> Chain:
        """The inverse of `by_group`.

        Args:
            form: Over all groups.
            parts: The chains of the groups, all with biases or none.
        """
        weights = tuple(torch.cat(column) for column in zip(*(part.weights for part in parts), strict=True))
        biases = [part.bias for part in parts if part.bias is not None]
        return Chain(form, weights, torch.cat(biases) if biases else None)

    def composed_weight(self) -> Tensor:
        """The weight of the single layer that equals this chain, differentiable in every stage's weight.

        Returns:
            `[out_channels, in_channels // groups, *kernel]`, where `groups` are the form's; in float32 where
            the stages are in half precision, whose products may overflow where no stage does.
        """
        parts = [composed(part.form.stages, part.weights) for part in self.by_group()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def composed(stages: Sequence[StageSpec], weights: Sequence[Tensor]) -> Tensor:
    """The kernel that some stages of one group compose to: `[out of the last, in of the first, *kernel]`."""
    first = weights[0].to(torch.promote_types(weights[0].dtype, torch.float32))
    return reduce(_behind, zip(weights[1:], stages[1:], strict=True), first)


def _behind(kernel: Tensor, stage: tuple[Tensor, StageSpec]) -> Tensor:
    weight, spec = stage
    if spec.spec.is_depthwise:
        return weight * kernel
    return torch.einsum("om...,mi...->oi...", weight.to(kernel.dtype), kernel)


def _check_shape(name: str, spec: LayerSpec, weight: Tensor) -> None:
    if tuple(weight.shape) != spec.weight_shape:
        raise ValueError(
            f"stage {name!r} ({spec}): weight has shape {tuple(weight.shape)}, wanted {spec.weight_shape}"
        )
