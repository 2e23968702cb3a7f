"""Which timesteps are trained on: all alike, as in the paper, or mostly those where the loss changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..model import SimplexDenoiser
from ..schedule import TRAINING_TIMESTEPS, alpha_bar
from ..validation import InputError

UNIFORM_SHARE = 0.15  # of informative timesteps: every stretch of time is practised
SAMPLES = 64  # noisy simplexes per time, for the curve of a reader without context
POINTS = 100  # times at which that curve is computed


def timestep_probabilities(vocabulary: int, loss_curve: Mapping[str, list[float]] | None) -> torch.Tensor:
    """Returns how often each timestep is trained on: in proportion to the change of the loss, a share uniform.

    Above a window nothing can be known about a token, below it nothing is left to decide.

    Args:
        vocabulary: V.
        loss_curve: `t`, rising times t/T, and `loss` at each, of a denoiser on such texts; None for the curve of a
            reader without context, which follows from V alone.

    Returns:
        (T,) float64, adding up to 1.
    """
    curve = loss_curve or reader_without_context(vocabulary)
    times = torch.tensor(curve["t"], dtype=torch.float64)
    losses = torch.tensor(curve["loss"], dtype=torch.float64)
    change = losses.cummax(0).values.diff().clamp(min=0)  # the loss rises with t; what falls is noise
    if len(times) < 2 or not (times.diff() > 0).all() or not change.sum() > 0:
        raise InputError("The model's loss_curve does not rise with t; set timestep_sampling: uniform.")
    steps = torch.arange(TRAINING_TIMESTEPS, dtype=torch.float64) / TRAINING_TIMESTEPS
    interval = torch.searchsorted(times, steps, right=True) - 1  # (T,), −1 below the first time
    last = len(change) - 1
    is_inside = (interval >= 0) & (interval <= last)
    slope = change / times.diff()
    density = slope[interval.clamp(0, last)] * is_inside
    informative = density / density.sum()
    uniform = 1 / TRAINING_TIMESTEPS
    return (1 - UNIFORM_SHARE) * informative + UNIFORM_SHARE * uniform


def reader_without_context(vocabulary: int) -> dict[str, list[float]]:
    """Returns the loss of the best possible reader of one noisy simplex whose tokens are all equally likely.

    With signal a = 2√ᾱ/√(1−ᾱ) in units of the noise, the posterior of token w is softmax(a·x)_w, and the loss is
    its mean negative logarithm: about ln V − a²/2 while a² < 2 ln V, and 0 beyond. k cancels, being in both.
    """
    grid = torch.linspace(0, TRAINING_TIMESTEPS - 1, POINTS).long()
    levels = alpha_bar()[grid].float()
    signals = 2 * levels.sqrt() / (1 - levels).clamp(min=1e-6).sqrt()
    generator = torch.Generator().manual_seed(0)
    losses = torch.zeros(POINTS, dtype=torch.float64)
    for _ in range(SAMPLES):
        noise = torch.randn(vocabulary, generator=generator)
        for place, signal in enumerate(signals):
            logits = noise * signal
            logits[0] += signal**2
            losses[place] -= logits.log_softmax(0)[0].double()
    times = grid / TRAINING_TIMESTEPS
    mean = losses / SAMPLES
    return {"t": times.tolist(), "loss": mean.tolist()}


@torch.no_grad()
def measure_loss_curve(
    lm: SimplexDenoiser, input_ids: torch.Tensor, span_mask: torch.Tensor, points: int = 20, seed: int = 0
) -> dict[str, list[float]]:
    """The denoiser's self-conditioned loss by time, for `timestep_spacing="informative"`.

    `lm.config.loss_curve = measure_loss_curve(lm, input_ids, span_mask)` stores it with the model.

    Args:
        lm: A denoiser.
        input_ids: (B, L) texts like those it was trained on.
        span_mask: (B, L) bool, True where it would write.
        points: How many times t/T, evenly from 0 to 1.
        seed: Of the noise, the same at each time.

    Returns:
        `t`, rising times t/T, and `loss`, in nats per masked position.
    """
    timesteps = torch.linspace(0, TRAINING_TIMESTEPS - 1, points).round().long()
    losses = []
    for timestep in timesteps:
        t = timestep.expand(len(input_ids)).to(input_ids.device)
        total = lm(input_ids, span_mask, t, seed=seed, self_condition=True)
        losses.append(float(total / span_mask.sum()))
    times = timesteps / TRAINING_TIMESTEPS
    return {"t": times.tolist(), "loss": losses}


class TimestepSampler:
    """Draws timesteps from probabilities; one draw from one uniform number.

    Args:
        probabilities: (T,).
    """

    def __init__(self, probabilities: torch.Tensor):
        self.cumulative = probabilities.cumsum(0)

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Returns a timestep, a whole number below T, of shape ()."""
        u = torch.rand((), generator=generator, dtype=torch.float64)
        return torch.searchsorted(self.cumulative, u).clamp(max=TRAINING_TIMESTEPS - 1)
