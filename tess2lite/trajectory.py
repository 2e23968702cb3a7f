"""What a run recorded: tensors and strings, nothing of models. Every picture and measure reads from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

FORMAT = "tess2lite trajectory 1"
STRINGS = ("texts", "token_strings", "token_bytes", "known", "settings")
IDS = ("tokens", "top_ids", "argmax_before_guidance")


@dataclass(repr=False)
class Trajectory:
    """One sequence's way from noise to text, S steps of L positions.

    tokens: (S, L) ids after each step's projection. top_ids, top_p: (S, L, k), the likeliest tokens of each
    prediction and their probabilities, falling. entropy: (S, L) of the prediction, in nats. alpha_bar: (S,) of the
    noisy simplex each step read. span_mask: (L,) bool, where the model wrote. reward: (S,) of each prediction, and
    both (S, L), argmax_before_guidance, the ids that were likeliest before guidance, and logprob_gain, what it added to
    the log-probability of the likeliest token there is, in nats; None where no reward was read. texts: S strings,
    everything written, ends and padding included. token_strings: id → text of every id that occurs; token_bytes: id →
    bytes of those that are not whole characters. known: L strings, what each known token adds to the text, "" where the
    model wrote. settings: what a replay needs (prompt, seed, steps, …).
    """

    tokens: torch.Tensor
    top_ids: torch.Tensor
    top_p: torch.Tensor
    entropy: torch.Tensor
    alpha_bar: torch.Tensor
    span_mask: torch.Tensor
    texts: list[str]
    token_strings: dict[int, str]
    reward: torch.Tensor | None = None
    argmax_before_guidance: torch.Tensor | None = None
    logprob_gain: torch.Tensor | None = None
    known: list[str] = field(default_factory=list)
    token_bytes: dict[int, list[int]] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Trajectory({len(self)} steps, {int(self.span_mask.sum())} positions written)"

    def _repr_html_(self) -> str:
        from .viz.explorer import explorer

        return explorer(self)

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
        """(S, L) ids the model held most likely."""
        return self.top_ids[..., 0]

    def _flipped(self) -> torch.Tensor:
        return self.argmax.diff(dim=0, prepend=self.argmax[:1]) != 0  # (S, L); the first step changes nothing

    def flips(self) -> torch.Tensor:
        """(L,) how often the most likely token changed."""
        return self._flipped().sum(0)

    def commit_step(self) -> torch.Tensor:
        """(L,) index of the first step from which on the most likely token never changes."""
        return (self._flipped() * torch.arange(len(self))[:, None]).amax(0)

    def commit_order(self) -> torch.Tensor:
        """Written positions from the first committed to the last; ties from left to right."""
        written = self.span_mask.nonzero()[:, 0]
        return written[self.commit_step()[written].argsort(stable=True)]

    def words(self) -> list[tuple[int, int]]:
        """(first, past last) positions of the final text's words: tokens that meet in letters are of one word."""
        token_strings = [self.token_strings[i] for i in self.tokens[-1].tolist()]
        joined = [left[-1:].isalnum() and right[:1].isalnum() for left, right in pairwise(token_strings)]
        return list(pairwise([0, *(i for i, joins in enumerate(joined, 1) if not joins), len(token_strings)]))

    def difference(self, other: Trajectory) -> torch.Tensor:
        """(S, L) bool, where another run over the same positions shows other tokens at the same step.

        At steps that the other run did not make, nothing differs.
        """
        ours, theirs = self.tokens.shape[1], other.tokens.shape[1]
        if ours != theirs:
            raise ValueError(f"The trajectories have {ours} and {theirs} positions; compare equally long ones.")
        differs = torch.zeros(self.tokens.shape, dtype=torch.bool)
        for step in range(max(self.first, other.first), min(self.first + len(self), other.first + len(other))):
            differs[step - self.first] = self.tokens[step - self.first] != other.tokens[step - other.first]
        return differs

    def save(self, path) -> None:
        """One safetensors file, strings in its header."""
        strings = {name: getattr(self, name) for name in STRINGS}
        tensors = {name: value.contiguous() for name, value in vars(self).items() if torch.is_tensor(value)}
        try:
            save_file(tensors, path, {"format": FORMAT, "strings": json.dumps(strings)})
        except SafetensorError as problem:
            raise OSError(f"'{path}' could not be written ({problem}); give a file in a folder with room.") from None

    @classmethod
    def load(cls, path) -> Trajectory:
        """What `save` wrote. Raises ValueError for any other file."""
        if not Path(path).is_file():
            raise ValueError(f"There is no trajectory file '{path}'; give one written by Trajectory.save.")
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata()
            if about["format"] != FORMAT:
                raise ValueError
            tensors, strings = load_file(path), json.loads(about["strings"])
            for name in ("token_strings", "token_bytes"):
                strings[name] = {int(i): value for i, value in strings[name].items()}
            run = cls(**tensors, **strings)
            run._check()
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as problem:
            raise ValueError(f"'{path}' is no whole trajectory; give a file written by Trajectory.save.") from problem
        return run

    def _check(self) -> None:
        """Raises ValueError unless all parts fit each other: a file may come from anywhere."""
        steps, length, k = self.top_ids.shape
        shapes = dict.fromkeys(("tokens", "entropy", "argmax_before_guidance", "logprob_gain"), (steps, length))
        shapes |= dict.fromkeys(("top_ids", "top_p"), (steps, length, k))
        shapes |= {"alpha_bar": (steps,), "reward": (steps,), "span_mask": (length,)}
        tensors = {name: getattr(self, name) for name in shapes if getattr(self, name) is not None}
        ids = torch.cat([tensors[name].flatten() for name in IDS if name in tensors])
        fits = [
            steps and k and self.span_mask.any() and self.span_mask.dtype == torch.bool,
            all(tensor.shape == shapes[name] and tensor.isfinite().all() for name, tensor in tensors.items()),
            (self.argmax_before_guidance is None) == (self.logprob_gain is None),
            not ids.is_floating_point() and set(ids.unique().tolist()) <= self.token_strings.keys(),
            ((self.top_p >= 0) & (self.top_p <= 1.001)).all(),
            all(isinstance(text, str) for text in [*self.texts, *self.known, *self.token_strings.values()]),
            all(0 <= byte < 256 for values in self.token_bytes.values() for byte in values),
            len(self.texts) == steps and len(self.known) in (0, length) and isinstance(self.first, int),
        ]
        if not all(fits):
            raise ValueError("parts that do not fit each other")


@dataclass
class Recorder:
    """A hook that keeps every step of a run. Put it after hooks that edit the step.

    k: how many of the likeliest tokens to keep for each position.
    """

    k: int = 5
    steps: list[dict] = field(default_factory=list)

    def __call__(self, step) -> None:
        ids, p = step.top(self.k)
        kept = {"top_ids": ids, "top_p": p, "tokens": step.tokens, "entropy": step.entropy}
        kept["alpha_bar"] = torch.full((len(ids),), step.alpha_bar)
        if step.reward is not None:  # where guidance only read the reward it changed nothing
            kept["reward"] = step.reward
            kept["argmax_before_guidance"] = step.argmax if step.ascent is None else step.argmax_before_guidance
            kept["logprob_gain"] = torch.zeros_like(step.entropy) if step.ascent is None else step.logprob_gain
        self.steps.append({name: value.cpu() for name, value in kept.items()})

    def trajectory(self, row: int, span_mask: torch.Tensor, decode, shown_from: int, settings: dict) -> Trajectory:
        """One sequence's trajectory. span_mask: (L,), cut to its real length; decode: ids → string; shown_from:
        position that texts begin at."""
        if not self.steps:
            raise ValueError("Nothing was recorded: the run was stopped before its first step.")

        def column(name):
            values = torch.stack([step[name][row] for step in self.steps])  # (S, …)
            values = values[:, : len(span_mask)] if values.dim() > 1 else values
            return values.int() if name in IDS else values.float()

        columns = {name: column(name) for name in self.steps[0] if all(name in step for step in self.steps)}
        ids = torch.cat([columns[name].flatten() for name in IDS if name in columns])
        return Trajectory(
            **columns,
            span_mask=span_mask.cpu(),
            texts=[decode(ids[shown_from:]) for ids in columns["tokens"].tolist()],
            token_strings=token_strings_of(ids.unique().tolist(), decode),
            known=known_texts(columns["tokens"][0].tolist(), span_mask.tolist(), decode),
            settings=settings,
        )


def token_strings_of(ids: Iterable[int], decode) -> dict[int, str]:
    """Each id's own text, with the space that it carries: some tokenizers drop it at a text's start."""
    ids = sorted(ids)
    anchor = decode(ids[:1])
    return {i: decode([ids[0], i])[len(anchor) :] for i in ids}


def known_texts(ids: list[int], span_mask: list[bool], decode) -> list[str]:
    """What each known token adds to the text. A sign of several tokens, an emoji say, comes whole with its last one."""
    texts, shown = [""] * len(ids), ""
    for i, written in enumerate(span_mask):
        text = decode(ids[: i + 1])
        if written:
            shown = text
        elif not text.endswith("\ufffd"):
            texts[i], shown = text[len(shown) :], text
    return texts
