"""The networks of pytorchcv: how each is built, drawn and fed."""

from __future__ import annotations

import copy
import hashlib
import importlib
import sys
import types
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.network_checks import Inputs, as_double, run
from fxdecomp.graphs.inputs import float_leaves

SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 480)
OPTIONS: dict[str, dict[str, bool]] = {
    **{kind: {"from_audio": False} for kind in ("jasper", "jasperdr", "quartznet")},
    **{
        kind: {"return_heatmap": True}
        for kind in ("simplepose_coco", "simpleposemobile_coco", "alphapose_coco")
    },
}
"""Families that are built without a part that is no network: reading sound files, decoding key points."""
CHAOTIC = 1e6
"""A growth of roundings beyond which even float64 tells little."""
TAME = 1e1
"""A growth at which the roundings of two runtimes in float32 stay within an export's tolerance."""
SMALL = 0.1
"""Mean weight of the BatchNorms of a network that is chaotic otherwise."""
_NUDGE = 1e-10


class DeformConv2d(nn.Module):
    """Stands in for torchvision's, which one network constructs, where torchvision does not load."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def forward(self, *args: object) -> None:
        """Refuse."""
        raise RuntimeError("torchvision.ops.DeformConv2d is not there: torchvision does not load here")


def constructors() -> dict[str, Callable[..., nn.Module]]:
    """Every network of the zoo by name; a family is the module that defines it."""
    try:
        importlib.import_module("torchvision.ops")
    except Exception:  # noqa: BLE001 - absent, or built for another torch: both happen
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        package, ops = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
        ops.DeformConv2d = DeformConv2d  # type: ignore[attr-defined]
        sys.modules |= {"torchvision": package, "torchvision.ops": ops}
    vars(np).setdefault("int", int)  # some networks still use the old alias
    from pytorchcv.model_provider import _models

    return dict(_models)


def family(constructor: Callable[..., nn.Module]) -> str:
    """The family that a constructor belongs to."""
    return constructor.__module__.rpartition(".")[2]


def build(constructor: Callable[..., nn.Module]) -> nn.Module:
    """The network with random weights."""
    torch.manual_seed(0)
    return constructor(**OPTIONS.get(family(constructor), {}))


def count_parameters(constructor: Callable[..., nn.Module]) -> int:
    """Number of parameters, without allocating them; -1 where the network cannot be built."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in build(constructor).parameters())
    except Exception:  # noqa: BLE001 - its row will tell
        return -1


def smallest_inputs(name: str, model: nn.Module) -> Inputs:
    """The smallest inputs that a network accepts, by trial."""
    torch.manual_seed(1)
    special: dict[str, Callable[[], Inputs]] = {
        "raft": lambda: (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)),
        "propainter_rfc": lambda: (torch.randn(1, 4, 2, 64, 64), torch.randn(1, 4, 1, 64, 64)),
        "propainter_ip": lambda: (
            torch.randn(4, 3, 64, 64),
            torch.randn(4, 1, 64, 64),
            torch.randn(3, 4, 64, 64),
        ),
        "propainter": _propainter_inputs,
        "voca": lambda: (torch.randn(2, 1, 16, 29), torch.full((2,), 3)),
        "nvpattexp": lambda: (torch.randn(2, 8, 16, 29), torch.full((2,), 3)),
        "visemenet": lambda: (torch.randn(2, 8, 195), torch.full((2, 76), 3)),
        "jasper": lambda: (torch.randn(1, 64, 64), torch.tensor([60])),
        "jasperdr": lambda: (torch.randn(1, 64, 64), torch.tensor([60])),
        "quartznet": lambda: (torch.randn(1, 64, 64), torch.tensor([60])),
    }
    kind = type(model).__module__.rpartition(".")[2]
    for key in (name.split("_", maxsplit=1)[0], kind, name):
        if key in special:
            return special[key]()
    return _smallest_image(model)


def _propainter_inputs() -> Inputs:
    raise NotImplementedError("propainter's transformer takes six arguments that its own pipeline prepares")


def _smallest_image(model: nn.Module) -> Inputs:
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    own = getattr(model, "in_size", None)
    sizes = [*((s, s) for s in SIZES), *([tuple(own)] if own else []), (1, 29)]
    failure: Exception = ValueError("no size was tried")
    for channels in dict.fromkeys((getattr(model, "in_channels", first), 3)):
        for size in sizes:
            image = torch.randn(1, channels, *size)
            try:
                with torch.no_grad():
                    model.eval()(image)
            except Exception as error:  # noqa: BLE001 - the next size may do
                failure = error
            else:
                return (image,)
    raise ValueError(f"no input size works: {failure!r}") from failure


def randomise(model: nn.Module, seed: int = 0, size: float = 1.0) -> nn.Module:
    """Draw the statistics and weights of the BatchNorms, which a new network has at 0 and 1.

    Args:
        model: Changed in place.
        seed: Of the draw.
        size: Mean of the weights: 1 keeps the size of a signal through a layer, and lets it grow from block
            to block of a residual network.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not torch.isfinite(parameter).all() or parameter.abs().max() > 1e3:  # uninitialised memory
                parameter.normal_(0, 0.05, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (module.running_mean, -0.1, 0.1),
                    (module.running_var, 0.5, 1.5),
                    (module.weight, 0.5 * size, 1.5 * size),
                    (module.bias, -0.1, 0.1),
                ):
                    if tensor is not None:
                        tensor.uniform_(low, high, generator=generator)
    return model


@torch.no_grad()
def is_chaotic(model: nn.Module, inputs: tuple[Tensor, ...], most: float = CHAOTIC) -> bool:
    """Whether the network overflows, or makes a rounding of its weights more than so many times larger."""
    if not all(bool(torch.isfinite(each).all()) for each in float_leaves(model.eval()(*inputs))):
        return True
    wide, wide_inputs = copy.deepcopy(model).double(), as_double(inputs)
    try:
        before = float_leaves(run(wide, wide_inputs))
        for parameter in wide.parameters():
            wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64))
            parameter.mul_(1 + _NUDGE * wave.reshape(parameter.shape))
        after = float_leaves(run(wide, wide_inputs))
    except RuntimeError:  # a network that makes float32 tensors of its own does not run in float64
        return False
    return any(
        bool((one - other).abs().max() > most * _NUDGE * one.abs().max())
        for one, other in zip(before, after, strict=True)
    )


@torch.no_grad()
def fingerprint(model: nn.Module, inputs: Inputs) -> str:
    """Equal for networks of the same modules, weights, inputs and outputs."""
    modules = [(name, type(module).__qualname__) for name, module in model.named_modules()]
    digest = hashlib.sha256(repr(modules).encode())
    tensors = [*model.state_dict().items(), *enumerate(float_leaves((inputs, run(model.eval(), inputs))))]
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:16]
