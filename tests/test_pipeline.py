"""`transform` from outside: nothing is changed that was given, and what comes out is an ordinary module."""

import copy
import io
import pickle
import shutil
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxdecomp
from fxdecomp import Policy, Rule
from fxdecomp.decompositions import Problem
from fxdecomp.decompositions.tucker2 import Tucker2
from fxdecomp.graphs.copies import stored_tensors
from tests.nets import FULL, HALF, drawn, full_rank_error, image, relative_difference, small_resnet, small_vgg

X = image(2, 3, 16, 16)


@pytest.fixture(params=[small_vgg, small_resnet], ids=["vgg", "resnet"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return request.param()


@pytest.fixture
def small(model: nn.Module) -> GraphModule:
    return fxdecomp.transform(fxdecomp.trace(model, X), HALF)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_full_rank_is_the_network_itself(model: nn.Module) -> None:
    assert full_rank_error(model, X) < 1e-12


def test_full_rank_in_float32(model: nn.Module) -> None:
    gm = fxdecomp.trace(model, X)
    assert relative_difference(model, fxdecomp.transform(gm, FULL), X) < 1e-5


def test_the_model_and_the_graph_are_left_as_they_were(model: nn.Module) -> None:
    model.train()
    model.get_submodule("fc" if hasattr(model, "fc") else "14").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    identities = {name: id(parameter) for name, parameter in model.named_parameters()}
    before = snapshot(model)
    gm = fxdecomp.trace(model, X)
    graph, code, traced = str(gm.graph), gm.code, snapshot(gm)
    fxdecomp.transform(gm, HALF)
    fxdecomp.report(gm)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == grads
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == identities
    assert_same_state(model, before)
    assert (str(gm.graph), gm.code) == (graph, code)
    assert_same_state(gm, traced)


def test_a_frozen_layer_gives_a_frozen_chain() -> None:
    model = small_vgg()
    model[4].requires_grad_(False)
    small = fxdecomp.transform(fxdecomp.trace(model, X), HALF)
    frozen = {n for n, p in small.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in small.named_parameters() if n.startswith("4.")}


def test_no_tensor_is_shared_with_the_input(model: nn.Module) -> None:
    gm = fxdecomp.trace(model, X)
    first = fxdecomp.report(gm).outcomes[0].site
    small = fxdecomp.transform(gm, fxdecomp.Policy(rules=[fxdecomp.Rule(first, "tucker2", 0.5)]))
    shared = {t.untyped_storage().data_ptr() for t in stored_tensors(gm)} & {
        t.untyped_storage().data_ptr() for t in stored_tensors(small)
    }
    assert not shared - {0}


def test_a_second_run_changes_nothing(model: nn.Module) -> None:
    gm = fxdecomp.trace(model, X)
    once = fxdecomp.transform(gm, HALF)
    twice = fxdecomp.transform(once, HALF)
    assert fxdecomp.graph_diff(once, twice) == ""
    assert fxdecomp.report(once) == fxdecomp.report(twice)
    assert_same_state(twice, snapshot(once))


def test_a_second_run_knows_a_functional_layer_by_its_first_name() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.empty(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.w)

    policy = fxdecomp.Policy(rules=[fxdecomp.Rule("w", method="svd", rank=2)])
    once = fxdecomp.transform(fxdecomp.trace(drawn(Functional()), image(2, 16)), policy)
    assert fxdecomp.graph_diff(once, fxdecomp.transform(once, policy)) == ""
    assert len(fxdecomp.report(once).applied) == 1


def test_the_same_call_gives_the_same_model_bit_for_bit(model: nn.Module) -> None:
    gm = fxdecomp.trace(model, X)
    for method in ("tucker2", "cp", "spatial_svd", "channel_svd", "tensor_train"):
        policy = fxdecomp.Policy(method=method, rank=0.5)
        assert_same_state(fxdecomp.transform(gm, policy), snapshot(fxdecomp.transform(gm, policy)))


def test_a_pool_gives_the_serial_result_and_tells_its_progress() -> None:
    gm = fxdecomp.trace(small_resnet(), X)
    serial = fxdecomp.transform(gm, HALF)
    told: list[tuple[Any, ...]] = []
    with ThreadPoolExecutor(1) as pool:  # processes: see tests/allocation/test_executors.py
        parallel = fxdecomp.transform(gm, HALF, executor=pool, progress=lambda *report: told.append(report))
    assert_same_state(parallel, snapshot(serial))
    assert fxdecomp.report(parallel) == fxdecomp.report(serial)
    names = [each.site for each in fxdecomp.report(serial).applied]
    count = len(names)
    assert told == [("decompose", index + 1, count, name) for index, name in enumerate(names)]


def test_progress_tells_the_phase_the_layer_and_how_much_of_the_work_is_done() -> None:
    layers = (nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 160, 3), nn.ReLU(), nn.Conv2d(160, 24, 3))
    batches = list(image(32, 3, 12, 12).split(8))
    gm = fxdecomp.trace(drawn(nn.Sequential(*layers)), batches[0])
    policy = fxdecomp.Policy(rules=[Rule("[24]", "tucker2", 0.5)])
    told: list[tuple[Any, ...]] = []
    fxdecomp.transform(gm, policy, calibration=batches, progress=lambda *report: told.append(report))
    assert told[:3] == [("collect", done, 3) for done in (1, 2, 3)]  # the fourth batch is judged on
    assert told[3:5] == [("decompose", 1, 10, "2"), ("decompose", 10, 10, "4")]
    assert told[5:8] == [("gradients", done, 3) for done in (1, 2, 3)]
    assert told[8:10] == [("refit", 1, 10, "2"), ("refit", 10, 10, "4")]


def test_deepcopy_and_pickle_keep_the_function_and_the_report(small: GraphModule) -> None:
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert relative_difference(small, other, X) == 0
        assert fxdecomp.report(other) == fxdecomp.report(small)


def test_the_state_dict_goes_round(small: GraphModule, model: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    other = fxdecomp.transform(fxdecomp.trace(drawn(copy.deepcopy(model), seed=9), X), HALF)
    assert relative_difference(small, other, X) > 1e-2
    other.load_state_dict(torch.load(file, weights_only=True))
    assert relative_difference(small, other, X) == 0


def test_state_dict_names_sit_under_the_layers_name() -> None:
    small = fxdecomp.transform(fxdecomp.trace(small_resnet(), X), HALF)
    names = [name for name in small.state_dict() if name.startswith("layer2.conv1")]
    assert names == [
        "layer2.conv1.pointwise_in.weight",
        "layer2.conv1.core.weight",
        "layer2.conv1.pointwise_out.weight",
        "layer2.conv1.pointwise_out.bias",
    ]


def test_gradients_reach_every_factor(small: GraphModule) -> None:
    small(X).square().sum().backward()
    assert all(parameter.requires_grad for parameter in small.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in small.parameters())


def test_it_trains(small: GraphModule) -> None:
    before = snapshot(small)
    optimiser = torch.optim.SGD(small.train().parameters(), lr=1e-3)
    wanted = torch.zeros(2, 10)
    losses = []
    for _ in range(5):
        torch.manual_seed(0)  # the same dropout each time
        loss = nn.functional.mse_loss(small(X), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {key for key, value in small.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == set(dict(small.named_parameters()))


def test_torch_export_takes_it(small: GraphModule) -> None:
    program = torch.export.export(small, (X,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    other = image(5, 3, 16, 16, seed=3)
    assert relative_difference(small, program.module(), other) < 1e-5


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler"),
                # Raised inside torch's own compiler:
                pytest.mark.filterwarnings(
                    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
                ),
            ],
        ),
    ],
)
def test_torch_compile_takes_it(small: GraphModule, backend: str) -> None:
    compiled = torch.compile(small, backend=backend)
    assert relative_difference(small, compiled, X) < 1e-5


def test_batch_and_image_size_stay_free() -> None:
    gm = fxdecomp.trace(small_resnet(), X)
    small = fxdecomp.transform(gm, FULL)
    assert relative_difference(gm, small, image(5, 3, 23, 40)) < 1e-5


def test_methods_do_not_know_each_other() -> None:
    gm = fxdecomp.trace(small_resnet(), X)
    policy = fxdecomp.Policy(
        rules=[
            fxdecomp.Rule("layer1.*", method="spatial_svd", rank=8),
            fxdecomp.Rule("layer2.conv*", method="cp", rank=16),
            fxdecomp.Rule("fc", method=None),
        ],
        method="channel_svd",
        rank=0.5,
    )
    by_site = {outcome.site: outcome for outcome in fxdecomp.report(fxdecomp.transform(gm, policy)).outcomes}
    methods = {name: getattr(outcome, "method", outcome.layer) for name, outcome in by_site.items()}
    assert methods == {
        "stem.0": "channel_svd",
        "layer1.conv1": "spatial_svd",
        "layer1.conv2": "spatial_svd",
        "layer2.conv1": "cp",
        "layer2.conv2": "cp",
        "layer2.downsample.0": "svd",
        "fc": "Linear 32->10",
    }
    assert by_site["fc"].reason is fxdecomp.Reason.NOT_SELECTED


class Viewing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.view(y.shape[0], -1)


def test_a_stage_of_rank_1_gives_its_output_in_the_layout_that_a_view_needs() -> None:
    """Strides along axes of length 1 once made torch take the weight for one with channels last."""
    gm = fxdecomp.trace(drawn(Viewing()), X)
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="spatial_svd", rank=1))
    assert small(X).shape == gm(X).shape


def test_the_names_that_a_report_shows_are_those_that_rules_take() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.empty(16, 16))
            self.fc = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.linear(x, self.w)) + self.fc.weight.sum()

    x = image(2, 16)
    gm = fxdecomp.trace(drawn(Functional()), x)
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=2))
    told = fxdecomp.report(small)
    assert [o.site for o in fxdecomp.report(gm).outcomes] == [o.site for o in told.outcomes]
    (done,) = told.applied
    assert (done.site, done.chain) == ("w", "w_chain")
    assert set(done.stage_names) < {name for name, _ in small.named_modules()}
    again = fxdecomp.transform(gm, fxdecomp.Policy(rules=[fxdecomp.Rule(done.site, "svd", 2)]))
    assert fxdecomp.graph_diff(small, again) == ""
    assert fxdecomp.report(fxdecomp.transform(small, fxdecomp.Policy(method="svd", rank=2))) == told
    better = fxdecomp.recover(small, gm, list(image(16, 16).split(4)), block_steps=2, steps=2)
    assert fxdecomp.report(better).applied == (done,)


def test_five_functions_stand_between_transform_and_a_methods_factors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = str(Path(fxdecomp.__file__).parent)
    stacks: list[list[str]] = []
    factors = Tucker2.factors

    def seen(self: Tucker2, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(package)]
        stacks.append(
            [f.name for f in frames if not f.name.startswith("<")]
        )  # a comprehension is no function
        return factors(self, problem, rank)

    monkeypatch.setattr(Tucker2, "factors", seen)
    gm = fxdecomp.trace(nn.Sequential(nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3)), torch.randn(1, 32, 8, 8))
    fxdecomp.transform(gm, Policy(rules=[Rule("0", "tucker2", 8)]))
    (stack,) = stacks
    between = stack[stack.index("transform") + 1 :]
    assert between == ["__call__", "call", "each", "factorise", "decompose"]
