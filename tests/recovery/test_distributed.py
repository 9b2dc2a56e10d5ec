"""Two processes, launched by torchrun, and one process on the joined batches: the same result."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fxdecomp

from .nets import batches, pair

WORKER = """
import os
import sys
import torch
from torch import distributed
torch.set_num_threads(1)
import fxdecomp
from tests.recovery.nets import batches, pair

distributed.init_process_group("gloo")
rank = distributed.get_rank()
small, gm = pair("cp", 6)
cut = 10  # of 16: the shares need not be equal
data = [batch[:cut] if rank == 0 else batch[cut:] for batch in batches(6)]
result = fxdecomp.recover(small, gm, data, block_steps=10, steps=20, checkpoint=sys.argv[1] + "/run.ckpt")
torch.save(result.state_dict(), f"{sys.argv[1]}/{rank}.pt")
again = fxdecomp.recover(small, gm, data, block_steps=10, steps=20, checkpoint=sys.argv[1] + "/run.ckpt")
assert all(torch.equal(a, b) for a, b in zip(result.state_dict().values(), again.state_dict().values()))
try:
    fxdecomp.recover(small, gm, data[: 6 - rank], block_steps=1, steps=1)
except fxdecomp.RecoveryError as error:
    assert "others have more or fewer" in str(error)
else:
    raise AssertionError("processes with different numbers of batches went on")
distributed.barrier()  # a process that leaves while the other is in a collective may be aborted
distributed.destroy_process_group()
os._exit(0)  # all is done; PyTorch's own teardown at exit aborts now and then on a loaded machine
"""


@pytest.mark.slow
def test_two_processes_do_what_one_does_on_the_joined_batches(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    root = str(Path(__file__).parents[2])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=300,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "FutureWarning" not in done.stderr
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    small, gm = pair("cp", 6)
    joined = fxdecomp.recover(small, gm, batches(6), block_steps=10, steps=20).state_dict()
    assert any(not torch.equal(joined[name], value) for name, value in small.state_dict().items())
    for name, value in joined.items():
        assert torch.equal(one[name], two[name])
        torch.testing.assert_close(one[name], value, rtol=1e-3, atol=1e-4)
