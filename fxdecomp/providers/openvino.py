"""OpenVINO on the CPU, as `onnxruntime-openvino` installs it.

It takes a graph whole, as one node, so that no single layer has a time. The session's number of threads means
nothing to it: without `num_of_threads` it takes a number of its own, and longer. On a busy machine it liked
ranks in multiples of 16 in int8; what it likes in float32 and float16 was anything from 1 to 16 there.
"""

from fxdecomp.providers.base import Provider

OPENVINO = Provider(
    "OpenVINOExecutionProvider",
    thread_option="num_of_threads",
    trial=(128, 56),
    swept={
        "num_streams": ("2",),
        "load_config": ('{"CPU": {"ENABLE_CPU_PINNING": "NO"}}',),
    },
    rounding={"load_config": ('{"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}',)},
    refused={"DynamicQuantizeLSTM": "write the file with Int8(recurrent=False)"},
)
