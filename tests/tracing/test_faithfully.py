"""What `trace` gives computes what the network computes, and the network and its inputs stay as they were."""

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxdecomp
from tests.nets import drawn, image, relative_difference


class Masked(nn.Module):
    """A Proxy is never None, so symbolic_trace never sees the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)
        self.register_buffer("causal", torch.ones(6, 6).tril().bool())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            mask = self.causal
        x = self.fc(x)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


class Scaled(nn.Module):
    """A Proxy is no Tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x / 255 if isinstance(x, Tensor) else x)


class Gated(nn.Module):
    """Runs without a gate, its symbolic graph does not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return self.fc(x if gate is None else x * gate)


class Summed(nn.Module):
    """Takes any number of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, *parts: Tensor) -> Tensor:
        return self.fc(parts[0] + parts[1])


class Noisy(nn.Module):
    """Draws numbers as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + torch.rand_like(x))


class Counting(nn.Module):
    """Counts its calls, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.fc(x)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8))
    model.register_forward_pre_hook(lambda _, args: (args[0] * 3,))
    return model


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Masked, (image(2, 6, 16),)),
        (Scaled, (image(2, 8),)),
        (Gated, (image(2, 8),)),
        (Summed, (image(2, 8), image(2, 8, seed=2))),
        (hooked, (image(2, 8),)),
    ],
)
def test_torch_export_where_symbolic_trace_gives_another_function(
    make: Callable[[], nn.Module], inputs: tuple[Tensor, ...]
) -> None:
    model = drawn(make())
    gm = fxdecomp.trace(model, inputs)
    assert fxdecomp.report(gm).record.traced_with == "torch.export"
    assert relative_difference(model, gm, inputs) < 1e-6


def test_a_network_that_no_tracer_follows_says_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: 1 / 0)
    with pytest.raises(fxdecomp.TraceError) as caught:
        fxdecomp.trace(drawn(hooked()), image(2, 8))
    text = str(caught.value)
    assert "symbolic_trace: TraceError: the graph computes something else, its outputs differ by " in text
    assert "torch.export: ZeroDivisionError" in text


def test_a_network_that_draws_numbers_is_compared_on_the_same_ones() -> None:
    model = drawn(Noisy())
    state = torch.get_rng_state()
    gm = fxdecomp.trace(model, image(2, 8))
    assert fxdecomp.report(gm).record.traced_with == "symbolic_trace"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_that_differs_from_itself_is_taken() -> None:
    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            shared.append(1.0)
            return self.fc(x) + len(shared)

    shared: list[float] = []
    gm = fxdecomp.trace(drawn(Drifting()), image(2, 8))
    assert fxdecomp.report(gm).record.traced_with == "symbolic_trace"


@pytest.mark.parametrize("kind", ["module", "symbolic_trace", "torch.export"])
def test_calls_made_by_trace_and_transform_are_not_counted(kind: str) -> None:
    model: nn.Module | torch.export.ExportedProgram
    model = counting = drawn(Counting())
    if kind == "symbolic_trace":
        model = fx.symbolic_trace(counting)
    elif kind == "torch.export":
        model = torch.export.export(counting, (image(2, 8),))
    before = counting.calls.clone()
    gm = fxdecomp.trace(model, image(2, 8))
    fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=2), calibration=[image(2, 8)] * 3)
    assert counting.calls == before
    assert dict(gm.named_buffers()).get("calls", before) == before  # symbolic_trace leaves the counter out


def test_an_in_place_activation_leaves_the_example_inputs_alone() -> None:
    inputs = image(2, 8)
    wanted = inputs.clone()
    fxdecomp.trace(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)), inputs)
    assert torch.equal(inputs, wanted)


def test_a_graph_in_train_mode_is_copied_in_eval_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout()).train()
    given = fx.symbolic_trace(model)
    gm = fxdecomp.trace(given, image(2, 3, 6, 6))
    assert not any(module.training for module in gm.modules())
    assert given.training
    assert model[1].num_batches_tracked == 0


def test_a_program_exported_in_train_mode_keeps_its_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).train()
    program = torch.export.export(model, (image(2, 3, 6, 6),))
    fxdecomp.trace(program, image(2, 3, 6, 6))
    assert model[1].num_batches_tracked == 0
    assert torch.equal(model[1].running_mean, torch.zeros(8))


def test_what_torch_export_traced_can_be_pickled() -> None:
    gm = fxdecomp.trace(drawn(Scaled()), image(2, 8))
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=2))
    again = pickle.loads(pickle.dumps(small))
    assert torch.equal(again(image(2, 8)), small(image(2, 8)))
    assert str(fxdecomp.report(again)) == str(fxdecomp.report(small))


def test_operations_that_were_exported_in_train_mode_are_remarked() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Dropout())
    model.append(nn.BatchNorm1d(8, track_running_stats=False))
    program = torch.export.export(model.train(), (image(4, 8),))
    said = "exported in train mode: batch_norm, dropout; call model.eval() before torch.export"
    for given in (program, program.module()):
        gm = fxdecomp.trace(given, image(4, 8))
        assert [remark.startswith(said) for remark in fxdecomp.report(gm).remarks] == [True]
    program = torch.export.export(model.eval(), (image(4, 8),))
    assert fxdecomp.report(fxdecomp.trace(program, image(4, 8))).remarks == ()


def test_nested_inputs_go_by_name_in_an_exported_graph() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.attention(batch["q"], batch["k"], batch["k"])[0]

    q, k = image(4, 5, 8), image(4, 5, 8, seed=2)
    model = drawn(Attending())
    gm = fxdecomp.trace(model, ({"q": q, "k": k},))
    policy = fxdecomp.Policy(method="svd", rank=4)
    one, other = (
        fxdecomp.transform(gm, policy, calibration=[(batch,)]).state_dict()
        for batch in ({"q": q, "k": k}, {"k": k, "q": q})
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(fxdecomp.TraceError, match="do not have the structure that the graph takes"):
        fxdecomp.trace(gm, ({"q": q, "other": k},))


class Normalising(nn.Module):
    """Changes its input in place, as preprocessing often does."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.sub_(0.5).div_(0.25) if self.in_place else (x - 0.5) / 0.25)


@pytest.mark.parametrize(
    "policy",
    [fxdecomp.Policy(method="svd", rank=4), fxdecomp.Policy(method="svd", budget=fxdecomp.MACs(0.5))],
)
def test_calibration_sees_the_same_inputs_in_every_run(policy: fxdecomp.Policy) -> None:
    batches = [image(32, 16, seed=seed) for seed in range(3)]
    kept = [batch.clone() for batch in batches]
    weights = []
    for in_place in (False, True):
        gm = fxdecomp.trace(drawn(Normalising(in_place=in_place)), image(2, 16))
        weights.append(fxdecomp.transform(gm, policy, calibration=batches).state_dict())
    assert all(torch.equal(one, other) for one, other in zip(batches, kept, strict=True))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_output_too_many_is_another_function() -> None:
    class Telling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor, wanted: object = None) -> object:
            y = self.fc(x)
            return y if wanted is None else (y, x)

    model = drawn(Telling())
    gm = fxdecomp.trace(model, image(2, 8))
    assert torch.allclose(gm(image(2, 8)), model(image(2, 8)))
