"""Interventions in a run, as hooks: pin tokens, take another turn, forget, stop early."""

from __future__ import annotations

import torch

from . import validation


class Pin:
    """Holds positions at given tokens, so that the rest is written around them.

    tokens: position → id, written positions of every sequence of the batch. start, count: first step (index) that is
    edited, and how many are; by default all that follow. With a count of 1 the model may change its mind again.
    """

    def __init__(self, tokens: dict[int, int], start: int = 0, count: int | None = None):
        if not isinstance(tokens, dict) or not tokens:
            raise ValueError(f"tokens is {tokens!r}; give a dict of positions and token ids, such as {{17: 42}}.")
        self.tokens = {
            validation.check_int("position", i, 0): validation.check_int("token", id, 0) for i, id in tokens.items()
        }
        self.start = validation.check_int("start", start, 0)
        self.stop = float("inf") if count is None else start + validation.check_int("count", count, 1)

    def __call__(self, step) -> None:
        _within_the_run("start", self.start, step)
        if not self.start <= step.index < self.stop:
            return
        if outside := [i for i in self.tokens if i >= step.span_mask.shape[1] or not step.span_mask[:, i].all()]:
            raise ValueError(f"Position {outside[0]} is not written by this run; pin one inside the span mask.")
        tokens = step.tokens
        for position, token in self.tokens.items():
            tokens[:, position] = token
        step.tokens = tokens


class Branch:
    """Another future of the same past: the run's own seeds up to `step` (index), `seed` from there on."""

    def __init__(self, step: int, seed: int):
        self.step, (self.seed,) = validation.check_int("step", step, 0), validation.expand_seeds(seed, 1)
        self.seen = False

    def __call__(self, step) -> None:
        _within_the_run("step", self.step, step)
        if not self.seen and step.index > self.step:
            raise ValueError(f"step is {self.step}; this run begins at step {step.index}.")
        self.seen = step.t > 0  # a hook may serve one run after another
        if step.index == self.step:
            step.reseed(self.seed)


def _within_the_run(name: str, index: int, step) -> None:
    if index > step.index + step.t:
        raise ValueError(f"{name} is {index}; this run has steps 0 to {step.index + step.t}.")


class NoSelfConditioning:
    """Sampling without self-conditioning: no step is shown what the one before it predicted. Put it first."""

    def __call__(self, step) -> None:
        step.self_condition = False


class Halt:
    """Stops the run when no likeliest token of the text has changed for `patience` steps and the prediction is sure.

    entropy: mean over the text that counts as sure, in nats. The text ends at EOS: what is written after it may go on
    changing. All sequences of a batch stop together.
    """

    def __init__(self, patience: int = 12, entropy: float = 0.3):
        self.patience, self.entropy = validation.check_int("patience", patience, 1), entropy
        if not (isinstance(entropy, (int, float)) and entropy >= 0):
            raise ValueError(f"entropy is {entropy!r}; give a number of nats, 0 or more.")
        self.last, self.unchanged, self.index = None, 0, -1

    def __call__(self, step) -> None:
        if step.index <= self.index:  # a hook may serve one run after another
            self.last = None
        self.index = step.index
        text = torch.where(step.text_mask, step.argmax, -1)
        same = self.last is not None and torch.equal(text, self.last)
        self.last, self.unchanged = text, self.unchanged + 1 if same else 0
        step.stop |= self.unchanged >= self.patience and bool(step.entropy[step.text_mask].mean() <= self.entropy)
