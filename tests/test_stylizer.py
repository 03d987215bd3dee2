"""The stylizer and the blend: frames in, frames out, of the same kind."""

import copy

import numpy as np
import pytest
import torch

from stylekernels import native
from stylekernels.inference import Stylizer, blend
from tests.pictures import LUMA


def frames(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def expected(generator, frame):
    """One frame by the plain definition: [0, 1] in, times 255, to nearest."""
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
    assert np.ptp(out) > 20  # not a grey plate, on which rounding could not be seen


def test_a_batch_is_its_frames_one_by_one(generator):
    stylizer = Stylizer(generator, dtype=torch.float32)
    batch = frames(3, 32, 40)
    out = stylizer(batch)
    assert out.shape == batch.shape
    for one, of_batch in zip(batch, out, strict=True):
        assert np.abs(stylizer(one).astype(int) - of_batch).max() <= 1


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


@pytest.mark.parametrize("change", ["subclass", "hook", "another module"])
def test_what_a_generator_does_besides_is_done(generator, change):
    generator = copy.deepcopy(generator)
    if change == "subclass":

        class Negative(type(generator)):
            def forward(self, x):
                return 1 - super().forward(x)

        generator.__class__ = Negative
    elif change == "hook":
        generator.to_rgb.register_forward_hook(lambda module, given, y: 8 - y)
    else:
        generator.residual[0] = torch.nn.Identity()
    frame = frames(32, 40)
    out = Stylizer(generator, dtype=torch.float32)(frame)
    assert np.abs(out - expected(generator, frame)).max() < 0.5 + 1e-3


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
        ("avx2", torch.float32), ("avx512", torch.float32), ("avx512_bf16", torch.bfloat16),
        ("amx", torch.bfloat16),
    ):  # fmt: skip
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
    photo = frames(40, 40) // 4 + 96  # colours that stay inside the RGB cube
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
