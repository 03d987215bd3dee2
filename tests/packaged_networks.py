"""Small networks with random weights, built by the packages that people take them from."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn


def nnunet(
    dims: int = 3, *, residual: bool = False, norm_op: type[nn.Module] | None = None
) -> nn.Module:
    """nnU-Net's PlainConvUNet or ResidualEncoderUNet, as its plans describe them."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    kind = unet.ResidualEncoderUNet if residual else unet.PlainConvUNet
    norm = norm_op or (nn.InstanceNorm3d if dims == 3 else nn.InstanceNorm2d)
    return kind(
        input_channels=1,
        n_stages=2,
        features_per_stage=[4, 8],
        conv_op=nn.Conv3d if dims == 3 else nn.Conv2d,
        kernel_sizes=3,
        strides=[1, 2],
        num_classes=2,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **({"n_blocks_per_stage": 2} if residual else {"n_conv_per_stage": 2}),
    )


def monai_unet(dims: int = 3, norm: str = "instance") -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets")
    return nets.UNet(
        spatial_dims=dims,
        in_channels=1,
        out_channels=2,
        channels=(4, 8),
        strides=(2,),
        num_res_units=2,
        act=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
        norm=(norm, {"affine": True}),
    )


def dynunet(*, residual: bool = False) -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets")
    filters = [4, 6, 8]
    return nets.DynUNet(3, 1, 2, [3] * 3, [1, 2, 1], [2, 1], filters=filters, res_block=residual)


def vae_decoder() -> nn.Module:
    """The decoder of Stable Diffusion's autoencoder: group norms and SiLU."""
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    ).decoder


class Packaged(NamedTuple):
    """A network.

    Attributes:
        make: a function that builds it.
        size: (C, H, W) or (C, D, H, W) of an input.
        norms: how many of its norms `convert` fuses with an activation, and replaces alone.
        convolutions: of an image's network, how many convolutions `fuse_convolutions` fuses, how
            many norms it runs alone, and how many layers it leaves.
        unseen: how many norms are called where `convert` cannot see what follows.
    """

    make: Callable[[], nn.Module]
    size: tuple[int, ...]
    norms: tuple[int, int]
    convolutions: tuple[int, int, int] | None = None
    unseen: int = 0


VOLUME, IMAGE = (1, 6, 8, 10), (1, 16, 20)

PACKAGED = {
    "nnU-Net": Packaged(nnunet, VOLUME, (5, 0)),
    "nnU-Net, residual": Packaged(lambda: nnunet(residual=True), VOLUME, (6, 5)),
    "nnU-Net, 2-D": Packaged(lambda: nnunet(2), IMAGE, (5, 0), (6, 1, 1)),
    "MONAI": Packaged(monai_unet, VOLUME, (5, 0)),
    "MONAI, 2-D": Packaged(lambda: monai_unet(2), IMAGE, (5, 0), (7, 2, 1)),
    "MONAI, DynUNet": Packaged(dynunet, VOLUME, (10, 0)),
    "MONAI, DynUNet, residual": Packaged(lambda: dynunet(residual=True), VOLUME, (7, 6)),
    "diffusers, VAE decoder": Packaged(vae_decoder, (4, 8, 10), (13, 1), (4, 0, 22), 1),
}


def packaged(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a network of `PACKAGED` with random parameters, the same at each call."""
    torch.manual_seed(0)
    model = PACKAGED[name].make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)
