"""What the command line asks of a search, as objects."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

from fxdecomp.cli.loading import load_object
from fxdecomp.cli.policies import provider_named
from fxdecomp.cli.references import ModelReferenceError, where_raised
from fxdecomp.compressing import Goal
from fxdecomp.errors import first_line
from fxdecomp.searching import Metric


def goal_from(
    max_drop: float | None,
    metric: Metric | None,
    provider: str | None,
    threads: int,
    evaluations: int,
    options: Mapping[str, str] | None = None,
) -> Goal | None:
    """The goal of a command, None where no search was asked for."""
    if max_drop is None:
        return None
    return Goal(max_drop, metric, provider_named(provider), threads, evaluations, options)


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
    metric = cast("Metric", found)

    @functools.wraps(metric)
    def named(network: Any) -> Any:
        try:
            return metric(network)
        except Exception as error:
            raise ModelReferenceError(
                f"{reference} raised {first_line(error)}{where_raised(error)}"
            ) from error

    kind: Any = found if hasattr(found, "__qualname__") else type(found)
    named.__module__, named.__qualname__ = kind.__module__, kind.__qualname__  # a search goes on by its name
    return named
