"""The stylizer and the blend: frames in, frames out, of the same kind."""

import copy
import dataclasses
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.overrides import TorchFunctionMode

from stylekernels import native, use_impl
from stylekernels.inference import Stylizer, blend
from stylekernels.inference.layers import can_plan
from stylekernels.models import StyleGenerator
from tests.pictures import LUMA


def frames(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def expected(generator, frame):
    """One frame by the definition: [0, 1] in, times 255, rounded to nearest."""
    x = torch.tensor(frame / 255, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        y = generator(x)[0].permute(1, 2, 0).double().numpy() * 255
    return y


def test_a_frame_is_what_the_generator_says_rounded_to_nearest(generator):
    frame = frames(37, 50)
    out = Stylizer(generator, dtype=torch.float32)(frame)
    assert out.dtype == np.uint8
    assert out.shape == frame.shape
    exact = expected(generator, frame)
    assert np.abs(out - exact).max() < 0.5 + 1e-3
    assert np.ptp(out) > 20  # has contrast, so that rounding shows


def test_a_batch_is_its_frames_one_by_one(generator):
    stylizer = Stylizer(generator, dtype=torch.float32)
    batch = frames(3, 32, 40)
    out = stylizer(batch)
    assert out.shape == batch.shape
    for one, of_batch in zip(batch, out, strict=True):
        np.testing.assert_array_equal(of_batch, stylizer(one))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dark_frame_takes_no_digits_from_a_bright_one_in_its_batch(generator, dtype):
    """Subtracting the mean colour of both would leave the bright frame a large mean."""
    stylizer = Stylizer(generator, dtype)
    bright, dark = frames(2, 32, 40)
    bright = 250 + bright // 64  # little contrast
    np.testing.assert_array_equal(stylizer(np.stack([bright, dark // 64]))[0], stylizer(bright))


class RoundedConvolutions(TorchFunctionMode):
    """Rounds the outputs of convolutions to float32: rounding in float64 depends on the place."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        convolutions = (torch.conv2d, F.conv2d, torch.conv_transpose2d, F.conv_transpose2d)
        return y.float().to(y.dtype) if function in convolutions else y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frame_of_one_colour_becomes_one_of_one_colour(dtype):
    """Rounding that depends on the place must not be divided by the square root of eps."""
    generator = StyleGenerator.from_pretrained("wave")
    in_float64 = copy.deepcopy(generator).double()
    stylizer, tiled = (Stylizer(generator, dtype, tile=tile) for tile in (None, 64))
    for color in ((0, 0, 0), (255, 255, 255), (200, 30, 90)):
        frame = np.full((71, 130, 3), color, np.uint8)
        x = torch.from_numpy(frame[:64, :64] / 255).permute(2, 0, 1)[None]
        with torch.no_grad(), RoundedConvolutions(), use_impl("reference"):
            planes = (255 * in_float64(x))[0].flatten(1)
        assert (planes == planes[:, :1]).all()
        exact = planes[:, 0].round().numpy()
        for paint in (stylizer, tiled):
            assert np.abs(paint(frame) - exact).max() <= (1 if dtype == torch.float32 else 4)
    batch = np.stack([frame, frames(*frame.shape[:2]), frame // 2])
    out = stylizer(batch)
    for one, of_batch in zip(batch, out, strict=True):
        np.testing.assert_array_equal(of_batch, stylizer(one))
    frame[70, 129, 2] += 1  # one colour but for one pixel
    assert np.ptp(stylizer(frame)) > 20


def test_tensors_come_back_as_tensors_and_arrays_as_arrays(generator):
    stylizer = Stylizer(generator, dtype=torch.float32)
    frame = frames(32, 40)
    from_array = stylizer(frame)
    from_tensor = stylizer(torch.from_numpy(frame))
    assert isinstance(from_array, np.ndarray)
    assert isinstance(from_tensor, torch.Tensor)
    assert from_tensor.dtype == torch.uint8
    assert from_tensor.device.type == "cpu"
    np.testing.assert_array_equal(from_array, from_tensor.numpy())


@pytest.mark.parametrize(
    "view",
    [lambda f: f[:, ::-1], lambda f: f[..., ::-1], lambda f: f[::2, 1:], lambda f: f],
    ids=["mirrored", "bgr", "cropped", "read-only"],
)
def test_any_view_of_memory_will_do_and_is_not_written_to(generator, view):
    stylizer = Stylizer(generator, dtype=torch.float32)
    frame = frames(64, 50)
    before = frame.copy()
    frame.flags.writeable = False
    np.testing.assert_array_equal(stylizer(view(frame)), stylizer(view(before).copy()))
    np.testing.assert_array_equal(frame, before)


def test_the_generator_is_left_as_it_was(generator):
    generator = copy.deepcopy(generator).train()
    weights = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    Stylizer(generator, dtype=torch.bfloat16)(frames(32, 32))
    assert generator.training
    assert all(parameter.requires_grad for parameter in generator.parameters())
    for name, tensor in generator.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)


def test_the_network_runs_in_evaluation_mode(generator):
    dropping = torch.nn.Sequential(generator, torch.nn.Dropout(0.5)).train()
    frame = frames(32, 32)
    dropped, whole = (Stylizer(x, dtype=torch.float32)(frame) for x in (dropping, generator))
    np.testing.assert_array_equal(dropped, whole)


def replace_method(generator):
    plain = type(generator).forward
    generator.forward = types.MethodType(lambda self, x: 1 - plain(self, x), generator)


def replace_convolution(**options):
    """A convolution of the same weights, with other options of the same output size."""

    def change(generator):
        block = generator.residual[0].first
        old = block.conv
        new = torch.nn.Conv2d(8, 8, 3, **({"padding": 1, "bias": False} | options))
        with torch.no_grad():
            new.weight.copy_(old.weight[:, : new.weight.shape[1]])
        block.conv = new

    return change


def track_statistics(generator):
    norm = generator.down[1].norm
    tracking = type(norm)(6, affine=True, track_running_stats=True, activation="relu")
    tracking.running_mean.uniform_(-1, 1)
    tracking.running_var.uniform_(1, 2)
    generator.down[1].norm = tracking


def assign(path, **attributes):
    def change(generator):
        module = generator.get_submodule(path)
        for name, value in attributes.items():
            setattr(module, name, value)

    return change


class Negative(StyleGenerator):
    def forward(self, x):
        return 1 - super().forward(x)


class Doubled(torch.nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Halved(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


def share_blocks(generator):
    generator.residual.append(generator.residual[0])


#: Modifications of a generator; each changes the picture.
CHANGES = {
    "subclass": lambda g: setattr(g, "__class__", Negative),
    "subclassed layer": lambda g: setattr(g.to_rgb, "__class__", Doubled),
    "replaced forward": replace_method,
    "replaced forward of a layer": assign("to_rgb", forward=lambda x: x[:, :3] * 4),
    "replaced method of a layer": assign("to_rgb", _conv_forward=lambda x, w, b: x[:, :3] * 4),
    "forward hook": lambda g: g.to_rgb.register_forward_hook(lambda module, given, y: 8 - y),
    "forward pre-hook": lambda g: g.to_rgb.register_forward_pre_hook(lambda module, x: x[0] / 2),
    "another module": lambda g: g.residual.__setitem__(0, torch.nn.Identity()),
    "one module more": lambda g: g.residual.append(torch.nn.ReLU()),
    "a block twice": share_blocks,
    "dilation": replace_convolution(padding=2, dilation=2, padding_mode="reflect"),
    "dilation set later": assign(
        "residual.0.first.conv",
        dilation=(2, 2),
        padding=(2, 2),
        _reversed_padding_repeated_twice=[2] * 4,
    ),
    "groups": replace_convolution(groups=2, padding_mode="reflect"),
    "zeros around": replace_convolution(),
    "circular padding": replace_convolution(padding_mode="circular"),
    "padding by name": replace_convolution(padding="same", dilation=3, padding_mode="reflect"),
    "bias of a convolution": lambda g: setattr(g.to_rgb, "bias", None),
    "eps": assign("down.1.norm", eps=0.5),
    "eps of the upsampling": assign("up.1", eps=50.0),
    "activation": assign("residual.0.second.norm", activation="relu"),
    "activation of the upsampling": assign("up.1", activation="none"),
    "norm of the upsampling": assign("up.1", norm="none", norm_weight=None, norm_bias=None),
    "border of the upsampling": assign("up.0", padding_mode="zeros"),
    "residual first": assign("residual.0.second.norm", residual_first=True, activation="relu"),
    "running statistics": track_statistics,
    "norm without weights": lambda g: (
        setattr(g.down[1].norm, "weight", None),
        setattr(g.down[1].norm, "bias", None),
    ),
    "parametrization": lambda g: parametrize.register_parametrization(g.to_rgb, "weight", Halved()),
    "pruning": lambda g: prune.random_unstructured(g.to_rgb, "weight", 0.5),
    "weight norm": lambda g: (
        torch.nn.utils.parametrizations.weight_norm(g.to_rgb),
        g.to_rgb.parametrizations.weight.original0.data.mul_(0.5),
    ),
    "config": lambda g: setattr(g, "config", dataclasses.replace(g.config, value_range=4.0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_generator_does_besides_is_done(generator, change):
    with torch.no_grad():
        changed = copy.deepcopy(generator)
        for norm in (changed.down[1].norm, changed.residual[0].second.norm):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        frame = frames(32, 40)
        before = expected(changed, frame)
        CHANGES[change](changed)
    wanted = expected(changed.eval(), frame)
    assert np.abs(wanted - before).max() > 2, "the change is no change"
    out = Stylizer(changed, dtype=torch.float32)(frame)
    assert np.abs(out - wanted).max() < 0.5 + 1e-3


@pytest.mark.parametrize("change", ["dilation", "eps", "running statistics", "replaced forward"])
def test_what_has_no_plan_is_not_run_in_tiles(generator, change):
    changed = copy.deepcopy(generator)
    with torch.no_grad():
        CHANGES[change](changed)
    with pytest.raises(ValueError, match="tile: expected None for this network, got 64"):
        Stylizer(changed, tile=64)


HARMLESS = {
    "compile": lambda g: g.compile(),
    "backward hook": lambda g: g.to_rgb.register_full_backward_hook(lambda *a: None),
    "a note": lambda g: setattr(g, "note", "painted in 1888"),
    "half precision": lambda g: g.half(),
    "training": lambda g: g.train(),
    "frozen": lambda g: g.requires_grad_(False),
    "other weights": lambda g: [p.data.mul_(1.5) for p in g.parameters()],
}


@pytest.mark.parametrize("change", HARMLESS)
def test_what_changes_no_picture_leaves_the_plan(generator, change):
    changed, state = copy.deepcopy(generator), torch.get_rng_state()
    HARMLESS[change](changed)
    assert can_plan(changed)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_plan_that_fails_leaves_a_stylizer_that_works(generator, monkeypatch):
    stylizer = Stylizer(generator, dtype=torch.float32)
    frame = frames(32, 40)
    before = stylizer(frame)

    def fail(*arguments):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("stylekernels.inference.stylizer.Plan", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            stylizer(frames(48, 40))
    np.testing.assert_array_equal(stylizer(frame), before)


def test_pictures_are_the_callers_own(generator):
    frame = torch.from_numpy(frames(32, 40))
    stylizer = Stylizer(generator, dtype=torch.float32)
    picture = stylizer(frame)
    blend(frame, picture, strength=0.5).add_(1)
    kept = picture.clone()
    picture.add_(1)  # refused for tensors of inference mode
    assert torch.equal(stylizer(frame), kept)


@pytest.mark.parametrize("dtype", ["bf16", torch.int32])
def test_other_dtypes_are_refused(generator, dtype):
    with pytest.raises(TypeError, match=r"dtype: expected None or one of torch.float32.*got"):
        Stylizer(generator, dtype=dtype)


def test_bfloat16_differs_by_its_rounding_only(generator):
    frame = frames(48, 48)
    exact = Stylizer(generator, dtype=torch.float32)(frame).astype(int)
    half = Stylizer(generator, dtype=torch.bfloat16)(frame).astype(int)
    difference = np.abs(half - exact)
    assert 0 < difference.mean() < 2
    assert difference.max() < 20


def test_the_default_arithmetic_is_the_fastest_of_our_kernels(generator, monkeypatch):
    monkeypatch.setattr(native, "cpu_missing", None)
    for capability, dtype in (
        ("avx2", torch.float32),
        ("avx512", torch.float32),
        ("avx512_bf16", torch.bfloat16),
        ("amx", torch.bfloat16),
    ):
        monkeypatch.setattr(native, "cpu_capability", capability)
        assert Stylizer(generator).dtype == dtype
    assert Stylizer(generator, dtype=torch.float32).dtype == torch.float32


def test_without_kernels_it_is_what_the_cpu_has_instructions_for(generator, monkeypatch):
    monkeypatch.setattr(native, "cpu_missing", "not built")
    for capabilities, dtype in (
        ({"avx2": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert Stylizer(generator).dtype == dtype


@pytest.mark.parametrize("call", [lambda s, f: s(f), lambda s, f: blend(f, f)])
@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ([[[0, 0, 0]]], TypeError, "expected a NumPy array or a torch tensor, got list"),
        (np.zeros((32, 32, 3), np.float32), TypeError, "expected uint8, got float32"),
        (torch.zeros(32, 32, 3), TypeError, "expected uint8, got torch.float32"),
        (np.zeros((3, 32, 32), np.uint8), ValueError, r"expected RGB .* got \(3, 32, 32\)"),
        (np.zeros((32, 32, 4), np.uint8), ValueError, r"expected RGB .* got \(32, 32, 4\)"),
    ],
)
def test_other_things_are_refused(generator, call, given, error, text):
    with pytest.raises(error, match=text):
        call(Stylizer(generator), given)


# ---- blend --------------------------------------------------------------------------------------


def test_strength_is_a_linear_mix_whose_ends_are_exact():
    photo, style = frames(20, 30), frames(20, 30, seed=1)
    np.testing.assert_array_equal(blend(photo, style, strength=0), photo)
    np.testing.assert_array_equal(blend(photo, style, strength=0, preserve_colors=True), photo)
    np.testing.assert_array_equal(blend(photo, style), style)
    mixed = blend(photo, style, strength=0.3)
    exact = 0.7 * photo + 0.3 * style.astype(float)
    assert np.abs(mixed - exact).max() <= 0.5 + 1e-3


def test_preserve_colors_keeps_chroma_and_takes_brightness():
    photo = frames(40, 40) // 4 + 96  # its colours stay inside the RGB cube
    style = frames(40, 40, seed=1) // 4 + 96
    out = blend(photo, style, preserve_colors=True).astype(float)
    chroma = out - (out @ LUMA)[..., None]
    wanted = photo - (photo @ LUMA)[..., None]
    assert np.abs(chroma - wanted).max() <= 1.0  # two roundings of half a level
    assert np.abs(out @ LUMA - style @ LUMA).max() <= 0.5 + 1e-3
    assert np.abs(photo @ LUMA - style @ LUMA).max() > 30


def test_preserve_colors_gives_up_saturation_before_hue_or_brightness():
    photo = np.full((1, 1, 3), (255, 0, 0), np.uint8)
    for level in (0, 40, 128, 250, 255):
        style = np.full((1, 1, 3), level, np.uint8)
        red, green, blue = blend(photo, style, preserve_colors=True)[0, 0].astype(float)
        assert abs(np.dot(LUMA, (red, green, blue)) - level) <= 1
        assert green == blue
        assert red >= green


def test_preserve_colors_leaves_grey_grey():
    photo = np.repeat(frames(20, 20)[..., :1], 3, axis=2)
    out = blend(photo, frames(20, 20, seed=1), preserve_colors=True)
    assert (out == out[..., :1]).all()


def test_tensors_are_blended_as_arrays_are():
    photo, style = frames(2, 20, 30), frames(2, 20, 30, seed=1)
    options = {"strength": 0.6, "preserve_colors": True}
    out = blend(torch.from_numpy(photo), torch.from_numpy(style), **options)
    assert isinstance(out, torch.Tensor)
    np.testing.assert_array_equal(out.numpy(), blend(photo, style, **options))


def test_blend_refuses_other_shapes_and_strengths():
    with pytest.raises(ValueError, match=r"photo's shape \(20, 30, 3\), got \(20, 31, 3\)"):
        blend(frames(20, 30), frames(20, 31))
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength: expected a number from 0 to 1"):
            blend(frames(20, 30), frames(20, 30), strength=strength)
