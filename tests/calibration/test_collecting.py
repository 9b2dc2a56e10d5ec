import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxdecomp
from fxdecomp import CalibrationError, MACs, Policy, Rule
from fxdecomp.calibration import Calibration, Moments
from fxdecomp.calibration.collecting import collect
from fxdecomp.calibration.moments import MomentsSum
from fxdecomp.calibration.patches import draw_positions, patches_at, position_count
from fxdecomp.sites import survey
from tests.decompositions.layers_in_torch import apply_layer, draw_input, draw_weight, geometries


@settings(max_examples=80, deadline=None, derandomize=True)
@given(spec=geometries(), seed=st.integers(0, 99))
def test_patches_give_the_layers_output(spec, seed):
    x, weight = draw_input(spec, seed, torch.float64), draw_weight(spec, seed)
    positions = torch.arange(position_count(x, spec))
    patches = torch.cat(patches_at(x, spec, positions))
    grouped = patches.unflatten(1, (spec.groups, -1)).flatten(2)
    by_group = weight.flatten(1).unflatten(0, (spec.groups, -1))
    got = torch.einsum("ngd,gtd->ngt", grouped, by_group).flatten(1)
    wanted = apply_layer(x, spec, weight).movedim(1, -1).reshape(-1, spec.out_channels)
    assert torch.allclose(got, wanted, atol=1e-12)


def test_drawn_positions_are_distinct_and_repeatable():
    first = draw_positions(1000, 100, 7)
    assert len(first.unique()) == 100
    assert torch.equal(first, draw_positions(1000, 100, 7))
    assert not torch.equal(first, draw_positions(1000, 100, 8))


@pytest.mark.parametrize("count", [3, 50])
def test_sums_in_parts_are_the_moments(count):
    rows = torch.randn(count, 6, generator=torch.Generator().manual_seed(0)) + 1000
    total = MomentsSum()
    for part in rows.split(2):
        total.add(part)
    moments = total.moments()
    exact = rows.double()
    assert moments.is_root == (count < 6)
    assert torch.allclose(moments.mean, exact.mean(0), atol=1e-9)
    assert torch.allclose(moments.dense().double(), torch.cov(exact.T, correction=0), atol=1e-5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 6, 3, padding=1)
        self.second = nn.Conv1d(6, 6, 3, padding=2, dilation=2)
        self.beside = nn.Conv1d(6, 12, 3, padding=2, dilation=2)
        self.head = nn.Linear(18, 10)

    def forward(self, x):
        y = self.first(x)
        y = self.second(y) + self.second(2 * y)
        z = torch.cat([self.second(y), self.beside(y)], 1)
        y.mul_(0)
        return self.head(z.transpose(1, 2))


def moments_of(net: nn.Module, batches: list[torch.Tensor], **options) -> dict[str, tuple[Moments, ...]]:
    gm = fxdecomp.trace(net, batches[0])
    found = {}
    for group in collect(gm, survey(gm).sites, Calibration(batches, **options)):
        found |= group
    return found


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 11, generator=generator) for _ in range(count)]


def test_shared_layers_pool_and_later_changes_in_place_do_not_matter(monkeypatch):
    monkeypatch.setattr(
        MomentsSum, "shrunk", lambda self, _: self.moments()
    )  # pooling alone is looked at here
    torch.manual_seed(0)
    net = Net().eval()
    data = batches()
    found = moments_of(net, data)
    with torch.no_grad():
        y = [net.first(x) for x in data]
        middle = [net.second(each) + net.second(2 * each) for each in y]
    seen = [*y, *(2 * each for each in y), *middle]
    rows = torch.cat(
        [p for x in seen for p in patches_at(x, survey_spec(net), torch.arange(2 * 11))]
    ).flatten(1)
    assert found["second"][0].count == 3 * 66
    assert torch.allclose(found["second"][0].mean, rows.double().mean(0), atol=1e-5)
    assert torch.allclose(found["second"][0].dense(), torch.cov(rows.double().T, correction=0), atol=1e-5)
    assert found["beside"][0].count == 66
    assert float(found["beside"][0].dense().trace()) > 1e-3
    assert found["head"][0].mean.shape == (18,)


def survey_spec(net: nn.Module):
    gm = fxdecomp.trace(net, batches()[0])
    return next(site.spec for site in survey(gm).sites if site.name == "second")


def test_layers_on_one_tensor_share_moments_and_training_mode_is_harmless():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 7)

        def forward(self, x):
            x = self.norm(x).transpose(1, 2)
            return torch.cat([self.left(x), self.right(x)], -1)

    net = Two().train()
    gm = fxdecomp.trace(net, batches()[0])
    before = net.norm.running_mean.clone()
    (found,) = collect(gm, survey(gm).sites, Calibration(batches()))
    assert found["left"] is found["right"]
    assert torch.equal(gm.norm.running_mean, before)


def test_a_small_budget_takes_more_passes_and_gives_the_same_model():
    torch.manual_seed(0)
    net = Net().eval()
    gm = fxdecomp.trace(net, batches()[0])
    policy = Policy(method="tucker2", rank=0.5, rules=[fxdecomp.Rule("head", "svd", 3)], require_saving=False)
    models, runs = [], []
    for budget in (2 << 30, 32 * 18**2):
        known = fxdecomp.study(gm, Calibration(batches(), budget_bytes=budget, refit=False))
        models.append(fxdecomp.transform(gm, policy, calibration=known))
        runs.append(known.work.runs)
    assert runs[0] == 1 < runs[1]
    x = batches()[1]
    assert torch.equal(models[0](x), models[1](x))


def test_bad_data_is_refused_by_its_index():
    good, bad = batches(2)
    bad[0, 1, 2] = float("nan")
    with pytest.raises(CalibrationError, match="batch 1 holds NaN"):
        Calibration([good, bad])
    with pytest.raises(CalibrationError, match="holds no batches"):
        Calibration([])
    with pytest.raises(CalibrationError, match="put it in a list"):
        Calibration(good)
    for options in ({"samples": 0}, {"samples": -5}, {"budget_bytes": 0}):
        with pytest.raises(CalibrationError, match=f"^{next(iter(options))} is a positive"):
            Calibration([good], **options)
    gm = fxdecomp.trace(Net().eval(), good)
    with pytest.raises(CalibrationError, match="batch 0 does not fit"):
        fxdecomp.transform(gm, Policy(method="tucker2", rank=0.5), calibration=[(good, good)])


@pytest.mark.parametrize("budget", [None, MACs(0.5)])
def test_batches_that_the_network_does_not_take_are_refused_by_their_index(budget):
    good = batches(2)[0]
    gm = fxdecomp.trace(Net().eval(), good)
    policy = Policy(
        rules=[Rule("*", "auto" if budget else "tucker2", None if budget else 0.5)], budget=budget
    )
    for bad in ((good, torch.zeros(len(good))), good[:, :-1], good.double(), {"images": good}):
        with pytest.raises(CalibrationError, match=r"batch 1 does not fit: .*; give what the network takes"):
            fxdecomp.transform(gm, policy, calibration=[good, bad])
    with pytest.raises(CalibrationError, match="batch 1 holds no examples; leave it out"):
        fxdecomp.transform(gm, policy, calibration=[good, good[:0]])


def test_overflowing_activations_are_refused():
    net = Net().eval()
    with torch.no_grad():
        net.first.weight *= 1000
    gm = fxdecomp.trace(net, batches()[0])
    data = batches(4)
    data[1] *= 1e38
    with pytest.raises(CalibrationError, match='batch 1 gives layer "first" NaN, infinity'):
        fxdecomp.transform(gm, Policy(rules=[Rule("*", "tucker2", 0.5)]), calibration=data)
