import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp.graphs.records import record_of
from fxdecomp.recovery.measuring import agreement_sums

from .nets import batches, pair

METHODS = {
    "tucker2": (4, 3),
    "cp": 6,
    "cp3": 6,
    "spatial_svd": 4,
    "channel_svd": 3,
    "tensor_train": (3, 4, 4),
}


def error(gm, original):
    fresh = torch.cat(batches(4, seed=5))
    with torch.no_grad():
        wanted = original(fresh)
        return float((gm(fresh) - wanted).square().mean() / wanted.var())


def agreement(gm, original, data):
    with torch.no_grad():
        sums = sum(agreement_sums(gm(batch), original(batch)) for batch in data)
    return float(sums[1] / sums[0])


def snapshot(gm):
    return {key: value.clone() for key, value in gm.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_recovers_block_wise_and_further_end_to_end(method):
    small, gm = pair(method, METHODS[method])
    blocks = fxdecomp.recover(small, gm, batches(), block_steps=40, steps=0)
    both = fxdecomp.recover(small, gm, batches(), block_steps=40, steps=60)
    before, between, after = (error(each, gm) for each in (small, blocks, both))
    assert before > 0.02
    assert between < 0.8 * before
    assert after < 0.95 * between


def test_inputs_stay_and_the_result_shares_nothing():
    small, gm = pair()
    kept = snapshot(small), snapshot(gm), small.code, gm.code
    flags = {name: (p.requires_grad, p.grad) for name, p in small.named_parameters()}
    result = fxdecomp.recover(small, gm, batches(), block_steps=5, steps=20)
    assert same(snapshot(small), kept[0])
    assert same(snapshot(gm), kept[1])
    assert (small.code, gm.code) == kept[2:]
    assert {name: (p.requires_grad, p.grad) for name, p in small.named_parameters()} == flags
    assert not same(snapshot(result), kept[0])
    assert result.code == small.code
    assert {name: p.requires_grad for name, p in result.named_parameters()} == {
        k: v[0] for k, v in flags.items()
    }
    assert {p.data_ptr() for p in result.parameters()}.isdisjoint(p.data_ptr() for p in small.parameters())
    assert fxdecomp.report(result).outcomes == fxdecomp.report(small).outcomes
    assert "recovery: held-out error" in record_of(result).notes[-1]


def test_a_network_that_changes_its_input_in_place_sees_the_same_every_time():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, x):
            return self.fc(x.sub_(0.5).mul_(4)).relu()

    torch.manual_seed(0)
    data = [torch.rand(8, 16) for _ in range(6)]
    kept = [batch.clone() for batch in data]
    gm = fxdecomp.trace(InPlace().eval(), torch.rand(2, 16))
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=4))
    fxdecomp.recover(small, gm, data, block_steps=5, steps=5)
    assert all(torch.equal(one, other) for one, other in zip(data, kept, strict=True))


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    small, gm = pair()
    one, two, other = (
        fxdecomp.recover(small, gm, batches(), block_steps=10, steps=10, seed=seed) for seed in (3, 3, 4)
    )
    assert same(snapshot(one), snapshot(two))
    assert not same(snapshot(one), snapshot(other))


@pytest.mark.parametrize("rate", [3e-3, 0.3])
def test_never_worse_in_ten_seeds_whatever_the_rate(rate):
    small, gm = pair("cp", 3)
    for seed in range(10):
        data = batches(5, seed=seed)
        held = torch.randperm(5, generator=torch.Generator().manual_seed(seed)).tolist()[:1]
        judged = [data[index] for index in held]
        result = fxdecomp.recover(
            small, gm, data, block_steps=10, steps=10, block_rate=rate, rate=rate, seed=seed
        )
        assert agreement(result, gm, judged) >= agreement(small, gm, judged)
        with torch.no_grad():
            before, after = (float((m(judged[0]) - gm(judged[0])).square().mean()) for m in (small, result))
        assert after <= before


def test_a_loss_that_falls_while_decisions_get_lost_changes_nothing():
    small, gm = pair("tucker2", (12, 10))
    data = batches(5)
    assert agreement(small, gm, data) > 0.8
    labels = [torch.zeros(1)] * 5
    towards_nothing = fxdecomp.recover(
        small,
        gm,
        data,
        block_steps=0,
        steps=30,
        rate=0.1,
        labels=labels,
        task_loss=lambda outputs, label: (outputs - label).square().mean(),
        task_weight=100.0,
    )
    assert same(snapshot(towards_nothing), snapshot(small))
    assert record_of(towards_nothing).notes[-1].endswith("no state was better")


def test_labels_add_a_task_loss():
    small, gm = pair()
    data = batches(6)
    with torch.no_grad():
        labels = [gm(batch).argmax(1) for batch in data]
    task_loss = nn.functional.cross_entropy
    with_labels = fxdecomp.recover(
        small, gm, data, block_steps=0, steps=40, labels=labels, task_loss=task_loss
    )
    without = fxdecomp.recover(small, gm, data, block_steps=0, steps=40)
    assert not same(snapshot(with_labels), snapshot(without))
    with torch.no_grad():
        losses = [
            float(sum(task_loss(each(batch), label) for batch, label in zip(data, labels, strict=True)))
            for each in (small, with_labels)
        ]
    assert losses[1] < 0.85 * losses[0]


def test_frozen_parameters_stay_and_a_frozen_network_trains_its_chains_only():
    small, gm = pair()
    for parameter in small.parameters():
        parameter.requires_grad_(False)
    before = snapshot(small)
    after = snapshot(fxdecomp.recover(small, gm, batches(), block_steps=10, steps=10))
    assert {key for key in before if not torch.equal(before[key], after[key])} == {
        key for key in before if key.startswith("conv2.")
    }


class Inputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, left, right):
        x = torch.relu(self.a(left)) + self.b(right)
        return {"scores": x, "parts": (x.sum(1), torch.arange(3))}


@pytest.mark.parametrize("exported", [False, True])
def test_tuples_and_dicts_go_in_and_out(exported):
    torch.manual_seed(0)
    model = Inputs().eval()
    example = (torch.randn(2, 24), torch.randn(2, 24))
    sizes = {name: {0: torch.export.Dim.AUTO} for name in ("left", "right")}
    program = torch.export.export(model, example, dynamic_shapes=sizes)
    gm = fxdecomp.trace(program if exported else model, example)
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=4))
    data = [(torch.randn(8, 24), torch.randn(8, 24)) for _ in range(6)]
    keyed = [{"left": left, "right": right} for left, right in data]
    result = fxdecomp.recover(small, gm, data, block_steps=10, steps=30)
    assert not same(snapshot(result), snapshot(small))
    if not exported:
        again = fxdecomp.recover(small, gm, keyed, block_steps=10, steps=30)
        assert same(snapshot(result), snapshot(again))


def test_mixed_precision_recovers_too():
    small, gm = pair("cp", 6)
    result = fxdecomp.recover(small, gm, batches(), block_steps=30, steps=30, autocast=torch.bfloat16)
    assert {p.dtype for p in result.parameters()} == {torch.float32}
    assert error(result, gm) < 0.5 * error(small, gm)


def test_a_network_without_chains_is_trained_end_to_end():
    _, gm = pair()
    other = fxdecomp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), torch.randn(2, 1, 8, 8))
    result = fxdecomp.recover(other, gm, batches(), steps=20)
    assert error(result, gm) < error(other, gm)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            torch.randn(4, 1, 8, 8),
            {},
            r"data is a tensor of shape \(4, 1, 8, 8\), wanted a sequence of batches",
        ),
        ([torch.randn(4, 1, 8, 8)], {}, "data holds 1 batches, wanted at least 2"),
        ([torch.randn(4, 1, 8, 8), 3], {}, "batch 1 of data holds no examples"),
        (batches(3), {"held_out": 1.0}, "held_out is 1.0"),
        (batches(3), {"labels": [1, 2, 3]}, "labels and task_loss go together"),
        (batches(3), {"labels": [1], "task_loss": nn.MSELoss()}, "1 entries of labels and 3 batches"),
    ],
)
def test_wrong_arguments_are_told(data, options, message):
    small, gm = pair()
    with pytest.raises(fxdecomp.RecoveryError, match=message):
        fxdecomp.recover(small, gm, data, **options)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("block_steps", [0, 1])
def test_a_batch_that_the_network_does_not_take_is_told(index, block_steps):
    small, gm = pair()
    for bad in ((batches(1)[0], torch.zeros(16)), batches(1)[0].double(), torch.randn(4, 2, 8, 8)):
        data = batches(3)
        data[index] = bad
        with pytest.raises(fxdecomp.RecoveryError, match=f"batch {index} of data does not fit: "):
            fxdecomp.recover(small, gm, data, block_steps=block_steps, steps=1)


def test_networks_that_do_not_belong_together_are_told():
    small, gm = pair()
    other = fxdecomp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), torch.randn(2, 1, 8, 8))
    with pytest.raises(fxdecomp.RecoveryError, match='a chain for "conv2", the original has no such layer'):
        fxdecomp.recover(small, other, batches())
    wide = fxdecomp.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), torch.randn(2, 1, 8, 8))
    with pytest.raises(
        fxdecomp.RecoveryError, match=r"small returns tensors \[\(16, 6\)\], the original \[\(16, 5\)\]"
    ):
        fxdecomp.recover(wide, gm, batches())
    with pytest.raises(fxdecomp.RecoveryError, match=r"small holds torch.float16, .* convert both networks"):
        fxdecomp.recover(small.half(), gm, batches())


def test_swapped_networks_are_told() -> None:
    gm = fxdecomp.trace(nn.Sequential(nn.Linear(16, 16)).eval(), torch.ones(1, 16))
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=4))
    with pytest.raises(fxdecomp.RecoveryError, match=r"got the compressed network second: swap them"):
        fxdecomp.recover(gm, small, list(torch.randn(8, 16).split(4)), steps=1, block_steps=1)
