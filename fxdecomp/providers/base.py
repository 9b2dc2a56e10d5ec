"""`Provider`: what has to be known of an execution provider to time networks on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

SUFFIX: Final = "ExecutionProvider"


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider of ONNX Runtime. The defaults hold for one of which nothing is known.

    Attributes:
        name: Its full name, such as `CPUExecutionProvider`.
        options: Options that it is run with unless the caller says otherwise, so that reports can state them.
        thread_option: The option that holds the number of threads; empty where the session's number counts.
        device: Where it has a memory of its own, to which inputs and outputs are bound while it is timed.
        times_nodes: Whether ONNX Runtime's profile has the times of single layers. Elsewhere the time of a
            layer is learnt from the difference of two small networks.
        swept: Values of options that are tried, once a machine, and of which the quickest is used. They may
            change the order in which sums are taken, never the type of the numbers.
        rounding: Values of options that compute in a shorter type. They are quick, and for the caller to ask
            for: no timing chooses them.
        unprofiled: Options that are left out where a profile is taken, which they would hide.
        multiples: What ranks may be multiples of, the largest first, by the type that is computed in. Which
            of them pays is measured.
        trial: Channels, and height and width, of the pair of layers on which that is measured.
        refused: What it cannot take, by ONNX operator, with what to do about it.

    Example:
        >>> from fxdecomp.providers import OPENVINO
        >>> OPENVINO.settings(2, {"num_streams": "1"})
        {'num_of_threads': '2', 'num_streams': '1'}
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    thread_option: str = ""
    device: str | None = None
    times_nodes: bool = False
    swept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rounding: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unprofiled: tuple[str, ...] = ()
    multiples: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"float32": (16, 8, 4)})
    trial: tuple[int, int] = (64, 28)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def short(self) -> str:
        """Its name on the command line, such as `cpu`."""
        return self.name.removesuffix(SUFFIX).lower()

    def settings(self, threads: int, given: Mapping[str, str] | None = None) -> dict[str, str]:
        """All options of a session.

        Args:
            threads: Number of threads, at least 1.
            given: What the caller wants; it goes before everything else.
        """
        counted = {self.thread_option: str(threads)} if self.thread_option else {}
        return {**self.options, **counted, **(given or {})}
