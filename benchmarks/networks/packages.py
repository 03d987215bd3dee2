"""Networks of other packages, built by the packages themselves: each is imported when its network
is made."""

from collections.abc import Sequence

from torch import nn

# nnU-Net's numbers of channels. Patches of 48 voxels a side have 3 at the fifth level.
_FEATURES = (32, 64, 128, 256, 320)


def dynunet(features: Sequence[int] = _FEATURES) -> nn.Module:
    """MONAI's re-implementation of nnU-Net's network, for volumes."""
    from monai.networks.nets import DynUNet

    strides = [1] + [2] * (len(features) - 1)
    return DynUNet(3, 1, 3, [3] * len(features), strides, strides[1:], filters=list(features))


def plain_conv_unet(features: Sequence[int] = _FEATURES) -> nn.Module:
    """nnU-Net's own (Isensee et al., 2021), for volumes."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    levels = len(features)
    return PlainConvUNet(
        input_channels=1,
        n_stages=levels,
        features_per_stage=features,
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1] + [2] * (levels - 1),
        n_conv_per_stage=2,
        num_classes=3,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


def vae_decoder(widths: Sequence[int] = (128, 256, 512, 512), groups: int = 32) -> nn.Module:
    """The decoder of Stable Diffusion's autoencoder (Rombach et al., 2022), in diffusers."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=groups,
    ).decoder
