"""ONNX Runtime sessions with every setting stated. The only place that imports onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from numpy.typing import NDArray

from fxdecomp.errors import BenchmarkError, ExportError, first_line
from fxdecomp.providers import CPU as OWN
from fxdecomp.providers import described

CPU = OWN.name

_MOST_THREADS = 256


def onnxruntime() -> ModuleType:
    """The onnxruntime module.

    Raises:
        ExportError: If it is not installed.
    """
    try:
        import onnxruntime as runtime
    except ImportError as error:
        raise ExportError(
            "onnxruntime is not installed, and checking or timing an ONNX file needs it; "
            "install `fxdecomp[cpu]` (or `fxdecomp[gpu]`)"
        ) from error
    module: ModuleType = runtime
    return module


def available_providers() -> tuple[str, ...]:
    """The execution providers of the installed onnxruntime, and of the plugins registered with it."""
    built_in = onnxruntime().get_available_providers()
    return tuple(dict.fromkeys([*built_in, *(device.ep_name for device in _plugin_devices())]))


def check_available(provider: str, options: Mapping[str, str] | None = None) -> None:
    """Look for a provider, and where options are given, whether it starts with them.

    Raises:
        BenchmarkError: The installed onnxruntime does not have it, or it does not start so.
    """
    offered = available_providers()
    if provider not in offered:
        raise BenchmarkError(f"{provider} is not available; there are {', '.join(offered)}")
    if options:
        named = ", ".join(f"{name}={value}" for name, value in options.items())
        said = f"{provider} does not start with {named}"
        try:
            session = open_session(_tiny_file(), provider=provider, provider_options=options)
        except Exception as error:
            raise BenchmarkError(f"{said}: {first_line(error)}") from error
        if provider not in session.get_providers():
            raise BenchmarkError(f"{said}; onnxruntime says why on standard error")


def _tiny_file() -> bytes:
    from onnx import TensorProto
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

    ends = [make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = make_graph([make_node("Relu", ["x"], ["y"])], "tiny", ends[:1], ends[1:])
    model = make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


def _plugin_devices() -> list[Any]:
    """Devices of registered plugin providers; onnxruntime has them since 1.22."""
    ort = onnxruntime()
    return list(ort.get_ep_devices()) if hasattr(ort, "get_ep_devices") else []


def thread_count(threads: int) -> int:
    """The number of intra-op threads that a setting stands for: 0 means every core of this process.

    Raises:
        BenchmarkError: It is no whole number, or more than ONNX Runtime can start: the process would end.
    """
    most = max(_MOST_THREADS, os.cpu_count() or 1)
    if type(threads) is not int or not 0 <= threads <= most:
        raise BenchmarkError(f"threads is {threads!r}; wanted a whole number from 0 (every core) to {most}")
    if threads:
        return threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_session(
    path: Path | bytes,
    *,
    provider: str = CPU,
    provider_options: Mapping[str, str] | None = None,
    threads: int = 1,
    optimise: bool | Literal["basic"] = True,
    profile_prefix: Path | None = None,
    optimised_path: Path | None = None,
) -> Any:
    """Open a file with stated settings.

    Operators run in sequence (`inter_op_num_threads=1`). Threads of a pool spin while their own session runs
    and stop with it: sessions that are timed in turn would otherwise steal each other's cores.

    Args:
        path: The ONNX file, or its bytes.
        provider: The execution provider; the CPU stands behind it for operators that it does not have.
        provider_options: Options of the provider, beside those of its description.
        threads: Threads, 0 for every core; intra-op, or as the provider wants to be told.
        optimise: All graph optimisations, or none, or those alone whose graphs every runtime takes.
        profile_prefix: Where ONNX Runtime writes its profile, if it shall.
        optimised_path: Where it writes the graph that it really runs, if it shall.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        ExportError: If onnxruntime is missing.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    # What fails is raised. Why a device could not be started, onnxruntime says in its log alone.
    options.log_severity_level = 4 if provider == CPU else 3
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = thread_count(threads)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    levels = ort.GraphOptimizationLevel
    chosen_level = {
        True: levels.ORT_ENABLE_ALL,
        False: levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
    }
    options.graph_optimization_level = chosen_level[optimise]
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    if optimised_path is not None:
        options.optimized_model_filepath = str(optimised_path)
    chosen = described(provider).settings(options.intra_op_num_threads, provider_options)
    source = path if isinstance(path, bytes) else str(path)
    if provider not in ort.get_available_providers():
        devices = [device for device in _plugin_devices() if device.ep_name == provider]
        if devices:
            options.add_provider_for_devices(devices, chosen)
            return ort.InferenceSession(source, options)
    wanted: list[Any] = [(provider, chosen), CPU] if provider != CPU else [CPU]
    # onnxruntime's own fallback prints on standard output and hides the reason.
    return ort.InferenceSession(source, options, providers=wanted, enable_fallback=0)


def bound_run(session: Any, provider: str, feed: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
    """One run of a session as a call, inputs and outputs in the provider's own memory where it has one.

    Outputs stay where the first run put them: a captured CUDA graph writes to the same place in every run.

    Args:
        session: The session.
        provider: Its provider.
        feed: The inputs; copied to the device once, before the first call.
    """
    device = described(provider).device
    if device is None:
        return lambda: session.run(None, feed)
    ort = onnxruntime()
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, device, 0))
    names = [item.name for item in session.get_outputs()]
    for name in names:
        binding.bind_output(name, device)
    session.run_with_iobinding(binding)
    for name, value in zip(names, binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(name, value)

    def run() -> object:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    return run
