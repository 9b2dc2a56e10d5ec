"""Providers of which no more is known than their names and, of two, where their memory is."""

from fxdecomp.providers.base import SUFFIX, Provider

OTHERS = (
    Provider(f"CoreML{SUFFIX}"),
    Provider(f"Dml{SUFFIX}", device="dml"),
    Provider(f"MIGraphX{SUFFIX}"),
    Provider(f"QNN{SUFFIX}"),
    Provider(f"Xnnpack{SUFFIX}"),
    Provider(f"Dnnl{SUFFIX}"),
    Provider(f"NvTensorRTRTX{SUFFIX}", device="cuda"),
)
