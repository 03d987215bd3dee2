"""Networks: the reference generator and the feature networks that train it."""

from stylekernels.models.features import FeatureNetwork, load_features
from stylekernels.models.generator import GeneratorConfig, StyleGenerator
from stylekernels.models.pretrained import bundled_styles

__all__ = [
    "FeatureNetwork",
    "GeneratorConfig",
    "StyleGenerator",
    "bundled_styles",
    "load_features",
]
