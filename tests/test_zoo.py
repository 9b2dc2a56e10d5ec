"""A fixed sample of small networks from pytorchcv, one of a family, through every check of the sweep."""

import pytest
import torch

from benchmarks.network_checks import Row, check_network
from benchmarks.zoo import is_tame, select
from benchmarks.zoo_networks import (
    TAME,
    build,
    constructors,
    family,
    fingerprint,
    is_chaotic,
    randomise,
    smallest_inputs,
)

SAMPLE = (
    "cgnet_cityscapes",
    "darknet_tiny",
    "densenet40_k12_bc_cifar10",
    "diaresnet20_cifar10",
    "espnetv2_wd2",
    "fdmobilenet_wd4",
    "menet108_8x1_g3",
    "mobilenet_wd4",
    "mobilenetv2b_wd4",
    "nin_cifar10",
    "nvpattexp116bazel76",
    "preresnet20_cifar10",
    "proxylessnas_mobile_cub",
    "resnet20_cifar10",
    "resnext20_32x2d_cifar10",
    "ror3_56_cifar10",
    "seresnet20_cifar10",
    "shakedropresnet20_cifar10",
    "shakeshakeresnet20_2x16d_cifar10",
    "shufflenet_g1_wd4",
    "shufflenetv2_wd2",
    "squeezenet_v1_1",
    "voca8flame",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_network(name: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        constructor = constructors()[name]
        model = randomise(build(constructor))
        row = check_network(Row(name, family(constructor)), model, smallest_inputs(name, model))
    finally:
        torch.set_num_threads(threads)
    assert row.failed_at == "", row
    assert row.applied > 0
    assert row.half_macs is not None
    assert row.half_macs < 0.95


@pytest.mark.parametrize(
    ("weight", "chaotic"),
    [((1.0, -1.0 + 2e-7), True), ((1.0, -0.5), False), ((float("inf"), 1.0), True)],
    ids=["amplifies roundings", "tame", "overflows"],
)
def test_a_network_that_amplifies_the_roundings_of_its_weights_is_known(
    weight: tuple[float, float], chaotic: bool
) -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([weight])
    assert is_chaotic(layer, (torch.ones(1, 2),)) is chaotic


@pytest.mark.parametrize(("bias", "tame"), [(-0.5 * (1 - 1e-4), False), (0.5, True)], ids=["cancels", "adds"])
def test_a_half_rank_network_may_amplify_what_the_whole_does_not(bias: float, tame: bool) -> None:
    layer = torch.nn.Linear(4, 8)
    layer.weight.data = torch.eye(8, 4) * torch.tensor([0.9, 0.9, 1.0, 1.0])  # half keeps the last two
    layer.bias.data = torch.zeros(8)
    layer.bias.data[2:4] = bias
    model, inputs = torch.nn.Sequential(layer), (torch.tensor([[1.0, 1.0, 0.5, 0.5]]),)
    assert not is_chaotic(model, inputs, TAME)
    assert is_tame(model, inputs) is tame


def test_the_same_network_under_two_names_is_known_by_its_weights_and_outputs() -> None:
    def mark(name: str, *, seed: int = 0) -> str:
        model = randomise(build(constructors()[name]), seed)
        return fingerprint(model, smallest_inputs(name, model))

    first = mark("resnet20_cifar10")
    assert mark("resnet20_svhn") == first
    assert mark("resnet20_cifar100") != first
    assert mark("resnet20_cifar10", seed=1) != first


def test_a_sweep_takes_one_of_every_family_first_and_likely_twins_last() -> None:
    known = constructors()
    sizes = {"resnet20_cifar100": 3, "resnet20_svhn": 2, "resnet20_cifar10": 2, "nin_cifar10": 9, "vgg11": 99}
    names = {name: known[name] for name in sizes}
    assert select(names, sizes, 50) == [
        "resnet20_svhn",
        "nin_cifar10",
        "vgg11",
        "resnet20_cifar100",
        "resnet20_cifar10",
    ]
