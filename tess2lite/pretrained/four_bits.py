"""nf4 through bitsandbytes, with the same numbers on every CPU."""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Iterable

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig


def uneven_layers(kind: type, config: PreTrainedConfig, device: torch.device) -> list[str]:
    """Names of the layers that a CPU must not hold in 4 bits.

    Where a row of weights is not whole blocks of 64, bitsandbytes' kernel for AVX-512 takes the scales of other blocks
    (seen in 0.50.2: weights off by 26 to 94 %); its code for other CPUs does not, so that two CPUs disagree.
    """
    if device.type != "cpu":
        return []
    with torch.device("meta"):
        layers = kind(copy.deepcopy(config)).named_modules()
    sizes = {name.rpartition(".")[2]: getattr(layer, "in_features", 0) for name, layer in layers}
    return sorted(name for name, size in sizes.items() if size % 64)


def nf4(dtype: torch.dtype, skipped: Iterable[str] = ()) -> BitsAndBytesConfig:
    """4-bit weights that are multiplied in `dtype`; the heads, the timestep embedding and `skipped` keep theirs."""
    import_bitsandbytes()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", "timestep_embed", "score", *skipped],
    )


def import_bitsandbytes() -> None:
    """Import it before PEFT does, and without its advice: a kernel that rounds differently and has no gradients."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        importlib.import_module("bitsandbytes")
    finally:
        logger.setLevel(level)
