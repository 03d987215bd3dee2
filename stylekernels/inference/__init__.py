"""Stylisation of frames: the Stylizer, and its mix with the photo."""

from stylekernels.inference.blend import blend
from stylekernels.inference.stylizer import Stylizer

__all__ = ["Stylizer", "blend"]
