"""ONNX Runtime's own CPU provider, which stands behind every other one.

It has no options. Values between 2-D convolutions are kept in blocks of channels, so that ranks that are no
multiple of a block pay for their whole remainder.
"""

from fxdecomp.providers.base import Provider

CPU = Provider("CPUExecutionProvider", times_nodes=True)
