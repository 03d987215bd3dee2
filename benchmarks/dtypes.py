"""The measured dtypes."""

import argparse

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Those of the ops on a GPU, where a rival takes float16 only.
GPU_DTYPES = DTYPES | {"float16": torch.float16}
#: Their names in tables.
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def leaves_bfloat16_out(options: argparse.Namespace) -> bool:
    """Return whether bfloat16 is left out by default: on CPUs without instructions for it, where
    eager PyTorch takes minutes for a network."""
    if options.device != "cpu":
        return False
    cpu = torch.cpu.get_capabilities()
    has_instructions = cpu.get("amx_bf16") or cpu.get("avx512_bf16")
    return not (has_instructions or options.dtype or options.only)


def notes(options: argparse.Namespace) -> list[str]:
    """Return notes on cases that were left out."""
    if not leaves_bfloat16_out(options):
        return []
    return [
        "bfloat16: left out, this CPU has no instructions for it; --dtype bfloat16 measures it all "
        "the same (eager PyTorch may take minutes for each)"
    ]
