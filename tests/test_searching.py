import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Params, Policy, PolicyError
from fxdecomp.search_trials import SearchResult
from fxdecomp.allocation.agreement import Agreement
from fxdecomp.searching import search


def network(width: int = 48) -> GraphModule:
    """Layers of rank 8 with a little noise, so that there is something to gain."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()
    with torch.no_grad():
        low = torch.randn(width, 8) @ torch.randn(8, width * 9) / width
        model[2].weight.copy_(low.reshape(width, width, 3, 3) + 1e-3 * torch.randn(width, width, 3, 3))
    return fxdecomp.trace(model, torch.randn(2, 3, 12, 12))


@pytest.fixture(scope="module")
def gm() -> GraphModule:
    return network()


INPUTS = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
POLICY = Policy(budget=fxdecomp.MACs(0.5), method="channel_svd")


def test_the_outcome_was_judged_and_holds_the_promise(gm: GraphModule) -> None:
    found = search(gm, INPUTS, policy=POLICY, max_drop=0.02, evaluations=4)
    metric = Agreement(gm, [INPUTS])
    assert metric(gm) == 1.0
    assert found.best.accepted
    assert found.best.metric >= 0.98
    assert metric(found.model) == found.best.metric
    assert fxdecomp.report(found.model).macs_after == found.best.macs < 0.5 * found.trials[0].macs
    assert found.best.macs == min(trial.macs for trial in found.trials if trial.accepted)
    assert len(found.trials) == 5
    for trial in found.trials:
        assert trial.accepted == (not trial.problem and trial.metric >= 0.98)


def test_no_loss_allowed_gives_the_original_back(gm: GraphModule) -> None:
    found = search(
        gm, INPUTS, metric=lambda module: float(module is gm), max_drop=0.0, policy=POLICY, evaluations=2
    )
    assert found.best is found.trials[0]
    assert torch.allclose(found.model(INPUTS), gm(INPUTS))
    assert not fxdecomp.report(found.model).modified


def test_the_frontier_rises_with_cost(gm: GraphModule) -> None:
    found = search(gm, INPUTS, policy=POLICY, max_drop=0.1, evaluations=4)
    costs = [trial.macs for trial in found.frontier]
    values = [trial.metric for trial in found.frontier]
    assert costs == sorted(set(costs), reverse=True)
    assert values == sorted(set(values), reverse=True)
    assert not any(math.isnan(value) for value in values)


def test_a_killed_search_goes_on_where_it_was(gm: GraphModule, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    calls: list[int] = []
    judge = Agreement(gm, [INPUTS])

    def metric(module: GraphModule) -> float:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return judge(module)

    options = {"policy": POLICY, "max_drop": 0.02, "evaluations": 4}
    with pytest.raises(KeyboardInterrupt):
        search(gm, INPUTS, metric=metric, state=state, **options)  # type: ignore[arg-type]
    again: list[int] = []
    resumed = search(
        gm,
        INPUTS,
        metric=lambda m: again.append(1) or judge(m),
        state=state,
        **options,  # type: ignore
    )
    full: list[int] = []
    whole = search(gm, INPUTS, metric=lambda m: full.append(1) or judge(m), **options)  # type: ignore
    assert len(again) == len(full) - 3 > 0
    assert resumed.to_dict() == whole.to_dict()
    assert torch.equal(resumed.model(INPUTS), whole.model(INPUTS))
    with pytest.raises(fxdecomp.FxdecompError, match="another search"):
        search(gm, INPUTS, metric=judge, state=state, policy=POLICY, max_drop=0.5)
    state.write_text("{")
    with pytest.raises(fxdecomp.FxdecompError, match="no state of a search"):
        search(gm, INPUTS, metric=judge, state=state, policy=POLICY)


def test_the_result_is_data(gm: GraphModule, tmp_path: Path) -> None:
    found = search(gm, INPUTS, policy=POLICY, max_drop=0.02, evaluations=1, least_share=0.001)
    assert isinstance(found, SearchResult)
    assert "cannot be met" in found.trials[1].problem
    found.save(tmp_path / "search.json")
    assert json.loads((tmp_path / "search.json").read_text())["trials"][1]["metric"] is None
    assert "taken" in str(found)


def test_what_is_not_faster_is_dropped(gm: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    import fxdecomp.searching as module

    class Times:
        def __init__(self, low: float) -> None:
            self.low = low

        def ratio(self, slow: str, fast: str) -> object:
            return fxdecomp.export.Ratio(1.1, self.low, 1.2)

    for low, kept in ((0.99, False), (1.05, True)):
        monkeypatch.setattr(module, "benchmark", lambda *_, low=low, **__: Times(low))
        found = search(
            gm, INPUTS, policy=POLICY, max_drop=0.02, evaluations=1, provider="CPUExecutionProvider"
        )
        assert found.speedup == (1.1, low, 1.2)
        assert fxdecomp.report(found.model).modified == kept
        assert ("not faster beyond the noise" in found.notes[0]) != kept


@pytest.mark.parametrize("options", [{"max_drop": -1.0}, {"least_share": 1.0}, {"evaluations": 0}])
def test_settings_out_of_range_raise(gm: GraphModule, options: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match="wanted"):
        search(gm, INPUTS, **options)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="budget of MACs"):
        search(gm, INPUTS, policy=Policy(budget=Params(0.5)))
