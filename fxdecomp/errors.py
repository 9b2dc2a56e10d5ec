"""The exceptions of the package. A layer that cannot be decomposed is never one of them: see `outcomes`."""

import re

_CPP_PLACE = re.compile(r"^/\S+:\d+ .+\) (?=[A-Z])")
"""The file, line and function that an error of onnxruntime begins with."""
_COMMANDS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but for tab and newline, marks of direction, halves of pairs that no encoding takes."""


class FxdecompError(Exception):
    """Base of every error that this package raises on purpose.

    Its text may quote names out of files: control characters are shown escaped.

    Example:
        >>> import fxdecomp
        >>> try:
        ...     fxdecomp.transform(None, fxdecomp.Policy(method="svd"))
        ... except fxdecomp.FxdecompError as error:
        ...     print(error)
        transform takes a GraphModule, got NoneType; use fxdecomp.trace(model, inputs)
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class TraceError(FxdecompError):
    """A model could not be turned into a graph.

    Example:
        >>> import fxdecomp
        >>> try:
        ...     fxdecomp.trace(3, ())
        ... except fxdecomp.TraceError as error:
        ...     print(error)
        trace takes a module, an ExportedProgram or the path of a .pt2 file, got int
    """


class PolicyError(FxdecompError, ValueError):
    """A policy, a rule or a rank cannot be meant for this network.

    Example:
        >>> import fxdecomp
        >>> try:
        ...     fxdecomp.Policy(method="tuker2")
        ... except fxdecomp.PolicyError as error:
        ...     print(str(error)[:40])
        there is no method 'tuker2'; use tucker2
    """


class BudgetError(PolicyError):
    """A budget that no choice of ranks can meet.

    Attributes:
        least_share: The least share of the dense network's cost that can be met, None where it is not known.

    Example:
        >>> from fxdecomp.errors import BudgetError, PolicyError
        >>> issubclass(BudgetError, PolicyError)
        True
    """

    def __init__(self, message: str, least_share: float | None = None) -> None:
        super().__init__(message)
        self.least_share = least_share


class PassError(FxdecompError):
    """A pass broke one of its own invariants; names the pass and the node.

    Example:
        >>> import fxdecomp
        >>> issubclass(fxdecomp.PassError, fxdecomp.FxdecompError)
        True
    """


class CalibrationError(FxdecompError, ValueError):
    """The calibration data cannot be used.

    Example:
        >>> import torch, fxdecomp
        >>> from fxdecomp.calibration import Calibration
        >>> try:
        ...     Calibration(torch.randn(8, 4))
        ... except fxdecomp.CalibrationError as error:
        ...     print(error)
        calibration is one tensor, wanted an iterable of batches; put it in a list
    """


class RecoveryError(FxdecompError, ValueError):
    """The networks, the data or the checkpoint do not fit a recovery.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.randn(1, 4))
        >>> try:
        ...     fxdecomp.recover(gm, gm, [])
        ... except fxdecomp.RecoveryError as error:
        ...     print(error)
        data holds 0 batches, wanted at least 2: one is held out to judge by
    """


class ExportError(FxdecompError):
    """A model could not be exported.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> try:
        ...     fxdecomp.export.to_onnx(gm, torch.randn(1, 64), "no/such/folder/small.onnx")
        ... except fxdecomp.ExportError as error:
        ...     print(error)
        no/such/folder/small.onnx: the folder no/such/folder does not exist; create it first
    """


class ParityError(ExportError):
    """An exported model does not compute what the PyTorch model computes.

    Example:
        >>> import fxdecomp
        >>> issubclass(fxdecomp.ParityError, fxdecomp.ExportError)
        True
    """


class BenchmarkError(FxdecompError):
    """A benchmark was asked for something that cannot be timed.

    Example:
        >>> import fxdecomp
        >>> try:
        ...     fxdecomp.export.benchmark({"dense": "missing.onnx"})
        ... except fxdecomp.BenchmarkError as error:
        ...     print(error)
        no such file: missing.onnx
    """


def first_line(error: object) -> str:
    """The kind of an exception and the first line of what it says, for a message of our own.

    Example:
        >>> first_line(RuntimeError("/onnxruntime/a.cc:10 void f(const std::string&) Invalid option: foo"))
        'RuntimeError: Invalid option: foo'
    """
    text = _CPP_PLACE.sub("", next(iter(str(error).strip().splitlines()), "no message"))
    return f"{type(error).__name__}: {text[:300]}"


def printable(text: str) -> str:
    r"""A text with what would command a terminal, or turn the reading direction, shown as escapes.

    Example:
        >>> print(printable("conv\x1b[2J"))
        conv\x1b[2J
    """
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
