"""Trying a network: what fails, how small it can be made, and a script that shows it again."""

from __future__ import annotations

import copy
import inspect
import re
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import fxdecomp
from benchmarks.fuzz import measuring, oracles
from benchmarks.fuzz.building import Network, Step, renamed
from benchmarks.fuzz.drawing import live
from benchmarks.fuzz.measuring import TheirError
from benchmarks.fuzz.oracles import Case

Oracle = Callable[[Case], None]
LIMIT_S = 120
"""Seconds for one oracle at one network; what takes longer hangs."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What did not hold.

    Attributes:
        oracle: The oracle's name.
        kind: The exception's type.
        text: Its message.
        where: The lines of the package that it came through, innermost last.
    """

    oracle: str
    kind: str
    text: str
    where: tuple[str, ...] = ()

    @property
    def signature(self) -> tuple[str, str, tuple[str, ...]]:
        """What a smaller network must show too, to fail in the same way."""
        return self.oracle, self.kind, self.where[-1:]


def case_of(network: Network) -> Case:
    """The network's text, run."""
    scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "copy": copy, "fxdecomp": fxdecomp}
    exec(network.source, scope)
    made = [scope[name] for name in ("network", "inputs", "given", "METHOD", "COUNTED", "COMPUTES")]
    return Case(*made)


def failure_of(network: Network, chosen: Sequence[Oracle]) -> Failure | None:
    """The first oracle that does not hold; a failure of PyTorch or ONNX Runtime is of kind `TheirError`."""
    case = case_of(network)
    theirs = None
    for oracle in chosen:
        try:
            with time_limit(LIMIT_S), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                oracle(case)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "fxdecomp/" in f.filename]
            where = tuple(f"{f.filename.rpartition('fxdecomp/')[2]}:{f.name}" for f in frames)
            failure = Failure(oracle.__name__, type(error).__name__, str(error), where)
            if not isinstance(error, TheirError):
                return failure
            theirs = failure
    return theirs


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` in what takes longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def shrunk(network: Network, failure: Failure, oracle: Oracle, tries: int = 60) -> Network:
    """A network with fewer steps that fails in the same way: steps are left out as long as it does."""
    best = network
    for smaller in _smaller(network):
        best = smaller if _fails_alike(smaller, failure, oracle) else best
        if best is not network:
            break
    progress = True
    while progress and tries > 0:
        progress = False
        for place in reversed(range(len(best.steps))):
            candidate = _without(best, place)
            if candidate is None:
                continue
            tries -= 1
            if _fails_alike(candidate, failure, oracle):
                best, progress = candidate, True
                break
            if tries <= 0:
                break
    return best


def _fails_alike(network: Network, failure: Failure, oracle: Oracle) -> bool:
    try:
        found = failure_of(network, [oracle])
    except Exception:  # noqa: BLE001 - the text does not run any more
        return False
    return found is not None and found.signature == failure.signature


def _smaller(network: Network) -> Iterator[Network]:
    """The network cut off behind each of its steps."""
    for count in range(1, len(network.steps)):
        steps = network.steps[:count]
        yield _cleared(replace(network, steps=steps, outputs=steps[-1].name))


def _cleared(network: Network) -> Network:
    """Without the steps that nothing is made of."""
    wanted = live(network.steps, [step.name for step in network.steps if step.name in network.outputs])
    kept = tuple(step for step in network.steps if step.name in wanted)
    return replace(network, steps=kept)


def _without(network: Network, place: int) -> Network | None:
    """The network with what a step takes in the place of what it gives."""
    dropped = network.steps[place]
    if not dropped.source:
        return None

    def changed(text: str) -> str:
        return renamed(text, dropped.name, dropped.source)

    rest = tuple(
        Step(step.name, step.init, tuple(map(changed, step.forward)), changed(step.source), step.products)
        for step in (*network.steps[:place], *network.steps[place + 1 :])
    )
    return replace(network, steps=rest, outputs=changed(network.outputs))


def script_of(network: Network, failure: Failure, told: str) -> str:
    """A Python script that needs torch, onnxruntime and fxdecomp, and fails as the network does."""
    first, second = (_body(module) for module in (measuring, oracles))
    taken = re.search(r"(?ms)^from benchmarks\.fuzz\.measuring import \(.*?^\)\n", second)
    assert taken is not None
    second = second.replace("from __future__ import annotations\n", "").replace(taken.group(), "")
    return "\n".join(
        [
            f'"""{told}: {failure.oracle} ends in {failure.kind}."""',
            "",
            first,
            second,
            "",
            "import copy",
            "from torch.nn import functional as F",
            "",
            "",
            network.source,
            "",
            f"{failure.oracle}(Case(network, inputs, given, METHOD, COUNTED, COMPUTES))",
            "",
        ]
    )


def _body(module: ModuleType) -> str:
    """The text of a module behind what it says of itself."""
    text = inspect.getsource(module)
    return text[text.index("from __future__") :]
