"""Plans, states, checkpoints, benchmarks and metadata with ill-typed values are errors of our own."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp import FxdecompError, Plan, Policy
from fxdecomp.export import BenchmarkReport, Kernel, Timing, read_metadata, to_onnx
from fxdecomp.recovery.checkpoints import load_checkpoint
from fxdecomp.searching.trials import Trial, restored_trials, save_state
from tests.nets import image

GM = fxdecomp.trace(nn.Sequential(nn.Linear(16, 16)), image(1, 16))
TOLD = fxdecomp.report(fxdecomp.transform(GM, Policy("svd", 4)))
PLAN, RECORD = TOLD.plan, TOLD.record
ODD = [None, 3, -1, 1.5, "x", True, [], {}, [[1]], {"a": 1}, math.nan, math.inf, [None], ["x"], [True], [-1]]
SETTINGS = {"max_drop": 1.0}
TRIALS = [
    Trial(1.0, 256, 272, 1.0, accepted=True),
    Trial(0.5, 128, 144, 0.5, accepted=True, time_share=0.7, record=RECORD),
]


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in children:
        yield from places(value, (*path, key))


def altered(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = json.loads(json.dumps(data))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def taken_or_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except FxdecompError:
        return False
    return True


def test_a_plan_with_any_value_anywhere_is_carried_out_or_refused(tmp_path: Path) -> None:
    path, good, refused = tmp_path / "plan.json", PLAN.to_dict(), 0
    for place in places(good):
        for value in ODD:
            path.write_text(json.dumps(altered(good, place, value)))
            refused += not taken_or_refused(lambda: fxdecomp.transform(GM, Policy.from_plan(Plan.load(path))))
    assert refused > 100


def test_a_state_with_any_value_anywhere_is_taken_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    save_state(path, SETTINGS, TRIALS)
    good = json.loads(path.read_text())
    assert restored_trials(path, SETTINGS) == TRIALS
    for place in places(good["trials"]):
        for value in ODD:
            path.write_text(json.dumps(good | {"trials": altered(good["trials"], place, value)}))
            try:
                trials = restored_trials(path, SETTINGS)
            except FxdecompError as error:
                assert "holds no state of a search" in str(error)  # noqa: PT017 - one of two right answers
                continue
            for trial in trials:  # what is taken has its types
                assert isinstance(trial.macs, int)
                assert isinstance(trial.accepted, bool)
                assert 0 < trial.share <= 1
                assert trial.plan is None or isinstance(trial.plan, Plan)


def test_a_benchmark_with_any_value_anywhere_is_shown_or_refused(tmp_path: Path) -> None:
    path, refused = tmp_path / "bench.json", 0
    rows = [Timing(name, "CPU", 1, 1, (2.0, 3.0), 2.5, 3.0, 4.0, 1.0, 99, {"CPU": 3}) for name in ("a", "b")]
    kernels = {"a": (Kernel("fc", "linear", 1e-3, 1.0, 256, "CPU"),)}
    settings = {"rounds": 2, "files": {"a": {"path": "a.onnx", "bytes": 3}}}
    BenchmarkReport(tuple(rows), kernels, {"processor": "x"}, settings).save(path)
    good = json.loads(path.read_text())

    def shown() -> None:
        told = BenchmarkReport.load(path)
        assert str(told)
        if value in ("x", -1, {"a": 1}, [None]):  # pages take longer
            assert told._repr_html_()
            fxdecomp.report(GM, benchmark=told).to_html(tmp_path / "a.html")

    for place in places(good):
        for value in ODD:
            path.write_text(json.dumps(altered(good, place, value)))
            refused += not taken_or_refused(shown)
    assert refused > 100


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "3", '"x"', "[" * 100_000, "{", "\x00"], ids=lambda t: t[:8]
)
@pytest.mark.parametrize(
    "load",
    [
        Plan.load,
        BenchmarkReport.load,
        Policy.load,
        lambda path: restored_trials(path, SETTINGS),
        lambda path: load_checkpoint(path, "of a run"),
        lambda path: fxdecomp.study(GM, saved=path),
    ],
    ids=["plan", "benchmark", "policy", "state", "checkpoint", "study"],
)
def test_a_file_of_something_else_is_refused(
    load: Callable[[Path], object], text: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(FxdecompError):
        load(path)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(fxdecomp.RecoveryError, match=r"list\.pt cannot be read \(it holds no state\)"):
        load_checkpoint(tmp_path / "list.pt", "of a run")


class Payload:
    """Runs something where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"open({str(self.mark)!r}, 'w')",)


def test_a_checkpoint_runs_nothing(tmp_path: Path) -> None:
    torch.save({"fingerprint": Payload(tmp_path / "mark")}, tmp_path / "evil.pt")
    with pytest.raises(fxdecomp.RecoveryError, match=r"evil\.pt cannot be read"):
        load_checkpoint(tmp_path / "evil.pt", "of a run")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("key", ["opset", "inputs", "quantization", "torch_version"])
@pytest.mark.parametrize(
    "value", ["", "x", "null", "[1]", '{"input": "__import__(\'os\').getcwd()"}', "[" * 100_000]
)
def test_metadata_that_are_damaged_are_named_and_nothing_of_them_runs(
    key: str, value: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    to_onnx(GM, image(1, 16), path)
    model = onnx.load(str(path))
    entries = {item.key: item.value for item in model.metadata_props} | {f"fxdecomp.{key}": value}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, str(path))
    if key == "torch_version" or (key == "quantization" and not value):
        assert (
            read_metadata(path) is not None
        )  # any text is a version, and none says that nothing was quantised
        return
    with pytest.raises(fxdecomp.ExportError, match=r"a\.onnx: what it says about itself is damaged"):
        read_metadata(path)
