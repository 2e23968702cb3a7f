"""The memory that training and sampling will need, before they start; and what a run did need."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from ..chunks import CHUNK
from ..validation import InputError
from .recipe import MUON, RewardRecipe, Training

NF4_BYTES = 0.516  # 4 bits and the double-quantised scale of every 64 weights
PROGRAM = 0.58e9  # Python, PyTorch and transformers themselves, as measured; on a GPU not in the GPU's memory
# Elements per row of a decoder layer that is run again for its gradient, in units of H and of the MLP's width; counted
# with a LoRA on every linear layer, which reads float32.
NORMS = 17
INNER = 7
# Of these a layer keeps where it is not run again; on a GPU with autocast's copies.
KEPT = {"cpu": 0.5, "cuda": 0.6}
UNGATED = ("gpt2", "gpt_neox", "phi", "starcoder2")  # whose MLP is two matrices, not three
FORWARD_LOGIT = 10  # bytes per logit of a chunk: in half precision, in float32, and its logarithm
BACKWARD_LOGIT = 18  # and its gradients
SAMPLED_LOGIT = 14  # of a chunk that is sampled: three arrays in float32 and two masks, as counted
GUIDED_LOGIT = 12  # of one that guidance changes: three arrays in float32, as counted
SCRATCH = 4  # that stay between the steps
GB = 1e9
ADVICE = "micro_batch_size=1, gradient_checkpointing=true, load_in_4bit=true with lora_rank, or a smaller length"


def estimate(config: Any, recipe: Training, device: str, bytes_per_weight: int) -> dict[str, float]:
    """Returns GB by part, from a model's configuration and a recipe; nothing is loaded.

    The peak of a step whose rows are masked as a whole. Held against a simulated GPU in the tests, and against a CPU
    whose allocator gives back at once; one that keeps freed memory may take a fifth more.

    Args:
        config: The model's.
        recipe: Of any kind.
        device: "cpu" or "cuda".
        bytes_per_weight: Of weights that are not in 4 bits.
    """
    is_reward = isinstance(recipe, RewardRecipe)
    is_single = config.tie_word_embeddings or is_reward  # a reward model has a head of one row
    embeddings = (1 if is_single else 2) * config.vocab_size * config.hidden_size
    linear = _linear_weights(config)
    weights = linear * (NF4_BYTES if recipe.load_in_4bit else bytes_per_weight) + embeddings * bytes_per_weight
    trained = linear + embeddings
    if recipe.lora_rank:
        trained = _lora_weights(config, recipe.lora_rank) + _trained_embeddings(config, recipe, embeddings)
    elif bytes_per_weight < 4:
        weights *= 4 / bytes_per_weight  # full tuning is in float32
    is_8bit = recipe.load_in_4bit and device != "cpu"
    averages = (2 if is_8bit else 8) * trained
    if recipe.optim == MUON:
        averages = 4 * linear + 8 * embeddings  # Muon keeps one average, AdamW two
    parts = {
        "weights": weights,
        "adapters": 4 * trained if recipe.lora_rank else 0,
        "gradients": 4 * trained,
        "optimizer": averages,
        "activations": _activations(config, recipe, device, bytes_per_weight, trained),
    }
    if device == "cpu":
        parts["program"] = PROGRAM
    return {name: size / GB for name, size in parts.items()}


def _activations(config: Any, recipe: Training, device: str, bytes_per_weight: int, trained: int) -> float:
    """Bytes of what a step keeps and computes, at the highest of three points.

    At the end of the forward pass, at the loss's gradient, and at the gradient of one layer.
    """
    is_reward = isinstance(recipe, RewardRecipe)
    hidden = config.hidden_size
    shapes = linear_shapes(config)
    rows = recipe.micro_batch_size * (2 if is_reward else 1) * recipe.length
    layer = rows * bytes_per_weight * _elements_per_row(config)
    kept = config.num_hidden_layers * rows * hidden * bytes_per_weight
    if not recipe.gradient_checkpointing:
        kept = config.num_hidden_layers * layer * KEPT[device]
    whole = 2 * max(inputs * outputs for inputs, outputs in shapes) if recipe.load_in_4bit else 0
    logits = 0 if is_reward else min(CHUNK[device], rows * config.vocab_size)
    has_autocast = device == "cuda" or recipe.bf16
    casts = 2 * trained if has_autocast else 0  # copies in half precision, kept up to the loss
    if device == "cuda" and getattr(recipe, "embeddings", "") != "lora":
        casts += 2 * _trained_embeddings(config, recipe, config.vocab_size * hidden)  # E as a factor
    return kept + max(casts + FORWARD_LOGIT * logits, BACKWARD_LOGIT * logits, layer, 0.85 * layer + whole)


def estimate_sampling(
    config: Any,
    length: int,
    bytes_per_weight: int,
    texts: int = 1,
    load_in_4bit: bool = False,
    reward_rank: int = 0,
) -> dict[str, float]:
    """Returns GB by part of writing texts on a GPU, all but the first token masked; nothing is loaded.

    Args:
        config: The model's.
        length: Of every text, in tokens.
        bytes_per_weight: Of weights that are not in 4 bits.
        texts: How many are written together.
        load_in_4bit: Whether the linear layers' weights are.
        reward_rank: The rank of a reward model that guides and is a LoRA on the same base; 0 for no guidance.
    """
    hidden = config.hidden_size
    rows = texts * length
    embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * hidden
    linear = _linear_weights(config) * (NF4_BYTES if load_in_4bit else bytes_per_weight)
    whole = 2 * max(inputs * outputs for inputs, outputs in linear_shapes(config)) if load_in_4bit else 0
    logits = min(CHUNK["cuda"], rows * config.vocab_size)
    vector = rows * hidden * bytes_per_weight
    inner = rows * mlp_width(config) * bytes_per_weight
    activations = max(SCRATCH * logits + whole + 5 * vector + 2 * inner, SAMPLED_LOGIT * logits + 4 * vector)
    if reward_rank:
        layer = rows * bytes_per_weight * _elements_per_row(config)  # run again for the gradient
        activations = GUIDED_LOGIT * logits + config.num_hidden_layers * vector + whole + 0.85 * layer
    parts = {
        "weights": linear + embeddings * bytes_per_weight,
        "adapters": bytes_per_weight * _lora_weights(config, reward_rank),
        "activations": activations,
    }
    return {name: size / GB for name, size in parts.items()}


def _linear_weights(config: Any) -> int:
    """How many weights the linear layers of all decoder layers have."""
    return config.num_hidden_layers * sum(inputs * outputs for inputs, outputs in linear_shapes(config))


def _lora_weights(config: Any, rank: int) -> int:
    """How many weights a LoRA on all of them has."""
    return rank * config.num_hidden_layers * sum(inputs + outputs for inputs, outputs in linear_shapes(config))


def _elements_per_row(config: Any) -> int:
    """What a decoder layer computes of one token and its gradient needs."""
    keys = linear_shapes(config)[1][1]
    return NORMS * config.hidden_size + 4 * keys + INNER * mlp_width(config)


def linear_shapes(config: Any) -> list[tuple[int, int]]:
    """(inputs, outputs) of the linear layers in one decoder layer: q, k, v, o, up, down and, where there is one, gate.

    Layers that a family has fused are counted apart.
    """
    hidden = config.hidden_size
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or hidden // heads
    queries = head * heads
    keys = head * (getattr(config, "num_key_value_heads", None) or heads)
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    inner = mlp_width(config)
    gate = [] if config.model_type in UNGATED else [(hidden, inner)]
    return [*attention, (hidden, inner), *gate, (inner, hidden)]


def mlp_width(config: Any) -> int:
    """The inner width of a decoder's MLP, which GPT-2 calls n_inner and leaves out where it is four times H."""
    name = "n_inner" if config.model_type == "gpt2" else "intermediate_size"
    return getattr(config, name, None) or 4 * config.hidden_size


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
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss begins with what the process that started this one had
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / GB
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GB if sys.platform == "darwin" else peak * 1024 / GB
