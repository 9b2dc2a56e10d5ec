from collections.abc import Iterator
from pathlib import Path

import pytest

import fxdecomp
from fxdecomp.providers import CPU, CUDA, OPENVINO, PROVIDERS, TENSORRT, Provider, described, provider_of

PACKAGE = Path(fxdecomp.__file__).parent


def test_short_names_are_case_blind_and_full_names_stay() -> None:
    assert provider_of("openvino") == "OpenVINOExecutionProvider"
    assert provider_of("TensorRT") == "TensorrtExecutionProvider"
    assert provider_of("FancyExecutionProvider") == "FancyExecutionProvider"
    assert len({each.short for each in PROVIDERS}) == len(PROVIDERS)


def test_a_provider_that_nobody_described_has_no_times_of_nodes() -> None:
    assert described("FancyExecutionProvider") == Provider("FancyExecutionProvider")
    assert not described("FancyExecutionProvider").times_nodes
    assert described("CPUExecutionProvider") is CPU


def test_settings_are_defaults_then_threads_then_what_the_caller_wants() -> None:
    assert CPU.settings(4) == {}
    assert OPENVINO.settings(3) == {"num_of_threads": "3"}
    assert OPENVINO.settings(3, {"num_of_threads": "5"}) == {"num_of_threads": "5"}
    assert CUDA.settings(1, {"device_id": "1"}) == {"cudnn_conv_algo_search": "EXHAUSTIVE", "device_id": "1"}


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda each: each.short)
def test_a_description_is_consistent(provider: Provider) -> None:
    """What rounds is never left to the clock, and trials are wide enough for two of the largest blocks."""
    shared = {(key, value) for key, values in provider.swept.items() for value in values}
    assert not shared & {(key, value) for key, values in provider.rounding.items() for value in values}
    assert all(provider.options.get(key) not in values for key, values in provider.swept.items())
    for multiples in provider.multiples.values():
        assert list(multiples) == sorted(multiples, reverse=True)
        assert 2 * multiples[0] <= provider.trial[0]


def test_the_gpu_options_are_those_that_change_times() -> None:
    assert {*CUDA.swept, *CUDA.rounding} == {
        "prefer_nhwc",
        "cudnn_conv_algo_search",
        "cudnn_conv_use_max_workspace",
        "enable_cuda_graph",
        "use_tf32",
    }
    assert {*TENSORRT.options, *TENSORRT.swept, *TENSORRT.rounding} == {
        "trt_timing_cache_enable",
        "trt_builder_optimization_level",
        "trt_cuda_graph_enable",
        "trt_fp16_enable",
    }


def _sources() -> Iterator[Path]:
    return (path for path in PACKAGE.rglob("*.py") if PACKAGE / "providers" not in path.parents)


def test_options_of_providers_are_named_in_their_descriptions_only() -> None:
    names = {
        name
        for each in PROVIDERS
        for name in (*each.options, *each.swept, *each.rounding, each.thread_option)
    }
    found = {(path.name, name) for path in _sources() for name in names - {""} if name in path.read_text()}
    assert not found
