"""OpenVINO on the CPU, as `onnxruntime-openvino` installs it.

It takes a graph whole, as one node, so that no single layer has a time. The session's number of threads means
nothing to it: without `num_of_threads` it takes a number of its own, and longer. Ranks: multiples of 16 in int8;
in float32 and float16 only seen on a busy machine, where it was anything from 1 to 16.
"""

from fxdecomp.providers.base import Provider

OPENVINO = Provider(
    "OpenVINOExecutionProvider",
    thread_option="num_of_threads",
    trial=(256, 56),
    swept={
        "num_streams": ("2",),
        "load_config": ('{"CPU": {"ENABLE_CPU_PINNING": "NO"}}',),
    },
    rounding={"load_config": ('{"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}',)},
    refused={"DynamicQuantizeLSTM": "write the file with Int8(recurrent=False)"},
)
