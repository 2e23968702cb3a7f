"""What the notebooks' exercises are checked with: your function against an independent truth, on random input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import MistralConfig

from . import textbook
from .model import MistralForDiffusionLM


@dataclass
class Verdict:
    """`passed`, and a sentence; shows itself in a notebook."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗ not yet:'} {self.message}"


def _verdict(problem) -> Verdict:
    """problem: () → None, or a sentence. A function that raises has not passed, and must not stop the notebook."""
    try:
        sentence = problem()
    except Exception as error:
        sentence = f"your function raised {type(error).__name__}: {error}"
    return Verdict(sentence is None, sentence or "right")


def _small_model(**changes) -> MistralForDiffusionLM:
    config = MistralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=None, attn_implementation="eager", **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    return MistralForDiffusionLM(config).eval()


def label_shift(function) -> Verdict:
    """function(output (B, L, V), ids (B, L), span_mask (B, L)) → mean loss at the masked positions, shifted."""

    def problem():
        torch.manual_seed(0)
        output, ids = torch.randn(2, 9, 20), torch.randint(20, (2, 9))
        mask = torch.rand(2, 9) < 0.5
        mask[:, 0] = False
        pairs = [(output[b, i - 1], ids[b, i]) for b in range(2) for i in range(9) if mask[b, i]]
        wanted = torch.stack([F.cross_entropy(row, token) for row, token in pairs]).mean()
        found = function(output, ids, mask)
        if found is None:
            return "your function returns nothing."
        if abs(float(found) - float(wanted)) > 1e-4:
            return f"on random numbers the loss is {wanted:.4f}; yours is {float(found):.4f}."
        return None

    return _verdict(problem)


def probe(function) -> Verdict:
    """function(lm) → True where a later token reaches earlier positions."""

    def problem():
        causal, both = _small_model(), _small_model()
        causal.config.is_causal = True
        found = function(both), function(causal)
        if None in found:
            return "your function returns nothing."
        if not bool(found[0]):
            return "a model that sees both ways must give True."
        if bool(found[1]):
            return "a causal model must give False."
        return None

    return _verdict(problem)


def self_conditioning(function) -> Verdict:
    """function(simplex (B, L, V), previous_logits (B, L, V), E (V, H)) → soft embeddings (B, L, H)."""

    def problem():
        torch.manual_seed(0)
        simplex, previous, matrix = torch.randn(2, 5, 20) * 5, torch.randn(2, 5, 20), torch.randn(20, 8)
        wanted = textbook.self_condition(simplex, previous) @ matrix
        found = function(simplex, previous, matrix)
        if found is None:
            return "your function returns nothing."
        if found.shape != wanted.shape:
            return f"the shape is {tuple(found.shape)}; it should be {tuple(wanted.shape)}."
        if not torch.allclose(found, wanted, atol=1e-4):
            return f"some number is off by {(found - wanted).abs().max():.3f}. Are probabilities averaged, not logits?"
        return None

    return _verdict(problem)
