"""The command line: written files, output, refusals and exit codes."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms
from safetensors.torch import save_file

from stylekernels.cli.main import main
from stylekernels.inference import Stylizer
from stylekernels.media import Photo, images, outputs
from stylekernels.models import GeneratorConfig, StyleGenerator, bundled_styles
from tests.pictures import LUMA, complaints, load, picture, save, written

# ---- what is written ----------------------------------------------------------------------------


def test_one_photo_to_a_file(folder, style, generator, capsys):
    save("in.png")
    assert main(["stylize", "in.png", "--style", style, "--output", "out.png"]) == 0
    assert written(folder) == {"in.png", "out.png"}
    np.testing.assert_array_equal(load("out.png"), Stylizer(generator)(picture()))
    captured = capsys.readouterr()
    assert captured.out.startswith("out.png ")
    assert captured.err == ""


def test_many_photos_to_a_folder_keep_their_names(folder, style, capsys):
    save("a.jpg")
    save("deep/b.PNG")
    save("album/c.webp")
    save("album/d.gif")
    save("album/.hidden.png")
    Path("album/notes.txt").write_text("not a photo")
    assert main(["stylize", "a.jpg", "deep/b.PNG", "album", "-s", style, "-o", "new/out"]) == 0
    assert written(folder / "new") == {"out/a.jpg", "out/b.PNG", "out/c.webp", "out/d.png"}
    assert Image.open("new/out/a.jpg").format == "JPEG"
    assert Image.open("new/out/b.PNG").format == "PNG"
    assert "4 photos in new/out/  " in capsys.readouterr().out


def test_the_default_folder(folder, style):
    save("a.png")
    assert main(["stylize", "a.png", "-s", style]) == 0
    assert written(folder) == {"a.png", "stylized/a.png"}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.png", {"a.png"}),
        ("**/*.png", {"a.png", "b.png", "c.png"}),
        ("trip/?.png", {"b.png"}),
        ("odd[[]1].jpg", {"odd[1].jpg"}),
        ("odd[1].jpg", {"odd[1].jpg"}),  # a file's own name comes before its pattern
    ],
)
def test_patterns_the_shell_left_alone(folder, style, pattern, found):
    for path in ("a.png", "trip/b.png", "trip/deeper/c.png", "odd[1].jpg"):
        save(path)
    assert main(["stylize", pattern, "-s", style, "-o", "out"]) == 0
    assert written(folder / "out") == found


def test_a_photo_named_twice_is_done_once(folder, style, capsys):
    save("a.png")
    Path("link.png").symlink_to("a.png")
    assert main(["stylize", "a.png", "./a.png", "*.png", "-s", style, "-o", "out"]) == 0
    assert written(folder / "out") == {"a.png"}


def test_orientation_exif_and_profile_reach_the_output(folder, style):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "A. Painter"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    save("in.jpg", exif=exif, icc_profile=profile)
    assert main(["stylize", "in.jpg", "-s", style, "-o", "out.jpg"]) == 0
    with Image.open("out.jpg") as out:
        assert out.size == (40, 56)
        assert ExifTags.Base.Orientation not in out.getexif()
        assert out.getexif()[ExifTags.Base.Artist] == "A. Painter"
        assert out.info["icc_profile"] == profile


def test_the_network_works_in_srgb_and_the_rest_in_the_photos_own_colours(
    folder, style, generator, monkeypatch
):
    monkeypatch.setattr(Photo, "to_srgb", lambda photo: 255 - photo.rgb)
    monkeypatch.setattr(Photo, "from_srgb", lambda photo, rgb: rgb // 2)
    save("a.png")
    assert main(["stylize", "a.png", "-s", style, "-o", "out.png"]) == 0
    np.testing.assert_array_equal(load("out.png"), Stylizer(generator)(255 - picture()) // 2)
    assert main(["stylize", "a.png", "-s", style, "-o", "same.png", "--strength", "0"]) == 0
    np.testing.assert_array_equal(load("same.png"), picture())


def test_alpha_16_bit_and_grey_come_through(folder, style):
    alpha = np.arange(40 * 56).reshape(40, 56).astype(np.uint8)
    save("alpha.png", np.dstack([picture(), alpha]))
    save("deep.png", picture()[..., 0].astype(np.uint16) * 257)
    save("grey.jpg", picture()[..., 0])
    assert main(["stylize", "alpha.png", "deep.png", "grey.jpg", "-s", style, "-o", "out"]) == 0
    np.testing.assert_array_equal(load("out/alpha.png")[..., 3], alpha)
    assert load("out/deep.png").shape == load("out/grey.jpg").shape == (40, 56, 3)


def test_size_is_the_longer_side(folder, style):
    save("a.png")
    save("small.png", picture(20, 24))
    assert main(["stylize", "a.png", "small.png", "-s", style, "-o", "out", "--size", "28"]) == 0
    assert load("out/a.png").shape == (20, 28, 3)
    assert load("out/small.png").shape == (20, 24, 3)


def test_strength_goes_from_the_photo_to_the_style(folder, style, generator):
    save("a.png")
    for strength in ("0", "0.5", "1"):
        command = ["stylize", "a.png", "-s", style, "-o", f"{strength}.png", "--strength", strength]
        assert main(command) == 0
    painted = Stylizer(generator)(picture())
    np.testing.assert_array_equal(load("0.png"), picture())
    np.testing.assert_array_equal(load("1.png"), painted)
    assert np.abs(load("0.5.png") - (picture() / 2 + painted / 2)).max() <= 0.5


def test_preserve_colors_keeps_the_photos_chroma(folder, style, generator):
    save("a.png")
    assert main(["stylize", "a.png", "-s", style, "-o", "b.png", "--preserve-colors"]) == 0
    out, painted = load("b.png").astype(float), Stylizer(generator)(picture())
    assert np.abs(out @ LUMA - painted @ LUMA).max() <= 1
    inside = ((out > 2) & (out < 253)).all(-1)
    chroma = [image - (image @ LUMA)[..., None] for image in (out, picture().astype(float))]
    assert inside.mean() > 0.5
    assert np.abs(chroma[0] - chroma[1])[inside].max() <= 1.5


# ---- bad photos among good ones -----------------------------------------------------------------


def test_bad_photos_are_reported_and_the_rest_is_done(folder, style, capsys):
    save("good.png")
    save("also.jpg")
    save("cut.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    Path("cut.jpg").write_bytes(Path("cut.jpg").read_bytes()[:1500])
    Path("note.jpg").write_text("Dear diary")
    save("tiny.png", picture(15, 40))
    bad = ["missing.jpg", "cut.jpg", "note.jpg", "tiny.png", "nothing/*.jpg"]
    command = ["stylize", "good.png", *bad, "also.jpg", "-s", style, "-o", "out"]
    assert main(command) == 2
    assert written(folder / "out") == {"good.png", "also.jpg"}
    lines = complaints(capsys)
    assert [line.split(": ")[0] for line in lines] == [
        "missing.jpg",
        "nothing/*.jpg",
        "cut.jpg",
        "note.jpg",
        "tiny.png",
    ]
    assert lines[0].endswith(": no such file")
    assert lines[1].endswith(": no file matches this pattern")
    assert lines[2].endswith(": cut short: a part of the picture is missing")
    assert lines[3].endswith(": not a picture in a format that can be read")
    assert lines[4].endswith(": expected at least 16 pixels on each side, got 40x15")


def test_what_its_format_cannot_hold_is_not_painted(folder, style, capsys, monkeypatch):
    save("wide.png", picture(16, 16384))
    save("clear.png", np.dstack([picture(), picture()[..., 0]]))

    def fail(*arguments, **options):
        raise AssertionError("painted")

    monkeypatch.setattr(Stylizer, "__call__", fail)
    assert main(["stylize", "wide.png", "-s", style, "-o", "out/wide.webp"]) == 2
    assert main(["stylize", "clear.png", "-s", style, "-o", "out/clear.jpg"]) == 2
    too_wide, transparent = complaints(capsys)
    assert too_wide == (
        "out/wide.webp: WEBP has at most 16383 pixels a side, the picture is 16384x16; scale it "
        "down, or give it a name that ends in .png or .tiff"
    )
    assert "out/clear.jpg: the picture is partly transparent and JPEG has no" in transparent
    assert written(folder) == {"wide.png", "clear.png"}


def test_an_empty_folder_is_reported(folder, style, capsys):
    Path("empty").mkdir()
    assert main(["stylize", "empty", "-s", style]) == 2
    assert complaints(capsys) == ["empty: no photos in this folder"]
    assert written(folder) == set()


def test_odd_names(folder, style, capsys):
    save("~nobody.png")
    save("-dash.png")
    command = ["stylize", "-s", style, "-o", "out", "~nobody.png", "n" * 300, "--", "-dash.png"]
    assert main(command) == 2
    assert written(folder / "out") == {"~nobody.png", "-dash.png"}
    assert complaints(capsys) == ["n" * 300 + ": cannot be looked up: File name too long"]


def test_too_little_memory_is_a_message(folder, style, capsys, monkeypatch):
    save("a.png")

    def fail(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate a lot")

    monkeypatch.setattr(Stylizer, "__call__", fail)
    assert main(["stylize", "a.png", "-s", style]) == 2
    assert complaints(capsys) == [
        "a.png: 56x40 pixels need more memory than there is; paint in tiles with --tile 1024, or "
        "scale down with --size"
    ]
    assert written(folder) == {"a.png"}


@pytest.mark.parametrize("when", ["before", "during"])
def test_interrupted(folder, style, capsys, monkeypatch, when):
    save("a.png")
    save("b.png")

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    if when == "before":
        monkeypatch.setattr(Stylizer, "__call__", interrupt)
    else:
        monkeypatch.setattr(images.os, "replace", interrupt)
    assert main(["stylize", "a.png", "b.png", "-s", style]) == 130
    assert complaints(capsys) == ["interrupted"]
    assert written(folder) == {"a.png", "b.png"}


# ---- refused before any work --------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def other_architecture(path):
    save_file({"layer.weight": torch.ones(3, 3)}, path)


def code(path):
    with open(path, "wb") as file:
        pickle.dump({"weight": Bomb()}, file)


def code_in_a_torch_file(path):
    torch.save({"weight": Bomb()}, path)


def cut_short(path):
    StyleGenerator(GeneratorConfig(channels=(4, 6, 8), residual_blocks=1)).save_pretrained(path)
    Path(path).write_bytes(Path(path).read_bytes()[:3000])


def note(path):
    Path(path).write_text("Dear diary")


@pytest.mark.parametrize("make", [other_architecture, code, code_in_a_torch_file, cut_short, note])
@pytest.mark.parametrize("verb", [["stylize", "a.png", "-o", "out"], ["demo"]])
def test_files_that_are_no_style_are_refused(folder, capsys, make, verb):
    save("a.png")
    make("bad.pth")
    before = written(folder)
    assert main([*verb, "-s", "bad.pth"]) == 2
    (line,) = complaints(capsys)
    assert line.startswith("--style: bad.pth: expected ")
    assert written(folder) == before
    assert not Path("exploded").exists()
    assert not Path("out").exists()


def test_a_style_that_does_not_exist_lists_those_that_do(folder, capsys):
    save("a.png")
    assert main(["stylize", "a.png", "-s", "cubist"]) == 2
    (line,) = complaints(capsys)
    assert line.startswith("--style: expected a bundled style (")
    assert "got 'cubist'" in line
    assert all(name in line for name in bundled_styles())
    assert written(folder) == {"a.png"}


def test_a_path_is_no_name_of_a_bundled_style(folder, generator):
    name = bundled_styles()[0]
    save("a.png")
    generator.save_pretrained(name)
    assert main(["stylize", "a.png", "-s", f"./{name}", "-o", "out.png"]) == 0
    np.testing.assert_array_equal(load("out.png"), Stylizer(generator)(picture()))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["a.png", "--size", "15"], "--size: expected at least 16 pixels, got 15"),
        (["a.png", "--size", "-3"], "--size: expected at least 16 pixels, got -3"),
        (["a.png", "--strength", "1.01"], "--strength: expected a number from 0 to 1, got 1.01"),
        (["a.png", "--strength", "nan"], "--strength: expected a number from 0 to 1, got nan"),
        (["a.png", "--device", "tpu"], "--device: expected cpu or cuda, got 'tpu'"),
        ([], "PHOTO: expected at least one file, folder or pattern, got none"),
        (["a.png", "-o", "a.png"], "--output: a.png: the result would replace this file"),
        (["a.png", "-o", "."], "--output: a.png: the result would replace this file"),
        (["a.png", "-o", "link.png"], "--output: link.png: the result would replace this file"),
        (["a.png", "b/a.png", "-o", "b"], "--output: b/a.png: the result would replace"),
        (
            ["a.png", "b/a.png", "-o", "out"],
            "--output: a.png and b/a.png would both become out/a.png; stylize them into different",
        ),
        (
            ["b/c.gif", "b/c.png", "-o", "out"],
            "--output: b/c.gif and b/c.png would both become out/c.png",
        ),
        (["b", "-o", "x.jpg"], "--output: x.jpg: expected a folder for 3 results"),
        (["b", "-o", "note"], "--output: note: expected a folder for the results, got a file"),
        (["a.png", "-o", "note/x.png"], "--output: note: this cannot be a folder, because note is"),
        (["a.png", "-o", "x.doc"], "--output: x.doc: expected a file name that ends in one of"),
        (["a.png", "-o", "b.dir/"], None),
    ],
)
def test_arguments(folder, style, capsys, arguments, text):
    for path in ("a.png", "b/a.png", "b/c.gif", "b/c.png"):
        save(path)
    Path("note").write_text("a file")
    Path("link.png").symlink_to("a.png")
    before = written(folder)
    code = main(["stylize", *arguments, "-s", style])
    if text is None:
        assert code == 0
        return
    assert code == 2
    (line,) = complaints(capsys)
    assert line.startswith(text)
    assert written(folder) == before
    assert not Path("out").exists()


def test_a_folder_without_permission(folder, style, capsys, monkeypatch):
    save("a.png")
    Path("locked").mkdir()

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refuse)
    assert main(["stylize", "a.png", "-s", style, "-o", "locked"]) == 2
    assert complaints(capsys) == ["--output: locked: no permission to write in locked"]


def test_what_the_parser_refuses_has_exit_code_2(folder, capsys):
    save("a.png")
    for command in ([], ["paint"], ["stylize", "a.png"], ["stylize", "a.png", "--colour", "x"]):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.err
        assert "Traceback" not in captured.err
        assert captured.out == ""
