"""`Standard`: what a network must reach to be accepted by a search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.errors import PolicyError
from fxdecomp.recovery.checkpoints import name_of
from fxdecomp.searching.confidence import LEVEL, largest_loss, least_count
from fxdecomp.searching.judging import Metric, mean_of, scores_by
from fxdecomp.searching.trials import Trial


@dataclass(frozen=True, slots=True, eq=False)
class Standard:
    """A metric, what it says of the original, and how much less is accepted.

    Attributes:
        metric: The metric.
        scores: What it says of the original, [N].
        max_drop: The loss that is allowed.
        doubt: How often a single judgement may be wrong.
    """

    metric: Metric
    scores: Tensor
    max_drop: float
    doubt: float

    @classmethod
    def of(cls, metric: Metric, gm: GraphModule, max_drop: float, evaluations: int) -> Self:
        """The standard that the original sets.

        Args:
            metric: The metric.
            gm: The original.
            max_drop: The loss that is allowed.
            evaluations: How many networks are judged; all of them together may be wrong with `LEVEL`.

        Raises:
            PolicyError: The metric gives no number, nothing finite, or too few scores to accept any network.
        """
        found = cls(metric, scores_by(metric, gm), max_drop, LEVEL / evaluations)
        if math.isnan(found.value):
            raise PolicyError(
                f"metric {name_of(metric)} of the original is not finite; nothing compares to it"
            )
        if found.has_scores:
            found._check_count()
        return found

    @classmethod
    def known(cls, trial: Trial, metric: Metric, gm: GraphModule, max_drop: float, evaluations: int) -> Self:
        """The standard of a search that goes on; the original is judged once more where it has scores."""
        if trial.least is not None:
            return cls.of(metric, gm, max_drop, evaluations)
        value = torch.tensor([trial.metric], dtype=torch.float64)
        return cls(metric, value, max_drop, LEVEL / evaluations)

    @property
    def value(self) -> float:
        """The metric of the original."""
        return mean_of(self.scores)

    @property
    def least(self) -> float | None:
        """The same, where the metric gives one score an input."""
        return self.value if self.has_scores else None

    @property
    def has_scores(self) -> bool:
        """Whether the metric gives one score an input."""
        return len(self.scores) > 1

    @property
    def note(self) -> str:
        """What an accepted network promises, for the reader."""
        if self.has_scores:
            judged = f"on inputs like the {len(self.scores)} that were judged"
            return f"{1 - LEVEL:.0%} sure: {judged}, {self.max_drop:g} at most is lost"
        return (
            "the metric is one number: on other inputs more may be lost; one that gives a score for each "
            "input, not their mean, lets the search allow for that"
        )

    def judged(self, gm: GraphModule) -> tuple[float, float | None]:
        """The metric of a network, and the least that it is on other inputs where that can be told.

        Raises:
            PolicyError: The metric gives no number, or another number of scores than for the original.
        """
        scores = scores_by(self.metric, gm)
        if len(scores) != len(self.scores):
            raise PolicyError(
                f"metric {name_of(self.metric)} gives {len(scores)} score(s), and {len(self.scores)} for the "
                "original; wanted one for each input, always the same inputs"
            )
        if not self.has_scores or not bool(scores.isfinite().all()):
            return mean_of(scores), None
        return mean_of(scores), self.value - largest_loss(self.scores, scores, self.doubt)

    def _check_count(self) -> None:
        """Raise `PolicyError` where not even a network without a loss could be accepted."""
        unsure = largest_loss(self.scores, self.scores, self.doubt)
        if unsure <= self.max_drop:
            return
        least = least_count(self.scores, self.max_drop, self.doubt)
        more = f"; allow {unsure:.2g}" + ("" if least is None else f", or give {least} or more")
        raise PolicyError(
            f"metric {name_of(self.metric)} gives {len(self.scores)} scores, too few to show that no more "
            f"than {self.max_drop:g} is lost on other inputs{more}. Their mean alone, as one number, is "
            "judged on these inputs only"
        )
