"""Every Python example of README.md and docs/ runs, after what its page supposes: a model, say."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

from tests.documents import ROOT, blocks

NETWORK = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.InstanceNorm2d(32, affine=True), nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1), nn.InstanceNorm2d(32), nn.ReLU(), nn.Conv2d(32, 3, 1),
)
photo = torch.rand(1, 3, 24, 32)
with torch.no_grad():
    before = model.eval()(photo)
"""
SAME = "torch.testing.assert_close({}, before, atol=1e-4, rtol=1e-4)\n"
HUB = f"""
import runpy, sys
sys.argv = ["generate.py", "output/hub-kernel"]
runpy.run_path({str(ROOT / "hub/generate.py")!r}, run_name="__main__")
"""

# Builds the network of a plan as the trainer does, and compares a training step with the
# trainer's without a conversion.
NNUNET_STEP = """
import torch, stylekernels
from torch.nn.modules.instancenorm import _InstanceNorm
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

plan = ConfigurationManager({"architecture": {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3, "features_per_stage": [4, 8, 16], "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2], "conv_bias": True,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}})
torch.manual_seed(0)
x, truth = torch.randn(2, 1, 16, 16, 16), torch.randint(0, 3, (2, 1, 16, 16, 16))
theirs, ours = (
    trainer.build_network_architecture(None, plan, 1, 3)
    for trainer in (nnUNetTrainer, nnUNetTrainerStylekernels)
)
norms = [each for each in ours.modules() if isinstance(each, _InstanceNorm)]
assert len(norms) == 10
assert all(isinstance(each, stylekernels.nn.InstanceNorm3d) for each in norms)
ours.load_state_dict(theirs.state_dict())
exact = nnUNetTrainer.build_network_architecture(None, plan, 1, 3)
exact.load_state_dict(theirs.state_dict())
results = []
for network, dtype in ((theirs, torch.float32), (ours, torch.float32), (exact, torch.float64)):
    picture, *_ = network.to(dtype)(x.to(dtype))
    dice = MemoryEfficientSoftDiceLoss(lambda y: y.softmax(1), smooth=1e-5)
    (torch.nn.functional.cross_entropy(picture, truth[:, 0]) + dice(picture, truth)).backward()
    grads = [p.grad.double().flatten() for p in network.parameters() if p.grad is not None]
    results.append((picture.double(), torch.cat(grads)))
for their, our, right in zip(*results):
    error, theirs_has = ((each - right).norm() / right.norm() for each in (our, their))
    assert error <= 2 * theirs_has + 1e-6, (error, theirs_has)
"""

#: By page and number of the example: what comes before it, and checks after it.
AROUND = {
    ("README.md", 0): (
        NETWORK
        + """
x, skip, features, features_of_painting = torch.randn(4, 2, 8, 6, 5)
weight, bias = torch.randn(2, 8)
""",
        SAME.format("picture")
        + """
expected = torch.relu(nn.functional.instance_norm(x, weight=weight, bias=bias)) + skip
torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
assert loss > 0 == gram_loss(features_of_painting, target)
""",
    ),
    ("README.md", 1): (
        "import numpy as np\nframe = np.random.default_rng(0).integers(0, 255, (48, 64, 3), 'B')",
        "assert picture.shape == frame.shape and picture.dtype == np.uint8 and picture.std() > 5",
    ),
    ("drop-in.md", 0): (
        NETWORK,
        "with torch.no_grad():\n    after = model(photo)\n" + SAME.format("after"),
    ),
    ("drop-in.md", 1): (NETWORK, SAME.format("picture")),
    ("drop-in.md", 2): (
        NETWORK,
        "with torch.inference_mode():\n    picture = fast(photo)\n" + SAME.format("picture"),
    ),
    ("drop-in.md", 3): (
        NETWORK + "from stylekernels import fuse_convolutions\n",
        """
fast, _ = fuse_convolutions(model)
with torch.inference_mode():
    picture = fast(photo)
    try:
        fast(photo.tolist())
    except NotFusedWarning as warning:
        said = str(warning)
assert "is of type list, not a tensor" in said
"""
        + SAME.format("picture"),
    ),
    ("drop-in.md", 4): ("", NNUNET_STEP),
    ("export.md", 0): (
        """
import numpy, subprocess, sys
from PIL import Image
Image.effect_noise((64, 48), 90).convert("RGB").save("me.jpg")
subprocess.run([sys.executable, "-m", "stylekernels", "export", "wave"], check=True)
""",
        "assert picture.shape == (1, 48, 64, 3) and Image.open('painted.png').size == (64, 48)",
    ),
    ("hub-kernel.md", 0): (HUB, "assert y.shape == photo.shape and y.min() == 0 < y.max()"),
    ("hub-kernel.md", 1): (HUB + NETWORK, "assert model(photo.cuda()).isfinite().all()"),
    ("pytorch-faults.md", 0): ("", "assert len(convolve(0.0)) > 0"),
    ("pytorch-faults.md", 1): (
        "",
        "assert F.conv2d(image, kernel, padding=1)[0, 0, :, 0].tolist() == [4.0, 4.0]",
    ),
    ("pytorch-faults.md", 2): (
        "",
        "torch.testing.assert_close(gradient(grad), differences, atol=1e-4, rtol=1e-4)",
    ),
    ("pytorch-faults.md", 3): ("", ""),
    ("pytorch-faults.md", 4): ("", "assert compiled(x.detach()).stride() == as_volume(x).stride()"),
    ("video.md", 0): ("", "assert callable(run_pipeline)"),
    ("webcam.md", 0): ("", "assert painted.frame.rgb.shape == (240, 320, 3)"),
}
#: What an example needs besides the requirements of the tests.
NEEDS = {
    ("drop-in.md", 4): "nnunetv2",
    ("export.md", 0): "onnxruntime",
    ("hub-kernel.md", 0): "kernels",
    ("hub-kernel.md", 1): "kernels",
}
ON_GPU = {("hub-kernel.md", 1)}
EXAMPLES = blocks("python")


def test_every_example_is_here() -> None:
    assert EXAMPLES.keys() == AROUND.keys()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example[0]} {example[1]}")
def test_example(example, tmp_path) -> None:
    package = NEEDS.get(example)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    if example in ON_GPU and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    before, after = AROUND[example]
    program = tmp_path / "example.py"
    program.write_text(f"{before}\n{EXAMPLES[example]}\n{after}\n")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not re.search(r"^Traceback", done.stderr, re.MULTILINE)
