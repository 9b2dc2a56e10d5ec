"""Calibration inputs as users have them: functions, loaders, arrays, files, folders of pictures.

What is given becomes batches of inputs as the network takes them: labels are left out, arrays become
tensors of the example's type, and at most `MOST` inputs are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.calibration import Calibration
from fxdecomp.calibration.batches import inputs_of
from fxdecomp.calibration.judging import takes
from fxdecomp.calibration.splitting import rows_of
from fxdecomp.cli.arrays import read_arrays
from fxdecomp.cli.references import ModelReferenceError, parse
from fxdecomp.errors import CalibrationError
from fxdecomp.graphs.inputs import Arguments, ExampleInputs, call_arguments

MOST = 256
_SIZE = 16
_ARRAYS = (".npz", ".npy")
_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
"""All that Pillow may take a picture for: an EPS under another name would be run by Ghostscript."""


def load_calibration(reference: str | None, example: ExampleInputs) -> Calibration | None:
    """The inputs that a function gives, or an `.npz` or `.npy` file holds.

    Args:
        reference: `module:function` or `file.py:function`, whose result is a tensor or an array (batches
            are made of it), an iterable of batches such as a DataLoader, or a `Calibration`; or a file of
            arrays, each with one input of the network, by name or in order.
        example: The example inputs of the network.

    Raises:
        ModelReferenceError: It leads nowhere.
        CalibrationError: It gives no batches.
    """
    if reference is None:
        return None
    if reference.endswith(_ARRAYS):
        return Calibration(tuple(_of_arrays(Path(reference), example)))
    named = parse(reference)
    found = named.find()
    data = named.call(found) if callable(found) and not isinstance(found, Iterable) else found
    if isinstance(data, Calibration):
        return data
    if isinstance(data, Tensor | np.ndarray):
        return Calibration(tuple(_fitting(part, example) for part in _parts(data)))
    if not isinstance(data, Iterable):
        raise ModelReferenceError(f"{reference} gives a {type(data).__name__}, wanted batches of inputs")
    return Calibration(tuple(_first(_fitting(batch, example) for batch in _items(data, reference))))


def load_pictures(
    folder: Path,
    example: ExampleInputs,
    *,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Calibration:
    """The pictures of a folder and those below it, as batches.

    Each is made as large as the network takes it, its numbers 0 to 1, then `(x - mean) / std`.

    Args:
        folder: Where the pictures are.
        example: The example input, `[N, C, H, W]`: its channels, 1 or 3, and its size.
        size: Height and width, None for those of the example.
        mean: One number, or one per channel.
        std: Likewise.

    Raises:
        CalibrationError: There are no pictures, one cannot be read, or the network takes no pictures.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise CalibrationError("--images needs Pillow; install `fxdecomp[images]`") from error
    first = _leaves(example)[0]
    if first.ndim != 4 or first.shape[1] not in (1, 3):
        raise CalibrationError(f"--images is for inputs [N, 1 or 3, H, W]; this one is {list(first.shape)}")
    channels, (height, width) = int(first.shape[1]), size or (int(first.shape[2]), int(first.shape[3]))
    if not {len(mean), len(std)} <= {1, channels} or not all(std):
        raise CalibrationError(f"--mean and --std are one number or {channels}, and no std is 0")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES)
    if not paths:
        raise CalibrationError(f"{folder} holds no pictures ({', '.join(sorted(_PICTURES))})")
    step = -(-len(paths) // MOST)
    rows = []
    for path in paths[::step]:
        try:
            with Image.open(path, formats=_FORMATS) as picture:
                shown = picture.convert("L" if channels == 1 else "RGB").resize((width, height))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise CalibrationError(f"{path} cannot be read as a picture: {error}") from error
        numbers = np.asarray(shown, dtype=np.float32).reshape(height, width, channels) / 255
        row = (numbers - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
        rows.append(torch.from_numpy(row.transpose(2, 0, 1).copy()))
    return Calibration(tuple(_parts(torch.stack(rows))))


def as_taken(data: Calibration, network: GraphModule, example: ExampleInputs) -> Calibration:
    """Pictures or arrays in batches that the graph of a file takes.

    A file may declare a free batch and hold the example's in its reshapes: then that is the batch.

    Args:
        data: In batches that nobody asked for.
        network: The graph; it is run once.
        example: Inputs that it takes.
    """
    if takes(network, (next(iter(data.batches)),)):
        return data
    size = inputs_of(example)
    return Calibration(
        tuple(
            rows_of(batch, slice(start, start + size))  # what is left over is left out
            for batch in data.batches
            for start in range(0, inputs_of(batch) - size + 1, size)
        )
    )


def _of_arrays(path: Path, example: ExampleInputs) -> Iterator[ExampleInputs]:
    """The batches of a file of arrays."""
    try:
        named = read_arrays(path, only="input")
    except ValueError as error:
        raise CalibrationError(f"{path} cannot be read as arrays: {error}") from error
    lengths = {name: len(array) if array.ndim else 0 for name, array in named.items()}
    if not named or len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise CalibrationError(
            f"{path} holds arrays of {lengths} inputs; wanted one array per input, as long"
        )
    keyword = call_arguments(example)[1]
    by_name = set(named) >= set(keyword) and bool(keyword)
    for parts in zip(*(_parts(array) for array in named.values()), strict=True):
        batch = dict(zip(named, parts, strict=True))
        yield _fitting(batch if by_name else parts[0] if len(parts) == 1 else tuple(parts), example)


def _items(data: Iterable[Any], reference: str) -> Iterator[Any]:
    """The batches of an iterable of the user's own, which may raise."""
    try:
        yield from data
    except Exception as error:
        raise CalibrationError(f"{reference} raised {type(error).__name__}: {error}") from error


def _first(batches: Iterator[ExampleInputs]) -> Iterator[ExampleInputs]:
    """As many batches as hold `MOST` inputs."""
    read = 0
    for batch in batches:
        yield batch
        read += inputs_of(batch)
        if read >= MOST:
            return


def _parts(array: Any) -> Iterator[Any]:
    """An array or tensor in batches, eight at least where it can be: an eighth is kept to judge by."""
    count = min(len(array), MOST)
    size = min(_SIZE, max(1, count // 8))
    for start in range(0, count, size):
        yield array[start : min(start + size, count)]


def _leaves(example: ExampleInputs) -> list[Tensor]:
    args, kwargs = call_arguments(example)
    return [value for value in itertools.chain(args, kwargs.values()) if isinstance(value, Tensor)]


def _fitting(batch: Any, example: ExampleInputs) -> ExampleInputs:
    """A batch as the network takes it: without labels behind its inputs, tensors of the example's types."""
    args, kwargs = call_arguments(example)
    if isinstance(batch, Arguments):
        return batch
    if isinstance(batch, Mapping):
        named = {name: _tensor(batch[name], kwargs[name]) for name in kwargs if name in batch}
        others = [value for name, value in batch.items() if name not in kwargs]
        if not kwargs:
            return {name: _tensor(value, None) for name, value in batch.items()}
        return _call(tuple(_tensor(*pair) for pair in zip(others, args, strict=False)), named)
    if isinstance(batch, list | tuple):
        values = [_tensor(value, like) for value, like in zip(batch, [*args, *kwargs.values()], strict=False)]
        return _call(tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=False)))
    single: ExampleInputs = _tensor(batch, args[0] if args else None)
    return single


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExampleInputs:
    """The inputs of a call, in the plainest form."""
    if args and kwargs:
        return Arguments(args, kwargs)
    plain: ExampleInputs = kwargs or (args[0] if len(args) == 1 else args)
    return plain


def _tensor(value: Any, like: Any) -> Any:
    """A value as a tensor; floating-point numbers in the example's type."""
    if isinstance(value, np.ndarray | np.generic):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor) and isinstance(like, Tensor):
        if value.is_floating_point() and like.is_floating_point():
            return value.to(like.dtype)
        if not value.is_floating_point() and not like.is_floating_point():
            return value.to(like.dtype)
    return value
