"""Tiles: the picture of the whole image without a seam, in bounded memory."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stylekernels import instance_norm_stats, use_impl
from stylekernels.cli.main import main
from stylekernels.inference import Stylizer, tiling
from stylekernels.inference.layers import layers_of
from stylekernels.inference.plan import Plan, pack
from stylekernels.inference.sweep import Sweep, merge_statistics
from stylekernels.inference.tiles import margin_of, spans
from stylekernels.inference.tiling import thumbnail
from stylekernels.media import TooManyPixels, read_photo
from stylekernels.models import GeneratorConfig, StyleGenerator
from tests.pictures import complaints, load, picture, save, written

UPSAMPLINGS = ("transpose", "transpose3", "nearest")


def tiny(upsample="transpose", **changes):
    torch.manual_seed(0)
    options = {"channels": (4, 6, 8), "residual_blocks": 1, "upsample": upsample, **changes}
    generator = StyleGenerator(GeneratorConfig(**options)).eval()
    with torch.no_grad():  # low contrast, which clamping does not hide
        generator.to_rgb.weight.mul_(0.6)
    return generator


def frames(*shape, seed=0):
    """Noise, so that every pixel of a tile's halo matters, brighter to the right."""
    noise = np.random.default_rng(seed).integers(0, 128, (*shape, 3), np.uint8)
    return noise + np.linspace(0, 127, shape[-1]).astype(np.uint8)[:, None]


def stylize(generator, frame, **options):
    return Stylizer(generator, torch.float32, **options)(frame).astype(int)


@pytest.fixture(params=["all", "some", "none"])
def kept(request, monkeypatch):
    """The number of tensors between layers that are kept for the whole image."""
    budget = {"all": tiling.WHOLE_TENSORS, "some": 400_000, "none": 0}[request.param]
    monkeypatch.setattr(tiling, "WHOLE_TENSORS", budget)
    return request.param


# ---- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("upsample", UPSAMPLINGS)
@pytest.mark.parametrize(("size", "tile"), [((333, 277), 128), ((16, 257), 64), ((130, 202), 90)])
def test_exact_is_the_whole_image_to_rounding(kept, upsample, size, tile):
    generator, frame = tiny(upsample), frames(*size)
    whole, tiled = stylize(generator, frame), stylize(generator, frame, tile=tile)
    assert np.ptp(whole) > 20
    assert np.abs(tiled - whole).max() <= 1
    assert (tiled != whole).mean() < 1e-3  # some pixels are between two levels


def test_exact_in_a_bundled_style(kept):
    generator = StyleGenerator.from_pretrained("starry_night")
    size, tile = ((301, 397), 208) if kept == "all" else ((100, 133), 80)
    frame = picture(*size)
    whole, tiled = stylize(generator, frame), stylize(generator, frame, tile=tile)
    assert np.ptp(whole) > 100
    assert np.abs(tiled - whole).max() <= 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_exact_in_other_arithmetic(kept, dtype):
    generator, frame = tiny(), frames(133, 150)
    whole = Stylizer(generator, dtype)(frame).astype(int)
    difference = np.abs(Stylizer(generator, dtype, tile=64)(frame) - whole)
    assert difference.max() <= (0 if dtype == torch.float64 else 4)
    assert difference.mean() < 0.1


def test_exact_in_plain_pytorch(kept):
    generator, frame = tiny("nearest"), frames(70, 101)
    with use_impl("reference"):
        whole, tiled = stylize(generator, frame), stylize(generator, frame, tile=64)
    assert np.abs(tiled - whole).max() <= 1


@pytest.mark.parametrize("mode", tiling.TILE_MODES)
def test_a_batch_is_its_frames_one_by_one(mode):
    stylizer = Stylizer(tiny(), torch.float32, tile=64, tile_mode=mode)
    batch = frames(3, 70, 101)
    batch[1] //= 2
    out = stylizer(torch.from_numpy(batch))
    assert isinstance(out, torch.Tensor)
    for frame, picture_of_batch in zip(batch, out, strict=True):
        np.testing.assert_array_equal(picture_of_batch, stylizer(frame))


def test_no_frames_make_no_pictures():
    nothing = np.zeros((0, 80, 70, 3), np.uint8)
    assert Stylizer(tiny(), torch.float32, tile=64)(nothing).shape == nothing.shape


@pytest.mark.parametrize("mode", tiling.TILE_MODES)
def test_images_up_to_a_tile_are_not_cut(mode, monkeypatch):
    monkeypatch.setattr(Sweep, "paint", None)
    generator, frame = tiny(), frames(96, 64)
    tiled = stylize(generator, frame, tile=96, tile_mode=mode)
    np.testing.assert_array_equal(tiled, stylize(generator, frame))


# ---- thumbnail ----------------------------------------------------------------------------------


def test_a_thumbnail_of_full_size_gives_the_whole_image(monkeypatch):
    monkeypatch.setattr(tiling, "thumbnail", lambda frame, size: frame)
    generator, frame = tiny(), frames(150, 189)
    tiled = stylize(generator, frame, tile=64, tile_mode="thumbnail")
    assert np.abs(tiled - stylize(generator, frame)).max() <= 1


def test_a_thumbnail_has_the_contrasts_of_the_image():
    """A soft picture loses nothing when it is scaled down, except at its border."""
    generator, frame = StyleGenerator.from_pretrained("starry_night"), picture(256, 256)
    whole = stylize(generator, frame)
    tiled = stylize(generator, frame, tile=192, tile_mode="thumbnail")
    assert np.abs(tiled.mean((0, 1)) - whole.mean((0, 1))).max() < 10
    assert np.abs(tiled.std((0, 1)) / whole.std((0, 1)) - 1).max() < 0.2


@pytest.mark.parametrize(
    ("size", "tile", "small"),
    [((256, 128), 64, (64, 32)), ((90, 270), 270, (90, 270)), ((20, 640), 64, (16, 64))],
)
def test_a_thumbnails_pixels_are_means(size, tile, small):
    frame = torch.from_numpy(frames(*size)).permute(2, 0, 1)[None]
    made = thumbnail(frame, tile)
    assert made.shape == (1, 3, *small)
    assert made.is_contiguous(memory_format=torch.channels_last)
    exact = torch.nn.functional.adaptive_avg_pool2d(frame.double(), small)
    assert (made - exact).abs().max() <= 0.5 + 1e-4


# ---- the parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 64, 65, 81, 127, 128, 129, 200, 257, 1000, 1023, 1025])
@pytest.mark.parametrize("tile", [64, 67, 96])
def test_cores_are_the_image_side_by_side(size, tile):
    row = spans(size, tile, 10, 4)
    assert row[0].core_begin == 0
    assert row[-1].core_end == size
    for left, right in itertools.pairwise(row):
        assert left.core_end == right.core_begin
    for span in row:
        assert span.core_begin % 4 == span.begin % 4 == 0
        assert span.begin == max(0, span.core_begin - 12)
        assert span.end == min(size, span.core_end + 12)
        assert 16 <= span.core_end - span.core_begin <= tile + 16
    assert len({span.length for span in row}) <= 4


@pytest.mark.parametrize("upsample", UPSAMPLINGS)
def test_no_more_is_read_than_matters(upsample):
    """The farthest pixel that influences a tile is read, and not many more."""
    config = {"channels": (8, 8, 8), "residual_blocks": 1, "kernel_size": 5}
    layers = layers_of(tiny(upsample, **config).requires_grad_(False), torch.float64)
    packed = pack(layers)
    shifts = [torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(1, 8, 1) for _ in layers[1:]]
    grey = torch.full((1, 64, 96, 3), 128, dtype=torch.uint8).permute(0, 3, 1, 2)
    edge, seen = 48, []
    with torch.inference_mode():
        plan = Plan(layers, packed, 1, 64, 96, shifts)
        before, after = (torch.empty(1, 64, 96, 3, dtype=torch.float64) for _ in range(2))
        plan(grey, before.permute(0, 3, 1, 2))
        for column in range(edge):
            dot = grey.clone(memory_format=torch.channels_last)
            dot[:, :, 32, column] = 255
            plan(dot, after.permute(0, 3, 1, 2))
            if not torch.equal(before[:, :, edge:], after[:, :, edge:]):
                seen.append(column)
    halo = edge - spans(96, 48, margin_of(layers), 4)[1].begin
    assert edge - seen[0] <= halo < edge - seen[0] + 8


def test_statistics_are_merged_where_the_mean_is_large():
    generator = torch.Generator().manual_seed(0)
    x = 3e4 + torch.randn(2, 5, 41, 64, generator=generator, dtype=torch.float64)
    x[..., 40] += 100
    parts = x.split([30, 1, 33], dim=3)
    stats = [instance_norm_stats(part) for part in parts]
    mean, var = merge_statistics(
        [part[0, 0].numel() for part in parts], *map(torch.stack, zip(*stats, strict=True))
    )
    torch.testing.assert_close(mean, x.mean((2, 3)), rtol=1e-14, atol=0)
    torch.testing.assert_close(var, x.var((2, 3), correction=0), rtol=1e-10, atol=0)


class Largest(TorchDispatchMode):
    """The largest storage that any op returned, in bytes."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.bytes = max([self.bytes, *(t.untyped_storage().nbytes() for t in tensors)])
        return out


@pytest.mark.parametrize("mode", tiling.TILE_MODES)
def test_memory_depends_on_the_tile_and_not_on_the_image(mode, monkeypatch):
    monkeypatch.setattr(tiling, "WHOLE_TENSORS", 0)
    generator, largest = tiny(channels=(4, 4, 32), kernel_size=3), []
    for width in (256, 1024):
        frame = torch.from_numpy(frames(128, width))
        with Largest() as seen:
            Stylizer(generator, torch.float32, tile=64, tile_mode=mode)(frame)
        largest.append(seen.bytes)
    assert largest[1] <= max(largest[0], 3 * 128 * 1024)  # the picture itself


BLOCKS = [3, 5, 7, 9, 11, 13]  # layers that begin a residual block, and the one after the last


@pytest.mark.parametrize(
    ("channels", "size", "budget", "expected"),
    [
        ((32, 64, 128), 1024, 1 << 30, [1, 2, *BLOCKS, 14, 15]),
        ((32, 64, 128), 1024, 0, []),
        ((32, 64, 128), 1024, 32 << 20, [3]),
        ((32, 64, 128), 1024, 64 << 20, BLOCKS),
        ((32, 64, 128), 1024, (96 << 20) - 1, BLOCKS),
        ((32, 64, 128), 1024, 96 << 20, [2, *BLOCKS, 14]),
        ((16, 32, 64), 16384, 4 << 30, [3]),
        ((16, 32, 64), 16381, (4 << 30) - 1, []),
    ],
)
def test_what_is_kept_stays_in_its_budget(channels, size, budget, expected):
    """Per pixel of a 32-64-128 network: 128, 64, 32 bytes, 32 in the blocks, 64 and 128."""
    generator = tiny(channels=channels, residual_blocks=5, kernel_size=3).requires_grad_(False)
    assert tiling.restarts(layers_of(generator, torch.float32), (size, size), budget) == expected


@pytest.mark.parametrize("mode", tiling.TILE_MODES)
def test_progress_goes_from_the_first_tile_to_the_last(kept, mode):
    seen = []
    stylizer = Stylizer(tiny(), torch.float32, tile=64, tile_mode=mode)
    stylizer(frames(2, 100, 100), progress=lambda *now: seen.append(now))
    done, totals = zip(*seen, strict=True)
    assert set(totals) == {done[-1]}
    assert len(done) >= 8
    assert all(a < b for a, b in itertools.pairwise(done))


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"tile": 63}, ValueError, "tile: expected at least 64 pixels, got 63; .* 1024"),
        ({"tile": -1}, ValueError, "tile: expected at least 64 pixels, got -1"),
        ({"tile": 256.0}, TypeError, "tile: expected a number of pixels, an int, .* got float"),
        ({"tile": True}, TypeError, "tile: expected a number of pixels, an int, .* got bool"),
        (
            {"tile_mode": "fast"},
            ValueError,
            "tile_mode: expected one of exact, thumbnail, got 'fast'",
        ),
    ],
)
def test_wrong_tiles_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        Stylizer(tiny(), **options)


@pytest.mark.parametrize("network", [torch.nn.Identity(), tiny(kernel_size=11)])
def test_networks_that_cannot_be_cut_are_refused(network):
    with pytest.raises(ValueError, match="tile: expected None for this network, got 256; tiles"):
        Stylizer(network, tile=256)


def test_too_small_images_are_refused():
    with pytest.raises(ValueError, match="frames: expected at least 16 pixels a side, got 200x15"):
        Stylizer(tiny(), tile=64)(frames(15, 200))


# ---- the command line ---------------------------------------------------------------------------


def test_a_photo_in_tiles(folder, style, generator):
    save("a.png", picture(150, 210))
    for mode in tiling.TILE_MODES:
        command = ["stylize", "a.png", "-s", style, "-o", f"{mode}.png", "--tile", "96"]
        assert main([*command, "--tile-mode", mode]) == 0
        stylizer = Stylizer(generator, tile=96, tile_mode=mode)
        np.testing.assert_array_equal(load(f"{mode}.png"), stylizer(picture(150, 210)))
    assert np.abs(load("exact.png") - Stylizer(generator)(picture(150, 210)).astype(int)).max() <= 1
    assert (load("exact.png") != load("thumbnail.png")).any()


def test_too_small_tiles_are_refused(folder, style, capsys):
    save("a.png")
    assert main(["stylize", "a.png", "-s", style, "--tile", "63"]) == 2
    assert complaints(capsys) == ["--tile: expected at least 64 pixels, got 63; try 1024"]


def test_a_mode_without_tiles_is_refused(folder, style, capsys):
    save("a.png")
    assert main(["stylize", "a.png", "-s", style, "--tile-mode", "thumbnail"]) == 2
    (line,) = complaints(capsys)
    assert line == "--tile-mode thumbnail: expected --tile with it; try --tile 1024"


def test_pictures_beyond_the_limit_are_read_for_tiles_only(folder, style, capsys, monkeypatch):
    save("huge.png", picture(100, 130))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    assert main(["stylize", "huge.png", "-s", style, "-o", "out.png"]) == 2
    (line,) = complaints(capsys)
    assert line.endswith("scale it down first, or paint it in tiles with --tile 1024")
    assert written(folder) == {"huge.png"}
    assert main(["stylize", "huge.png", "-s", style, "-o", "out.png", "--tile", "64"]) == 0
    assert Image.MAX_IMAGE_PIXELS == 6000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load("out.png").shape == (100, 130, 3)


def test_a_real_bomb_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(TooManyPixels, match=r"more than 178 megapixels, .* scale it down first"):
        read_photo(path)
