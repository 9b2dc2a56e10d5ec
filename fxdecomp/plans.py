"""`Plan`: which layer gets which method at which rank, as data that replays anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxdecomp.errors import PolicyError
from fxdecomp.files import read_json, write_json

_FORMAT = "fxdecomp plan"


@dataclass(frozen=True, slots=True)
class Choice:
    """What is done at one layer.

    Attributes:
        site: Qualified name of the layer.
        layer: The layer in words, such as `Conv2d 64->128, 3x3`.
        method: Name of the decomposition, None where the layer stays as it is.
        rank: Its rank(s), empty where the layer stays.
        width: Number of outputs that are left, None where all are.
        share: `input` where it shares all stages but the last with the layers of the same choice that read
            the same; else None.
    """

    site: str
    layer: str
    method: str | None = None
    rank: tuple[int, ...] = ()
    width: int | None = None
    share: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The choices at all layers, in the order of the graph.

    A plan holds methods and ranks, no weights: replayed on the same weights (and the same calibration, where
    there was one) it gives the same network, without solving or timing anything.

    Attributes:
        choices: What is done at each layer.
        made_up: Whether the network was fitted to inputs that were made up.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=4))
        >>> plan = fxdecomp.report(small).plan
        >>> plan.choices
        (Choice(site='0', layer='Linear 64->32', method='svd', rank=(4,), width=None, share=None),)
        >>> again = fxdecomp.transform(gm, fxdecomp.Policy.from_plan(plan))
    """

    choices: tuple[Choice, ...]
    made_up: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON data."""
        rows = [
            {"site": c.site, "layer": c.layer}
            | ({"method": c.method, "rank": list(c.rank)} if c.method else {})
            | ({} if c.width is None else {"width": c.width})
            | ({} if c.share is None else {"share": c.share})
            for c in self.choices
        ]
        made_up = {"made_up": True} if self.made_up else {}
        return {"format": _FORMAT, "version": 1, "choices": rows} | made_up

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`.

        Raises:
            PolicyError: The data are no plan.
        """
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            raise PolicyError(f"this is no plan: its key 'format' does not say {_FORMAT!r}")
        if data.get("version") != 1:
            raise PolicyError(f"the plan has version {data.get('version')!r}; this fxdecomp reads version 1")
        try:
            if not isinstance(made_up := data.get("made_up", False), bool):
                raise TypeError(f"made_up is true or false, got {made_up!r}")
            return Plan(tuple(map(_choice, data["choices"])), made_up)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PolicyError(f"the plan is damaged: {error!r}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            PolicyError: Names the file and what is wrong with it.
        """
        try:
            return Plan.from_dict(read_json(Path(path)))
        except (OSError, ValueError) as error:
            raise PolicyError(f"{path}: {error}") from error


def _choice(row: Mapping[str, Any]) -> Choice:
    """A choice out of JSON data, whose types are checked: they come from a file."""
    texts, rank = (row["site"], row["layer"], row.get("method", "")), row.get("rank", [])
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"site, layer and method are texts, got {texts!r}")
    if not isinstance(rank, list) or any(type(each) is not int for each in rank):
        raise TypeError(f"a rank is a list of whole numbers, got {rank!r}")
    width = row.get("width")
    if width is not None and type(width) is not int:
        raise TypeError(f"a width is a whole number, got {width!r}")
    if (share := row.get("share")) is not None and not isinstance(share, str):
        raise TypeError(f"a share is a text, got {share!r}")
    return Choice(row["site"], row["layer"], row.get("method"), tuple(rank), width, share)
