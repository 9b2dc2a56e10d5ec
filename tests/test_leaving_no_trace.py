"""What the caller gave, and what belongs to the process, is as it was; also with several threads at it."""

import io
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp.compressing import LoadedModel, compress_to
from fxdecomp.export import check_parity, to_onnx
from fxdecomp.export.exporter import silence
from fxdecomp.importing import from_onnx
from fxdecomp.recovery import recover
from fxdecomp.tracing.exported import load_program
from tests.nets import image, small_resnet


class Counting(nn.Module):
    """Counts its calls, keeps running statistics, and is spectrally normalised; half of it in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.spectral(self.norm(self.fc(x)).relu())


BATCHES = [image(8, 16, seed=seed) for seed in range(4)]
POLICY = fxdecomp.Policy(method="svd", rank=4)


def state_of_process(of: Iterable[str] | None = None) -> list[Any]:
    names = sorted(logging.Logger.manager.loggerDict) if of is None else of
    loggers = [logging.getLogger(name) for name in names]
    return [
        torch.get_rng_state().tolist(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        list(warnings.filters),
        {each.name: (each.level, each.disabled, list(each.filters)) for each in loggers},
    ]


def state_of(net: nn.Module) -> dict[str, object]:
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return tensors | {name: part.training for name, part in net.named_modules()}


def same(before: dict[str, object], after: dict[str, object]) -> bool:
    return before.keys() == after.keys() and all(
        torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]  # type: ignore[arg-type]
        for name, value in before.items()
    )


CALLS: dict[str, Callable[[nn.Module, torch.fx.GraphModule, Path], object]] = {
    "trace": lambda net, gm, path: fxdecomp.trace(net, BATCHES[0]),
    "transform": lambda net, gm, path: fxdecomp.transform(gm, POLICY, calibration=BATCHES),
    "search": lambda net, gm, path: fxdecomp.search(
        gm, BATCHES[0], calibration=BATCHES, max_drop=1.0, evaluations=1
    ),
    "recover": lambda net, gm, path: recover(
        fxdecomp.transform(gm, POLICY), gm, BATCHES, steps=3, block_steps=3
    ),
    "to_onnx": lambda net, gm, path: to_onnx(gm, BATCHES[0], path / "a.onnx"),
    "check_parity": lambda net, gm, path: check_parity(gm, path / "given.onnx", [BATCHES[0]]),
    "from_onnx": lambda net, gm, path: from_onnx(path / "given.onnx"),
    "report": lambda net, gm, path: fxdecomp.report(fxdecomp.transform(gm, POLICY), before=gm).to_html(
        path / "a.html"
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_callers_network_and_the_process_are_as_they_were(name: str, tmp_path: Path) -> None:
    net = Counting().train()
    net.fc.eval()
    gm = fxdecomp.trace(net, BATCHES[0])
    to_onnx(gm, BATCHES[0], tmp_path / "given.onnx")
    from_onnx(tmp_path / "given.onnx")  # what packages do to the process as they are imported is theirs
    torch.manual_seed(3)
    network, graph, process = state_of(net), state_of(gm), state_of_process()
    CALLS[name](net, gm, tmp_path)
    assert same(network, state_of(net))
    assert same(graph, state_of(gm))
    assert process == state_of_process(of=process[-1])


def test_automatic_mixed_precision_around_it_changes_nothing() -> None:
    gm = fxdecomp.trace(small_resnet(), image(2, 3, 16, 16))
    data = [image(8, 3, 16, 16, seed=seed) for seed in range(4)]
    policy = fxdecomp.Policy(budget=fxdecomp.MACs(0.5))
    wanted = fxdecomp.transform(gm, policy, calibration=data).state_dict()
    with torch.autocast("cpu"):
        found = fxdecomp.transform(gm, policy, calibration=data).state_dict()
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def failures_in_threads(work: Callable[[int], None]) -> list[BaseException]:
    """What three threads raise that do the same work at once."""
    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(work, index) for index in range(3)]
    return [error for each in done if (error := each.exception()) is not None]


def test_threads_get_what_one_thread_gets(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)).eval()
    x = image(2, 5, 16)
    wanted = fxdecomp.transform(fxdecomp.trace(net, x), POLICY)(x)
    before, gotten = state_of_process()[:6], []

    def work(index: int) -> None:
        small = fxdecomp.transform(fxdecomp.trace(net, x), POLICY)
        to_onnx(small, x, tmp_path / f"{index}.onnx")
        gotten.append(small)

    assert failures_in_threads(work) == []
    assert state_of_process()[:6] == before
    assert all(torch.equal(small(x), wanted) for small in gotten)
    assert len({path.read_bytes() for path in tmp_path.glob("*.onnx")}) == 1


class FixedRows(nn.Module):
    """Runs at one batch size only, so that trying another fails."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)).reshape(1, 8))


def test_success_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    x = image(1, 3, 8, 8)
    gm = fxdecomp.trace(FixedRows(), x)
    report = to_onnx(fxdecomp.transform(gm, POLICY), x, tmp_path / "a.onnx")
    assert report.notes[0].startswith("the batch size is fixed to the example's: PyTorch fails at batch 2")
    from_onnx(tmp_path / "a.onnx")
    assert capfd.readouterr() == ("", "")


def test_inputs_that_share_a_free_batch_are_no_reason_to_warn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 8), nn.Linear(16, 8)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) + self.b(y)

    inputs = image(2, 16), image(2, 16, seed=3)
    report = to_onnx(fxdecomp.trace(Two(), inputs), inputs, tmp_path / "a.onnx")
    assert report.dynamic_batch
    assert report.notes == ()
    assert capfd.readouterr() == ("", "")


def test_other_threads_may_log_while_an_export_is_silent() -> None:
    logger, told = logging.getLogger("torch.onnx"), io.StringIO()
    handler = logging.StreamHandler(told)
    logger.addHandler(handler)
    try:
        with silence():
            logger.warning("of the export")
            other = threading.Thread(target=lambda: logger.warning("of another thread"))
            other.start()
            other.join()
    finally:
        logger.removeHandler(handler)
    assert told.getvalue() == "of another thread\n"


def test_compress_is_quiet_about_what_it_tries(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compress_to(LoadedModel(FixedRows().eval(), image(1, 3, 8, 8)), POLICY, tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_the_first_export_of_a_process_is_quiet(tmp_path: Path) -> None:
    """Loggers are made as packages are imported, some of them in the middle of the first export."""
    script = (
        "import torch, fxdecomp; x = torch.randn(1, 8); gm = fxdecomp.trace(torch.nn.Linear(8, 8), x); "
        f"fxdecomp.export.to_onnx(gm, x, {str(tmp_path / 'a.onnx')!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_programs_are_read_and_written_in_several_threads(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU()), image(2, 16)

    def work(index: int) -> None:
        compress_to(LoadedModel(net, x), POLICY, tmp_path / str(index))
        for _ in range(3):
            fxdecomp.trace(load_program(tmp_path / str(index) / "small.pt2"), x)

    assert failures_in_threads(work) == []


_IN_PROCESSES = """
import os, sys
from pathlib import Path
import torch, fxdecomp
from torch import nn
folder = Path(sys.argv[1])
net, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval(), torch.randn(2, 16)
torch.onnx.export(net, (x,), dynamo=True, verbose=False)  # imports, once for all

def export(*names):
    small = fxdecomp.transform(fxdecomp.trace(net, x), fxdecomp.Policy(method="svd", rank=4))
    for name in names:
        fxdecomp.export.to_onnx(small, x, folder / name)

children = []
for index in range(2):
    children.append(os.fork())
    if children[-1] == 0:
        torch.set_num_threads(1)
        export("shared.onnx", f"{index}.onnx")
        os._exit(0)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
export("alone.onnx")
sys.exit(any(codes))
"""


def test_processes_get_what_one_process_gets(tmp_path: Path) -> None:
    """Several that export at once, into one folder, one of the files by all of them."""
    script = [sys.executable, "-W", "ignore", "-c", _IN_PROCESSES, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = ["0.onnx", "1.onnx", "alone.onnx", "shared.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
