"""Networks: the reference generator, the feature networks that train it, and DCGAN."""

from typing import TYPE_CHECKING

from stylekernels.lazy import lazy

if TYPE_CHECKING:
    from stylekernels.models.dcgan import (
        ImageDiscriminator,
        ImageGenerator,
        ImageGeneratorConfig,
    )
    from stylekernels.models.features import FeatureNetwork, load_features
    from stylekernels.models.files import StyleGenerator
    from stylekernels.models.generator import GeneratorConfig
    from stylekernels.models.multi_style import MultiStyleGenerator
    from stylekernels.models.styles import bundled_styles

__all__ = [
    "FeatureNetwork",
    "GeneratorConfig",
    "ImageDiscriminator",
    "ImageGenerator",
    "ImageGeneratorConfig",
    "MultiStyleGenerator",
    "StyleGenerator",
    "bundled_styles",
    "load_features",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "FeatureNetwork": "features",
            "GeneratorConfig": "generator",
            "ImageDiscriminator": "dcgan",
            "ImageGenerator": "dcgan",
            "ImageGeneratorConfig": "dcgan",
            "MultiStyleGenerator": "multi_style",
            "StyleGenerator": "files",
            "bundled_styles": "styles",
            "load_features": "features",
        },
    )
