"""Training of new styles."""

from typing import TYPE_CHECKING

from stylekernels.lazy import lazy

if TYPE_CHECKING:
    from stylekernels.training.config import TrainConfig
    from stylekernels.training.errors import DivergedError, SettingError
    from stylekernels.training.trainer import TrainResult, train

__all__ = ["DivergedError", "SettingError", "TrainConfig", "TrainResult", "train"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "DivergedError": "errors",
            "SettingError": "errors",
            "TrainConfig": "config",
            "TrainResult": "trainer",
            "train": "trainer",
        },
    )
