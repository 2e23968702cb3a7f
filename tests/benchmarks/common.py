"""What the benchmarks share: the model, the batch, and how peaks are read."""

from pathlib import Path

import torch
from transformers import MistralConfig

from tess2lite.model import MistralForDiffusionLM

B, L, V = 2, 256, 32_000


def model(vocabulary: int = V) -> MistralForDiffusionLM:
    """A float32 Mistral with hidden 256 and 4 layers, random weights, logits about N(0, 1)."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=L, sliding_window=None,
    )  # fmt: skip
    lm = MistralForDiffusionLM(config)
    torch.nn.init.normal_(lm.lm_head.weight, std=config.hidden_size**-0.5)
    return lm


def batch() -> dict[str, torch.Tensor]:
    """B texts of L tokens, the second half masked."""
    ids = torch.randint(3, V, (B, L), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "span_mask": (torch.arange(L) >= L // 2).expand(B, L)}


def resident(field: str) -> float:
    """MB of this process now (VmRSS) or at its highest since `reset_peak` (VmHWM). Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
