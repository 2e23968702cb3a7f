"""Decoder families: which are accepted, and what some do to their head's output."""

from __future__ import annotations

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from ..validation import InputError

BACKBONES = ("model", "transformer", "gpt_neox")  # attribute of a decoder that holds its layers
FAMILIES = (
    "mistral, llama, ministral, qwen2, qwen3, gemma, gemma2, gemma3_text, olmo, olmo2, olmo3, smollm3, phi, phi3, "
    "starcoder2, granite, cohere, cohere2, gpt2, gpt_neox"
)  # tested; others are accepted when they pass the same probes


def original_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of transformers that reads and writes this decoder autoregressively.

    Raises:
        InputError: The configuration is not that of a decoder with a backbone and a head.
    """
    kind = config.model_type
    if getattr(config, "text_config", None) is not None:
        raise InputError(f"The model is a {kind}, which reads more than text; the decoders accepted are {FAMILIES}.")
    original = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if original is None or config.is_encoder_decoder or original.base_model_prefix not in BACKBONES:
        raise InputError(f"The model is a {kind}; the decoders accepted are {FAMILIES}.")
    return original


def scale_logits(logits: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """What some families do to their head's output: Cohere's and Granite's scale, Gemma's softcap."""
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits
