"""What the command line asks of a search, as objects: metrics and calibration data are named by reference."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from fxdecomp.calibration import Calibration
from fxdecomp.cli.loading import load_object, policy_from
from fxdecomp.cli.references import ModelReferenceError
from fxdecomp.compressing import Goal
from fxdecomp.errors import PolicyError
from fxdecomp.export.sessions import CPU, provider_of
from fxdecomp.policy import Budget, Latency, MACs, Params, Policy
from fxdecomp.searching import Metric

_SECONDS = {"ms": 1e-3, "s": 1.0}
_COUNTED: dict[str, type[MACs | Params]] = {"macs": MACs, "params": Params}


def goal_from(
    max_drop: float | None, metric: Metric | None, provider: str | None, threads: int, evaluations: int
) -> Goal | None:
    """The goal of a command, None where no search was asked for."""
    if max_drop is None:
        return None
    return Goal(max_drop, metric, provider_named(provider), threads, evaluations)


def policy_for(
    method: str | None, rank: str | None, file: Path | None, budget: Budget | None, *, searched: bool
) -> Policy:
    """The policy of a command that may have a budget, or search for one.

    Raises:
        PolicyError: What was given contradicts itself, or is too little.
    """
    if budget is None and not searched:
        return policy_from(method, rank, file)
    if budget is not None and searched:
        raise PolicyError("--max-drop finds the budget itself; leave --budget away")
    if rank is not None:
        raise PolicyError("a budget finds ranks itself; leave --rank away")
    if file is None:
        return Policy(method=method, budget=budget or MACs(0.5))
    if method is not None or budget is not None:
        raise PolicyError("--policy says method and budget itself; leave --method and --budget away")
    return policy_from(None, None, file)


def provider_named(name: str | None) -> str | None:
    """The execution provider behind `cpu`, `cuda` or its full name."""
    return None if name is None else provider_of(name)


def load_calibration(reference: str | None) -> Calibration | None:
    """The batches that `module:function` gives; a tensor is split into batches of 16.

    Raises:
        ModelReferenceError: There is no such function.
        CalibrationError: It gives no batches.
    """
    if reference is None:
        return None
    found = load_object(reference)
    data = found() if callable(found) else found
    if isinstance(data, Calibration):
        return data
    if isinstance(data, Tensor):
        return Calibration(torch.split(data, 16))
    if not isinstance(data, Iterable):
        raise ModelReferenceError(f"{reference} gives a {type(data).__name__}, wanted batches of inputs")
    return Calibration(tuple(data))


def parse_budget(text: str, provider: str | None = None, threads: int = 1) -> Budget:
    """A budget in words: `macs:0.5`, `params:1000000`, `latency:0.5`, `latency:10ms`.

    Raises:
        PolicyError: The text is none of these.

    Example:
        >>> parse_budget("macs:0.5"), parse_budget("latency:10ms").limit(1.0)
        (MACs(target=0.5), 0.01)
    """
    kind, _, value = text.partition(":")
    place = (provider_named(provider) or CPU, threads)
    try:
        if kind in _COUNTED:
            return _COUNTED[kind](float(value) if "." in value else int(value))
        if kind == Latency.name:
            for unit, scale in _SECONDS.items():
                if value.endswith(unit):
                    return Latency(None, *place, seconds=float(value.removesuffix(unit)) * scale)
            return Latency(float(value), *place)
    except ValueError as error:
        if isinstance(error, PolicyError):
            raise
    raise PolicyError(f"budget {text!r} is none of macs:0.5, params:0.5, latency:0.5 or latency:10ms")


def load_metric(reference: str | None) -> Metric | None:
    """The metric that `module:function` names.

    Raises:
        ModelReferenceError: There is no such function.
    """
    if reference is None:
        return None
    found = load_object(reference)
    if not callable(found):
        raise ModelReferenceError(f"{reference} is a {type(found).__name__}, wanted a function of a network")
    return cast("Metric", found)
