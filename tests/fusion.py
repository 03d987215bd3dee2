"""Networks for tests of fuse_convolutions, and comparisons with them."""

import copy
from collections import Counter

import torch
from torch import Tensor, nn

from stylekernels import fuse_convolutions
from stylekernels.conversion import Report
from stylekernels.fusion.geometry import CONVOLUTIONS
from tests.conftest import Recorder, assert_accurate


def network(make) -> nn.Module:
    """Return a network in evaluation mode with random parameters and statistics."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
    return model


def calls_of(model: nn.Module, x: Tensor) -> Counter:
    """Return how often each op runs that makes a tensor."""
    with Recorder() as recorder, torch.no_grad():
        model(x)
    return Counter(recorder.ops)


def check(model: nn.Module, x: Tensor, args: tuple | None = None) -> Report:
    """Check the picture of a fused model, and that the model did not change.

    ``args`` is that of `fuse_convolutions`. The accuracy rule is that of an op. A network may have
    its margin for each convolution.
    """
    margin = 1e-6 * sum(isinstance(each, CONVOLUTIONS) for each in model.modules())
    before, state = x.clone(), copy.deepcopy(model.state_dict())
    fused, report = fuse_convolutions(model, args)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double().clone())
        theirs = model(x.clone())
        for _ in range(2):  # the second with packed weights
            assert_accurate(fused(x), theirs, exact, at_least=margin)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    return report


class Blocks(nn.Module):
    """Layers for the patterns below."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.wide = nn.Conv2d(3, 3, 5)
        self.up = nn.ConvTranspose2d(3, 3, 4, 2, 1)
        self.norm1, self.norm2 = (nn.InstanceNorm2d(3, affine=True) for _ in range(2))
        self.group, self.batch = nn.GroupNorm(3, 3), nn.BatchNorm2d(3)
        self.relu, self.relu_ = nn.ReLU(), nn.ReLU(inplace=True)
        self.register_buffer("count", torch.zeros(()))
        self.drop, self.same = nn.Dropout(0.5), nn.Identity()
