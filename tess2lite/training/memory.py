"""What a training run will need, before it starts; and what it did need."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from ..chunks import CHUNK
from ..validation import InputError
from .recipe import RewardRecipe, Training

NF4_BYTES = 0.516  # 4 bits and the double-quantised scale of every 64 weights
PROGRAM = 0.6e9  # Python, PyTorch and transformers themselves, as measured; on a GPU not in the GPU's memory
GB = 1e9
ADVICE = "micro_batch_size=1, gradient_checkpointing=true, load_in_4bit=true with lora_rank, or a smaller length"


def estimate(config: Any, recipe: Training, device: str, bytes_per_weight: int) -> dict[str, float]:
    """Returns GB by part, from a model's configuration and a recipe; nothing is loaded.

    Activations: with gradient checkpointing one (B, L, H) per layer and one layer in full, else all layers in full.

    Args:
        config: The model's.
        recipe: Of any kind.
        device: "cpu" or "cuda".
        bytes_per_weight: Of weights that are not in 4 bits.
    """
    hidden = config.hidden_size
    layers = config.num_hidden_layers
    vocabulary = config.vocab_size
    is_reward = isinstance(recipe, RewardRecipe)
    shapes = linear_shapes(config)
    linear = layers * sum(inputs * outputs for inputs, outputs in shapes)
    is_single = config.tie_word_embeddings or is_reward  # a reward model has a head of one row
    embeddings = (1 if is_single else 2) * vocabulary * hidden
    weights = linear * (NF4_BYTES if recipe.load_in_4bit else bytes_per_weight) + embeddings * bytes_per_weight
    trained = linear + embeddings
    if recipe.lora_rank:
        trained = recipe.lora_rank * layers * sum(inputs + outputs for inputs, outputs in shapes)
        trained += _trained_embeddings(config, recipe, embeddings)
    elif bytes_per_weight < 4:
        weights *= 4 / bytes_per_weight  # full tuning is in float32
    rows = recipe.micro_batch_size * (2 if is_reward else 1) * recipe.length
    layer = rows * bytes_per_weight * (8 * hidden + 2 * shapes[1][1] + 4 * config.intermediate_size)
    stored = layers * layer
    if recipe.gradient_checkpointing:
        stored = layers * rows * hidden * bytes_per_weight + layer
    if recipe.lora_rank and getattr(recipe, "embeddings", "") == "lora":  # E with its LoRA, made for each step
        stored += 2 * vocabulary * hidden * bytes_per_weight
    is_8bit = recipe.load_in_4bit and device != "cpu"
    parts = {
        "weights": weights,
        "adapters": 4 * trained if recipe.lora_rank else 0,
        "gradients": 4 * trained,
        "optimizer": (2 if is_8bit else 8) * trained,
        "activations": stored,
        "simplex chunk": 0 if is_reward else 4 * 4 * min(CHUNK[device], rows * vocabulary),
    }
    if device == "cpu":
        parts["program"] = PROGRAM
    return {name: size / GB for name, size in parts.items()}


def linear_shapes(config: Any) -> list[tuple[int, int]]:
    """(inputs, outputs) of the linear layers in one decoder layer: q, k, v, o, gate, up, down."""
    hidden = config.hidden_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries = head * config.num_attention_heads
    keys = head * config.num_key_value_heads
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    inner = config.intermediate_size
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


def _trained_embeddings(config: Any, recipe: Training, embeddings: int) -> int:
    """How many weights of E and the head a LoRA run trains."""
    kind = getattr(recipe, "embeddings", "frozen")
    if kind == "lora":
        return 2 * recipe.lora_rank * (config.vocab_size + config.hidden_size)
    return embeddings if kind == "trained" else 0


def table(parts: dict[str, float]) -> str:
    """One line per part and the sum."""
    lines = [f"  {name:14} {size:8.2f} GB" for name, size in parts.items()]
    return "\n".join([*lines, f"  {'together':14} {sum(parts.values()):8.2f} GB"])


def free_memory(device: torch.device) -> float | None:
    """GB that a run may use: of the GPU, or of this computer; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GB
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(path).read_text().strip() if Path(path).exists() else "max"
        if limit.isdigit() and int(limit) < 2**50:
            return min(int(limit) / GB, _available() or float("inf"))
    return _available()


def _available() -> float | None:
    """Memory that can be had without swapping, in GB."""
    if Path("/proc/meminfo").exists():
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 / GB
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    if hasattr(os, "sysconf") and set(names) <= set(os.sysconf_names):
        return os.sysconf(names[0]) * os.sysconf(names[1]) / GB
    return None


def require_memory(parts: dict[str, float], device: torch.device) -> float | None:
    """Raise InputError if an estimate is more than there is; returns the GB there are, if known."""
    free = free_memory(device)
    needed = sum(parts.values())
    if free is not None and needed > free:
        where = "GPU" if device.type == "cuda" else "computer"
        raise InputError(
            f"This run needs about {needed:.1f} GB, and the {where} has {free:.1f} GB free; give {ADVICE}."
        )
    return free


def measured_peak(device: torch.device) -> float:
    """GB at the highest point so far: of the GPU's memory, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GB
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GB if sys.platform == "darwin" else peak * 1024 / GB
