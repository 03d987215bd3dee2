"""Frame in, stylised frame out."""

from stylekernels.inference.blend import blend
from stylekernels.inference.stylizer import Stylizer

__all__ = ["Stylizer", "blend"]
