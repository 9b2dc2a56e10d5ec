from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Energy, Fixed, Latency, MACs, Params, Plan, Policy, PolicyError, Reason, Rule
from fxdecomp.allocation.allocate import allocate
from fxdecomp.allocation.candidates import Candidate
from fxdecomp.policy import Budget
from fxdecomp.policy.rules import Selection


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=64),
        nn.Conv2d(64, 96, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 80),
    ).eval()


@pytest.fixture(scope="module")
def gm() -> GraphModule:
    return fxdecomp.trace(network(), torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("kind", [MACs, Params])
def test_a_budget_is_met_from_below(gm: GraphModule, kind: type[MACs | Params], share: float) -> None:
    report = fxdecomp.report(fxdecomp.transform(gm, Policy(made_up=False, budget=kind(share))))
    before, after = (
        (report.macs_before, report.macs_after)
        if kind is MACs
        else (report.params_before, report.params_after)
    )
    assert after <= share * before
    (note,) = report.record.notes
    assert f"{after:,}" in note
    assert f"{before:,}" in note
    assert (after < 0.99 * share * before) == ("no nearer" in note)


@pytest.mark.parametrize(("error", "kept"), [(0.2, 90), (0.8, 60), (1.0, 50), (1.02, 49), (3.0, 0)])
def test_a_choice_that_ruins_the_network_is_warned_of(error: float, kept: int) -> None:
    menus = {"a": [Candidate(None, (), 0.0, 100, 10), Candidate("svd", (1,), error, 40, 4)]}
    found = allocate(menus, MACs(0.5), dense=100, sensitivity={"a": 0.5})
    (note,) = found.notes
    assert f"predicted to keep {kept}% of the output's signal" in note
    assert ("hardly any network bears" in note) == (kept < 50)


def test_the_weights_alone_predict_nothing_of_the_outputs(gm: GraphModule) -> None:
    menus = {"a": [Candidate(None, (), 0.0, 100, 10), Candidate("svd", (1,), 0.99, 40, 4)]}
    assert "predicted" not in allocate(menus, MACs(0.5), dense=100).notes[0]
    report = fxdecomp.report(fxdecomp.transform(gm, Policy(made_up=False, budget=MACs(0.5))))
    assert "predicted" not in report.record.notes[0]
    assert report.quality is not None


def test_ranks_too_coarse_for_the_budget_are_remarked_upon(gm: GraphModule) -> None:
    report = fxdecomp.report(fxdecomp.transform(gm, Policy(made_up=False, budget=MACs(0.8), multiple_of=8)))
    assert report.macs_after < 0.8 * 0.99 * report.macs_before
    assert "no nearer to" in report.record.notes[0]
    assert all(rank % 8 == 0 for outcome in report.applied for rank in outcome.rank)


def test_ranks_become_finer_where_coarse_ones_cannot_meet_the_budget(
    gm: GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxdecomp.allocation.planning.rank_step", lambda: 16)
    policy = Policy(made_up=False, budget=MACs(0.7), exclude=["2"], method="channel_svd")
    report = fxdecomp.report(fxdecomp.transform(gm, policy))
    assert report.macs_after <= 0.7 * report.macs_before
    with pytest.raises(PolicyError, match="cannot be met"):
        fxdecomp.transform(gm, replace(policy, multiple_of=16))


def test_an_absolute_budget_is_the_share_that_it_makes(gm: GraphModule) -> None:
    dense = fxdecomp.report(gm).macs_before
    plans = [
        fxdecomp.report(fxdecomp.transform(gm, Policy(made_up=False, budget=budget))).plan
        for budget in (MACs(0.5), MACs(dense // 2))
    ]
    assert plans[0] == plans[1]


def test_a_budget_beyond_reach_says_what_is_reachable(gm: GraphModule) -> None:
    with pytest.raises(PolicyError, match=r"MACs\(0.001\) cannot be met: .* \(\d+\.\d%\)"):
        fxdecomp.transform(gm, Policy(made_up=False, budget=MACs(0.001)))


def test_layers_that_are_left_alone_say_why_and_still_count(gm: GraphModule) -> None:
    small = fxdecomp.transform(gm, Policy(made_up=False, budget=MACs(0.7), exclude=["2"]))
    report = fxdecomp.report(small)
    reasons = {outcome.site: outcome.reason for outcome in report.skipped}
    assert reasons["2"] == Reason.NOT_SELECTED
    assert reasons["6"] == Reason.DEPTHWISE
    assert report.macs_after <= 0.7 * report.macs_before


def test_one_method_a_floor_and_a_fixed_rank_are_respected(gm: GraphModule) -> None:
    policy = Policy(
        method="tucker2",
        made_up=False,
        budget=MACs(0.6),
        rules=[
            Rule("2", method="auto", floor=0.8),
            Rule("7", method="svd", rank=8),
            Rule("10"),
        ],
        multiple_of=4,
    )
    report = fxdecomp.report(fxdecomp.transform(gm, policy))
    applied = {outcome.site: outcome for outcome in report.applied}
    assert applied["7"].rank == (8,)
    assert applied["5"].method == "tucker2"
    assert all(rank % 4 == 0 for rank in applied["5"].rank)
    assert "10" not in applied
    assert "2" not in applied or applied["2"].macs_after >= 0.8 * applied["2"].macs_before
    assert report.macs_after <= 0.6 * report.macs_before
    assert report.macs_after >= 0.99 * 0.6 * report.macs_before or "no nearer" in report.record.notes[0]


def test_predicted_errors_choose_the_method_that_suits_each_layer() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(48, 48, 3, padding=1), nn.Conv2d(48, 48, 3, padding=1)).eval()
    with torch.no_grad():
        separable = torch.einsum("trx,rsy->tsyx", torch.randn(48, 8, 3), torch.randn(8, 48, 3))
        model[0].weight.copy_(separable)
        few_outputs = torch.einsum("tr,rsyx->tsyx", torch.randn(48, 8), torch.randn(8, 48, 3, 3))
        model[1].weight.copy_(few_outputs)
    gm = fxdecomp.trace(model, torch.randn(1, 48, 8, 8))
    report = fxdecomp.report(
        fxdecomp.transform(gm, Policy(made_up=False, budget=MACs(0.17), rules=[Rule("*", "auto")]))
    )
    assert [outcome.method for outcome in report.applied] == ["spatial_svd", "channel_svd"]
    assert max(outcome.relative_error for outcome in report.applied) < 1e-3


def test_a_second_run_changes_nothing(gm: GraphModule) -> None:
    policy = Policy(made_up=False, budget=MACs(0.5))
    once = fxdecomp.transform(gm, policy)
    twice = fxdecomp.transform(once, policy)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(once(x), twice(x))
    assert fxdecomp.report(once).plan == fxdecomp.report(twice).plan


def test_a_plan_replays_exactly_from_its_file(gm: GraphModule, tmp_path: Path) -> None:
    small = fxdecomp.transform(gm, Policy(made_up=False, budget=MACs(0.5)))
    plan = fxdecomp.report(small).plan
    plan.save(tmp_path / "plan.json")
    again = fxdecomp.transform(gm, Policy.from_plan(Plan.load(tmp_path / "plan.json")))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), small(x))
    assert fxdecomp.report(again).plan == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_of_another_network_raises(gm: GraphModule) -> None:
    plan = fxdecomp.report(fxdecomp.transform(gm, Policy(made_up=False, budget=MACs(0.5)))).plan
    other = fxdecomp.trace(nn.Sequential(nn.Linear(80, 80)), torch.randn(1, 80))
    with pytest.raises(PolicyError, match="matches no layer"):
        fxdecomp.transform(other, Policy.from_plan(plan))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "plan.json"),
        ('{"format": "x"}', "no plan"),
        ('{"format": "fxdecomp plan", "version": 9}', "version 9"),
        ('{"format": "fxdecomp plan", "version": 1, "choices": [{}]}', "damaged"),
    ],
)
def test_a_damaged_plan_file_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=complaint) as caught:
        Plan.load(path)
    assert "plan.json" in str(caught.value)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(made_up=False, budget=MACs(0.25)),
        Policy(made_up=False, budget=Params(1000), method="tucker2", multiple_of=8),
        Policy(
            made_up=False,
            budget=MACs(0.5),
            exclude=["a"],
            rules=[Rule("b", method="auto", floor=0.5), Rule("c", method="svd", rank=Energy(0.9))],
        ),
    ],
)
def test_budgets_survive_dictionaries_and_files(policy: Policy, tmp_path: Path) -> None:
    assert Policy.from_dict(policy.to_dict()) == policy
    policy.save(tmp_path / "policy.toml")
    assert Policy.load(tmp_path / "policy.toml") == policy


def test_a_policy_says_what_it_wants_of_a_layer() -> None:
    policy = Policy(
        made_up=False, budget=MACs(0.5), rules=[Rule("c", method="svd", rank=4), Rule("d", "cp", floor=0.1)]
    )
    assert policy.select("a") == Selection("auto", None)
    assert policy.select("c") == Selection("svd", Fixed(4))
    assert policy.select("d") == Selection("cp", None, 0.1)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (MACs(0.316227766), "MACs(0.3162)"),
        (Params(1_000_000), "Params(1,000,000)"),
        (Latency(0.5, threads=2), "Latency(0.5) on CPUExecutionProvider, 2 thread(s)"),
        (Latency(seconds=0.01), "Latency(seconds=0.01) on CPUExecutionProvider, 1 thread(s)"),
    ],
)
def test_messages_name_a_budget_as_it_is_written(budget: Budget, words: str) -> None:
    assert str(budget) == words


@pytest.mark.parametrize("target", [0.0, -0.5, 1.5, 0, True, float("nan"), "half"])
def test_a_target_that_cannot_be_meant_raises(target: object) -> None:
    with pytest.raises(PolicyError, match=r"MACs\(.*wanted a share of the dense network"):
        MACs(target)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Policy(method="auto"), "need a budget"),
        (lambda: Policy(method="svd", rules=[Rule("a", method="svd", floor=0.5)]), "need a budget"),
        (lambda: Policy(made_up=False, budget=MACs(0.5), rank=3), "leave the rank out"),
        (lambda: Policy(method="auto", rank=3), "leave the rank out"),
        (lambda: Rule("a", floor=0.5), "floor"),
        (lambda: Rule("a", method="svd", floor=2.0), "floor"),
        (lambda: Policy(made_up=False, budget=MACs(0.5), multiple_of=0), "multiple_of"),
        (lambda: Policy.from_dict({"budget": {"budget": "watts", "target": 1.0}}), "no budget 'watts'"),
        (lambda: Policy.from_dict({"budget": {"budget": "macs"}}), "needs the key 'target'"),
        (lambda: Policy.from_dict({"budget": {"budget": "macs", "target": 1.0, "x": 1}}), "no key 'x'"),
    ],
)
def test_contradictions_raise(make: object, complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        make()  # type: ignore[operator]


def test_a_calibrated_plan_replays_exactly_with_the_same_batches(gm: GraphModule) -> None:
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    policy = Policy(made_up=False, budget=MACs(0.5), multiple_of=8)
    small = fxdecomp.transform(gm, policy, calibration=[x])
    again = fxdecomp.transform(gm, Policy.from_plan(fxdecomp.report(small).plan), calibration=[x])
    assert torch.equal(again(x[:2]), small(x[:2]))
    report = fxdecomp.report(small)
    assert report.macs_after <= 0.5 * report.macs_before
    assert all(outcome.output_error is not None for outcome in report.applied)
