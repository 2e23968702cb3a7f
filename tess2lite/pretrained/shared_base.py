"""A reward model on the base of a denoiser, which lends it its weights; and its weights frozen for guidance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..validation import InputError
from .full_models import read_config
from .probes import share_modules
from .sources import find_source


def model_on_base(
    class_of: Callable[[PreTrainedConfig], type],
    lm: PreTrainedModel,
    adapter_base: str | None,
    name: str | Path,
) -> PreTrainedModel:
    """Make a reward model for an adapter on the base of a denoiser.

    Args:
        class_of: Configuration → class.
        lm: The denoiser.
        adapter_base: What the adapter names as its base; None for a full model.
        name: The adapter, as the user calls it.

    Raises:
        InputError: The two bases are not the same.
    """
    if adapter_base is None:
        raise InputError(f"'{name}' is a whole model, not an adapter; leave base out.")
    source = find_source(adapter_base)
    if source != find_source(lm.base_name):
        raise InputError(f"'{name}' is an adapter on '{adapter_base}', base is on '{lm.base_name}'; leave base out.")
    config = read_config(source, num_labels=1, vocab_size=lm.config.vocab_size)
    config.pad_token_id = lm.config.pad_token_id
    model = share_base(class_of(config), lm, config)
    model.tokenizer = lm.tokenizer
    return model


def share_base(kind: type[PreTrainedModel], lm: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Make a model with a new head, whose backbone consists of the very modules of a denoiser's base."""
    with torch.device("meta"):
        model = kind(config)
    model.score.to_empty(device=lm.device).to(lm.compute_dtype)  # the adapter brings its weights
    share_modules(model.base_model, lm.base_model)
    return model


def freeze_(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze in place, for guidance: gradients through the model, at the memory of one layer, none for its weights."""
    model.eval().requires_grad_(False)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # renamed in 5.2x
    enable({"use_reentrant": False})
    for layer in model.modules():  # layers are checkpointed in training mode alone; what is in them, dropout, stays
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True
    return model
