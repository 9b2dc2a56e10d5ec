"""`executor=`: pools and clusters give the serial result, bit for bit."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context

import pytest
import torch
from torch.fx import GraphModule

import fxdecomp
from fxdecomp.allocation.workers import WithThreads, Workers
from fxdecomp.calibration import Calibration
from fxdecomp.decompositions.factorising import Task
from fxdecomp.layers import LayerSpec
from tests.nets import HALF, image, small_resnet

X = image(2, 3, 16, 16)
DATA = Calibration([image(4, 3, 16, 16, seed=seed) for seed in range(2)], refit=False)
CASES = (
    (HALF, True),
    (fxdecomp.Policy(method="cp", rank=0.5), False),
    (fxdecomp.Policy(made_up=False, budget=fxdecomp.MACs(0.5)), False),
)


@contextmanager
def process_pool() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@contextmanager
def thread_pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@contextmanager
def dask_cluster() -> Iterator[Executor]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client.get_executor()


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> Iterator[None]:
    """So that layers are worked on side by side, however small."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fxdecomp.allocation.workers._LEAST_WEIGHTS", 0)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def gm() -> GraphModule:
    return fxdecomp.trace(small_resnet(), X)


@pytest.fixture(scope="module")
def serial(gm: GraphModule) -> list[GraphModule]:
    return [fxdecomp.transform(gm, policy, calibration=DATA if fits else None) for policy, fits in CASES]


@pytest.mark.parametrize("opened", [process_pool, thread_pool, dask_cluster], ids=lambda f: f.__name__)
def test_the_result_is_the_serial_one_bit_for_bit(
    gm: GraphModule, serial: list[GraphModule], opened: partial[Iterator[Executor]]
) -> None:
    with opened() as pool:
        for (policy, fits), wanted in zip(CASES, serial, strict=True):
            calibration = DATA if fits else None
            parallel = fxdecomp.transform(gm, policy, calibration=calibration, executor=pool)
            assert fxdecomp.report(parallel) == fxdecomp.report(wanted)
            known = wanted.state_dict()
            assert list(parallel.state_dict()) == list(known)
            assert all(torch.equal(value, known[key]) for key, value in parallel.state_dict().items())


def of_size(inputs: int) -> Task:
    spec = LayerSpec(inputs, 64)
    return Task("layer", (spec,), torch.zeros(64, inputs), None, "svd", None)


def test_middling_layers_are_worked_on_side_by_side_and_others_by_all_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fxdecomp.allocation.workers._LEAST_WEIGHTS", 64 * 501)
    seen = {}

    def look(task: Task) -> int:
        seen[threading.get_ident()] = None
        barrier.wait(10)
        return torch.get_num_threads()

    barrier = threading.Barrier(2)
    middling = {"one": of_size(512), "two": of_size(600)}
    assert dict(Workers().answers(look, middling, 1 << 25)) == {"one": 1, "two": 1}
    assert len(seen) == 2
    assert torch.get_num_threads() == 2
    barrier = threading.Barrier(1)
    mixed = middling | {"large": of_size(1000), "small": of_size(500)}
    assert dict(Workers().answers(look, mixed, 0)) == dict.fromkeys(mixed, 2)
    with ThreadPoolExecutor(1) as pool:
        found = dict(Workers(pool).answers(look, mixed, 1 << 25))
    assert found == {"one": 1, "two": 1, "large": 2, "small": 2}


def test_the_error_of_a_layer_is_raised_and_threads_stay() -> None:
    def fail(task: Task) -> int:
        raise ValueError(f"no {task.site} {task.weight.shape[1]}")

    before = torch.__config__.parallel_info()
    with pytest.raises(ValueError, match="no layer 600"):  # the larger one comes first
        list(Workers().answers(fail, {"one": of_size(512), "two": of_size(600)}, 1 << 25))
    assert torch.__config__.parallel_info() == before


def threads_in(_: object) -> int:
    return torch.get_num_threads()


def test_a_worker_computes_on_as_many_threads_as_the_caller() -> None:
    here = torch.get_num_threads()
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(here + 2,)) as pool:
        wanted = WithThreads(threads_in, here + 1)
        assert list(pool.map(wanted, [0, 1])) == [here + 1, here + 1]
        assert pool.submit(threads_in, 0).result() == here + 2
    assert torch.get_num_threads() == here


def test_a_metric_that_takes_much_room_is_made_again_rather_than_kept(
    gm: GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, kept = [], []
    for wide in (4096, 8):
        monkeypatch.setattr("fxdecomp.decompositions.problem.WIDE", wide)
        known = fxdecomp.study(gm, DATA)
        found.append(fxdecomp.transform(gm, HALF, calibration=known).state_dict())
        problems = itertools.chain.from_iterable(known.work._problems.values())
        kept.append(sum("metric" in problem._made for problem in problems))
    assert kept[0] > 0
    assert kept[1] == 0
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
