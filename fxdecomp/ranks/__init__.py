"""Rank rules: a layer's spectra, channels or neither, to a rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fxdecomp.errors import PolicyError
from fxdecomp.ranks.base import RankRule
from fxdecomp.ranks.energy import Energy
from fxdecomp.ranks.fixed import Fixed
from fxdecomp.ranks.ratio import Ratio
from fxdecomp.ranks.vbmf import VBMF

__all__ = [
    "RULES",
    "VBMF",
    "Energy",
    "Fixed",
    "RankRule",
    "Ratio",
    "rank_from",
    "rule_from_dict",
    "rule_to_dict",
]

RULES: tuple[type[Fixed] | type[Ratio] | type[Energy] | type[VBMF], ...] = (Fixed, Ratio, Energy, VBMF)


def rank_from(value: RankRule | int | float | tuple[int, ...]) -> RankRule:
    """A rule from what a user may write: a rule, a fixed rank, or (a float) a share of the channels."""
    if isinstance(value, RankRule):
        return value
    return Ratio(value) if isinstance(value, float) else Fixed(value)


def rule_to_dict(rule: RankRule) -> dict[str, Any]:
    """A rule of this package as plain data, such as `{"rule": "energy", "share": 0.9}`."""
    if not isinstance(rule, RULES):
        raise PolicyError(f"{rule!r} cannot be written as plain data; use one of {_names()}")
    data = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(rule).items()}
    return {"rule": rule.name, **data}


def rule_from_dict(data: Mapping[str, Any]) -> RankRule:
    """The inverse of `rule_to_dict`.

    Raises:
        PolicyError: The rule or one of its fields is not known, or a value is out of range.
    """
    fields: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in data.items() if key != "rule"
    }
    for rule in RULES:
        if rule.name == data.get("rule"):
            try:
                return rule(**fields)
            except TypeError as error:
                takes = ", ".join(field.name for field in dataclasses.fields(rule)) or "nothing"
                raise PolicyError(f"rank rule {rule.name!r} takes {takes}; got {fields}") from error
    raise PolicyError(f"there is no rank rule {data.get('rule')!r}; use one of {_names()}")


def _names() -> str:
    return ", ".join(rule.name for rule in RULES)
