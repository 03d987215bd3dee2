"""Prints the hardware of this machine, and the implementation of every op on it."""

import argparse
import platform
import subprocess

import torch

from stylekernels.ops import dispatch


def _print_output(*command: str) -> None:
    print(f"\n$ {' '.join(command)}", flush=True)
    try:
        subprocess.run(command, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(error)


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    try:
        import triton

        triton_version = triton.__version__
    except ImportError as error:
        triton_version = f"none ({error})"
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
        f"Triton {triton_version}"
    )
    for op in dispatch.OPS:
        print(dispatch.explain(op, torch.empty(1, 32, 64, 64, device=device)))
    try:
        from stylekernels.cli.info import describe
    except ImportError as error:  # a package that the ops do not need
        print(f"\nno `stylekernels info`: {error}")
    else:
        print("", describe(), sep="\n", flush=True)
    _print_output("nvidia-smi")
    _print_output("nvcc", "--version")


if __name__ == "__main__":
    main()
