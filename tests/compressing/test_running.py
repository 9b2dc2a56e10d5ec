"""What a run says of its networks."""

import pytest

from fxdecomp.compressing import Goal
from fxdecomp.compressing.running import _allowed
from fxdecomp.searching.judgements import Judgement


@pytest.mark.parametrize(
    ("metric", "goal", "allowed"),
    [
        (0.86, Goal(0.05), True),
        (0.84, Goal(0.05), False),
        (None, Goal(0.05), None),
        (0.5, None, None),
    ],
)
def test_a_file_that_loses_more_than_a_search_allows_is_not_to_be_shipped(
    metric: float | None, goal: Goal | None, allowed: bool | None
) -> None:
    dense = Judgement("dense", metric=0.9)
    assert _allowed(Judgement("small.int8", metric=metric), dense, goal) is allowed
    assert _allowed(None, dense, goal) is None
