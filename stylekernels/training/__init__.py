"""Training of new styles."""

from stylekernels.training.config import TrainConfig
from stylekernels.training.trainer import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "train"]
