"""Policies, ranks, rules and budgets as the command line words them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fxdecomp.decompositions import method_named
from fxdecomp.errors import PolicyError
from fxdecomp.export.metadata import read_metadata
from fxdecomp.export.sessions import CPU
from fxdecomp.outcomes import WIDTH
from fxdecomp.plans import Plan
from fxdecomp.policy import Budget, Latency, MACs, Params, Policy
from fxdecomp.policy.rules import AUTO, INPUT, Rule
from fxdecomp.providers import provider_of
from fxdecomp.ranks import VBMF, Energy, Fixed, RankRule, Ratio

_SHARE = "share"
_SECONDS = {"ms": 1e-3, "s": 1.0}
_COUNTED: dict[str, type[MACs | Params]] = {"macs": MACs, "params": Params}


def policy_from(
    method: str | None,
    rank: str | None,
    file: Path | None,
    *,
    table: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    searched: bool = False,
    rules: Sequence[Rule] = (),
    exclude: Sequence[str] = (),
    made_up: bool | None = None,
) -> Policy:
    """The policy of a command: a file, a table, or a method with a rank or a budget; and exceptions.

    An `.onnx` file that this package wrote holds the plan by which it was made, to be replayed.

    Args:
        method: A method for every layer.
        rank: Its rank in words.
        file: A policy in TOML, or an `.onnx` file.
        table: A policy as data, out of a file of options.
        budget: What the network may cost.
        searched: Whether a search finds the budget.
        rules: What is to be done to some layers, before what the policy itself says of them.
        exclude: Layers that are left alone.
        made_up: Whether inputs are made up where there is no calibration; None for what the policy says.

    Raises:
        PolicyError: What was given contradicts itself or is too little, or the file cannot be read.
        ExportError: The file is no ONNX model.
    """
    check_method(method)
    chosen = _policy(method, rank, file, table, budget, searched=searched, rules=rules)
    if made_up is not None:
        chosen = replace(chosen, made_up=made_up)
    if not rules and not exclude:
        return chosen
    return replace(chosen, rules=[*rules, *chosen.rules], exclude=[*exclude, *chosen.exclude])


def _policy(
    method: str | None,
    rank: str | None,
    file: Path | None,
    table: Mapping[str, Any] | None,
    budget: Budget | None,
    *,
    searched: bool,
    rules: Sequence[Rule],
) -> Policy:
    if budget is not None and searched:
        raise PolicyError("--max-drop finds the budget itself; leave --budget away")
    limited = budget is not None or searched
    if limited and rank is not None:
        raise PolicyError("a budget finds ranks itself; leave --rank away")
    if file is not None or table is not None:
        if method or rank or budget:
            others = "method and budget" if limited else "methods and ranks"
            away = "--method and --budget" if limited else "--method and --rank"
            raise PolicyError(f"--policy says {others} itself; leave {away} away")
        if file is None:
            return Policy.from_dict(table or {})
        return Policy.from_plan(_embedded_plan(file)) if file.suffix == ".onnx" else Policy.load(file)
    if limited:
        return Policy(method=method, budget=budget or MACs(0.5))
    if method is None:
        if rules:
            return Policy(rules=rules)
        raise PolicyError(
            "say what to do: --preset balanced, --method tucker2 --rank vbmf, --budget macs:0.5, "
            "or --policy FILE"
        )
    return Policy(method=method, rank=parse_rank(rank or "vbmf"))


def check_method(method: str | None) -> None:
    """Raise `PolicyError` for a method that there is not, with those that there are."""
    if method is not None and method != AUTO:
        method_named(method)


def parse_rule(text: str) -> Rule:
    """A rule in words: `classifier.*=svd:energy:0.9`, `mlp.fc1=width:0.5`, `stem=` to leave it alone.

    `*.attention.*=share`, `=share:0.5` or `=share:auto` lets layers that read one tensor share their first
    stages.

    Raises:
        PolicyError: The text is something else.

    Example:
        >>> parse_rule("classifier.*=svd:32")
        Rule(pattern='classifier.*', method='svd', rank=Fixed(rank=(32,)), floor=0.0, width=None, share=None)
    """
    pattern, equals, choice = text.partition("=")
    method, _, rank = choice.partition(":")
    if not pattern or not equals or (rank and not method):
        raise PolicyError(
            f"{text!r} is no rule; write it as 'classifier.*=svd:0.5', or 'stem=' to leave it alone"
        )
    if method == WIDTH:
        try:
            width = AUTO if rank == AUTO else float(rank) if "." in rank else int(rank)
        except ValueError:
            raise PolicyError(f"{text!r}: a width is a share such as 0.5, a number or 'auto'") from None
        return Rule(pattern, width=width)
    if method == _SHARE:
        is_open = rank == AUTO
        return Rule(
            pattern,
            rank=parse_rank(rank) if rank and not is_open else None,
            share=AUTO if is_open else INPUT,
        )
    check_method(method or None)
    return Rule(pattern, method or None, parse_rank(rank) if rank else None)


def _embedded_plan(file: Path) -> Plan:
    metadata = read_metadata(file)
    if metadata is None or metadata.record is None or metadata.record.plan is None:
        raise PolicyError(f"{file} holds no plan: no decomposition by this package made it")
    return metadata.record.plan


def parse_rank(text: str) -> RankRule:
    """A rank rule in words: `vbmf`, `energy:0.9`, `ratio:0.5` or `0.5`, `32`, `64,32`.

    Raises:
        PolicyError: The text is none of these.

    Example:
        >>> parse_rank("64,32")
        Fixed(rank=(64, 32))
    """
    word, _, value = text.partition(":")
    try:
        if text == "vbmf":
            return VBMF()
        if word == "energy":
            return Energy(float(value))
        if word == "ratio":
            return Ratio(float(value))
        if "." in text:
            return Ratio(float(text))
        return Fixed(tuple(int(part) for part in text.split(",")))
    except ValueError as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"rank {text!r} is none of vbmf, energy:0.9, 0.5, 32 or 64,32") from error


def parse_budget(
    text: str, provider: str | None = None, threads: int = 1, options: Mapping[str, str] | None = None
) -> Budget:
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
                    seconds = float(value.removesuffix(unit)) * scale
                    return Latency(None, *place, seconds=seconds, options=options)
            return Latency(float(value), *place, options=options)
    except ValueError as error:
        if isinstance(error, PolicyError):
            raise
    raise PolicyError(f"budget {text!r} is none of macs:0.5, params:0.5, latency:0.5 or latency:10ms")


def provider_named(name: str | None) -> str | None:
    """The execution provider behind `cpu`, `cuda` or its full name."""
    return None if name is None else provider_of(name)
