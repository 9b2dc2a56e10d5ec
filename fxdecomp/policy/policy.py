"""`Policy`: what the user wants done to which layer. Loads from and saves to TOML."""

from __future__ import annotations

import fnmatch
import glob
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fxdecomp.errors import PolicyError
from fxdecomp.files import write_text
from fxdecomp.plans import Plan
from fxdecomp.policy.budgets import Budget, Latency, budget_from_dict
from fxdecomp.policy.rules import (
    AUTO,
    INPUT,
    SHARED,
    Rank,
    Rule,
    Selection,
    all_of,
    check_keys,
    checked_rank,
    plain_choice,
    rank_of,
    rule_of,
)
from fxdecomp.policy.text import line_of, to_toml_text
from fxdecomp.ranks import VBMF, RankRule


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do with every layer of a network.

    Attributes:
        method: The method of layers that no rule matches; None leaves them alone, `auto` (the default where
            there is a budget) takes for each layer the method that serves the budget best.
        rank: The rank rule of those layers; an int or tuple is `Fixed`, a float is `Ratio`; the budget's,
            where there is one.
        rules: Exceptions by name. A layer may match several rules only if they want the same.
        exclude: Globs of names that are left alone whatever else is said.
        require_saving: Leave a layer alone where its chain would not take fewer multiply-accumulates.
        budget: What the network may cost; ranks, and methods where `auto`, are chosen to do the least damage.
        multiple_of: What ranks that a budget chooses are multiples of; None for what this machine's vector
            units like: 16 with AVX-512, else 8.
        made_up: Whether inputs are made up to fit to where no calibration is given, and to join with one of
            fewer than 32 inputs; None for: under a budget.

    Raises:
        PolicyError: An unknown method, or a rank that cannot be meant.

    Example:
        >>> policy = Policy(method="tucker2", rank=0.5, rules=[Rule("classifier.*", method="svd", rank=32)])
        >>> policy.select("classifier.0")
        Selection(method='svd', rank=Fixed(rank=32), floor=0.0)
    """

    method: str | None = None
    rank: Rank | None = None
    rules: Sequence[Rule] = ()
    exclude: Sequence[str] = ()
    require_saving: bool = True
    budget: Budget | None = None
    multiple_of: int | None = None
    made_up: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", all_of(self.rules, Rule, "rules is a list of Rule objects"))
        object.__setattr__(self, "exclude", all_of(self.exclude, str, "exclude is a list of patterns"))
        if not isinstance(self.require_saving, bool):
            raise PolicyError(f"require_saving is true or false, got {self.require_saving!r}")
        if self.made_up not in (None, True, False):
            raise PolicyError(f"made_up is true or false, got {self.made_up!r}")
        if self.budget is not None and self.method is None:
            object.__setattr__(self, "method", AUTO)
        rank = checked_rank(self.method, self.rank, "the policy")
        if self.budget is None and self.method is not None and rank is None:
            rank = VBMF()
        object.__setattr__(self, "rank", rank)
        if self.method is None and not self.rules:
            raise PolicyError("the policy decomposes nothing; give it a method, or rules with methods")
        _check_budget(self)

    @property
    def wants_made_up(self) -> bool:
        """Whether inputs are to be made up where there is no calibration."""
        return self.budget is not None if self.made_up is None else self.made_up

    def select(self, name: str) -> Selection | None:
        """What the policy wants for a layer, None to leave it alone.

        Raises:
            PolicyError: Two rules match the layer and want different things.
        """
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude):
            return None
        matching = [rule for rule in self.rules if rule.matches(name)]
        matching = [rule for rule in matching if not rule.says_nothing_of_methods]
        for rule in matching[1:]:
            if rule.selection != matching[0].selection:
                raise PolicyError(
                    f'layer "{name}" matches both {matching[0].pattern!r} and {rule.pattern!r}, which want '
                    "different things; make the patterns disjoint"
                )
        if matching or (self.method is None and self.share_of(name) == INPUT):
            selection = matching[0].selection if matching else SHARED
            if selection is not None and selection.rank is None and self.budget is None:
                return replace(selection, rank=VBMF())
            return selection
        if self.method is None:
            return None
        assert self.rank is None or isinstance(self.rank, RankRule)  # made so above; narrows the type
        return Selection(self.method, self.rank)

    def width_of(self, name: str) -> float | int | str | None:
        """What is to be left of a layer's outputs, `auto` for a budget to find, None where nothing is said.

        Raises:
            PolicyError: Rules that match the layer give it different widths.
        """
        width: float | int | str | None = self._said(name, "width")
        return width

    def share_of(self, name: str) -> str | None:
        """What a layer is to share with those that read the same, `auto` for a budget to find; None: nothing.

        Raises:
            PolicyError: Rules that match the layer want different things.
        """
        share: str | None = self._said(name, "share")
        return share

    def _said(self, name: str, key: str) -> Any:
        """What the rules that match a layer give it under a key, None where they give nothing."""
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude):
            return None
        found = [rule for rule in self.rules if getattr(rule, key) is not None and rule.matches(name)]
        for rule in found[1:]:
            if getattr(rule, key) != getattr(found[0], key):
                raise PolicyError(
                    f'layer "{name}" matches both {found[0].pattern!r} and {rule.pattern!r}, which give it '
                    f"different {key}s; make the patterns disjoint"
                )
        return getattr(found[0], key) if found else None

    @property
    def has_widths(self) -> bool:
        """Whether any rule has a width."""
        return any(rule.width is not None for rule in self.rules)

    @property
    def has_open_widths(self) -> bool:
        """Whether a budget is to find any."""
        return any(rule.width == AUTO for rule in self.rules)

    @property
    def has_shares(self) -> bool:
        """Whether any rule wants layers to share their input."""
        return any(rule.share == INPUT for rule in self.rules)

    @property
    def has_open_shares(self) -> bool:
        """Whether a budget is to find any."""
        return any(rule.share == AUTO for rule in self.rules)

    def with_shares(self, found: Iterable[str]) -> Policy:
        """The policy with the layers that a budget lets share, in the place of those that are open."""
        kept = [rule for rule in self.rules if rule.share != AUTO]
        kept += [replace(r, share=None) for r in self.rules if r.share == AUTO and (r.method or r.width)]
        return replace(self, rules=(*kept, *(Rule(glob.escape(name), share=INPUT) for name in found)))

    def with_widths(self, found: Mapping[str, int]) -> Policy:
        """The policy with the widths that a budget found, by layer, in the place of those that are open."""
        kept = [rule for rule in self.rules if rule.width != AUTO]
        kept += [replace(r, width=None) for r in self.rules if r.width == AUTO and (r.method or r.share)]
        return replace(self, rules=(*kept, *(Rule(glob.escape(n), width=found[n]) for n in found)))

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
        if self.budget is not None:
            data["budget"] = self.budget.to_dict()
        if self.multiple_of is not None:
            data["multiple_of"] = self.multiple_of
        if self.made_up is not None:
            data["made_up"] = self.made_up
        data |= plain_choice(self.method, self.rank)
        if self.exclude:
            data["exclude"] = list(self.exclude)
        if self.rules:
            data["rules"] = [
                {"pattern": rule.pattern}
                | plain_choice(rule.method, rule.rank)
                | ({"floor": rule.floor} if rule.floor else {})
                | ({} if rule.width is None else {"width": rule.width})
                | ({} if rule.share is None else {"share": rule.share})
                for rule in self.rules
            ]
        return data

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Policy:
        """The inverse of `to_dict`.

        Raises:
            PolicyError: A key or a value is not known.
        """
        rules = data.get("rules", [])
        if not isinstance(rules, list) or not all(isinstance(item, Mapping) for item in rules):
            raise PolicyError(f"'rules' are tables, each under [[rules]], got {rules!r}")
        check_keys(data, set(Policy.__dataclass_fields__), "a policy")
        budget = data.get("budget")
        return Policy(
            method=data.get("method"),
            rank=rank_of(data.get("rank")),
            rules=[rule_of(item) for item in rules],
            exclude=data.get("exclude", ()),
            require_saving=data.get("require_saving", True),
            budget=None if budget is None else budget_from_dict(budget),
            multiple_of=data.get("multiple_of"),
            made_up=data.get("made_up"),
        )

    def to_toml(self) -> str:
        """The policy as the text of a TOML file."""
        return to_toml_text(self.to_dict())

    @staticmethod
    def from_plan(plan: Plan) -> Policy:
        """The policy that replays a plan: the same methods and ranks, nothing solved or timed.

        Layers that the plan does not name are left alone; one that it names and the network lacks raises.
        """
        rules = [
            Rule(glob.escape(c.site), c.method, c.rank or None, width=c.width, share=c.share)
            for c in plan.choices
        ]
        everything = [Rule("*", None)]  # where all was left alone
        return Policy(rules=rules or everything, require_saving=False, made_up=plan.made_up or None)

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
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise PolicyError(f"{path}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise PolicyError(f"{path}: is no text; a policy is a TOML file") from error
        try:
            return Policy.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise PolicyError(f"{path}: not valid TOML: {error}") from error
        except PolicyError as error:
            raise PolicyError(f"{path}{line_of(text, str(error))}: {error}") from error


def _check_budget(policy: Policy) -> None:
    if policy.budget is not None and policy.rank is not None:
        raise PolicyError("the policy has a budget and a rank; the budget finds ranks, so leave the rank out")
    if policy.budget is None:
        methods = [policy.method, *(rule.method for rule in policy.rules)]
        if AUTO in methods or any(rule.floor for rule in policy.rules):
            raise PolicyError("method 'auto' and floors need a budget, such as budget=MACs(0.5)")
    if (policy.has_open_widths or policy.has_open_shares) and policy.budget is None:
        key = "width" if policy.has_open_widths else "share"
        raise PolicyError(f"{key} 'auto' needs a budget, such as budget=MACs(0.5)")
    if isinstance(policy.budget, Latency) and policy.has_open_shares:
        raise PolicyError("a budget of Latency finds no shares; name the layers with share='input'")
    step = policy.multiple_of
    if step is not None and (not isinstance(step, int) or step < 1):
        raise PolicyError(f"multiple_of is a positive whole number, got {step!r}")
