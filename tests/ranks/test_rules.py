"""What the rules choose, and how they are written down."""

from __future__ import annotations

import pytest
import torch

from fxdecomp.decompositions import Decomposition, Problem, method_named, problems_of
from fxdecomp.errors import PolicyError
from fxdecomp.layers import LayerSpec
from fxdecomp.ranks import VBMF, Energy, Fixed, RankRule, Ratio, rank_from, rule_from_dict, rule_to_dict
from tests.decompositions.layers_in_torch import draw_weight

CONV = LayerSpec(12, 18, kernel=(3, 3))
LINEAR = LayerSpec(30, 20)


def problems(spec: LayerSpec, weight: torch.Tensor | None = None) -> tuple[Problem, ...]:
    return problems_of(draw_weight(spec, 0) if weight is None else weight, spec)


def diagonal(values: list[float]) -> torch.Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "spec", "rank"),
    [
        ("svd", LINEAR, (7,)),
        ("tucker2", CONV, (6, 4)),
        ("cp", CONV, (6,)),
        ("cp3", CONV, (6,)),
        ("channel_svd", CONV, (6,)),
        ("spatial_svd", CONV, (4,)),
        ("tensor_train", CONV, (4, 4, 6)),
    ],
)
def test_ratio_takes_a_third_of_the_channels(name: str, spec: LayerSpec, rank: tuple[int, ...]) -> None:
    assert Ratio(1 / 3).choose(method_named(name), spec, problems(spec)) == rank


def test_ratio_rounds_to_multiples_within_the_limits() -> None:
    tucker = method_named("tucker2")
    wide = LayerSpec(64, 96, kernel=(3, 3))
    assert Ratio(0.5, multiple_of=16).choose(tucker, wide, ()) == (48, 32)
    assert Ratio(0.01, multiple_of=16).choose(tucker, wide, ()) == (16, 16)
    assert Ratio(0.01).choose(tucker, CONV, ()) == (1, 1)
    assert Ratio(1.0, multiple_of=16).choose(tucker, CONV, ()) == (16, 12)
    assert Ratio(1.0, multiple_of=5).choose(tucker, CONV, ()) == (15, 10)
    assert Ratio(0.5).choose(method_named("channel_svd"), LayerSpec(1, 64, kernel=(3, 3)), ()) == (9,)


def test_ratio_counts_the_channels_of_one_group() -> None:
    spec = LayerSpec(24, 36, kernel=(3, 3), groups=2)
    assert Ratio(1 / 3).choose(method_named("tucker2"), spec, problems(spec)) == (6, 4)


def test_fixed_is_the_same_everywhere() -> None:
    assert Fixed(5).choose(method_named("tucker2"), CONV, ()) == (5, 5)
    assert Fixed((5, 3)).choose(method_named("tucker2"), CONV, ()) == (5, 3)
    assert Fixed(5).choose(method_named("svd"), LINEAR, ()) == (5,)


@pytest.mark.parametrize(
    ("method", "rank", "message"),
    [
        (
            "tucker2",
            (19, 5),
            r'"features.3" \(Conv2d 12->18, 3x3\): rank \(19, 5\) exceeds \(18, 12\) in mode 0',
        ),
        ("tucker2", (5, 13), "in mode 1; lower it"),
        ("tucker2", (5,), "has 1 entries, tucker2 takes 2"),
        ("cp", (109,), "rank 109 exceeds 108; lower it"),
    ],
)
def test_a_rank_that_does_not_fit_is_refused(method: str, rank: tuple[int, ...], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        method_named(method).check_rank(CONV, rank, "features.3")


def test_energy_keeps_the_least_that_reaches_the_share() -> None:
    weight = diagonal([4.0, 2.0, 2.0, 1.0])  # squares 16, 4, 4, 1 of 25
    spec, svd = LayerSpec(4, 4), method_named("svd")
    for share, rank in [(0.6, 1), (0.65, 2), (0.8, 2), (0.81, 3), (0.96, 3), (0.97, 4), (1.0, 4)]:
        assert Energy(share).choose(svd, spec, problems(spec, weight)) == (rank,)


def test_energy_reaches_its_share_on_every_unfolding() -> None:
    weight = draw_weight(CONV, 0)
    rank = Energy(0.7).choose(method_named("tucker2"), CONV, problems(CONV, weight))
    assert rank is not None
    for mode in (0, 1):
        squares = torch.linalg.svdvals(weight.movedim(mode, 0).flatten(1)).square()
        shares = squares.cumsum(0) / squares.sum()
        assert shares[rank[mode] - 1] >= 0.7
        assert rank[mode] == 1 or shares[rank[mode] - 2] < 0.7


def test_cp_takes_the_larger_of_both_unfoldings() -> None:
    tucker = Energy(0.7).choose(method_named("tucker2"), CONV, problems(CONV))
    assert tucker is not None
    assert Energy(0.7).choose(method_named("cp"), CONV, problems(CONV)) == (max(tucker),)


def test_groups_take_the_highest_rank_of_any() -> None:
    spec = LayerSpec(8, 8, groups=2)
    weight = torch.cat((diagonal([1.0, 0, 0, 0]), diagonal([1.0, 1, 1, 0])))
    assert Energy(0.99).choose(method_named("svd"), spec, problems(spec, weight)) == (3,)


@pytest.mark.parametrize("rule", [VBMF(), Energy(0.9)], ids=str)
@pytest.mark.parametrize("name", ["svd", "tucker2", "cp", "spatial_svd", "tensor_train"])
def test_a_zero_weight_has_no_rank(rule: RankRule, name: str) -> None:
    spec = LINEAR if name == "svd" else CONV
    assert rule.choose(method_named(name), spec, problems(spec, torch.zeros(spec.weight_shape))) is None


def low_rank_kernel(spec: LayerSpec, out_rank: int, in_rank: int, noise: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    core = torch.randn(out_rank, in_rank, *spec.kernel, generator=generator)
    U = torch.randn(spec.out_channels, out_rank, generator=generator)
    V = torch.randn(spec.in_channels, in_rank, generator=generator)
    signal = torch.einsum("pqyx,tp,sq->tsyx", core, U, V)
    return signal / signal.std() + noise * torch.randn(spec.weight_shape, generator=generator)


def test_vbmf_finds_the_ranks_of_both_unfoldings() -> None:
    spec = LayerSpec(48, 64, kernel=(3, 3))
    known = problems(spec, low_rank_kernel(spec, 7, 4, 0.1))
    assert VBMF().choose(method_named("tucker2"), spec, known) == (7, 4)
    assert VBMF().choose(method_named("cp"), spec, known) == (7,)


@pytest.mark.parametrize("name", ["svd", "tucker2", "cp", "channel_svd", "spatial_svd", "tensor_train"])
def test_vbmf_leaves_pure_noise_alone(name: str) -> None:
    spec = LayerSpec(64, 96) if name == "svd" else LayerSpec(64, 96, kernel=(3, 3))
    method: Decomposition = method_named(name)
    assert VBMF().choose(method, spec, problems(spec, draw_weight(spec, 5, torch.float32))) is None


RULES = [Fixed(4), Fixed((4, 3)), Ratio(0.25), Ratio(0.25, multiple_of=16), Energy(0.9), VBMF()]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rules_survive_plain_data(rule: RankRule) -> None:
    data = rule_to_dict(rule)
    assert rule_from_dict(data) == rule
    assert all(isinstance(value, (str, int, float, list)) for value in data.values())


def test_rules_as_plain_data() -> None:
    assert rule_to_dict(Energy(0.9)) == {"rule": "energy", "share": 0.9}
    assert rule_to_dict(Fixed((4, 3))) == {"rule": "fixed", "rank": [4, 3]}
    assert rule_to_dict(Ratio(0.5)) == {"rule": "ratio", "share": 0.5, "multiple_of": 1}
    assert rule_to_dict(VBMF()) == {"rule": "vbmf"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rule": "enrgy", "share": 0.9}, "no rank rule 'enrgy'"),
        ({"share": 0.9}, "no rank rule None"),
        ({"rule": "energy", "shares": 0.9}, "'energy' takes share; got {'shares': 0.9}"),
        ({"rule": "energy"}, "takes share; got {}"),
        ({"rule": "energy", "share": "much"}, "got {'share': 'much'}"),
        ({"rule": "vbmf", "share": 0.9}, "'vbmf' takes nothing"),
    ],
)
def test_plain_data_that_is_no_rule(data: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        rule_from_dict(data)


def test_what_a_user_may_write_for_a_rank() -> None:
    assert rank_from(4) == Fixed(4)
    assert rank_from((4, 3)) == Fixed((4, 3))
    assert rank_from(0.25) == Ratio(0.25)
    assert rank_from(VBMF()) == VBMF()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fixed(0),
        lambda: Fixed((3, 0)),
        lambda: Fixed(()),
        lambda: Fixed(True),
        lambda: Ratio(0.0),
        lambda: Ratio(1.5),
        lambda: Ratio(float("nan")),
        lambda: Ratio(0.5, multiple_of=0),
        lambda: Ratio(0.5, multiple_of=True),
        lambda: Energy(0.0),
        lambda: Energy(1.01),
    ],
)
def test_nonsense_is_refused_when_it_is_written(make: object) -> None:
    with pytest.raises(PolicyError):
        make()
