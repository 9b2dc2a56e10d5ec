"""Sixty random networks, always the same; `python -m benchmarks.fuzz` tries any number of others."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fuzz.building import Network, Step
from benchmarks.fuzz.drawing import network_of
from benchmarks.fuzz.oracles import CHEAP, DEAR, full_rank
from benchmarks.fuzz.running import failure_of, script_of, shrunk

SEED = 20
NETWORKS = 60
EXPORTED = 10
"""Of so many networks one is exported, imported and calibrated too, which takes ten times as long."""


FAILED_ONCE = ((303, 1621), (303, 1555))
"""Of larger runs: a module of the graph's own in train mode; a Linear that became a batched product."""


@pytest.mark.parametrize(("seed", "number"), [*((SEED, number) for number in range(NETWORKS)), *FAILED_ONCE])
def test_what_holds_of_every_network_holds_of_this_one(seed: int, number: int) -> None:
    network = network_of(seed, number)
    failure = failure_of(network, CHEAP + DEAR if number % EXPORTED == 0 else CHEAP)
    assert failure is None or failure.kind == "TheirError", f"{failure}\n{network.source}"


def test_a_number_stands_for_a_network() -> None:
    sources = [network_of(SEED, number).source for number in range(30)]
    assert sources == [network_of(SEED, number).source for number in range(30)]
    assert len(set(sources)) == 30


MAGNIFYING = Network(
    seed=1,
    arguments=(((8,), 0),),
    steps=(
        Step("v0", ("self.l0 = nn.Linear(8, 8)",), ("v0 = self.l0(x0)",), "x0"),
        Step("v1", (), ("v1 = v0.relu()",), "v0"),
        Step("v2", (), ("v2 = (v1 * 1e13).sin()",), "v1"),
        Step("v3", (), ("v3 = v1 + 1",), "v1"),
        Step("v4", (), ("v4 = v2 + v3",), "v2"),
    ),
    outputs="v4",
    given="torch.fx.symbolic_trace(copy.deepcopy(net).eval())",
    method="svd",
    training=False,
)
"""It makes a difference of any rounding, so that the first oracle cannot hold."""


def test_a_failure_is_made_small_and_its_script_fails_alike(tmp_path: Path) -> None:
    failure = failure_of(MAGNIFYING, CHEAP)
    assert failure is not None
    assert (failure.oracle, failure.kind) == ("full_rank", "WrongError")
    small = shrunk(MAGNIFYING, failure, full_rank)
    assert [step.name for step in small.steps] == ["v0", "v2"]
    path = tmp_path / "failure.py"
    path.write_text(script_of(small, failure, "A network"))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "WrongError: full rank differs by" in done.stderr
