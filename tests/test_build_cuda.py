"""setup.py's choice of nvcc for the CUDA kernels, and of GPUs."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source tree")


@pytest.fixture
def setup():
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nvcc(tmp_path, monkeypatch) -> Path:
    """An nvcc of CUDA 12.6, which knows no sm_100."""
    for name in ("FORCE_CUDA", "CUDA_HOME", "CUDA_PATH", "CUDACXX", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "bin/nvcc"
    path.parent.mkdir()
    path.write_text(
        "#!/bin/sh\n"
        "case $1 in --version) echo 'Cuda compilation tools, release 12.6, V12.6.20';;\n"
        "*) echo 'sm_80 sm_86 sm_90';; esac\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return path


def torch_of(cuda: str, tmp_path: Path) -> Path:
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\ncuda: Optional[str] = {cuda}\n")
    return tmp_path


@pytest.mark.parametrize("cuda", ["'12.6'", "'12.8'", "'13.0'"])
def test_nvcc_of_torchs_cuda_or_older(setup, nvcc, tmp_path, cuda) -> None:
    assert setup.find_nvcc(torch_of(cuda, tmp_path)) == str(nvcc)


@pytest.mark.parametrize(
    ("cuda", "forced", "reason"),
    [
        ("None", None, "the torch beside which it was installed has no CUDA"),
        ("'12.6'", "0", "it was installed with FORCE_CUDA=0"),
        ("'11.8'", None, "nvcc is of CUDA 12, and torch of CUDA 11; install that version"),
    ],
)
def test_kernels_are_left_out(setup, nvcc, tmp_path, monkeypatch, cuda, forced, reason) -> None:
    if forced is not None:
        monkeypatch.setenv("FORCE_CUDA", forced)
    with pytest.raises(setup.CannotBuild, match=reason):
        setup.find_nvcc(torch_of(cuda, tmp_path))


@pytest.mark.parametrize("cuda", ["None", "'11.8'"])
def test_kernels_are_forced(setup, nvcc, tmp_path, monkeypatch, cuda) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert setup.find_nvcc(torch_of(cuda, tmp_path)) == str(nvcc)


def test_no_nvcc(setup, nvcc, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CUDACXX", str(tmp_path / "no-such-nvcc"))
    with pytest.raises(setup.CannotBuild, match="nvcc was not found"):
        setup.find_nvcc(torch_of("'12.6'", tmp_path))


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("", "80-real;90a-real;90-virtual"),  # nvcc knows no sm_100
        ("8.0", "80-real"),
        ("8.6;9.0a+PTX", "86-real;90a-real;90a-virtual"),
        (" 8.0, 12.0f ", "80-real;120f-real"),
    ],
)
def test_gpus(setup, nvcc, monkeypatch, requested, expected) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", requested)
    assert setup.gpu_architectures(str(nvcc)) == expected


@pytest.mark.parametrize("requested", ["Hopper", "90", "8.0;;9"])
def test_unknown_gpus(setup, nvcc, monkeypatch, requested) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", requested)
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST: expected compute capabilities"):
        setup.gpu_architectures(str(nvcc))
