"""What a run recorded: tensors and strings, nothing of models. Every picture and measure reads from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .recording.files import read_fields, write_fields
from .recording.strings import word_spans
from .validation import InputError


@dataclass(repr=False)
class Trajectory:
    """One sequence's way from noise to text, S steps of L positions.

    Attributes:
        tokens: (S, L) ids after each step's projection.
        top_ids, top_p: (S, L, k), the most likely tokens of each prediction and their probabilities, falling.
        entropy: (S, L) of the prediction, in nats.
        alpha_bar: (S,) of the noisy simplex that each step read.
        span_mask: (L,) bool, where the model wrote.
        texts: S strings, all that was written, ends and padding included.
        token_strings: Id → text, of every id that occurs.
        records: Name → (S,) or (S, L), what hooks remembered. Of a simplex run `token_p`, the probability of each of
            `tokens`, and `noisy_tokens`, the most likely token of each noisy simplex that was read. Guidance keeps
            `reward`, `argmax_before_guidance`, ids, and `logprob_gain`, what it added to the log-probability of the
            most likely token, in nats.
        context_strings: L strings, what each token of the context adds to the text, "" inside the span mask.
        token_bytes: Id → bytes, of those that are not whole characters.
        settings: What a replay needs (prompt, seed, steps, …).
    """

    tokens: torch.Tensor
    top_ids: torch.Tensor
    top_p: torch.Tensor
    entropy: torch.Tensor
    alpha_bar: torch.Tensor
    span_mask: torch.Tensor
    texts: list[str]
    token_strings: dict[int, str]
    records: dict[str, torch.Tensor] = field(default_factory=dict)
    context_strings: list[str] = field(default_factory=list)
    token_bytes: dict[int, list[int]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Trajectory({len(self)} steps, {int(self.span_mask.sum())} positions written)"

    @property
    def first(self) -> int:
        """Index of the first recorded step: above 0 where a run began in the middle."""
        return self.settings.get("start", 0)

    def label(self, i: int) -> str:
        """Which of the run's steps the i-th recorded one is, counted from 1."""
        return f"step {self.first + i + 1} of {self.settings.get('steps', self.first + len(self))}"

    @property
    def confidence(self) -> torch.Tensor:
        """(S, L) probability of the most likely token."""
        return self.top_p[..., 0]

    @property
    def argmax(self) -> torch.Tensor:
        """(S, L) most likely ids."""
        return self.top_ids[..., 0]

    def _flipped(self) -> torch.Tensor:
        argmax = self.argmax
        change = argmax.diff(dim=0, prepend=argmax[:1])
        return change != 0  # (S, L); the first step changes nothing

    def flips(self) -> torch.Tensor:
        """(L,) how often the most likely token changed."""
        return self._flipped().sum(0)

    def commit_step(self) -> torch.Tensor:
        """(L,) index of the first step from which on the most likely token never changes."""
        steps = torch.arange(len(self))[:, None]
        return (self._flipped() * steps).amax(0)

    def commit_order(self) -> torch.Tensor:
        """Generated positions from the first committed to the last; ties by position."""
        generated = self.span_mask.nonzero()[:, 0]
        order = self.commit_step()[generated].argsort(stable=True)
        return generated[order]

    def words(self) -> list[tuple[int, int]]:
        """(first, past last) positions of the final text's words: tokens that meet in letters are of one word."""
        return word_spans([self.token_strings[i] for i in self.tokens[-1].tolist()])

    def difference(self, other: Trajectory) -> torch.Tensor:
        """(S, L) bool, where another run over the same positions shows other tokens at the same step.

        At steps that the other run did not make, nothing differs.
        """
        length, other_length = self.tokens.shape[1], other.tokens.shape[1]
        if length != other_length:
            raise InputError(f"The trajectories have {length} and {other_length} positions; compare equally long ones.")
        differs = torch.zeros_like(self.tokens, dtype=torch.bool)
        shift = self.first - other.first
        for i, tokens in enumerate(self.tokens):
            if 0 <= i + shift < len(other):
                differs[i] = tokens != other.tokens[i + shift]
        return differs

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, strings in its header."""
        write_fields(path, vars(self))

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read what `save` wrote.

        Raises:
            InputError: It is another file, or not complete.
        """
        return cls(**read_fields(path))


def as_trajectory(run: Any) -> Trajectory:
    """The trajectory of what `generate` returned, or a trajectory as it is. Raises InputError for all else."""
    trajectory = getattr(run, "trajectory", run)
    if not hasattr(trajectory, "top_ids"):
        raise InputError(f"The run is a {type(run).__name__}; give what generate returned, or its trajectory.")
    return trajectory
