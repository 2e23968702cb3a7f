"""Where a model computes, and in which precision."""

from __future__ import annotations

import os
from contextlib import suppress

import torch

from ..validation import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; for None the GPU of this process where there is one."""
    gpu = torch.cuda.is_available()
    if device is None:
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if gpu else "cpu")
    with suppress(RuntimeError, TypeError):  # what torch raises for something that is not a device
        if torch.device(device).type in ["cpu"] + ["cuda"] * gpu:
            return torch.device(device)
    accepted = "'cpu', 'cuda' or 'cuda:0'" if gpu else "'cpu' or leave it out: PyTorch sees no GPU here"
    raise InputError(f"device is {device!r}; give {accepted}.")


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The precision asked for, by torch.dtype or name; for None the device's default, as `load` documents it."""
    if dtype is None:
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    named = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if named is None or named not in DTYPES.values():
        raise InputError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    return named
