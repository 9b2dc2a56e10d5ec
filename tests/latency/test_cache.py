import multiprocessing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fxdecomp.cli import app
from fxdecomp.latency.cache import FOLDER_VARIABLE, LatencyCache, Taken, cache_folder

KEY = {"provider": "CPU", "version": "1", "processor": "p", "threads": 1, "chain": [{"kernel": [3, 3]}]}


def test_a_time_comes_back_under_its_own_key_only(tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path / "new" / "folder")
    assert cache.get(KEY) is None
    cache.put(KEY, Taken(0.25))
    assert LatencyCache(cache.folder).get(KEY) == Taken(0.25)
    for name, other in (("threads", 2), ("version", "2"), ("processor", "q"), ("chain", [])):
        assert cache.get(KEY | {name: other}) is None


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[]", '{"key": 3, "time_s": 1}', '{"key": {}, "time_s": 1}', '{"key": {}, "time_s": "x"}'),
        *("[" * 100_000, f'{{"key": {{}}, "time_s": 1{"0" * 400}}}', "\x80"),
    ],
    ids=lambda damage: damage[:16],
)
def test_a_damaged_file_is_measured_and_written_again(tmp_path: Path, damage: str) -> None:
    cache = LatencyCache(tmp_path)
    cache.put(KEY, Taken(0.25))
    (file,) = tmp_path.glob("*.json")
    file.write_text(damage)
    assert cache.get(KEY) is None
    assert cache.summary() in ({}, {"?, ?, ?, ? thread(s)": 1})
    cache.put(KEY, Taken(0.5))
    assert cache.get(KEY) == Taken(0.5)


def test_what_is_no_file_of_the_caches_is_left_alone(tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path)
    cache.put(KEY, Taken(0.25))
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    assert sum(cache.summary().values()) == 1
    assert cache.size_bytes() > 0
    assert cache.clear() == 1
    assert (tmp_path / "folder.json").is_dir()


@pytest.mark.parametrize("time_s", ["NaN", "-1.0", "0", "Infinity"])
def test_a_time_that_cannot_be_is_none(tmp_path: Path, time_s: str) -> None:
    cache = LatencyCache(tmp_path)
    cache.put(KEY, Taken(0.25))
    (file,) = tmp_path.glob("*.json")
    file.write_text(file.read_text().replace("0.25", time_s))
    assert cache.get(KEY) is None


def _write_many(folder: Path, worker: int) -> None:
    for index in range(200):
        LatencyCache(folder).put(KEY | {"index": index % 5}, Taken(1.0 + worker))


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_many, args=(tmp_path, worker)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    cache = LatencyCache(tmp_path)
    assert [cache.get(KEY | {"index": index}) in (Taken(1.0), Taken(2.0)) for index in range(5)] == [True] * 5
    assert len(list(tmp_path.iterdir())) == 5


def test_a_folder_that_cannot_be_written_costs_a_warning_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = LatencyCache(tmp_path / "file" / "latency")
    cache.put(KEY, Taken(0.25))
    assert "cannot be kept" in caplog.text
    assert cache.get(KEY) is None
    assert (cache.summary(), cache.size_bytes(), cache.clear()) == ({}, 0, 0)


def test_the_command_shows_and_clears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    cache = LatencyCache(cache_folder())
    cache.put(KEY, Taken(0.25))
    cache.put(KEY | {"threads": 2}, Taken(0.25))
    (cache.folder / "damaged.json").write_text("{")
    shown = CliRunner().invoke(app, ["cache"]).output
    assert "2 times" in shown
    assert "CPU, 1, p, 2 thread(s)" in shown
    cleared = CliRunner().invoke(app, ["cache", "--clear"]).output
    assert "3 deleted" in cleared
    assert "0 times" in cleared
    assert list(cache.folder.iterdir()) == []
