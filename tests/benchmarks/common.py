"""What the benchmarks share: the model, the batch, and how peaks are read."""

from pathlib import Path

import torch
from transformers import MistralConfig

from tess2lite.model import MistralForDiffusionLM

B, L, V = 2, 256, 32_000


def model(vocabulary: int = V, length: int = L) -> MistralForDiffusionLM:
    """A float32 Mistral with hidden 256 and 4 layers, random weights, logits about N(0, 1)."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=length,
        sliding_window=None,
    )
    lm = MistralForDiffusionLM(config)
    torch.nn.init.normal_(lm.lm_head.weight, std=config.hidden_size**-0.5)
    return lm


def batch(vocabulary: int = V, length: int = L, rows: int = B) -> dict[str, torch.Tensor]:
    """So many texts of so many tokens, the second half masked."""
    ids = torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "span_mask": (torch.arange(length) >= length // 2).expand(rows, length)}


@torch.no_grad()
def bare(lm, inputs) -> None:
    """One forward pass of the backbone, and the head on the masked half."""
    hidden = lm.model(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
    length = hidden.shape[1]
    lm.lm_head(hidden[:, length // 2 - 1 : -1])


def resident(field: str) -> float:
    """MB of this process now (VmRSS) or at its highest since `reset_peak` (VmHWM). Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
