"""Models and policies as the command line names them: `package.module:callable`, files, ranks in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fxdecomp.cli.references import ModelReferenceError, Reference, parse
from fxdecomp.compressing import LoadedModel
from fxdecomp.errors import PolicyError
from fxdecomp.export.metadata import read_metadata
from fxdecomp.export.sessions import provider_of
from fxdecomp.graphs.inputs import Arguments
from fxdecomp.plans import Plan
from fxdecomp.policy import Policy
from fxdecomp.ranks import VBMF, Energy, Fixed, RankRule, Ratio
from fxdecomp.tracing.exported import load_program


def load_model(
    reference: str, shapes: tuple[tuple[int, ...], ...] = (), *, trust: bool = False
) -> LoadedModel:
    """Load a model by reference.

    Args:
        reference: `package.module:callable` or `file.py:callable`, with arguments or without, where the
            callable returns a module or a pair of a module and its example inputs; or the path of a `.pt2`
            file, which carries its own example inputs; or of an `.onnx` file.
        shapes: Shapes of random example inputs, where the reference brings none.
        trust: Open a `.pt2` file with all that it may run, see `load_program`.

    Raises:
        ModelReferenceError: The reference leads nowhere, or no example inputs are known; says what to do.
        FxdecompError: An ONNX file cannot be converted, or the conversion computes something else.
    """
    if reference.endswith(".onnx"):
        return _load_onnx(Path(reference), shapes)
    if reference.endswith(".pt2"):
        return _load_program(Path(reference), shapes, trust=trust)
    made = _made(parse(reference))
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelReferenceError(f"{reference} returns a {type(model).__name__}, not a torch.nn.Module")
    if shapes:
        inputs = _random(shapes)
    if inputs is None:
        raise ModelReferenceError(
            f"{reference} returns a model without example inputs; add --input 1x3x224x224, or return a pair"
        )
    return LoadedModel(model, inputs, reference)


def policy_from(method: str | None, rank: str | None, file: Path | None) -> Policy:
    """The policy of a command: a file, or a method with a rank in words.

    An `.onnx` file that this package wrote holds the plan by which it was made, to be replayed.

    Raises:
        PolicyError: Both or neither was given, or the rank or the file cannot be read.
        ExportError: The file is no ONNX model.
    """
    if file is not None:
        if method or rank:
            raise PolicyError("--policy says methods and ranks itself; leave --method and --rank away")
        return Policy.from_plan(_embedded_plan(file)) if file.suffix == ".onnx" else Policy.load(file)
    if method is None:
        raise PolicyError("say what to do: --method tucker2 --rank vbmf, --budget macs:0.5, or --policy FILE")
    return Policy(method=method, rank=parse_rank(rank or "vbmf"))


def _embedded_plan(file: Path) -> Plan:
    metadata = read_metadata(file)
    if metadata is None or metadata.record is None or metadata.record.plan is None:
        raise PolicyError(f"{file} holds no plan: no decomposition by this package made it")
    return Plan.from_dict(metadata.record.plan)


def parse_rank(text: str) -> RankRule:
    """A rank rule in words: `vbmf`, `energy:0.9`, `ratio:0.5` or `0.5`, `32`, `64,32`.

    Raises:
        PolicyError: The text is none of these.

    Example:
        >>> parse_rank("64,32")
        Fixed(rank=(64, 32))
    """
    word, _, value = text.partition(":")
    try:
        if text == "vbmf":
            return VBMF()
        if word == "energy":
            return Energy(float(value))
        if word == "ratio":
            return Ratio(float(value))
        if "." in text:
            return Ratio(float(text))
        return Fixed(tuple(int(part) for part in text.split(",")))
    except ValueError as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"rank {text!r} is none of vbmf, energy:0.9, 0.5, 32 or 64,32") from error


def load_object(reference: str) -> object:
    """The object that a reference to a name stands for; what it gives, where it has arguments.

    Raises:
        ModelReferenceError: There is none.
    """
    named = parse(reference)
    found = named.find()
    return found if named.args is None else named.call(found)


def parse_shape(text: str) -> tuple[int, ...]:
    """`1x3x224x224` as a tuple.

    Raises:
        ModelReferenceError: The text is something else.
    """
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if not shape or any(size < 1 for size in shape):
        raise ModelReferenceError(f"{text!r} is no shape; write it as 1x3x224x224")
    return shape


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


def parse_provider_options(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """`["cuda:device_id=1"]` as options by the full name of the provider.

    Raises:
        ModelReferenceError: A text is something else.
    """
    options: dict[str, dict[str, str]] = {}
    for text in texts:
        provider, _, setting = text.partition(":")
        name, _, value = setting.partition("=")
        if not provider or not name or not value:
            raise ModelReferenceError(f"{text!r} is no option; write it as cuda:device_id=1")
        options.setdefault(provider_of(provider), {})[name] = value
    return options


def _made(reference: Reference) -> object:
    target = reference.find()
    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise ModelReferenceError(f"{reference.text} is a {type(target).__name__} and cannot be called")
    return reference.call(target)


def _load_program(path: Path, shapes: tuple[tuple[int, ...], ...], *, trust: bool) -> LoadedModel:
    if not path.exists():
        raise ModelReferenceError(f"there is no file {path}")
    program = load_program(path, trust=trust)
    if shapes:
        return LoadedModel(program, _random(shapes), path.name)
    args, kwargs = program.example_inputs or ((), {})
    if not args and not kwargs:
        raise ModelReferenceError(f"{path} carries no example inputs; add --input 1x3x224x224")
    return LoadedModel(program, Arguments(tuple(args), kwargs), path.name)


def _load_onnx(path: Path, shapes: tuple[tuple[int, ...], ...]) -> LoadedModel:
    from fxdecomp.importing import from_onnx

    if not path.exists():
        raise ModelReferenceError(f"there is no file {path}")
    imported = from_onnx(path, shapes=shapes)
    return LoadedModel(
        imported.gm, imported.example_inputs, path.name, imported.input_names, imported.output_names
    )


def _random(shapes: tuple[tuple[int, ...], ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)
