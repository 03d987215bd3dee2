"""Networks of other people for inference, with convolutions that normalise their input."""

from stylekernels.fusion.network import fuse_convolutions
from stylekernels.fusion.running import NotFusedWarning

__all__ = ["NotFusedWarning", "fuse_convolutions"]
