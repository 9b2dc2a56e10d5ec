"""Shapes, axes and options as the command line spells them; read before torch is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fxdecomp.cli.references import ModelReferenceError
from fxdecomp.providers import CPU, provider_of

_INPUT = re.compile(r"(?:([A-Za-z_]\w*)=)?(\d+(?:[xX]\d+)*)(?::(?:(-?\d+)\.\.(-?\d+)|(\w+)))?")
_OPTION = re.compile(r"(?:(\w+):)?([A-Za-z_][\w.]*)=(.+)", re.DOTALL)
KINDS = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An example input in words.

    Attributes:
        shape: Its shape.
        kind: Its type: floating-point numbers are drawn from a normal distribution, others from `low` to
            `high`.
        low: The least whole number.
        high: The greatest.
        name: The name of the argument, empty for the next one in order.
        file: A file of arrays that holds the inputs themselves; empty for one that is drawn.
    """

    shape: tuple[int, ...]
    kind: str = "float32"
    low: int = 0
    high: int = 1
    name: str = ""
    file: str = ""

    @property
    def is_float(self) -> bool:
        """Whether its numbers are floating-point."""
        return "float" in self.kind

    @property
    def plain(self) -> bool:
        """Whether it says a shape and nothing else."""
        return self == InputSpec(self.shape)


def parse_input(text: str) -> InputSpec:
    """An example input: `1x3x224x224`, `1x128:0..30521` for whole numbers, `mask=1x128:bool` for an argument.

    `inputs.npz` holds whole inputs by the names of the arguments, an `.npy` file the only one.

    Raises:
        ModelReferenceError: The text is something else.

    Example:
        >>> parse_input("ids=1x128:0..30521").high
        30521
    """
    if text.endswith((".npz", ".npy")):
        if not Path(text).is_file():
            raise ModelReferenceError(f"there is no file {text}")
        return InputSpec((), file=text)
    found = _INPUT.fullmatch(text)
    sizes = () if found is None else tuple(map(int, found[2].lower().split("x")))
    if found is None or not all(sizes):
        raise ModelReferenceError(
            f"{text!r} is no shape; write it as 1x3x224x224, or 1x128:0..30521 for token ids"
        )
    name, low, high, kind = found[1] or "", found[3], found[4], found[5]
    if low is not None:
        if int(low) > int(high):
            raise ModelReferenceError(f"{text!r}: {low} is greater than {high}")
        return InputSpec(sizes, "int64", int(low), int(high), name)
    if kind is not None and kind not in KINDS:
        raise ModelReferenceError(f"{text!r}: there is no type {kind!r}; there are {', '.join(KINDS)}")
    return InputSpec(sizes, kind or "float32", name=name)


def parse_axes(texts: Sequence[str]) -> dict[str, int]:
    """`["width=400"]` as a mapping.

    Raises:
        ModelReferenceError: A text is something else.
    """
    lengths = {}
    for text in texts:
        name, _, length = text.partition("=")
        if not name or not length.isdigit():
            raise ModelReferenceError(f"{text!r} is no axis; write it as width=400")
        lengths[name] = int(length)
    return lengths


def parse_provider_options(texts: Sequence[str], timed: Sequence[str]) -> dict[str, dict[str, str]]:
    """`["device_id=1"]`, or `["cuda:device_id=1"]`, as options by the full names of providers.

    Args:
        texts: Options in words; one without a provider is for the only one there is.
        timed: The providers that are timed.

    Raises:
        ModelReferenceError: A text is something else, or of a provider that is not timed or has no options.

    Example:
        >>> parse_provider_options(["device_id=1"], ["cuda"])
        {'CUDAExecutionProvider': {'device_id': '1'}}
    """
    names = list(map(provider_of, timed))
    options: dict[str, dict[str, str]] = {}
    for text in texts:
        found = _OPTION.fullmatch(text)
        if found is None:
            raise ModelReferenceError(f"{text!r} is no option; write it as device_id=1, or cuda:device_id=1")
        if found[1] is None and len(names) > 1:
            raise ModelReferenceError(f"{text!r}: say of which provider, such as {timed[0]}:{text}")
        provider = names[0] if found[1] is None else provider_of(found[1])
        if provider not in names:
            raise ModelReferenceError(f"{text!r}: add --provider {found[1]}, or leave it away")
        if provider == CPU.name:
            raise ModelReferenceError(f"{text!r}: {provider} has no options; --provider names another")
        options.setdefault(provider, {})[found[2]] = found[3]
    return options


def parse_numbers(text: str, what: str) -> tuple[float, ...]:
    """`0.485,0.456,0.406` as numbers.

    Raises:
        ModelReferenceError: The text is something else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ModelReferenceError(
            f"{what} {text!r} is no list of numbers, such as 0.485,0.456,0.406"
        ) from error


def parse_size(text: str) -> tuple[int, int]:
    """`224x320` (height and width), or `224` for a square.

    Raises:
        ModelReferenceError: The text is something else.
    """
    found = re.fullmatch(r"([1-9]\d*)(?:[xX]([1-9]\d*))?", text)
    if found is None:
        raise ModelReferenceError(f"{text!r} is no size of pictures; write it as 224x224, height first")
    return int(found[1]), int(found[2] or found[1])


def parse_dynamic_axes(text: str) -> tuple[int, ...]:
    """`2,3` as axes.

    Raises:
        ModelReferenceError: The text is something else.
    """
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ModelReferenceError(f"{text!r} are no axes; write them as 2,3, counted from 0")
    return tuple(map(int, text.split(",")))
