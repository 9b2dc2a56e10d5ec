"""What a search promises of inputs that were not judged on, where a metric scores each input."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import PolicyError
from fxdecomp.searching.confidence import largest_loss, least_count
from fxdecomp.searching.searcher import search
from tests.nets import targets
from tests.searching.test_searching import INPUTS, POLICY, network


@pytest.fixture(scope="module")
def gm() -> GraphModule:
    return network()


@pytest.mark.parametrize(("worse", "better"), [(0.01, 0.0), (0.02, 0.01), (0.05, 0.04)])
def test_a_network_that_loses_what_is_allowed_passes_no_more_often_than_it_may(
    worse: float, better: float
) -> None:
    draw = torch.Generator().manual_seed(0)
    passed, times, doubt = 0, 400, 0.05
    for _ in range(times):
        chance = torch.rand(1000, generator=draw, dtype=torch.float64)
        lost = (chance < worse).double() - (chance > 1 - better).double()
        original = (lost >= 0).double()
        passed += largest_loss(original, original - lost, doubt) <= worse - better
    assert passed <= times * doubt + 2 * (times * doubt) ** 0.5


def test_more_inputs_show_more_and_their_number_is_known() -> None:
    for scores in (torch.ones(5), torch.tensor([0.0, 30.0])):
        least = least_count(scores, 0.01 * float(scores.max()), 0.01)
        assert least is not None
        top = torch.full((least,), float(scores.max()))
        assert largest_loss(top, top, 0.01) <= 0.01 * float(scores.max())
        assert largest_loss(top[1:], top[1:], 0.01) > 0.01 * float(scores.max())
    assert least_count(torch.ones(5), 0.0, 0.01) is None


def scored(gm: GraphModule, lost: int, count: int = 1000) -> Any:
    """A metric by which every network other than the original loses so many of the inputs."""

    def right(each: GraphModule) -> torch.Tensor:
        scores = torch.ones(count)
        scores[: 0 if targets(each) == targets(gm) else lost] = 0.0
        return scores

    return right


@pytest.mark.parametrize(("lost", "accepted"), [(3, True), (9, False)])
def test_scores_of_single_inputs_are_accepted_by_what_they_show_of_others(
    gm: GraphModule, lost: int, accepted: bool, tmp_path: Path
) -> None:
    state = tmp_path / "state.json"
    options: dict[str, Any] = {"policy": POLICY, "max_drop": 0.01, "metric": scored(gm, lost)}
    found = search(gm, INPUTS, evaluations=1, state=state, **options)
    dense, small = found.trials
    assert (small.metric, small.accepted) == (pytest.approx(1 - lost / 1000), accepted)
    assert small.least is not None
    assert small.least < small.metric
    assert (small.least >= 0.99) == accepted
    assert dense.least == dense.metric == 1.0
    promise = "95% sure: on inputs like the 1000 that were judged, 0.01 at most is lost"
    assert (promise in found.notes) == accepted
    assert f" >{small.least:.4f}  " in str(found)
    assert max(map(len, str(found).splitlines()[:3])) <= 80
    assert "on others at least" in found._repr_html_()
    shown = fxdecomp.report(found.model, search=found).frontier
    assert shown is not None
    assert (shown.points[1].quality, shown.notes) == (small.least, found.notes)
    assert shown.quality_name == "right, on other inputs at least"
    assert search(gm, INPUTS, evaluations=1, state=state, **options).trials[1].least == small.least
    assert json.loads(json.dumps(found.to_dict()))["trials"][1]["least"] == small.least


def test_too_few_scores_are_refused_with_the_number_that_is_enough(
    gm: GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxdecomp.searching.searcher.transform", None)
    said = (
        r"gives 250 scores, too few .* than 0\.01 is lost on other inputs; allow 0\.021, or give 538 or more"
    )
    with pytest.raises(PolicyError, match=said):
        search(gm, INPUTS, metric=scored(gm, 0, 250), max_drop=0.01)


def test_scores_of_other_inputs_and_scores_that_are_not_finite_are_no_ground(gm: GraphModule) -> None:
    same = targets(gm)
    options: dict[str, Any] = {"policy": POLICY, "max_drop": 0.5, "evaluations": 1}
    with pytest.raises(PolicyError, match=r"gives 99 score\(s\), and 100 for the original"):
        search(gm, INPUTS, metric=lambda each: torch.ones(100 - (targets(each) != same)), **options)
    found = search(
        gm, INPUTS, metric=lambda each: [1.0] * 99 + [1.0 if targets(each) == same else math.nan], **options
    )
    assert [trial.accepted for trial in found.trials] == [True, False]
    assert fxdecomp.report(found.model).macs_after == found.trials[0].macs
