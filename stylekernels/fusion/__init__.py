"""Networks of other people for inference, with convolutions that normalise their input."""

from stylekernels.fusion.network import fuse_convolutions

__all__ = ["fuse_convolutions"]
