"""`executor=`: pools and clusters give the serial result, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context

import pytest
import torch
from torch.fx import GraphModule

import fxdecomp
from fxdecomp.allocation.site_work import WithThreads
from fxdecomp.calibration import Calibration
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
