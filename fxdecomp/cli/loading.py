"""Models as the command line names them, with their example inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from fxdecomp.cli.arrays import read_arrays
from fxdecomp.cli.references import ModelReferenceError, Reference, parse
from fxdecomp.cli.words import InputSpec
from fxdecomp.compressing import LoadedModel
from fxdecomp.graphs.inputs import Arguments, ExampleInputs, call_arguments
from fxdecomp.tracing.exported import load_program


def load_model(
    reference: str,
    inputs: Sequence[InputSpec] = (),
    *,
    trust: bool = False,
    seed: int = 0,
    tolerance: float | None = None,
    calibration: str | None = None,
) -> LoadedModel:
    """Load a model by reference.

    Args:
        reference: `package.module:callable` or `file.py:callable`, with arguments or without, where the
            callable returns a module or a pair of a module and its example inputs; or the path of a `.pt2`
            file, which carries its own example inputs; or of an `.onnx` file.
        inputs: Example inputs to draw; by default those that the reference brings.
        trust: Open a `.pt2` file with all that it may run, see `load_program`.
        seed: Seed of what is drawn.
        tolerance: How far the graph of an ONNX file may be from the file, see `from_onnx`.
        calibration: What the network is fitted to. Where it is a file of arrays, and `inputs` are none, the
            graph of an ONNX file is compared with the file on its first inputs, not on random ones.

    Raises:
        ModelReferenceError: The reference leads nowhere, or no example inputs are known; says what to do.
        FxdecompError: An ONNX file cannot be converted, or the conversion computes something else.
    """
    if reference.endswith(".onnx"):
        return _load_onnx(
            Path(reference), inputs, seed=seed, tolerance=tolerance, arrays=_calibration(calibration)
        )
    if tolerance is not None:
        raise ModelReferenceError(f"--tolerance is for .onnx files; {reference} is compared with none")
    if reference.endswith(".pt2"):
        return _load_program(Path(reference), inputs, trust=trust, seed=seed)
    made = _made(parse(reference))
    model, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelReferenceError(f"{reference} returns a {type(model).__name__}, not a torch.nn.Module")
    if inputs:
        examples = drawn(inputs, seed)
    if examples is None:
        raise ModelReferenceError(
            f"{reference} returns a model without example inputs; add --input 1x3x224x224, or return a pair"
        )
    return LoadedModel(model, examples, reference)


def load_object(reference: str) -> object:
    """The object that a reference to a name stands for; what it gives, where it has arguments.

    Raises:
        ModelReferenceError: There is none.
    """
    named = parse(reference)
    found = named.find()
    return found if named.args is None else named.call(found)


def drawn(inputs: Sequence[InputSpec], seed: int = 0) -> ExampleInputs:
    """Example inputs from a seed: normally distributed, or whole numbers of a range."""
    generator = torch.Generator().manual_seed(seed)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for item in inputs:
        if item.file:
            given = _arrays(Path(item.file))
            args += [given.pop("")] if "" in given else []
            kwargs |= given
            continue
        kind = getattr(torch, item.kind)
        if item.is_float:
            value = torch.randn(item.shape, generator=generator).to(kind)
        else:
            value = torch.randint(item.low, item.high + 1, item.shape, generator=generator).to(kind)
        if item.name:
            kwargs[item.name] = value
        else:
            args.append(value)
    return Arguments(tuple(args), kwargs) if kwargs else tuple(args)


def _arrays(path: Path) -> dict[str, torch.Tensor]:
    """The inputs that a file of arrays holds by name; one without a name is the only one.

    Raises:
        ModelReferenceError: It cannot be read.
    """
    try:
        return {name: torch.from_numpy(array) for name, array in read_arrays(path, only="").items()}
    except (ValueError, TypeError) as error:
        raise ModelReferenceError(f"{path} cannot be read as arrays: {error}") from error


def _made(reference: Reference) -> object:
    target = reference.find()
    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise ModelReferenceError(f"{reference.text} is a {type(target).__name__} and cannot be called")
    return reference.call(target)


def _load_program(path: Path, inputs: Sequence[InputSpec], *, trust: bool, seed: int) -> LoadedModel:
    if not path.exists():
        raise ModelReferenceError(f"there is no file {path}")
    program = load_program(path, trust=trust)
    if inputs:
        return LoadedModel(program, drawn(inputs, seed), path.name)
    args, kwargs = program.example_inputs or ((), {})
    if not args and not kwargs:
        raise ModelReferenceError(f"{path} carries no example inputs; add --input 1x3x224x224")
    return LoadedModel(program, Arguments(tuple(args), kwargs), path.name)


def _load_onnx(
    path: Path,
    inputs: Sequence[InputSpec],
    *,
    seed: int,
    tolerance: float | None,
    arrays: Mapping[str, NDArray[Any]],
) -> LoadedModel:
    from fxdecomp.importing import from_onnx
    from fxdecomp.importing.example_inputs import first_inputs

    if not path.exists():
        raise ModelReferenceError(f"there is no file {path}")
    own = first_inputs(path, arrays) if arrays and not inputs else {}
    options: dict[str, Any] = {"seed": seed, "tolerance": tolerance}
    if own:
        imported = from_onnx(path, inputs=own, **options)
    elif all(item.plain for item in inputs):
        imported = from_onnx(path, shapes=tuple(item.shape for item in inputs), **options)
    else:
        args, kwargs = call_arguments(drawn(inputs, seed))
        if args and kwargs:
            raise ModelReferenceError(f"{path}: name every input, or none")
        imported = from_onnx(path, inputs=kwargs or args, **options)
    return LoadedModel(
        imported.gm, imported.example_inputs, path.name, imported.input_names, imported.output_names
    )


def _calibration(reference: str | None) -> Mapping[str, NDArray[Any]]:
    """The arrays of a calibration file; none of a function, which may give its inputs but once."""
    if reference is None or not reference.endswith((".npz", ".npy")):
        return {}
    try:
        return read_arrays(Path(reference), only="input")
    except ValueError as error:
        raise ModelReferenceError(f"{reference} cannot be read as arrays: {error}") from error
