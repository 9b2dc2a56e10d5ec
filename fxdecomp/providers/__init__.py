"""What differs between execution providers of ONNX Runtime: a description each, one file a provider."""

from fxdecomp.providers.base import Provider
from fxdecomp.providers.cpu import CPU
from fxdecomp.providers.cuda import CUDA
from fxdecomp.providers.openvino import OPENVINO
from fxdecomp.providers.others import OTHERS
from fxdecomp.providers.tensorrt import TENSORRT

PROVIDERS: tuple[Provider, ...] = (CPU, CUDA, TENSORRT, OPENVINO, *OTHERS)
"""The providers that are known."""


def described(name: str) -> Provider:
    """The description of a provider by its full name; of one that is not known, what holds for most."""
    return next((each for each in PROVIDERS if each.name == name), Provider(name))


def provider_of(name: str) -> str:
    """The execution provider that a short name means: `cpu`, `cuda`, `openvino`; a full name stays as it is.

    Whether it is installed is for those to say who use it.
    """
    return next((each.name for each in PROVIDERS if each.short == name.lower()), name)


__all__ = [
    "CPU",
    "CUDA",
    "OPENVINO",
    "OTHERS",
    "PROVIDERS",
    "TENSORRT",
    "Provider",
    "described",
    "provider_of",
]
