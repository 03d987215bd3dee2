"""Loading of the compiled libraries, if they were built."""

import os
import warnings
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent


def _load(device: str) -> str | None:
    """Load the kernel library of ``device``. Return None, or the reason why it is not available."""
    path = _FOLDER / f"libstylekernels_{device}.so"
    if os.environ.get("STYLEKERNELS_NATIVE", "1") == "0":
        return "switched off by STYLEKERNELS_NATIVE=0"
    if device == "cuda" and torch.version.cuda is None:
        return "for a PyTorch with CUDA"
    if not path.exists():
        file = {"cpu": "not_built.txt", "cuda": "cuda_not_built.txt"}[device]
        reason = _FOLDER / file  # written by setup.py
        if reason.exists():
            return f"not built: {reason.read_text().strip()}; mend that and reinstall"
        if (_FOLDER.parent / "setup.py").exists():
            return (
                f"not built in {_FOLDER.parent}, which hides an installed package; leave that "
                "folder, or build them there with `pip install --editable .`"
            )
        return "not built; reinstall stylekernels"
    try:
        from stylekernels import _C

        _C.cpu_capability()  # raises for an unknown STYLEKERNELS_CPU_CAPABILITY
        torch.ops.load_library(path)
    except (ImportError, OSError) as error:
        return f"{path.name} does not load into torch {torch.__version__}: {error}; reinstall"
    return None


#: The reason why the C++ kernels for the CPU are not in use; None if they are.
cpu_missing: str | None = _load("cpu")

#: The capability that they use, for example ``avx2``; None if they are not in use.
cpu_capability: str | None = None
if cpu_missing is None:
    from stylekernels import _C

    cpu_capability = _C.cpu_capability()

#: The reason why the CUDA kernels are not in use; None if they are.
cuda_missing: str | None = cpu_missing or _load("cuda")

if cpu_missing is not None and os.environ.get("STYLEKERNELS_NATIVE", "1") != "0":
    warnings.warn(
        f"stylekernels runs in plain PyTorch: its C++ kernels for the CPU are {cpu_missing}",
        stacklevel=2,
    )
