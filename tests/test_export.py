"""Styles for other programs: ONNX, and packages for C++."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils import cpp_extension

from stylekernels import native
from stylekernels.cli.main import main
from stylekernels.export.onnx_model import to_onnx
from stylekernels.export.torch_package import FusedGenerator, write_package
from stylekernels.inference import Stylizer
from stylekernels.models import GeneratorConfig, StyleGenerator
from tests.pictures import complaints, written

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "stylize.cpp"
SIZES = [(48, 64), (51, 77), (97, 18), (16, 16)]


def network(upsample):
    torch.manual_seed(0)
    generator = StyleGenerator(
        GeneratorConfig(channels=(4, 6, 8), residual_blocks=2, kernel_size=5, upsample=upsample)
    ).eval()
    with torch.no_grad():
        generator.to_rgb.weight.mul_(3)
        for module in generator.modules():
            if getattr(module, "norm_weight", None) is not None:
                module.norm_bias.uniform_(-0.5, 0.5)
    return generator


def frames(*shape):
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)


def levels_apart(a, b):
    return np.abs(np.asarray(a).astype(int) - b).max()


def run_onnx(model, x):
    onnxruntime = pytest.importorskip("onnxruntime")
    data = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (picture,) = session.run(["pictures"], {"frames": x})
    return picture


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("upsample", ["nearest", "transpose", "transpose3"])
def test_onnx_makes_the_same_picture(upsample, dtype):
    pytest.importorskip("onnx")
    generator = network(upsample)
    model, paint = to_onnx(generator, dtype), Stylizer(generator, torch.float32)
    for size in SIZES:
        x = frames(2, *size)
        picture = run_onnx(model, x)
        assert picture.dtype == np.uint8
        assert levels_apart(picture, paint(x)) <= 1
        assert picture.std() > 10


def test_onnx_refuses_other_networks():
    pytest.importorskip("onnx")
    generator = network("nearest")
    with pytest.raises(TypeError, match=r"dtype: expected torch\.float32 or torch\.float16"):
        to_onnx(generator, torch.bfloat16)
    generator.residual[0].first.conv.dilation = (2, 2)
    for refusing in (to_onnx, FusedGenerator):
        with pytest.raises(TypeError, match="generator: expected an unmodified StyleGenerator"):
            refusing(generator)


def test_the_verb_writes_onnx(folder, style, generator, capsys):
    pytest.importorskip("onnx")
    assert main(["export", style, "-o", "a/full.onnx"]) == 0
    assert main(["export", style, "--float16"]) == 0
    assert "brush.onnx: 0.0 MB" in capsys.readouterr().out
    assert written(folder) == {"a/full.onnx", "brush.onnx"}
    x = frames(1, 40, 33)
    for path in ("a/full.onnx", "brush.onnx"):
        assert levels_apart(run_onnx(path, x), Stylizer(generator, torch.float32)(x)) <= 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["none"], "STYLE: expected a bundled style ("),
        (["{style}", "-o", "x.pt2"], "--output: expected a name that ends in .onnx, got x.pt2"),
        (["{style}", "-o", "{style}/x.onnx"], "--output: "),
        (
            ["{style}", "--format", "torch", "--float16"],
            "--float16: expected --format onnx, got torch",
        ),
    ],
)
def test_what_does_not_fit_is_refused(folder, style, capsys, arguments, line):
    assert main(["export", *(argument.format(style=style) for argument in arguments)]) == 2
    assert complaints(capsys)[-1].startswith(line)
    assert written(folder) == set()


def test_without_onnx_it_says_what_to_install(folder, style, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", style]) == 2
    assert complaints(capsys) == [
        "export: needs onnx, which is not installed; pip install stylekernels[export]"
    ]
    assert written(folder) == set()


def test_without_a_compiler_or_the_kernels_there_is_no_package(folder, style, capsys, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(native, "cpu_missing", None)
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert main(["export", style, "--format", "torch"]) == 2
    assert complaints(capsys) == [
        "--format torch: needs a C++ compiler, and no-such-compiler does not run; install one, or "
        "set the environment variable CXX to the name of another"
    ]
    monkeypatch.setattr(native, "cpu_missing", "not built; reinstall stylekernels")
    assert main(["export", style, "--format", "torch"]) == 2
    assert complaints(capsys) == [
        "--format torch: needs this library's kernels for the CPU, which are not built; reinstall "
        "stylekernels"
    ]
    assert written(folder) == set()


@pytest.mark.parametrize("upsample", ["nearest", "transpose"])
def test_the_exported_chain_makes_the_same_picture(upsample):
    generator = network(upsample)
    fused, paint = FusedGenerator(generator), Stylizer(generator, torch.float32)
    for size in ((48, 64), (16, 100)):
        x = frames(1, *size)
        with torch.no_grad():
            assert levels_apart(fused(torch.from_numpy(x)), paint(x)) <= 1


@pytest.mark.skipif(native.cpu_missing is not None, reason="the library is not built")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_a_program_in_cpp(folder, generator):
    """The example builds, and paints without Python."""
    write_package("style.pt2", generator)
    torch_lib = Path(torch.__file__).parent / "lib"
    include = [f"-I{path}" for path in cpp_extension.include_paths()]
    link = [f"-L{torch_lib}", f"-Wl,-rpath,{torch_lib}", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    build = ["g++", "-std=c++20", "-O0", *include, str(EXAMPLE), "-o", "stylize", *link]
    subprocess.run(build, check=True)
    library = Path(native.__file__).parent / "libstylekernels_cpu.so"
    photo = frames(50, 71)
    header = b"P6 # made by hand\n71 50\n# levels:\n255\n"
    Path("photo.ppm").write_bytes(header + photo.tobytes())
    run = ["./stylize", "style.pt2", str(library), "photo.ppm", "picture.ppm"]
    subprocess.run(run, check=True)
    expected = Stylizer(generator, torch.float32)(photo[:48, :68])
    assert levels_apart(Image.open("picture.ppm"), expected) <= 1
    for files, line in (
        (("none.ppm", "x.ppm"), "expected a PPM of 8-bit RGB"),
        (("photo.ppm", "none/x.ppm"), "cannot write none/x.ppm"),
        (("photo.ppm", "/dev/full"), "cannot write /dev/full"),
    ):
        failed = subprocess.run([*run[:3], *files], capture_output=True, text=True)
        assert (failed.returncode, failed.stderr) == (1, f"stylize: {line}\n")
