"""TensorRT. Written from ONNX Runtime's documentation of its options; no time of it has been seen here.

It builds an engine of the whole graph, trying kernels as it goes: seconds to minutes a network, which the
timing cache shortens for layers that it has met. No single layer has a time.
"""

from fxdecomp.providers.base import Provider

TENSORRT = Provider(
    "TensorrtExecutionProvider",
    options={"trt_timing_cache_enable": "1"},
    device="cuda",
    swept={
        "trt_builder_optimization_level": ("5",),
        "trt_cuda_graph_enable": ("1",),
    },
    unprofiled=("trt_cuda_graph_enable",),
    rounding={"trt_fp16_enable": ("1",)},
    multiples={"float32": (64, 32, 16, 8), "float16": (64, 32, 16, 8), "int8": (64, 32, 16, 8)},
    trial=(512, 56),
    refused={"DynamicQuantizeLSTM": "write the file with Int8(recurrent=False)"},
)
