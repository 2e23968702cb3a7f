"""What a training run will need, before it starts; and what it did need."""

from __future__ import annotations

import sys

import torch

from ..chunks import CHUNK

NF4_BYTES = 0.516  # 4 bits and the double-quantised scale of every 64 weights
PROGRAM = 0.6e9  # Python, PyTorch and transformers themselves, as measured; on a GPU not in the GPU's memory
GB = 1e9


def estimate(config, recipe, device: str, bytes_per_weight: int) -> dict[str, float]:
    """GB by part, from a model's configuration and a recipe; nothing is loaded.

    Activations: with gradient checkpointing one (B, L, H) a layer and one layer in full, else all layers in full.
    """
    hidden, layers, vocabulary = config.hidden_size, config.num_hidden_layers, config.vocab_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = head * config.num_attention_heads, head * config.num_key_value_heads
    shapes = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    shapes += [(hidden, config.intermediate_size)] * 3
    linear = layers * sum(a * b for a, b in shapes)
    embeddings = (1 if config.tie_word_embeddings else 2) * vocabulary * hidden
    weights = linear * (NF4_BYTES if recipe.load_in_4bit else bytes_per_weight) + embeddings * bytes_per_weight
    trained = linear + embeddings
    if recipe.lora_rank:
        trained = recipe.lora_rank * layers * sum(a + b for a, b in shapes)
        of_embeddings = {"lora": 2 * recipe.lora_rank * (vocabulary + hidden), "trained": embeddings, "frozen": 0}
        trained += of_embeddings[recipe.embeddings]
    rows = recipe.micro_batch_size * recipe.length
    layer = rows * bytes_per_weight * (8 * hidden + 2 * keys + 4 * config.intermediate_size)
    stored = layers * rows * hidden * bytes_per_weight + layer if recipe.gradient_checkpointing else layers * layer
    if recipe.lora_rank and recipe.embeddings == "lora":  # E with its LoRA, made anew for each step, with gradient
        stored += 2 * vocabulary * hidden * bytes_per_weight
    sizes = {
        "weights": weights,
        "adapters": 4 * trained if recipe.lora_rank else 0,
        "gradients": 4 * trained,
        "optimizer": (2 if recipe.load_in_4bit and device != "cpu" else 8) * trained,  # 2: paged 8-bit Adam
        "activations": stored,
        "simplex chunk": 4 * 4 * min(CHUNK[device], rows * vocabulary),
    } | ({"program": PROGRAM} if device == "cpu" else {})
    return {name: size / GB for name, size in sizes.items()}


def table(parts: dict[str, float]) -> str:
    """One line a part and the sum."""
    lines = [f"  {name:14} {size:8.2f} GB" for name, size in parts.items()]
    return "\n".join([*lines, f"  {'together':14} {sum(parts.values()):8.2f} GB"])


def measured_peak(device: torch.device) -> float:
    """GB at the highest point so far: of the GPU's memory, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GB
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GB if sys.platform == "darwin" else peak * 1024 / GB
