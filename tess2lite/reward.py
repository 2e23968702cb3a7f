"""Reward models: load one, read its score."""

from __future__ import annotations

import torch
from transformers import AutoModelForSequenceClassification

from . import loading


def load_reward(name, dtype=None, device=None):
    """A reward model: a sequence classifier with one label, as `hamishivi/mistral_tess2_rm`.

    name: a local folder or a hub name. dtype, device: as in `tess2lite.load`. Its attention stays causal; its weights
    are frozen, gradients are taken of its input alone.
    """
    device = loading.choose_device(device)
    source = loading.find_source(name)
    with loading.plain_errors(name):
        loading.check_safetensors(source)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, dtype=loading.choose_dtype(dtype, device),
            device_map={"": device}, output_loading_info=True,
        )  # fmt: skip
        if model.config.num_labels != 1 or info["missing_keys"]:
            raise ValueError(f"'{name}' is no reward model; give a sequence classifier with one label.")
    return model.requires_grad_(False).eval()


def reward_of_embeddings(model, embeddings: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The score at each row's last real position: embeddings (B, L, H) → (B,)."""
    position_ids = None if attention_mask is None else (attention_mask.cumsum(1) - 1).clamp(min=0)
    hidden = model.base_model(
        inputs_embeds=embeddings, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    if attention_mask is None:
        last = hidden[:, -1]
    else:
        places = torch.arange(hidden.shape[1], device=hidden.device) * attention_mask
        last = hidden[torch.arange(len(hidden), device=hidden.device), places.argmax(1)]
    return model.score(last)[:, 0].float() if embeddings.dtype.itemsize < 4 else model.score(last)[:, 0]
