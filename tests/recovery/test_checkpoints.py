"""A run that dies goes on where it was, and ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import fxdecomp
from fxdecomp.graphs.copies import copy_sharing_tensors
from fxdecomp.graphs.records import record_of
from fxdecomp.recovery.checkpoints import save_atomically

from .nets import batches, pair

OPTIONS = {"block_steps": 12, "steps": 23, "rate": 1e-2}


class KilledError(Exception):
    pass


def killed_at(work, step):
    def progress(name, done, total):
        if (name, done) == (work, step):
            raise KilledError

    return progress


def assert_same(a, b):
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


@pytest.mark.parametrize(
    ("work", "step"),
    [
        ("recover blocks", 1),
        ("recover blocks", 7),
        ("recover blocks", 12),
        ("recover outputs", 1),
        ("recover outputs", 15),
        ("recover outputs", 23),
    ],
)
def test_a_killed_run_ends_like_an_unbroken_one(tmp_path, work, step):
    small, gm = pair("cp", 6)
    unbroken = fxdecomp.recover(small, gm, batches(), **OPTIONS)
    path = tmp_path / "run.ckpt"
    with pytest.raises(KilledError):
        fxdecomp.recover(small, gm, batches(), **OPTIONS, checkpoint=path, progress=killed_at(work, step))
    done = []
    resumed = fxdecomp.recover(
        small, gm, batches(), **OPTIONS, checkpoint=path, progress=lambda name, at, _: done.append((name, at))
    )
    assert_same(resumed, unbroken)
    assert record_of(resumed) == record_of(unbroken)
    if step > 1:
        assert len(done) < OPTIONS["block_steps"] + OPTIONS["steps"]
    again = []
    finished = fxdecomp.recover(
        small, gm, batches(), **OPTIONS, checkpoint=path, progress=lambda *at: again.append(at)
    )
    assert_same(finished, unbroken)
    assert not again
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]


def test_a_loop_that_went_back_resumes_too(tmp_path):
    """At this rate the loop goes back to the best state at half the rate; that is saved as well."""
    small, gm = pair("cp", 6)
    wild = {"block_steps": 0, "steps": 20, "rate": 0.5}
    unbroken = fxdecomp.recover(small, gm, batches(), **wild)
    path = tmp_path / "run.ckpt"
    with pytest.raises(KilledError):
        fxdecomp.recover(
            small, gm, batches(), **wild, checkpoint=path, progress=killed_at("recover outputs", 9)
        )
    state = torch.load(path, weights_only=True)["state"]
    assert state["damping"] < 1
    assert_same(fxdecomp.recover(small, gm, batches(), **wild, checkpoint=path), unbroken)


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import fxdecomp
from tests.recovery.nets import batches, pair

small, gm = pair("cp", 6)

def kill(work, done, total):
    if (work, done) == ("recover outputs", 15):
        os.kill(os.getpid(), signal.SIGKILL)

options = {"block_steps": 12, "steps": 23, "rate": 1e-2}
fxdecomp.recover(small, gm, batches(), **options, checkpoint=sys.argv[1], progress=kill)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_for_good(tmp_path):
    path = tmp_path / "run.ckpt"
    root = str(Path(__file__).parents[2])
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": root},
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    small, gm = pair("cp", 6)
    done = []
    resumed = fxdecomp.recover(
        small, gm, batches(), **OPTIONS, checkpoint=path, progress=lambda name, at, _: done.append((name, at))
    )
    assert done[0][0] == "recover outputs"
    assert_same(resumed, fxdecomp.recover(small, gm, batches(), **OPTIONS))


def test_another_run_does_not_take_it(tmp_path):
    small, gm = pair()
    path = tmp_path / "run.ckpt"
    fxdecomp.recover(small, gm, batches(), block_steps=2, steps=2, checkpoint=path)
    for options in ({"steps": 3}, {"seed": 1}, {"autocast": torch.bfloat16}):
        with pytest.raises(fxdecomp.RecoveryError, match="is of a run with other networks, data or settings"):
            fxdecomp.recover(
                small, gm, batches(), **{"block_steps": 2, "steps": 2, **options}, checkpoint=path
            )
    with pytest.raises(fxdecomp.RecoveryError, match="other networks, data or settings"):
        fxdecomp.recover(small, gm, batches(seed=2), block_steps=2, steps=2, checkpoint=path)
    other, _ = pair(rank=(4, 4))
    with pytest.raises(fxdecomp.RecoveryError, match="other networks, data or settings"):
        fxdecomp.recover(other, gm, batches(), block_steps=2, steps=2, checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(fxdecomp.RecoveryError, match=r"cannot be read .* delete it to start afresh"):
        fxdecomp.recover(small, gm, batches(), block_steps=2, steps=2, checkpoint=path)


def loss_of_labels(outputs, labels):
    return (outputs - labels).square().mean()


class Alike:
    def __call__(self, outputs, wanted):
        return torch.ones(len(outputs))


def test_a_run_is_of_its_graph_its_loss_and_its_agreement(tmp_path):
    small, gm = pair()
    path = tmp_path / "run.ckpt"
    data = batches()
    with torch.no_grad():
        labels = [gm(batch) for batch in data]
    options = {"block_steps": 1, "steps": 1, "checkpoint": path, "labels": labels}
    known = {"task_loss": loss_of_labels, "agreement": Alike()}
    fxdecomp.recover(small, gm, data, **options, **known)
    fxdecomp.recover(small, gm, data, **options, **known | {"agreement": Alike()})
    others = ({"task_loss": partial(loss_of_labels)}, {"agreement": Alike().__call__})
    for other in others:
        with pytest.raises(fxdecomp.RecoveryError, match="other networks, data or settings"):
            fxdecomp.recover(small, gm, data, **options, **known | other)
    changed = copy_sharing_tensors(gm)
    node = next(node for node in changed.graph.nodes if node.op == "output")
    with changed.graph.inserting_before(node):
        node.replace_input_with(node.args[0], changed.graph.call_function(torch.tanh, (node.args[0],)))
    changed.recompile()
    with pytest.raises(fxdecomp.RecoveryError, match="other networks, data or settings"):
        fxdecomp.recover(small, changed, data, **options, **known)


def test_a_checkpoint_that_cannot_be_written_is_told_before_the_work(tmp_path):
    small, gm = pair()
    steps = []
    with pytest.raises(fxdecomp.FxdecompError, match="does not exist; create it first"):
        fxdecomp.recover(
            small,
            gm,
            batches(),
            checkpoint=tmp_path / "no" / "run.ckpt",
            progress=lambda *at: steps.append(at),
        )
    assert not steps


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.ckpt"
    save_atomically(path, {"a": 1})
    with pytest.raises(Exception, match=r"pickle|lambda"):
        save_atomically(path, {"a": lambda: 2})
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]
