"""Files appear whole or not at all: with several writers, full disks, devices, links, killed runs."""

import errno
import io
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp import files
from fxdecomp.files import (
    FileForTorch,
    OutputError,
    beside,
    check_file,
    publish,
    write_json,
    write_text,
    write_with_torch,
)
from tests.export.nets import Convolutional

posix = pytest.mark.skipif(os.name != "posix", reason="devices, pipes and links of POSIX")


class FullDisk(io.RawIOBase):
    """Takes so many bytes and no more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, data: Any) -> int:
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        return len(data)


def test_writers_of_one_file_leave_readers_a_whole_one(tmp_path: Path) -> None:
    path, failures = tmp_path / "plan.json", []
    write_json(path, [0] * 5000)
    done = threading.Event()

    def write(size: int) -> None:
        try:
            for _ in range(40):
                write_json(path, [size] * size)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test tells of it
            failures.append(error)

    def read() -> None:
        while not done.is_set():
            try:
                data = json.loads(path.read_text())
                assert len(data) in (5000, 9000)
            except Exception as error:  # noqa: BLE001
                failures.append(error)

    writers = [threading.Thread(target=write, args=(size,)) for size in (5000, 9000)]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert failures == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


@posix
def test_a_device_is_written_to_and_stays_one(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("needs the right to make a device")
    null = tmp_path / "null"
    gm = fxdecomp.trace(Convolutional(), torch.randn(1, 3, 16, 16))
    check_file(null)
    fxdecomp.report(gm).to_html(null)
    fxdecomp.export.to_onnx(gm, torch.randn(1, 3, 16, 16), null)
    write_with_torch(null, lambda file: torch.save({"a": torch.ones(3)}, file))
    assert stat.S_ISCHR(null.stat().st_mode)
    assert [entry.name for entry in tmp_path.iterdir()] == ["null"]


@posix
def test_a_pipe_gets_the_bytes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "all of it")
    reader.join()
    assert got == ["all of it"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@posix
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one_and_its_target_is_written(there: bool, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.txt", tmp_path / "link.txt"
    if there:
        target.write_text("old")
    link.symlink_to(target)
    check_file(link)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert [entry.name for entry in (tmp_path / "real").iterdir()] == ["a.txt"]


@posix
def test_a_socket_and_a_folder_are_refused(tmp_path: Path) -> None:
    os.mknod(tmp_path / "socket", 0o600 | stat.S_IFSOCK)
    with pytest.raises(OutputError, match=r"socket cannot be written; .* this is neither a file nor a pipe"):
        check_file(tmp_path / "socket")
    with pytest.raises(OutputError, match="this is a folder"):
        check_file(tmp_path)


@posix
def test_what_a_process_holds_open_is_written_into(tmp_path: Path) -> None:
    """`/dev/stdout` may be a file that the shell goes on writing to: it is not replaced."""
    command = "import pathlib, fxdecomp.files as f; f.write_text(pathlib.Path('/dev/stdout'), 'x')"
    with (tmp_path / "out.txt").open("w") as out:
        subprocess.run([sys.executable, "-c", command], stdout=out, check=True)
        assert os.fstat(out.fileno()).st_size == 1


_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
import torch, fxdecomp
from torch import nn
from fxdecomp.files import write_text, write_with_torch
path, kind = Path(sys.argv[1]), sys.argv[2]
net, x = nn.Sequential(nn.Linear(100, 50)), torch.randn(1, 100)
gm, program = fxdecomp.trace(net, x), torch.export.export(net, (x,))
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    if kind == "program":
        write_with_torch(path, lambda file: torch.export.save(program, file))
    elif kind == "state":
        write_with_torch(path, lambda file: torch.save({"a": torch.randn(100, 50)}, file))
    elif kind == "text":
        write_text(path, "a" * 20_000)
    else:
        fxdecomp.export.to_onnx(gm, x, path)
except fxdecomp.FxdecompError as error:
    print(type(error).__name__, error)
"""


@posix
@pytest.mark.parametrize("kind", ["program", "state", "text", "onnx"])
def test_a_full_disk_is_an_error_of_the_packages_own(kind: str, tmp_path: Path) -> None:
    """A limit to the size of files stands for the disk: both are failures to write."""
    path = tmp_path / "a.out"
    path.write_text("old")
    command = [sys.executable, "-c", _ON_A_FULL_DISK, str(path), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{path} cannot be written: File too large" in done.stdout
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.out"]


def test_torch_never_sees_a_failure_to_write() -> None:
    """In C++ it would end the process."""
    file = FileForTorch(FullDisk(10))  # type: ignore[arg-type]
    torch.save({"a": torch.randn(100, 50)}, file)
    assert isinstance(file.failure, OSError)
    assert file.failure.errno == errno.ENOSPC


def test_programs_written_through_a_file_object_are_the_same(tmp_path: Path) -> None:
    net, x = nn.Linear(6, 4), torch.randn(2, 6)
    write_with_torch(tmp_path / "a.pt2", lambda file: torch.export.save(torch.export.export(net, (x,)), file))
    assert torch.equal(torch.export.load(tmp_path / "a.pt2").module()(x), net(x))


def test_what_killed_runs_left_is_cleared_and_what_others_write_is_not(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    token = "0123456789ab"

    def draft(process: int, host: str = files._HOST) -> Path:
        return tmp_path / f".small.onnx.{host}.{process}.{token}.part"

    dead, running, elsewhere = draft(ended.pid), draft(os.getpid()), draft(ended.pid, "another-host")
    for folder in (dead, running, elsewhere):
        folder.mkdir()
        (folder / "weights").write_text("many")
    (tmp_path / ".mine.part").write_text("a name of the user's own")
    with beside(tmp_path / "small.onnx") as folder:
        assert folder.is_dir()
    assert not dead.exists()
    assert sorted(tmp_path.iterdir()) == sorted([running, elsewhere, tmp_path / ".mine.part"])


def test_drafts_of_one_process_differ(tmp_path: Path) -> None:
    with beside(tmp_path / "a") as first, beside(tmp_path / "a") as second:
        assert first != second
        (first / "a").write_text("1")
        publish(first / "a", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "1"
