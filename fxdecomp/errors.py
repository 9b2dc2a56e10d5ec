"""The exceptions of the package. A layer that cannot be decomposed is never one of them: see `outcomes`."""


class FxdecompError(Exception):
    """Base of every error that this package raises on purpose."""


class TraceError(FxdecompError):
    """A model could not be turned into a graph."""


class PolicyError(FxdecompError, ValueError):
    """A policy, a rule or a rank cannot be meant for this network."""


class PassError(FxdecompError):
    """A pass broke one of its own invariants; names the pass and the node."""


class CalibrationError(FxdecompError, ValueError):
    """The calibration data cannot be used."""


class RecoveryError(FxdecompError, ValueError):
    """The networks, the data or the checkpoint do not fit a recovery."""


class ExportError(FxdecompError):
    """A model could not be exported."""


class ParityError(ExportError):
    """An exported model does not compute what the PyTorch model computes."""


class BenchmarkError(FxdecompError):
    """A benchmark was asked for something that cannot be timed."""
