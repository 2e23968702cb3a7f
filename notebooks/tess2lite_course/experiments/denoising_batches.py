"""Batches for the bundled denoisers: texts to be written or filled in, and chats to be answered.

Timesteps lie mostly where something can be learned: with about a thousand tokens nothing is known above t/T = 0.65
and nothing is left to do below 0.15.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tess2lite.schedule import TRAINING_TIMESTEPS
from tess2lite.span_masks import after, span_infilling
from tess2lite.tinytown.documents import MAX_TURNS, passage_chat, tellings_for, turn
from tess2lite.tinytown.tasks import side

from .batches import ROUND_TO, AnswerFinder, PooledBatches, padded

WINDOW = (0.15, 0.65)  # of t/T
DECISIONS = (0.25, 0.60)  # of t/T, where the loss of a base that has read enough still changes
PAD_WEIGHT = 0.05  # PAD is easy: at full weight it is two thirds of the loss
WRITING = 0.62  # share of batches whose rows are written after a prefix, up to their end and the PAD after it
FROM_NOTHING = 0.15  # share of those rows that have no prefix
MOST_TOKENS = 1.5  # times the size of a batch, after padding
ANSWERS_ARE_BLANKS = 0.5  # in this share of rows with questions, of those with blanks
SHORTEST = 8  # tokens, of a text with blanks

# How often a turn that is tuned on is of each kind; "drill" and "dense" are questions about a passage.
TURNS = {
    "constraints": 7,
    "reading": 5,
    "knowledge": 5,
    "arithmetic": 5,
    "puzzle": 7,
    "request": 4,
    "drill": 3,
    "dense": 4,
}
MEAN_CHAT_TOKENS = 85
PAD_WEIGHT_IN_CHATS = 0.03


class Draws:
    """Random numbers of one batch."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def share(self) -> float:
        return float(torch.rand((), generator=self.generator))

    def integer(self, low: int, high: int) -> int:
        """Uniform in low … high − 1."""
        return int(torch.randint(low, high, (), generator=self.generator))

    def timesteps(self, rows: int, shares: tuple[float, float], window: tuple[float, float] = WINDOW) -> torch.Tensor:
        """Whole timesteps (rows,): a share in the window, a share above a quarter, the others anywhere."""
        kind, place = torch.rand(2, rows, generator=self.generator)
        low, high = window
        t = torch.where(kind < shares[0], low + (high - low) * place, place)
        t = torch.where((kind >= shares[0]) & (kind < sum(shares)), 0.25 + 0.75 * place, t)
        return (t * TRAINING_TIMESTEPS).long().clamp(max=TRAINING_TIMESTEPS - 1)

    def width(self, longest: int, most: int) -> int:
        """Row length: as needed, some more, or full, so that a model meets any amount of PAD."""
        kind = self.share()
        if kind < 0.4:
            room = 0
        elif kind < 0.8:
            room = self.integer(0, 48)
        else:
            room = most - longest
        return min(most, -(-(longest + room) // ROUND_TO) * ROUND_TO)


def as_batch(ids: torch.Tensor, span_mask: torch.Tensor, weights: torch.Tensor, t: torch.Tensor, draws: Draws) -> dict:
    """What `DiffusionTrainer` takes: (B, L) ids, mask, weights and labels, (B,) timesteps and example numbers."""
    first = draws.integer(0, 2**31 - 1 - len(ids))
    return {
        "input_ids": ids,
        "span_mask": span_mask,
        "loss_weights": weights,
        "labels": ids.masked_fill(~span_mask, -100),
        "t": t,
        "example": first + torch.arange(len(ids)),
    }


@dataclass
class WriteOrFill:
    """Documents to be written after a prefix, or with blanks to be filled in.

    Args:
        pad: id of [PAD].
        bos: id of the first token.
        tokens: size of a batch, about.
        longest: tokens of a row.
        answers: finds the answers of a row with questions, which are then the blanks of half of such rows; None for
            blanks that do not look at the text.
        writing: share of batches whose rows are written after a prefix.
        window: of t/T, where most timesteps lie.
    """

    pad: int
    bos: int
    tokens: int
    longest: int
    answers: AnswerFinder | None = None
    writing: float = WRITING
    window: tuple[float, float] = WINDOW

    def __call__(self, rows: list[list[int]], generator: torch.Generator) -> dict[str, torch.Tensor]:
        draws = Draws(generator)
        make = self._written if draws.share() < self.writing else self._filled
        ids, span_mask = make(rows, draws)
        weights = torch.where(ids == self.pad, PAD_WEIGHT, 1.0)
        t = draws.timesteps(len(ids), (0.75, 0.0), self.window)
        return as_batch(ids, span_mask, weights, t, draws)

    def _written(self, rows: list[list[int]], draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        width = draws.width(max(map(len, rows)), self.longest)
        rows = rows[: max(1, int(MOST_TOKENS * self.tokens // width))]
        ids, lengths = padded(rows, self.pad, width)
        masks = [after(width, self._prefix(int(length), draws)) for length in lengths]
        return ids, torch.stack(masks)

    def _prefix(self, length: int, draws: Draws) -> int:
        if draws.share() < FROM_NOTHING:
            return 1
        longest = length // 2 if draws.share() < 0.8 else length - 1
        return draws.integer(2, max(3, longest))

    @property
    def question_mark(self) -> int | None:
        return self.answers.question_mark if self.answers else None

    def _filled(self, rows: list[list[int]], draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows cut to one length, so that a text with blanks has neither an end nor PAD to expect."""
        width = min(map(len, rows))
        if width >= ROUND_TO:
            width = max(SHORTEST, width // ROUND_TO * ROUND_TO)
        cut = []
        for row in rows:
            # A story cut out of a chat must not look as if questions followed stories.
            is_whole = draws.share() < 0.7 or self.question_mark in row
            start = 0 if is_whole else draws.integer(0, len(row) - width + 1)
            cut.append([self.bos, *row[start + 1 : start + width]])
        masks = [self._blanks(row, draws) for row in cut]
        return torch.tensor(cut), torch.stack(masks)

    def _blanks(self, row: list[int], draws: Draws) -> torch.Tensor:
        width = len(row)
        answers = self.answers(row) if self.answers and draws.share() < ANSWERS_ARE_BLANKS else []
        if answers:
            mask = torch.zeros(width, dtype=torch.bool)
            mask[answers] = True
            return mask
        kind = draws.share()
        if kind < 0.4:
            return span_infilling(width, 0.15, (3, 8)[draws.integer(0, 2)], draws.generator)
        if kind < 0.85:
            return span_infilling(width, 0.5, (3, 8, 48)[draws.integer(0, 3)], draws.generator)
        return after(width, 1)


def tuning_chat(number: int, seed: int = 0) -> list[dict[str, str]]:
    """Chat `number` of what the assistant is tuned on: one to four turns; the last answer is the one to learn."""
    rng = random.Random(f"{seed}/tuning/{number}")
    left = rng.choice((1, 1, 1, 2, 2, 3, MAX_TURNS))
    messages = []
    while left > 0:
        kind = rng.choices(list(TURNS), list(TURNS.values()))[0]
        if kind in ("drill", "dense"):
            added = _passage(rng, kind, rng.randint(1, left))
        else:
            added = turn(rng, "train", kind)
        messages += added
        left -= len(added) // 2
    return messages


def _passage(rng: random.Random, kind: str, turns: int) -> list[dict[str, str]]:
    while True:
        messages = passage_chat(rng, tellings_for(kind), turns)
        if side(messages[0]["content"]) == "train":
            return messages


@dataclass
class PlannedChats(PooledBatches):
    """Chats, sorted into batches as `PlannedBatches` sorts documents.

    Args:
        encode: messages → (ids of the context, ids of the answer with its end).
        collate: (list of such pairs, generator) → batch.
        tokens, steps, longest, seed, first_document: as `PlannedBatches`.
    """

    encode: Callable
    collate: Callable
    tokens: int
    steps: int
    longest: int
    seed: int = 0
    first_document: int = 0
    pool_name = "tuning pool"

    @property
    def first_noise_seed(self) -> int:
        return self.first_document

    def rows(self, number: int) -> list[tuple[list[int], list[int]]]:
        count = self.batches_per_pool * self.tokens // MEAN_CHAT_TOKENS
        first = self.first_document + number * count
        return [self.encode(tuning_chat(i, self.seed)) for i in range(first, first + count)]

    def size(self, row: tuple[list[int], list[int]]) -> int:
        context, answer = row
        return len(context) + len(answer)


@dataclass
class Answers:
    """Chats whose last answer is denoised. An answer of n tokens weighs 1/√n per token, so that short ones count.

    Args:
        pad, tokens, longest: as `WriteOrFill`.
    """

    pad: int
    tokens: int
    longest: int

    def __call__(self, rows: list[tuple[list[int], list[int]]], generator: torch.Generator) -> dict[str, torch.Tensor]:
        draws = Draws(generator)
        width = draws.width(max(len(context) + len(answer) for context, answer in rows), self.longest)
        rows = rows[: max(1, int(MOST_TOKENS * self.tokens // width))]
        ids, _ = padded([context + answer for context, answer in rows], self.pad, width)
        span_mask = torch.stack([after(width, len(context)) for context, _ in rows])
        weights = torch.stack([self._weights(len(context), len(answer), width) for context, answer in rows])
        return as_batch(ids, span_mask, weights, draws.timesteps(len(ids), (0.3, 0.55)), draws)

    def _weights(self, context: int, answer: int, width: int) -> torch.Tensor:
        weights = torch.full((width,), PAD_WEIGHT_IN_CHATS)
        weights[context : context + answer] = 1
        return weights / answer**0.5
