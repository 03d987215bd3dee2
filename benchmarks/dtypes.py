"""The dtypes that are measured."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: As they are called in tables.
SHORT = {"float32": "f32", "bfloat16": "bf16"}
