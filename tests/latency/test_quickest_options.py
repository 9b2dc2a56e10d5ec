from collections.abc import Callable
from pathlib import Path

import pytest

from fxdecomp import Latency
from fxdecomp.latency import place
from fxdecomp.latency.cache import LatencyCache
from fxdecomp.latency.chain_graphs import Network
from fxdecomp.latency.place import Place
from fxdecomp.latency.quickest_options import place_of, with_quickest_options
from fxdecomp.providers import CPU, OPENVINO, Provider

pytest.importorskip("onnxruntime")

FAKE = Provider(
    CPU.name,
    swept={"layout": ("nhwc", "odd"), "search": ("all",), "graph": ("1",), "lost": ("1",)},
    rounding={"half": ("1",)},
)
GAINS = {"nhwc": 2.0, "odd": 0.5, "all": 1.005, "1": 4.0}
"""How many times quicker values make it; 0.5 % is within the noise."""


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The options of every network that was opened, on a machine whose times are GAINS."""
    seen: list[dict[str, str]] = []

    def run_of(self: Place, _: Network) -> Callable[[], float]:
        seen.append(dict(self.options))
        if "lost" in self.options:
            raise ValueError("this onnxruntime has no such option")
        taken = 1.0
        for value in self.options.values():
            taken /= GAINS[value]
        return lambda: taken

    monkeypatch.setattr(place, "described", lambda _: FAKE)
    monkeypatch.setattr(Place, "run_of", run_of)
    return seen


def test_options_that_are_quicker_beyond_the_noise_are_taken_and_kept(
    trials: list[dict[str, str]], tmp_path: Path
) -> None:
    cache = LatencyCache(tmp_path)
    found = with_quickest_options(Place(), cache)
    assert found.options == {"layout": "nhwc", "graph": "1"}
    assert all("half" not in options for options in trials)
    del trials[:]
    assert place_of(Latency(0.5), cache) == found
    assert trials == []
    assert cache.clear() == 1
    with_quickest_options(Place(), cache)
    assert trials


def test_what_the_caller_sets_stays(trials: list[dict[str, str]], tmp_path: Path) -> None:
    budget = Latency(0.5, options={"layout": "odd"})
    found = place_of(budget, LatencyCache(tmp_path))
    assert found.options == {"layout": "odd", "graph": "1"}
    assert all(options["layout"] == "odd" for options in trials)


def test_options_are_in_the_name_of_a_time(trials: list[dict[str, str]]) -> None:
    assert Place(options={"layout": "nhwc"}).key() != Place().key()
    assert "options" not in Place().key()  # times that were kept before there were any


def test_a_damaged_file_of_options_is_made_again(trials: list[dict[str, str]], tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path)
    found = with_quickest_options(Place(), cache)
    (file,) = tmp_path.glob("*.json")
    for damage in ("", "[]", '{"key": 1, "options": {}}', file.read_text().replace('"nhwc"', "3")):
        file.write_text(damage)
        assert with_quickest_options(Place(), cache) == found


def test_threads_that_a_provider_wants_to_be_told_are_in_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "described", lambda _: OPENVINO)
    assert Place(threads=2).key()["options"] == {"num_of_threads": "2"}
