"""What unlabelled inputs say about the layers."""

from fxdecomp.calibration.batches import Batch, Calibration
from fxdecomp.calibration.made_up import made_up
from fxdecomp.calibration.moments import Moments

__all__ = ["Batch", "Calibration", "Moments", "made_up"]
