"""Without data, heads and layers of few outputs stay, unless a rule names them."""

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp import MACs, Policy, PolicyError, Reason, Rule
from tests.nets import drawn, image


class TwoHeads(nn.Module):
    """A body, a squeeze of 8 channels in it, a head of scores and one of boxes behind a depthwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.squeeze = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 8, 1)
        self.expand = nn.Conv2d(8, 32, 1)
        self.scores, self.before = nn.Linear(32, 24), nn.Conv2d(32, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.body(x))
        x = x * torch.sigmoid(self.expand(torch.relu(self.squeeze(x))))
        return self.scores(x.mean((2, 3))), self.depthwise(torch.relu(self.before(x)))


X = image(2, 16, 8, 8)
HALF = Policy("channel_svd", 4)


@pytest.fixture(scope="module")
def gm() -> torch.fx.GraphModule:
    return fxdecomp.trace(drawn(TwoHeads()), X)


def reasons(small: torch.fx.GraphModule) -> dict[str, Reason]:
    return {each.site: each.reason for each in fxdecomp.report(small).skipped}


def test_what_is_left_alone_and_why(gm: torch.fx.GraphModule) -> None:
    assert reasons(fxdecomp.transform(gm, HALF)) == {
        "squeeze": Reason.FEW_OUTPUTS,
        "scores": Reason.HEAD,
        "depthwise": Reason.DEPTHWISE,
    }


def test_a_rule_that_names_them_has_them_decomposed(gm: torch.fx.GraphModule) -> None:
    policy = Policy("channel_svd", 4, rules=[Rule("sc*", "svd", 4), Rule("squeeze", "svd", 4)])
    assert set(reasons(fxdecomp.transform(gm, policy))) == {"depthwise"}
    assert set(reasons(fxdecomp.transform(gm, Policy("channel_svd", 4, require_saving=False)))) == {
        "depthwise"
    }


def test_a_second_run_and_a_replay_leave_the_same_alone(gm: torch.fx.GraphModule) -> None:
    once = fxdecomp.transform(gm, HALF)
    assert fxdecomp.report(fxdecomp.transform(once, HALF)).outcomes == fxdecomp.report(once).outcomes
    replayed = fxdecomp.transform(gm, Policy.from_plan(fxdecomp.report(once).plan))
    assert {o.site for o in fxdecomp.report(replayed).applied} == {"body", "expand", "before"}


def test_data_enough_to_judge_by_lets_a_budget_choose_freely(gm: torch.fx.GraphModule) -> None:
    def left(count: int) -> set[Reason]:
        batches = list(image(count, 16, 8, 8).split(2))
        small = fxdecomp.transform(gm, Policy(budget=MACs(0.3), multiple_of=1), calibration=batches)
        return set(reasons(small).values())

    assert Reason.HEAD not in left(32)
    few = list(image(12, 16, 8, 8).split(2))
    small = fxdecomp.transform(gm, Policy("channel_svd", 4), calibration=few)
    (told,) = (each for each in fxdecomp.report(small).skipped if each.site == "scores")
    assert "too few, 16 are enough" in told.sentence
    assert Reason.HEAD in left(8)


def test_the_only_layer_is_no_head_nor_are_layers_side_by_side() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) + self.right(x)

    for model in (nn.Sequential(nn.Linear(32, 12)), Apart()):
        small = fxdecomp.transform(fxdecomp.trace(drawn(model), image(2, 32)), Policy("svd", 2))
        assert not reasons(small)


def test_a_layer_applied_twice_in_a_row_is_a_head_and_one_before_attention_is_none() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.last = nn.Linear(32, 32), nn.Linear(32, 32)
            self.before = nn.Linear(32, 32)
            self.attention = nn.MultiheadAttention(32, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc(x)
            return self.last(self.last(x)), self.attention(*3 * (self.before(x),))[0]

    small = fxdecomp.transform(fxdecomp.trace(drawn(Net()), image(2, 4, 32)), Policy("svd", 2))
    assert {site for site, why in reasons(small).items() if why is Reason.HEAD} == {
        "last",
        "attention.out_proj",
    }


def test_a_large_head_is_said_to_be_worth_a_rule() -> None:
    model = drawn(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 512)))
    gm = fxdecomp.trace(model, image(2, 32))
    (left,) = fxdecomp.report(fxdecomp.transform(gm, Policy("svd", 2))).skipped
    assert left.detail == "it is 94% of the network, decomposed where a rule names it"
    with pytest.raises(PolicyError, match=r"; 2: left alone without calibration unless a rule names them$"):
        fxdecomp.transform(gm, Policy(budget=MACs(0.5)))


def test_a_plan_that_left_everything_alone_is_replayed() -> None:
    model = drawn(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)))
    model[2].weight = model[0].weight
    gm = fxdecomp.trace(model, image(2, 6))
    plan = fxdecomp.report(fxdecomp.transform(gm, Policy("svd", 2))).plan
    assert plan.choices == ()
    assert not fxdecomp.report(fxdecomp.transform(gm, Policy.from_plan(plan))).modified
