"""The arguments and options that several commands share, and what they stand for.

What is wrong with an option by itself is told by its callback, before torch is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fxdecomp.cli.references import ModelReferenceError, check_model, parse
from fxdecomp.cli.words import parse_input
from fxdecomp.providers import PROVIDERS, provider_of
from fxdecomp.providers.base import SUFFIX

PRECISIONS = ("int8", "fp16")
SHORT = tuple(each.short for each in PROVIDERS)
"""The short names of providers."""


def one_of(*words: str) -> Callable[[str], list[str]]:
    """What a shell completes to one of these words."""
    return lambda incomplete: [
        word for word in words if word.startswith(incomplete)
    ]  # typer knows it by name


def checked_provider(name: Any) -> Any:
    """A provider, or several, whose name can be meant.

    Raises:
        BadParameter: It is neither a short name that is known nor a full one.
    """
    for each in name if isinstance(name, list) else [name] if name else []:
        if not provider_of(each).endswith(SUFFIX):
            raise typer.BadParameter(
                f"there is no provider {each!r}; write {', '.join(each.short for each in PROVIDERS[:4])}, "
                f"or a full name such as {PROVIDERS[0].name}"
            )
    return name


def checked_reference(text: str | None) -> str | None:
    """A reference to a function or a file of arrays, refused at once where it can lead nowhere.

    Raises:
        ModelReferenceError: It does.
    """
    if text is None:
        return None
    if Path(text).is_dir():
        raise ModelReferenceError(f"{text} is a folder; of pictures, --images {text} takes it")
    if text.endswith((".npz", ".npy")):
        if not Path(text).is_file():
            raise ModelReferenceError(f"there is no file {text}")
    else:
        try:
            parse(text)
        except ModelReferenceError as error:
            raise ModelReferenceError(str(error).replace("a .pt2 or .onnx file", "an .npz file")) from error
    return text


def checked_precision(text: str | None) -> str | None:
    """`int8` or `fp16`.

    Raises:
        BadParameter: It is another.
    """
    if text not in {None, *PRECISIONS}:
        raise typer.BadParameter(f"there is no precision {text!r}; there are int8 and fp16")
    return text


def checked_tolerance(value: float | None) -> float | None:
    """A tolerance above 0.

    Raises:
        BadParameter: It is another number.
    """
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value} is no tolerance; wanted a number above 0, such as 0.001")
    return value


def _model(text: str) -> str:
    check_model(text)
    return text


def _inputs(texts: list[str] | None) -> list[str] | None:
    for text in texts or ():
        parse_input(text)
    return texts


Model = Annotated[
    str,
    typer.Argument(
        help="package.module:callable, net.py:callable(32), or a .pt2 or .onnx file", callback=_model
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Example input: 1x3x224x224, 1x128:0..30521 for ids, mask=1x128:bool by name, or FILE.npz",
        callback=_inputs,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of drawn example inputs")]
Tolerance = Annotated[
    float | None,
    typer.Option(
        help="How far an .onnx file's graph may be off: 0.001",
        callback=checked_tolerance,
    ),
]
Method = Annotated[str | None, typer.Option(help="svd, tucker2, cp, cp3, spatial_svd, ...")]
RankText = Annotated[str | None, typer.Option("--rank", help="vbmf, energy:0.9, a share 0.5, 32, or 64,32")]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="A policy in TOML, or an .onnx file's own plan"),
]
Provider = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, openvino, ..., or its full name",
        callback=checked_provider,
        autocompletion=one_of(*SHORT),
    ),
]
ProviderOptions = Annotated[
    list[str] | None,
    typer.Option("--provider-option", metavar="K=V", help="Option of it: device_id=1, cuda:device_id=1"),
]
Threads = Annotated[int, typer.Option(min=0, max=4096, help="Threads of the timing; 0 for all")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Open a .pt2 file of your own that holds pickles: it may run anything")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress")]


def traced(reference: str, inputs: list[str] | None, *, quiet: bool, **options: Any) -> Any:
    """The graph of the model that `reference` names, traced with example inputs of these shapes.

    Args:
        reference: The model.
        inputs: Its inputs in words.
        quiet: Whether nothing is shown meanwhile.
        **options: As of `load_model`.
    """
    from fxdecomp import trace
    from fxdecomp.cli.loading import load_model
    from fxdecomp.cli.terminal import working

    with working(f"tracing {reference}", quiet=quiet):
        loaded = load_model(reference, tuple(map(parse_input, inputs or ())), **options)
        return trace(loaded.model, loaded.example_inputs)
