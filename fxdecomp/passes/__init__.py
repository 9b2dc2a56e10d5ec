"""The torch.fx passes, one file each."""

from fxdecomp.passes.base import Pass
from fxdecomp.passes.decompose_layers import DecomposeLayers
from fxdecomp.passes.fold_batch_norm import FoldBatchNorm
from fxdecomp.passes.join_inputs import JoinInputs
from fxdecomp.passes.narrow_widths import NarrowWidths
from fxdecomp.passes.part_outputs import PartOutputs
from fxdecomp.passes.refit_chains import RefitChains

__all__ = [
    "DecomposeLayers",
    "FoldBatchNorm",
    "JoinInputs",
    "NarrowWidths",
    "PartOutputs",
    "Pass",
    "RefitChains",
]
