"""Processes that are killed at any moment, or whose disk is full, and what is left of their work.

    python -m benchmarks.kills                        # 50 kills, of four kinds of work in turn
    python -m benchmarks.kills --kills 0 --full 40    # 40 full disks
    python -m benchmarks.kills --kills 200 --seed 3 --works recover search

Each kind of work (`recover` with a checkpoint, `search` with a state, `to_onnx`, `compress_to`) runs in a
process of its own, which is killed at a random moment, every second time as a file appears. Then no file
under a final name may be damaged, the same work begun again must end in the same bytes as an unbroken run,
and no draft may be left. A disk that is full after some bytes (a limit to the size of files stands for it)
must end in an error of our own, with nothing left; then the same holds. Exits with 1 if one fails.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp.compressing import LoadedModel, compress_to
from fxdecomp.export import read_metadata, to_onnx
from fxdecomp.files import read_json, write_json, write_with_torch
from fxdecomp.recovery.checkpoints import load_checkpoint

SVD = fxdecomp.Policy(method="svd", rank=4)
BATCHES = [torch.randn(16, 24, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]


def network() -> nn.Module:
    """Three Linear layers, always the same."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 12)
        return nn.Sequential(*layers).eval()


def graph() -> GraphModule:
    """Its graph."""
    return fxdecomp.trace(network(), BATCHES[0])


def recovered(folder: Path) -> None:
    """Distillation with a checkpoint; the weights that it ends with."""
    gm = graph()
    small = fxdecomp.transform(gm, SVD)
    path = folder / "run.ckpt"
    result = fxdecomp.recover(small, gm, BATCHES, block_steps=30, steps=60, checkpoint=path)
    write_with_torch(folder / "result.pt", lambda file: torch.save(result.state_dict(), file))


def searched(folder: Path) -> None:
    """A search with a state; the policy that it ends with."""
    found = fxdecomp.search(
        graph(),
        BATCHES[0],
        policy=fxdecomp.Policy(budget=fxdecomp.MACs(0.5), method="svd"),
        calibration=BATCHES,
        max_drop=0.2,
        evaluations=6,
        state=folder / "state.json",
    )
    write_json(folder / "plan.json", fxdecomp.report(found.model).plan.to_dict())


def exported(folder: Path) -> None:
    """A file."""
    to_onnx(fxdecomp.transform(graph(), SVD), BATCHES[0], folder / "small.onnx")


def compressed(folder: Path) -> None:
    """A folder of results."""
    calibration = fxdecomp.calibration.Calibration(BATCHES)
    compress_to(LoadedModel(network(), BATCHES[0]), SVD, folder / "out", calibration=calibration)


WORKS: dict[str, Callable[[Path], None]] = {
    "recover": recovered,
    "search": searched,
    "to_onnx": exported,
    "compress": compressed,
}
VARYING = ("run.ckpt", "state.json", "small.pt2", "report.html", "report.json")
"""Files that hold times, dates, or how far a run had come."""
_TOLD = 3
_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


@dataclass(frozen=True, slots=True)
class Unbroken:
    """What a work leaves where nothing disturbs it.

    Attributes:
        files: The files by their paths, those with times as empty bytes.
        seconds: How long it takes.
        largest: Bytes of the largest file.
    """

    files: dict[str, bytes]
    seconds: float
    largest: int


@dataclass(frozen=True, slots=True)
class Moment:
    """When a process is killed.

    Attributes:
        files: As so many files and drafts have been there.
        after_s: So many seconds later.
    """

    files: int
    after_s: float

    def wait(self, folder: Path, child: int) -> None:
        """Wait for it, or for the end of the process."""
        seen: set[Path] = set()
        while len(seen) < self.files and os.waitid(os.P_PID, child, _ENDED) is None:
            with suppress(OSError):  # what goes while it is looked at
                seen.update(folder.rglob("*"))
            time.sleep(0.0002)
        time.sleep(self.after_s)


def in_child(
    work: Callable[[Path], None], folder: Path, moment: Moment | None = None, room: int | None = None
) -> int:
    """Do a work in a process of its own.

    Args:
        work: What is done.
        folder: Where.
        moment: When it is killed, None for never.
        room: How many bytes a file may have, None for any number.

    Returns:
        Its exit code, 3 for an error of the package's own, or the signal that ended it, negated.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            if room is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            work(folder)
            code = 0
        except fxdecomp.FxdecompError:
            code = _TOLD
        except Exception:  # noqa: BLE001 - the process ends here
            traceback.print_exc()
        finally:
            os._exit(code)
    if moment is not None:
        moment.wait(folder, child)
        os.kill(child, signal.SIGKILL)  # of a child that has ended nothing is left but its exit code
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files_of(folder: Path) -> dict[str, bytes]:
    """The files below a folder by their paths; drafts too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = b"" if path.name in VARYING else path.read_bytes()
    return found


def unbroken(work: Callable[[Path], None]) -> Unbroken:
    """What a work leaves, and how long it takes."""
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        if in_child(work, Path(name)):
            raise SystemExit(f"{work.__name__} fails by itself")
        took_s = time.perf_counter() - start
        largest = max(path.stat().st_size for path in Path(name).rglob("*"))
        return Unbroken(files_of(Path(name)), took_s, largest)


def damaged(folder: Path) -> list[str]:
    """The files under final names that cannot be read."""
    readers: dict[str, Callable[[Path], object]] = {
        ".json": read_json,
        ".onnx": read_metadata,
        ".ckpt": lambda path: load_checkpoint(path, str(torch.load(path, weights_only=True)["fingerprint"])),
        ".pt": lambda path: torch.load(path, weights_only=True),
        ".pt2": torch.export.load,
        ".toml": fxdecomp.Policy.load,
    }
    found = []
    for path in sorted(folder.rglob("*")):
        drafts = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not path.is_file() or drafts or path.suffix not in readers:
            continue
        try:
            readers[path.suffix](path)
        except Exception as error:  # noqa: BLE001 - whatever it is, the file is damaged
            found.append(f"{path.name}: {type(error).__name__}: {error}")
    return found


def broken(work: Callable[[Path], None], whole: Unbroken, moment: Moment) -> tuple[bool, list[str]]:
    """Kill a work and do it again.

    Returns:
        Whether it was killed before its end, and what was wrong.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code = in_child(work, folder, moment)
        wrong = [f"damaged: {each}" for each in damaged(folder)]
        return code == -signal.SIGKILL, wrong + _again(work, folder, whole)


def filled(work: Callable[[Path], None], whole: Unbroken, room: int) -> list[str]:
    """Do a work on a disk that is full after so many bytes of a file, and again on one that is not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code = in_child(work, folder, room=room)
        wrong = [f"damaged: {each}" for each in damaged(folder)]
        wrong += [f"left behind at once: {path.name}" for path in folder.rglob(".*")]
        wrong += [] if code in (0, _TOLD) else [f"it ends with code {code}"]
        return wrong + _again(work, folder, whole)


def _again(work: Callable[[Path], None], folder: Path, whole: Unbroken) -> list[str]:
    """Do a work where another was broken off; what is then not as it is where nothing was."""
    if in_child(work, folder):
        return ["the work does not go on"]
    files = files_of(folder)
    drafts = {str(path.relative_to(folder)) for path in folder.rglob(".*")}
    left = sorted(drafts | files.keys() - whole.files.keys())
    other = sorted(path for path, data in whole.files.items() if files.get(path) != data)
    return [f"left behind: {each}" for each in left] + [f"other: {each}" for each in other]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--full", type=int, default=0, help="full disks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--works", nargs="+", choices=sorted(WORKS), default=list(WORKS))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.onnx.export(network(), (BATCHES[0],), dynamo=True, verbose=False)  # imports much
    rng = random.Random(options.seed)
    whole = {name: unbroken(WORKS[name]) for name in options.works}
    for name, each in whole.items():
        print(f"{name}: {each.seconds:.1f} s unbroken, {len(each.files)} files", flush=True)
    kills = failures = tries = 0
    while kills < options.kills:
        name = options.works[kills % len(options.works)]
        as_files_appear = Moment(rng.randint(1, 8), rng.uniform(0, 0.003))
        any_time = Moment(0, rng.uniform(0, whole[name].seconds))
        moment = as_files_appear if tries % 2 else any_time
        tries += 1
        was_killed, wrong = broken(WORKS[name], whole[name], moment)
        if not was_killed and not wrong:
            continue  # it was through before
        kills += 1
        failures += bool(wrong)
        for told in wrong:
            print(f"{name}, killed at {moment}: {told}", flush=True)
    for count in range(options.full):
        name = options.works[count % len(options.works)]
        room = rng.randrange(whole[name].largest)
        wrong = filled(WORKS[name], whole[name], room)
        failures += bool(wrong)
        for told in wrong:
            print(f"{name}, full after {room} bytes: {told}", flush=True)
    print(f"{kills} kills, {options.full} full disks, {failures} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
