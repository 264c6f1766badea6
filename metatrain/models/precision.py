"""The precision of the frozen base model: float32 or bfloat16, and the check of its numbers.

Only the base model runs in this precision. θ, φ, losses and reductions are always float32.
"""

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["auto", "float32", "bfloat16"]


def resolve(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype for a precision.

    "auto" is bfloat16 if the device has hardware for it, otherwise float32. Hardware for bfloat16 is AMX, AVX-512 BF16, or a GPU
    with bf16 tensor cores.
    """
    if precision == "float32":
        return torch.float32
    if precision == "bfloat16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_finite(tensor: Tensor) -> bool:
    """Return True unless a tensor of floating-point numbers has NaN or an infinite number.

    One pass over the tensor, which allocates nothing of its size.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in tensor.aminmax())  # both are NaN if any number is
