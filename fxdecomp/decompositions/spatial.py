"""How the spatial axes of a kernel are shared out over successive stages.

Each axis wider than 1 has a stage of its own; narrow axes (a stride or a padding at most) ride along with
one of them. The order is the one that costs least: with a stride or a padding it matters which axis goes
first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise, permutations

from fxdecomp.layers import LayerSpec, StageSpec

_AXIS_NAMES = {1: ("spatial",), 2: ("vertical", "horizontal"), 3: ("depth", "vertical", "horizontal")}


@dataclass(frozen=True, slots=True)
class SpatialStep:
    """One stage's share of the axes, and its name."""

    name: str
    axes: tuple[int, ...]


def spatial_steps(spec: LayerSpec) -> tuple[SpatialStep, ...]:
    """The steps that cover all spatial axes, in the order that costs least."""
    wide = [axis for axis in range(spec.ndim) if spec.kernel[axis] > 1]
    narrow = tuple(axis for axis in range(spec.ndim) if spec.kernel[axis] == 1)
    if not wide:
        return (SpatialStep("spatial", narrow),)
    names = _AXIS_NAMES[spec.ndim]
    steps = [SpatialStep(names[axis], (axis,)) for axis in wide]
    steps[0] = replace(steps[0], axes=tuple(sorted((*steps[0].axes, *narrow))))

    def cost(order: tuple[SpatialStep, ...]) -> int:
        stages = spatial_stages(spec, order, (1,) * (len(order) + 1))
        return sum(stage.spec.macs for stage in stages)

    return min(permutations(steps), key=cost)


def spatial_stages(
    spec: LayerSpec,
    steps: tuple[SpatialStep, ...],
    channels: tuple[int, ...],
    *,
    depthwise: bool = False,
    prefix: str = "",
) -> tuple[StageSpec, ...]:
    """The stages that apply `steps` one after the other.

    Args:
        spec: The whole layer.
        steps: The order and the share of the axes.
        channels: Channels before, between and after the steps, one more than there are steps.
        depthwise: Whether every channel has its own kernel; then all `channels` are equal.
        prefix: What the names begin with.
    """
    stages = []
    rest = spec
    for step, (before, after) in zip(steps, pairwise(channels), strict=True):
        layer = rest.along(step.axes, before, after, groups=before if depthwise else 1)
        stages.append(StageSpec(prefix + step.name, layer))
        rest = replace(rest, input_size=layer.output_size)
    return tuple(stages)


def step_kernel(spec: LayerSpec, step: SpatialStep) -> tuple[int, ...]:
    """Kernel size of one step, 1 along the axes of the others."""
    return tuple(k if axis in step.axes else 1 for axis, k in enumerate(spec.kernel))
