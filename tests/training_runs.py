"""Data to train on, a signal in the middle of a run, and the files that runs leave."""

import os
import signal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from stylekernels.models import GeneratorConfig, StyleGenerator
from stylekernels.training import TrainConfig
from stylekernels.training.style import StyleTask


def blobs(seed, width, height):
    """A smooth random picture with edges: noise, enlarged, with one flat rectangle."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    pixels[height // 4 : height // 2, width // 3 : width // 2] = noise[0, 0]
    return Image.fromarray(pixels)


def fill(root):
    """Write six photos, a painting, and the files of a narrow ``mixed`` loss network."""
    (root / "photos" / "more").mkdir(parents=True)
    for i in range(6):
        blobs(i, 90 + i, 70).save(root / "photos" / ("more" if i % 2 else "") / f"{i}.png")
    (root / "photos" / "notes.txt").write_text("no photo")
    stripes = np.indices((64, 80)).sum(0)[..., None] // 4 % 2 * np.array([255, 180, 20])
    Image.fromarray(stripes.astype(np.uint8)).save(root / "style.png")
    torch.manual_seed(0)
    shallow = ["1_1", "1_2", "2_1", "2_2", "3_1"]
    deep = [*shallow, "3_2", "3_3", "3_4", "4_1", "4_2", "4_3", "4_4", "5_1"]
    for name, layers in (("vgg19_to_relu3_1", shallow), ("vgg19_slim_to_relu5_1", deep)):
        weights, channels = {"conv0.weight": torch.eye(3)[..., None, None] * 2}, 3
        weights["conv0.bias"] = torch.full((3,), -1.0)
        for layer in layers:
            scale = (2 / (9 * channels)) ** 0.5
            weights[f"conv{layer}.weight"] = torch.randn(8, channels, 3, 3) * scale
            weights[f"conv{layer}.bias"] = torch.randn(8) * 0.1
            channels = 8
        save_file(weights, root / f"{name}.safetensors")
    return root


def config_of(data, folder):
    """Return a config of eight steps on ``data``, as `fill` writes it. The run goes to ``folder``,
    from a tiny network there, without all that a run can do without."""
    torch.manual_seed(5)
    tiny = StyleGenerator(GeneratorConfig(channels=(6, 8, 12), residual_blocks=1))
    tiny.save_pretrained(folder / "tiny")
    return TrainConfig(
        art=data / "style.png",
        photos=data / "photos",
        output=folder / "out.safetensors",
        init=str(folder / "tiny"),
        steps=8,
        batch_size=2,
        crop=32,
        stroke=0.125,
        features="mixed",
        backbones=data,
        art_colors=0.0,
        color_weight=0.0,
        gan_weight=0.0,
        flat=0.0,
        ema=0.0,
        tv_weight=1.0,
        held_out=2,
        log_every=4,
        threads=1,  # at this size several only wait for each other
    )


def weights_of(path):
    return StyleGenerator.from_pretrained(path).state_dict()


def assert_same_weights(one, other):
    for name, tensor in weights_of(one).items():
        assert torch.equal(tensor, weights_of(other)[name]), name


def stop_after(patch, steps, number=signal.SIGINT):
    """Send this process a signal, Ctrl-C's by default, while step number ``steps`` runs."""
    take, count = StyleTask.step, [0]

    def counted(*arguments):
        count[0] += 1
        if count[0] == steps:
            os.kill(os.getpid(), number)
        return take(*arguments)

    patch.setattr(StyleTask, "step", counted)
