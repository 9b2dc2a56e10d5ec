"""`Policy` and `Rule`: what the user wants done to which layer. Loads from and saves to TOML."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fxdecomp.decompositions import method_named
from fxdecomp.errors import PolicyError
from fxdecomp.files import write_text
from fxdecomp.ranks import VBMF, RankRule, rank_from, rule_from_dict, rule_to_dict

Rank: TypeAlias = RankRule | int | float | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """What a policy wants for one layer."""

    method: str
    rank: RankRule


@dataclass(frozen=True, slots=True)
class Rule:
    """What to do with the layers whose names match a pattern.

    Attributes:
        pattern: A glob over qualified names, such as `classifier.*`.
        method: Name of a method, or None to leave the layers alone.
        rank: A rank rule; an int or tuple is `Fixed`, a float is `Ratio`.
    """

    pattern: str
    method: str | None = None
    rank: Rank | None = None

    def __post_init__(self) -> None:
        if not self.pattern:
            raise PolicyError("a rule needs a pattern, such as 'classifier.*'")
        object.__setattr__(self, "rank", _checked(self.method, self.rank, f"rule {self.pattern!r}"))

    def matches(self, name: str) -> bool:
        """Whether the rule is about a layer of this name."""
        return fnmatch.fnmatchcase(name, self.pattern)

    @property
    def selection(self) -> Selection | None:
        """What the rule wants, None to leave the layers alone."""
        if self.method is None:
            return None
        assert isinstance(self.rank, RankRule)  # made so above; narrows the type
        return Selection(self.method, self.rank)


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do with every layer of a network.

    Attributes:
        method: The method of layers that no rule matches; None leaves them alone.
        rank: The rank rule of those layers; an int or tuple is `Fixed`, a float is `Ratio`.
        rules: Exceptions by name. A layer may match several rules only if they want the same.
        exclude: Globs of names that are left alone whatever else is said.
        require_saving: Leave a layer alone where its chain would not take fewer multiply-accumulates.

    Raises:
        PolicyError: An unknown method, or a rank that cannot be meant.

    Example:
        >>> policy = Policy(method="tucker2", rank=0.5, rules=[Rule("classifier.*", method="svd", rank=32)])
        >>> policy.select("classifier.0")
        Selection(method='svd', rank=Fixed(rank=32))
    """

    method: str | None = None
    rank: Rank | None = None
    rules: Sequence[Rule] = ()
    exclude: Sequence[str] = ()
    require_saving: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        object.__setattr__(self, "exclude", tuple(self.exclude))
        object.__setattr__(self, "rank", _checked(self.method, self.rank, "the policy"))
        if self.method is None and not any(rule.method for rule in self.rules):
            raise PolicyError("the policy decomposes nothing; give it a method, or rules with methods")

    def select(self, name: str) -> Selection | None:
        """What the policy wants for a layer, None to leave it alone.

        Raises:
            PolicyError: Two rules match the layer and want different things.
        """
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude):
            return None
        matching = [rule for rule in self.rules if rule.matches(name)]
        for rule in matching[1:]:
            if rule.selection != matching[0].selection:
                raise PolicyError(
                    f'layer "{name}" matches both {matching[0].pattern!r} and {rule.pattern!r}, which want '
                    "different things; make the patterns disjoint"
                )
        if matching:
            return matching[0].selection
        if self.method is None:
            return None
        assert isinstance(self.rank, RankRule)  # made so above; narrows the type
        return Selection(self.method, self.rank)

    def check_names(self, names: Iterable[str]) -> None:
        """Raise `PolicyError` if a pattern matches none of the layers."""
        known = list(names)
        for pattern in (*(rule.pattern for rule in self.rules), *self.exclude):
            if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
                some = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
                raise PolicyError(f"pattern {pattern!r} matches no layer; the layers are {some or 'none'}")

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain data."""
        data: dict[str, Any] = {"require_saving": self.require_saving}
        data |= _plain(self.method, self.rank)
        if self.exclude:
            data["exclude"] = list(self.exclude)
        if self.rules:
            data["rules"] = [
                {"pattern": rule.pattern} | _plain(rule.method, rule.rank) for rule in self.rules
            ]
        return data

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Policy:
        """The inverse of `to_dict`.

        Raises:
            PolicyError: A key or a value is not known.
        """
        rules = [_rule(item) for item in data.get("rules", [])]
        _known_keys(data, {"method", "rank", "rules", "exclude", "require_saving"}, "a policy")
        return Policy(
            method=data.get("method"),
            rank=_rank(data.get("rank")),
            rules=rules,
            exclude=data.get("exclude", ()),
            require_saving=data.get("require_saving", True),
        )

    def to_toml(self) -> str:
        """The policy as the text of a TOML file."""
        return _toml(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write the policy as TOML, whole or not at all."""
        write_text(Path(path), self.to_toml())

    @staticmethod
    def load(path: str | Path) -> Policy:
        """Read a policy from TOML.

        Raises:
            PolicyError: Names the file, and the line and key where something is wrong.
        """
        try:
            text = Path(path).read_text()
        except OSError as error:
            raise PolicyError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            return Policy.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise PolicyError(f"{path}: not valid TOML: {error}") from error
        except PolicyError as error:
            raise PolicyError(f"{path}{_line_of(text, str(error))}: {error}") from error


def _checked(method: str | None, rank: Rank | None, where: str) -> RankRule | None:
    if method is None:
        if rank is not None:
            raise PolicyError(f"{where} has a rank but no method; add method='tucker2', or another")
        return None
    method_named(method)
    return rank_from(VBMF() if rank is None else rank)


def _plain(method: str | None, rank: Rank | None) -> dict[str, Any]:
    if method is None:
        return {}
    assert isinstance(rank, RankRule)
    return {"method": method, "rank": rule_to_dict(rank)}


def _rule(data: Mapping[str, Any]) -> Rule:
    _known_keys(data, {"pattern", "method", "rank"}, "a rule")
    if "pattern" not in data:
        raise PolicyError("a rule needs the key 'pattern'")
    return Rule(data["pattern"], method=data.get("method"), rank=_rank(data.get("rank")))


def _rank(value: object) -> Rank | None:
    if isinstance(value, Mapping):
        return rule_from_dict(value)
    if isinstance(value, list):
        return tuple(value)
    if value is None or isinstance(value, int | float | RankRule):
        return value
    raise PolicyError(f"rank {value!r} is neither a number, a list nor a table such as {{rule = 'vbmf'}}")


def _known_keys(data: Mapping[str, Any], known: set[str], what: str) -> None:
    unknown = sorted(set(data) - known)
    if unknown:
        raise PolicyError(f"{what} has no key {unknown[0]!r}; it takes {', '.join(sorted(known))}")


def _line_of(text: str, message: str) -> str:
    """`:line` of the first quoted word of a message that stands in the text, empty where none does."""
    for word in re.findall(r"'([^']+)'", message):
        for number, line in enumerate(text.splitlines(), start=1):
            if word in line:
                return f":{number}"
    return ""


def _toml(data: Mapping[str, Any]) -> str:
    lines = [f"{key} = {_toml_value(value)}" for key, value in data.items() if key != "rules"]
    for rule in data.get("rules", ()):
        lines += ["", "[[rules]]", *(f"{key} = {_toml_value(value)}" for key, value in rule.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return (
        '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
        if isinstance(value, str)
        else str(value)
    )
