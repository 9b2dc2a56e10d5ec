"""References to models and functions, as the command line takes them; checked before torch is loaded.

A reference is `package.module:name` or `folder/file.py:name`, and a name may have arguments, as in
`mynets:resnet(50, width=0.5)`; or, for a model, the path of a `.pt2` or `.onnx` file.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from fxdecomp.errors import FxdecompError, first_line

MODEL_FILES = (".pt2", ".onnx")


class ModelReferenceError(FxdecompError, ValueError):
    """A reference to a model or a function that leads nowhere."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A name in a module or in a Python file.

    Attributes:
        text: As it was given.
        place: The module, or the path of the file.
        name: The name there, with dots for attributes.
        args: What it is called with; None where it was named only.
        kwargs: Likewise by name.
    """

    text: str
    place: str
    name: str
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def find(self) -> object:
        """What the name stands for, before any call.

        Raises:
            ModelReferenceError: There is no such module or name, or the module cannot be imported.
        """
        module = _module(self)
        try:
            return pkgutil.resolve_name(f"{module.__name__}:{self.name}")
        except AttributeError as error:
            raise ModelReferenceError(
                f"{self.text}: {self.place} has no {error.name!r}{_instead(error.obj, str(error.name))}"
            ) from error

    def call(self, function: Any) -> Any:
        """What a function gives for the arguments of the reference.

        Raises:
            ModelReferenceError: It raised; says where.
        """
        try:
            return function(*(self.args or ()), **self.kwargs)
        except Exception as error:
            shown = self.text if self.args is not None else f"{self.text}()"
            raise ModelReferenceError(f"{shown} raised {first_line(error)}{where_raised(error)}") from error


def parse(text: str) -> Reference:
    """A reference to a name.

    Raises:
        ModelReferenceError: The text is something else, or names a file that does not exist.

    Example:
        >>> found = parse("mynets:resnet(50, width=0.5)")
        >>> found.place, found.name, found.args, found.kwargs
        ('mynets', 'resnet', (50,), {'width': 0.5})
    """
    head, bracket, tail = text.partition("(")
    place, _, name = head.rpartition(":")
    if (
        not place
        or not all(part.isidentifier() for part in name.split("."))
        or (bracket and tail[-1:] != ")")
    ):
        raise ModelReferenceError(
            f"{text!r} is neither a .pt2 or .onnx file nor of the form package.module:callable"
        )
    if place.endswith(".py") and not Path(place).is_file():
        raise ModelReferenceError(f"{text}: there is no file {place}")
    if not bracket:
        return Reference(text, place, name)
    try:
        call = ast.parse(f"f({tail}", mode="eval").body
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Name)  # `f(1)(2)` is a call of a call
        args = tuple(ast.literal_eval(value) for value in call.args)
        kwargs = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords if item.arg}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ModelReferenceError(f"{text!r}: arguments are plain values, such as (32, 'small')") from error
    return Reference(text, place, name, args, kwargs)


def check_model(text: str) -> None:
    """Refuse at once what can be no model.

    Raises:
        ModelReferenceError: As of `parse`, or a file is not there.
    """
    if text.endswith(MODEL_FILES):
        if not Path(text).is_file():
            raise ModelReferenceError(f"there is no file {text}")
    else:
        parse(text)


def _module(reference: Reference) -> ModuleType:
    place = reference.place
    folder = str(Path(place).resolve().parent if place.endswith(".py") else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ModelReferenceError(f"{reference.text}: {error}") from error
    except Exception as error:
        raise ModelReferenceError(
            f"{reference.text}: importing {place} raised {first_line(error)}{where_raised(error)}"
        ) from error


def _from_file(path: Path) -> ModuleType:
    """The module of a file, imported once, under the file's own name where that is free."""
    whole = str(path.resolve())
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == whole:
            return module
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_{abs(hash(whole)):x}"
    spec = importlib.util.spec_from_file_location(name, whole)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _instead(value: object, name: str) -> str:
    """The names of a module that may have been meant, the likest first."""
    if not isinstance(value, ModuleType):
        return ""
    own = [
        name
        for name, item in vars(value).items()
        if not name.startswith("_") and getattr(item, "__module__", None) == value.__name__
    ]
    own.sort(key=lambda each: -difflib.SequenceMatcher(None, each.lower(), name.lower()).ratio())
    return f"; it has {', '.join(own[:6])}" if own else ""


def where_raised(error: Exception) -> str:
    """The line of the user's own that an exception comes from."""
    own = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((own, "<frozen")) and "site-packages" not in frame.filename
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
