"""CUDA and cuDNN. Written from ONNX Runtime's documentation of its options; no time of it has been seen here.

Kernels are started and not waited for, so that the times of nodes in the profile are those of the starts.
Which algorithms cuDNN takes, in which layout, changes more than ranks do.
"""

from fxdecomp.providers.base import Provider

CUDA = Provider(
    "CUDAExecutionProvider",
    options={"cudnn_conv_algo_search": "EXHAUSTIVE"},
    device="cuda",
    swept={
        "prefer_nhwc": ("1",),
        "cudnn_conv_algo_search": ("HEURISTIC",),
        "cudnn_conv_use_max_workspace": ("0",),
        "enable_cuda_graph": ("1",),
    },
    unprofiled=("enable_cuda_graph",),
    rounding={"use_tf32": ("0", "1")},
    multiples={"float32": (64, 32, 16, 8), "float16": (64, 32, 16, 8), "int8": (64, 32, 16, 8)},
    trial=(512, 56),
    refused={"DynamicQuantizeLSTM": "write the file with Int8(recurrent=False)"},
)
