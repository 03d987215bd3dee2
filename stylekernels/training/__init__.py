"""Training of new styles and of image generators."""

from typing import TYPE_CHECKING

from stylekernels.lazy import lazy

if TYPE_CHECKING:
    from stylekernels.training.config import TrainConfig
    from stylekernels.training.dcgan import train_dcgan
    from stylekernels.training.dcgan_config import DcganConfig
    from stylekernels.training.errors import DivergedError, SettingError
    from stylekernels.training.loop import TrainResult
    from stylekernels.training.style import train

__all__ = [
    "DcganConfig",
    "DivergedError",
    "SettingError",
    "TrainConfig",
    "TrainResult",
    "train",
    "train_dcgan",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "DcganConfig": "dcgan_config",
            "DivergedError": "errors",
            "SettingError": "errors",
            "TrainConfig": "config",
            "TrainResult": "loop",
            "train": "style",
            "train_dcgan": "dcgan",
        },
    )
