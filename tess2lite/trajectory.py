"""What a run recorded: tensors and strings, nothing of models."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(repr=False)
class Trajectory:
    """One sequence's way from noise to text.

    tokens: (S, L) ids after each step. confidence, entropy: (S, L), of the model's prediction, entropy in nats.
    alpha_bar: (S,) of the noisy simplex each step read. span_mask: (L,) bool, where the model wrote.
    texts: S strings, everything written at each step, ends and padding included.
    """

    tokens: torch.Tensor
    confidence: torch.Tensor
    entropy: torch.Tensor
    alpha_bar: torch.Tensor
    span_mask: torch.Tensor
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Trajectory({len(self)} steps, {int(self.span_mask.sum())} positions written)"

    def _repr_html_(self) -> str:
        from .viz.html import scrubber

        return scrubber(self)


@dataclass
class Recorder:
    """A hook that keeps every step of a run. Put it after hooks that edit the step."""

    tokens: list = field(default_factory=list)
    confidence: list = field(default_factory=list)
    entropy: list = field(default_factory=list)
    alpha_bar: list = field(default_factory=list)

    def __call__(self, step) -> None:
        self.tokens.append(step.tokens.cpu())
        self.confidence.append(step.confidence.float().cpu())
        self.entropy.append(step.entropy.float().cpu())
        self.alpha_bar.append(step.alpha_bar)

    def trajectory(self, row: int, span_mask: torch.Tensor, decode) -> Trajectory:
        """One sequence's trajectory. span_mask: (L,), cut to its real length; decode: ids → string."""
        length = len(span_mask)

        def column(recorded):
            return torch.stack([step[row, :length] for step in recorded])  # (S, L)

        tokens = column(self.tokens)
        return Trajectory(
            tokens=tokens,
            confidence=column(self.confidence),
            entropy=column(self.entropy),
            alpha_bar=torch.tensor(self.alpha_bar),
            span_mask=span_mask.cpu(),
            texts=[decode(ids) for ids in tokens.tolist()],
        )
