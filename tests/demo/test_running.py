import json
import re
from pathlib import Path

import pytest

from fxdecomp import Policy, report, trace, transform
from fxdecomp.demo import running
from fxdecomp.demo.lines import Split, render_lines
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.demo.running import DEMO_POLICY, DemoResult, run_demo
from fxdecomp.errors import FxdecompError
from fxdecomp.export import read_metadata
from fxdecomp.reporting.text import short


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def result(tmp_path_factory, told) -> DemoResult:
    # Few short lines and few rounds: the path is checked here, not its numbers.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "CALIBRATION_LINES", 8)
        benchmark = running.benchmark
        patch.setattr(running, "benchmark", lambda *args, **kwargs: benchmark(*args, **kwargs, rounds=2))
        return run_demo(
            tmp_path_factory.mktemp("demo") / "new" / "folder",
            lines=10,
            width=384,
            progress=lambda *step: told.append(step),
        )


@pytest.mark.slow
def test_the_inner_convolutions_and_the_lstms_are_replaced_at_the_promised_saving(result):
    applied = [one for one in result.layers.applied if one.method == "tucker2"]
    assert [one.site for one in applied] == [f"features.conv{index}" for index in range(2, 8)]
    factor = sum(one.macs_before for one in applied) / sum(one.macs_after for one in applied)
    assert 3.7 < factor < 3.9, factor
    others = {one.site: one for one in result.layers.applied if one not in applied}
    assert others.keys() == {f"context{index}.{part}" for index in (1, 2) for part in ("lstm", "linear")}
    assert all(one.macs_after < 0.63 * one.macs_before for one in others.values())
    assert len(result.layers.skipped) == 2
    assert result.layers.params_after == result.params["small"]
    assert result.layers.params_before == result.params["dense"]


@pytest.mark.slow
def test_all_three_networks_read(result):
    assert set(result.readings) == {"dense", "weight-only", "small"}
    assert {reading.count for reading in result.readings.values()} == {10}
    assert result.readings["dense"].exact >= 0.8
    assert all(reading.cer <= 0.1 for reading in result.readings.values())


@pytest.mark.slow
def test_two_models_the_numbers_the_page_and_a_picture_are_left_and_nothing_else(result):
    written = {path.name for path in result.folder.iterdir()}
    assert written == {"dense.onnx", "small.onnx", "demo.json", "report.html", "layers.png"}
    data = json.loads((result.folder / "demo.json").read_text())
    assert data == json.loads(json.dumps(result.to_dict()))
    assert set(result.sizes_bytes) == {"dense", "small"}
    for name, size in result.sizes_bytes.items():
        assert (result.folder / f"{name}.onnx").stat().st_size == size == data["sizes_bytes"][name]
    assert result.params["small"] < result.params["dense"]
    assert read_metadata(result.folder / "small.onnx").record is not None


@pytest.mark.slow
def test_the_text_has_every_table(result):
    text = str(result)
    for word in ("exact lines", "features.conv2.core", "weight-only", "left alone", "median ms", "GFLOP/s"):
        assert word in text


@pytest.mark.slow
def test_progress_ends_where_it_said(result, told):
    last = {work: (done, total) for work, done, total in told}
    assert {"demo", "lines read, dense", "lines read, small"} <= set(last)
    assert all(done == total for done, total in last.values())


def test_the_policy_survives_its_file(tmp_path):
    DEMO_POLICY.save(tmp_path / "policy.toml")
    assert type(DEMO_POLICY).load(tmp_path / "policy.toml") == DEMO_POLICY


def test_a_missing_extra_names_the_cure(tmp_path, monkeypatch):
    find_spec = running.importlib.util.find_spec
    monkeypatch.setattr(
        running.importlib.util, "find_spec", lambda name: None if name == "PIL" else find_spec(name)
    )
    with pytest.raises(FxdecompError, match=r"the demo needs PIL, not installed; install `fxdecomp\[demo\]`"):
        run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_readme_and_the_page_tell_the_same(result):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    page = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (result.folder / "report.html").read_text()))

    def row(name: str) -> list[str]:
        (cells,) = re.findall(rf"^\| {name}[^|]* \|(.*)\|$", readme, re.MULTILINE)
        return [cell.strip() for cell in cells.split("|")]

    dense, alone, small = row("parameters")
    assert alone == small
    assert f"params {dense} → {small}" in page
    sizes = row("ONNX file")
    assert [sizes[0], sizes[2]] == [f"{size / 1e6:.1f} MB" for size in result.sizes_bytes.values()]
    assert all(f"{size / 1e6:.2f} MB" in page for size in result.sizes_bytes.values())
    gm = trace(load_recogniser(), render_lines(1, Split.JUDGE).images)
    whole = report(transform(gm, Policy.from_plan(result.layers.plan)))
    assert row("MACs")[::2] == [f"{whole.macs_before / 1e9:.2f} G", f"{whole.macs_after / 1e6:.0f} M"]
    inner = [one for one in whole.applied if one.method == "tucker2"]
    factor = sum(one.macs_before for one in inner) / sum(one.macs_after for one in inner)
    assert f"take {factor:.2f} times fewer" in readme.replace("\n", " ")
    (lstms,) = re.findall(r"the LSTMs' (\d+) M and (\d+) M among them", readme)
    found = [one for one in whole.outcomes if "LSTM" in one.layer]
    counts = (sum(getattr(one, count) for one in found) for count in ("macs_before", "macs_after"))
    assert lstms == tuple(f"{count / 1e6:.0f}" for count in counts)
    counted = [short(count) for count in (result.macs["dense"], result.macs["small"])]
    assert f"MACs {counted[0]} → {counted[1]}" in page
