"""Real mistakes of published code, kept to be looked at. Nothing else of the package uses them."""

from __future__ import annotations

from .guidance import Ascent, RewardGuidance


class _Piling(Ascent):
    def __call__(self, logits, rows):
        total = 0
        for gradients in self.gradients:
            total = total + self.by_logits(logits, gradients, rows)
            logits.add_(total, alpha=self.scale)
        return logits


class AccumulatingGuidance(RewardGuidance):
    """Exhibit 4: the gradient is never zeroed between inner steps, so the j-th adds the sum of the first j."""

    ascent = _Piling
