"""E as a large vocabulary needs it at the start of an adaptation: without its mean row, and long enough to be seen.

With V tokens a clean simplex gives the true one p = e^2k / (e^2k + V − 1) of the probability: 0.31 at V = 49,152 and
k = 5. A first pass reads the mean of that and of the uniform prediction, p/2 · (E_w − m) + m with m the mean row of E:
the token arrives at a seventh of its length, beside a row that is the same for all. Nothing but scale is lost, and an
untouched model reads such a page once the scale is put back (assets/smollm2.json).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..simplex import SIMPLEX_VALUE
from ..validation import InputError

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")  # before the head, by family


@torch.no_grad()
def center_embeddings_(weight: torch.Tensor) -> None:
    """Subtract E's mean row, so that p·E of a uniform p is 0.

    A tied head does not change: its softmax does not see what is added to all logits alike.

    Args:
        weight: E, (V, H).
    """
    weight -= weight.mean(0)


@torch.no_grad()
def center_adapted_embeddings_(layer: Any) -> None:
    """The same beside frozen weights: the mean row is of rank 1, and the LoRA of E, or its trained copy, begins so.

    Args:
        layer: The embedding layer as PEFT has wrapped it.
    """
    for copy in getattr(layer, "modules_to_save", {}).values():
        center_embeddings_(copy.weight)
    for name, a in getattr(layer, "lora_embedding_A", {}).items():
        b = layer.lora_embedding_B[name]  # (H, r)
        mean = layer.get_base_layer().weight.float().mean(0)
        a[0] = 1  # (r, V)
        b[:, 0] = -mean / layer.scaling[name]


@torch.no_grad()
def lengthen_embeddings_(lm: Any) -> None:
    """Multiply E by 2/p, so that a token on a clean page has its own length in a first pass.

    Where the head is tied to E, the norm before it is divided by the same factor, so that the logits do not change.

    Args:
        lm: The denoiser, whose E (V, H) and final norm are changed in place.

    Raises:
        InputError: If the head is tied to E and the norm before it has no weights.
    """
    embeddings = lm.get_input_embeddings().weight
    factor = 2 / clean_probability(lm.config.vocab_size)
    if lm.get_output_embeddings().weight is embeddings:
        _divide_final_norm(lm, factor)
    embeddings *= factor


def clean_probability(vocabulary: int) -> float:
    """The probability of the true token in a simplex without noise, p = e^2k / (e^2k + V − 1).

    Args:
        vocabulary: V.

    Returns:
        p, in 0 … 1.
    """
    signal = math.exp(2 * SIMPLEX_VALUE)
    return signal / (signal + vocabulary - 1)


def _divide_final_norm(lm: Any, factor: float) -> None:
    norms = [getattr(lm.base_model, name) for name in FINAL_NORMS if hasattr(lm.base_model, name)]
    weights = dict(norms[0].named_parameters()) if norms else {}
    if "weight" not in weights:
        raise InputError(
            f"center_embeddings lengthens E, and the tied head of this {lm.config.model_type} has no norm with weights "
            "before it that could make up for it; leave center_embeddings out, or set lora_rank."
        )
    stored = 1 if lm.config.model_type.startswith("gemma") else 0  # Gemma keeps its norms' weights less 1
    for name, weight in weights.items():
        offset = stored if name == "weight" else 0
        weight += offset
        weight /= factor
        weight -= offset
