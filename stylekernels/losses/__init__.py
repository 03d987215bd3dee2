"""Losses of style training, a file each, and their weighted sum."""

from stylekernels.losses.color import color_loss
from stylekernels.losses.content import content_loss
from stylekernels.losses.perceptual import PerceptualLoss
from stylekernels.losses.smoothness import total_variation
from stylekernels.losses.style import StyleTargets

__all__ = ["PerceptualLoss", "StyleTargets", "color_loss", "content_loss", "total_variation"]
