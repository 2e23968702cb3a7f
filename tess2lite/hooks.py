"""The hook protocol, and hooks that intervene in a run or record it: pin, branch, stop early, record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch

from . import validation
from .recording.fields import decode_strings, recorded_fields
from .sampling import Step
from .trajectory import Trajectory
from .validation import InputError


class Hook(Protocol):
    """Any callable on a `Step`; it may read all of it, and assign or edit what `Step` allows.

    Three attributes are optional. `check(lm)` is called before the run and raises InputError where the hook cannot work
    with this model. `top_k`, a whole number, is how many of the most likely tokens the hook reads of each position:
    they are then computed in the one pass over the vocabulary. `reads_noisy_tokens`, True where the hook reads
    `step.noisy_tokens`, which are not found otherwise.
    """

    def __call__(self, step: Step) -> None:
        """Called once per step, after the prediction and before the next step."""


class Pin:
    """Fixes positions at given tokens, so that the rest is generated around them.

    Args:
        tokens: Position → id, inside the span mask of every sequence of the batch.
        start: First step (index) that is edited.
        count: How many steps are; None for all that follow. After a count of 1 the model may change its mind again.
    """

    def __init__(self, tokens: dict[int, int], start: int = 0, count: int | None = None):
        if not isinstance(tokens, dict) or not tokens:
            raise InputError(f"tokens is {tokens!r}; give a dict of positions and token ids, such as {{17: 42}}.")
        self.tokens = {
            validation.check_int("position", position, 0): validation.check_int("token", token, 0)
            for position, token in tokens.items()
        }
        self.start = validation.check_int("start", start, 0)
        self.stop = float("inf") if count is None else start + validation.check_int("count", count, 1)

    def __call__(self, step: Step) -> None:
        _check_step_exists("start", self.start, step)
        if not self.start <= step.index < self.stop:
            return
        for position, token in self.tokens.items():
            if position >= step.span_mask.shape[1] or not step.span_mask[:, position].all():
                raise InputError(f"Position {position} is not written by this run; pin one inside the span mask.")
            step.set_token(position, token)


class Branch:
    """Another future of the same past: the run's own seeds before `step` (index), `seed` from there on."""

    def __init__(self, step: int, seed: int):
        self.step = validation.check_int("step", step, 0)
        (self.seed,) = validation.expand_seeds(seed, 1)
        self.seen = False

    def __call__(self, step: Step) -> None:
        _check_step_exists("step", self.step, step)
        if not self.seen and step.index > self.step:
            raise InputError(f"step is {self.step}; this run begins at step {step.index}.")
        self.seen = not step.is_last  # a hook may serve one run after another
        if step.index == self.step:
            step.reseed(self.seed)


def _check_step_exists(name: str, index: int, step: Step) -> None:
    if index >= step.steps:
        raise InputError(f"{name} is {index}; this run has steps 0 to {step.steps - 1}.")


class NoSelfConditioning:
    """Disables self-conditioning. Must come first in `hooks`."""

    def __call__(self, step: Step) -> None:
        step.self_condition = False


class Halt:
    """Stops the run when the most likely tokens of the text have not changed for `patience` steps and it is certain.

    The text ends at EOS: what comes after it may go on changing. All sequences of a batch stop together.

    Args:
        patience: Unchanged steps that are needed.
        entropy: Mean over the text below which a prediction counts as certain, in nats per token.
    """

    def __init__(self, patience: int = 12, entropy: float = 0.3):
        self.patience = validation.check_int("patience", patience, 1)
        if not (isinstance(entropy, (int, float)) and entropy >= 0):
            raise InputError(f"entropy is {entropy!r}; give a number of nats, 0 or more.")
        self.entropy = entropy
        self.last: torch.Tensor | None = None
        self.unchanged = 0
        self.index = -1

    def __call__(self, step: Step) -> None:
        if step.index <= self.index:  # a hook may serve one run after another
            self.last = None
        self.index = step.index
        mask = step.text_mask
        text = torch.where(mask, step.argmax, -1)
        same = self.last is not None and torch.equal(text, self.last)
        self.unchanged = self.unchanged + 1 if same else 0
        self.last = text
        if self.unchanged >= self.patience and float(step.entropy[mask].mean()) <= self.entropy:
            step.stop = True


@dataclass
class Recorder:
    """Keeps every step of a run, on the model's device until the end. Must come last in `hooks`.

    Args:
        top_k: How many of the most likely tokens to keep of each position.
    """

    reads_noisy_tokens: ClassVar[bool] = True

    top_k: int = 5
    steps: list[dict[str, torch.Tensor]] = field(default_factory=list)
    alphas_bar: list[float] = field(default_factory=list)

    def __call__(self, step: Step) -> None:
        top_ids, top_p = step.top(self.top_k)
        kept = {
            "tokens": step.tokens,
            "top_ids": top_ids,
            "top_p": top_p,
            "entropy": step.entropy,
        }
        for name in ("token_p", "noisy_tokens"):
            values = getattr(step, name)
            if values is not None:
                kept[name] = values
        self.steps.append(kept | step.records)
        self.alphas_bar.append(step.alpha_bar)

    def trajectory(
        self,
        row: int,
        span_mask: torch.Tensor,
        decode: Callable[..., str],
        shown_from: int,
        settings: dict,
    ) -> Trajectory:
        """One sequence's trajectory.

        Args:
            row: Which sequence of the batch.
            span_mask: (L,), cut to the sequence's real length.
            decode: Ids → text.
            shown_from: Position that texts begin at.
            settings: What a replay needs.
        """
        if not self.steps:
            raise InputError("Nothing was recorded: the run was stopped before its first step.")
        fields = recorded_fields(self.steps, row, span_mask.cpu())
        strings = decode_strings(fields, decode, shown_from)
        alphas_bar = torch.tensor(self.alphas_bar)
        return Trajectory(**fields, **strings, alpha_bar=alphas_bar, settings=settings)
