"""What a run recorded: tensors and strings, nothing of models. Every picture and measure reads from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .validation import InputError, expand_path

FORMAT = "tess2lite trajectory 2"
TENSORS = ("tokens", "top_ids", "top_p", "entropy", "alpha_bar", "span_mask")
STRINGS = ("texts", "token_strings", "token_bytes", "known", "settings")
RECORD = "records."  # what a record's name begins with in a file


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
        known: L strings, what each token of the context adds to the text, "" where the model wrote.
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
    known: list[str] = field(default_factory=list)
    token_bytes: dict[int, list[int]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def decoded(
        cls, tokens: torch.Tensor, span_mask: torch.Tensor, decode: Callable[..., str], shown_from: int, **parts: Any
    ) -> Trajectory:
        """A trajectory whose strings are decoded from its ids.

        Args:
            tokens, span_mask, parts: As of the class.
            decode: Ids → text.
            shown_from: Position that texts begin at.
        """
        trajectory = cls(tokens, span_mask=span_mask, texts=[], token_strings={}, **parts)
        rows = tokens.tolist()
        trajectory.texts = [decode_from(row, shown_from, decode) for row in rows]
        trajectory.token_strings = token_strings_of(trajectory._ids().unique().tolist(), decode)
        trajectory.known = known_texts(rows[0], span_mask.tolist(), decode)
        return trajectory

    def _ids(self) -> torch.Tensor:
        """All ids that occur, flat; records of whole numbers are ids."""
        records = [values for values in self.records.values() if not values.is_floating_point()]
        return torch.cat([values.flatten() for values in (self.tokens, self.top_ids, *records)])

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
        strings = [self.token_strings[i] for i in self.tokens[-1].tolist()]
        starts = [0]
        for i, (left, right) in enumerate(pairwise(strings), 1):
            if not (left[-1:].isalnum() and right[:1].isalnum()):
                starts.append(i)
        return list(pairwise([*starts, len(strings)]))

    def difference(self, other: Trajectory) -> torch.Tensor:
        """(S, L) bool, where another run over the same positions shows other tokens at the same step.

        At steps that the other run did not make, nothing differs.
        """
        ours, theirs = self.tokens.shape[1], other.tokens.shape[1]
        if ours != theirs:
            raise InputError(f"The trajectories have {ours} and {theirs} positions; compare equally long ones.")
        differs = torch.zeros(self.tokens.shape, dtype=torch.bool)
        for step in range(max(self.first, other.first), min(self.first + len(self), other.first + len(other))):
            differs[step - self.first] = self.tokens[step - self.first] != other.tokens[step - other.first]
        return differs

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, strings in its header."""
        path = expand_path(path)
        strings = {name: getattr(self, name) for name in STRINGS}
        tensors = {name: getattr(self, name).contiguous() for name in TENSORS}
        tensors |= {RECORD + name: values.contiguous() for name, values in self.records.items()}
        try:
            save_file(tensors, path, {"format": FORMAT, "strings": json.dumps(strings)})
        except SafetensorError as problem:
            raise OSError(f"'{path}' could not be written ({problem}); give a file in a folder with room.") from None

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Reads what `save` wrote. Raises InputError for any other file."""
        path = expand_path(path)
        if not Path(path).is_file():
            raise InputError(f"There is no trajectory file '{path}'; give one written by Trajectory.save.")
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata()
            if header["format"] != FORMAT:
                raise ValueError
            tensors = load_file(path)
            records = {name.removeprefix(RECORD): tensors.pop(name) for name in [*tensors] if name.startswith(RECORD)}
            strings = json.loads(header["strings"])
            for name in ("token_strings", "token_bytes"):
                strings[name] = {int(i): value for i, value in strings[name].items()}
            trajectory = cls(**tensors, **strings, records=records)
            trajectory._check()
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, IndexError) as problem:
            raise InputError(
                f"'{path}' is not a complete trajectory of this version; give a file written by Trajectory.save."
            ) from problem
        return trajectory

    def _check(self) -> None:
        """Raises ValueError unless all parts fit each other: a file may come from anywhere."""
        steps, length, k = self.top_ids.shape
        shapes = {"tokens": (steps, length), "entropy": (steps, length), "alpha_bar": (steps,), "span_mask": (length,)}
        shapes |= {"top_ids": (steps, length, k), "top_p": (steps, length, k)}
        ids = self._ids()
        strings = [*self.texts, *self.known, *self.token_strings.values()]
        fits = [
            steps > 0 and k > 0 and self.span_mask.any() and self.span_mask.dtype == torch.bool,
            all(getattr(self, name).shape == shape for name, shape in shapes.items()),
            all(values.shape in ((steps,), (steps, length)) for values in self.records.values()),
            all(getattr(self, name).isfinite().all() for name in shapes),
            all(values.isfinite().all() for values in self.records.values()),
            not ids.is_floating_point() and set(ids.unique().tolist()) <= self.token_strings.keys(),
            ((self.top_p >= 0) & (self.top_p <= 1.001)).all(),
            all(isinstance(text, str) for text in strings),
            all(0 <= byte < 256 for values in self.token_bytes.values() for byte in values),
            len(self.texts) == steps and len(self.known) in (0, length),
            isinstance(self.first, int),
        ]
        if not all(fits):
            raise ValueError("parts that do not fit each other")


def as_trajectory(given: Any) -> Trajectory:
    """The trajectory of what `generate` returned, or a trajectory as it is. Raises InputError for all else."""
    trajectory = getattr(given, "trajectory", given)
    if not hasattr(trajectory, "top_ids"):
        raise InputError(f"The run is a {type(given).__name__}; give what generate returned, or its trajectory.")
    return trajectory


def decode_from(ids: list[int], start: int, decode: Callable[..., str]) -> str:
    """The text of ids[start:], with the space it begins with: some decoders drop it at a text's start."""
    context = ids[max(0, start - 8) : start]
    return decode(context + ids[start:])[len(decode(context)) :]


def token_strings_of(ids: Iterable[int], decode: Callable[..., str]) -> dict[int, str]:
    """Each id's own text, with the space that it carries: some tokenizers drop it at a text's start."""
    ids = sorted(ids)
    anchor = decode(ids[:1])
    return {i: decode([ids[0], i])[len(anchor) :] for i in ids}


def known_texts(ids: list[int], span_mask: list[bool], decode: Callable[..., str]) -> list[str]:
    """What each token of the context adds to the text; a character of several tokens comes whole with its last one."""
    texts = [""] * len(ids)
    anchor, shown = 0, 0  # ids[anchor:shown] are decoded as context for what comes next, and are shown already
    for i, written in enumerate(span_mask):
        if written:
            anchor, shown = i, i + 1
            continue
        text = decode(ids[anchor : i + 1])
        if not text.endswith("\ufffd"):
            texts[i] = text[len(decode(ids[anchor:shown])) :]
            anchor, shown = shown, i + 1
    return texts
