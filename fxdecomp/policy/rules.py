"""`Rule`: what to do with the layers of a name, and its plain data."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fxdecomp.decompositions import method_named
from fxdecomp.errors import PolicyError
from fxdecomp.ranks import RankRule, rank_from, rule_from_dict, rule_to_dict

AUTO = "auto"
"""The method name that stands for every method that suits a layer."""

INPUT = "input"
"""The part of their chains that layers may share."""

_SHARED = "channel_svd"
"""What layers get that are to share their input, where nothing is said; on a pointwise layer it is `svd`."""

Rank: TypeAlias = RankRule | int | float | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """What a policy wants for one layer.

    Attributes:
        method: Name of a method, or `auto`.
        rank: The rank rule, None where the budget decides.
        floor: Least share of its own cost that the budget must leave to the layer.
        is_named: Whether a rule wants it, and not the policy for all layers.
    """

    method: str
    rank: RankRule | None
    floor: float = 0.0
    is_named: bool = field(default=False, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Rule:
    """What to do with the layers whose names match a pattern.

    Attributes:
        pattern: A glob over qualified names, such as `classifier.*`.
        method: Name of a method, `auto` for the one that a budget finds, or None to leave the layers alone.
        rank: A rank rule; an int or tuple is `Fixed`, a float is `Ratio`. None leaves it to the budget, and
            is `VBMF` where there is none.
        floor: Least share of its own cost that a budget must leave to each of the layers.
        width: What is to be left of the layers' outputs, a share or a number, where one layer reads them and
            nothing mixes them before, or where they are heads of attention; of the states of each direction,
            where the layer is recurrent; `auto` for what a budget finds, which is no states; None to leave
            all. Without a method it says nothing of methods.
        share: `input` for layers that read one tensor and look at it alike to share all stages but the last,
            made of all their weights together; `auto` for what a budget finds; None to share nothing. Without
            a method and a rank it says nothing of these; with a rank alone the method is `svd`, or
            `channel_svd` where the kernel is larger.

    Example:
        >>> import fxdecomp
        >>> fxdecomp.Rule("classifier.*", method="svd", rank=32).matches("classifier.0")
        True
    """

    pattern: str
    method: str | None = None
    rank: Rank | None = None
    floor: float = 0.0
    width: float | int | str | None = None
    share: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise PolicyError(f"a rule needs a pattern, such as 'classifier.*', got {self.pattern!r}")
        if self.share not in (None, INPUT, AUTO):
            raise PolicyError(
                f"rule {self.pattern!r} has the share {self.share!r}; wanted 'input', or 'auto' for what a "
                "budget finds, such as Rule('*.attention.*', share='input')"
            )
        if self.share == INPUT and self.rank is not None and self.method is None:
            object.__setattr__(self, "method", _SHARED)
        object.__setattr__(self, "rank", checked_rank(self.method, self.rank, f"rule {self.pattern!r}"))
        known = isinstance(self.floor, int | float) and 0 <= self.floor <= 1
        if not known or (self.floor and (self.method is None or self.rank is not None)):
            raise PolicyError(
                f"rule {self.pattern!r} has the floor {self.floor!r}; wanted a share in [0, 1], with a "
                "method and without a rank, such as Rule('stem', method='auto', floor=0.5)"
            )

        if self.width is not None and not _is_width(self.width):
            raise PolicyError(
                f"rule {self.pattern!r} has the width {self.width!r}; wanted a share of the outputs in "
                "(0, 1], a number of them or 'auto', such as Rule('mlp.fc1', width=0.5)"
            )

    def matches(self, name: str) -> bool:
        """Whether the rule is about a layer of this name."""
        return fnmatch.fnmatchcase(name, self.pattern)

    @property
    def says_nothing_of_methods(self) -> bool:
        """Whether methods and ranks of the layers are left to other rules and the policy."""
        return self.method is None and (self.width is not None or self.share is not None)

    @property
    def selection(self) -> Selection | None:
        """What the rule wants, None to leave the layers alone."""
        if self.method is None:
            return None
        assert self.rank is None or isinstance(self.rank, RankRule)  # made so above; narrows the type
        return Selection(self.method, self.rank, self.floor, is_named=True)


SHARED = Selection(_SHARED, None, is_named=True)
"""What is wanted of layers that are to share their input where nothing else is said."""


def _is_width(width: object) -> bool:
    if width == AUTO:
        return True
    if isinstance(width, bool) or not isinstance(width, int | float):
        return False
    return width >= 1 if isinstance(width, int) else 0 < width <= 1


def checked_rank(method: str | None, rank: Rank | None, where: str) -> RankRule | None:
    """The rank rule that a method's rank stands for.

    Raises:
        PolicyError: The method or the rank cannot be meant; names `where`.
    """
    if method is None:
        if rank is not None:
            raise PolicyError(f"{where} has a rank but no method; add method='tucker2', or another")
        return None
    if not isinstance(method, str):
        raise PolicyError(f"{where}: a method is a name such as 'tucker2', got {method!r}")
    if rank is not None and not isinstance(rank, RankRule | int | float | tuple):
        raise PolicyError(f"{where}: rank {rank!r} is neither a rank rule, a number nor a tuple of numbers")
    if method != AUTO:
        method_named(method)
    elif rank is not None:
        raise PolicyError(f"{where} has method 'auto' and a rank; a budget finds both, so leave the rank out")
    return None if rank is None else rank_from(rank)


def plain_choice(method: str | None, rank: Rank | None) -> dict[str, Any]:
    """A method and its rank as plain data."""
    if method is None:
        return {}
    if rank is None:
        return {"method": method}
    assert isinstance(rank, RankRule)
    return {"method": method, "rank": rule_to_dict(rank)}


def rule_of(data: Mapping[str, Any]) -> Rule:
    """A rule from plain data.

    Raises:
        PolicyError: A key or a value is not known.
    """
    check_keys(data, set(Rule.__dataclass_fields__), "a rule")
    if "pattern" not in data:
        raise PolicyError("a rule needs the key 'pattern'")
    return Rule(
        data["pattern"],
        method=data.get("method"),
        rank=rank_of(data.get("rank")),
        floor=data.get("floor", 0.0),
        width=data.get("width"),
        share=data.get("share"),
    )


def rank_of(value: object) -> Rank | None:
    """What plain data say of a rank.

    Raises:
        PolicyError: They are no rank.
    """
    if isinstance(value, Mapping):
        return rule_from_dict(value)
    if isinstance(value, list):
        return tuple(value)
    if value is None or isinstance(value, int | float | RankRule):
        return value
    raise PolicyError(f"rank {value!r} is neither a number, a list nor a table such as {{rule = 'vbmf'}}")


def check_keys(data: Mapping[str, Any], known: set[str], what: str) -> None:
    """Raise `PolicyError` where `data` has a key that is not known."""
    unknown = sorted(set(data) - known)
    if unknown:
        raise PolicyError(f"{what} has no key {unknown[0]!r}; it takes {', '.join(sorted(known))}")


def all_of(given: object, kind: type, wanted: str) -> tuple[Any, ...]:
    """The items of any iterable; a plain string would pass for a list of its letters.

    Raises:
        PolicyError: It is no iterable, or one of its items is of another kind; says what is `wanted`.
    """
    if isinstance(given, Iterable) and not isinstance(given, str):
        items = tuple(given)
        if all(isinstance(item, kind) for item in items):
            return items
    raise PolicyError(f"{wanted}, got {given!r}")
