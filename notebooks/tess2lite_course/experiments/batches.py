"""Batches of whole documents for the bundled models: no token is read twice, hardly any filler.

Documents come in pools; a pool's are sorted by length and cut into batches of about equally many tokens. Which
documents a batch holds is a function of (seed, step), so a run that resumes reads on where it stopped. Steps take
turns among `SIDE_BY_SIDE` pools, so that as many processes can each make their own pools ahead.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from transformers import PreTrainedTokenizerBase

from tess2lite.tinytown.documents import KINDS, Document, document

SIDE_BY_SIDE = 12  # pools, and processes on a GPU
POOL_TOKENS = 16_384  # at least 4 batches of any size
MEAN_TOKENS = 76  # per document, a little below what is measured, so that a pool fills its batches
ROUND_TO = 16  # row lengths are multiples of it, which spares a compiler some shapes


def as_text(source: Document) -> str:
    """A document as plain text: chats in TESS 2's template, which ends in the assistant's words."""
    if isinstance(source, str):
        return source
    turns = [f"<|{message['role']}|>\n{message['content']}" for message in source]
    return "\n".join(turns)


class PooledBatches(torch.utils.data.Dataset):
    """Item i is batch i of a run. What a row is, and which rows a pool has, is said by subclasses.

    They have `steps`, `tokens` (per batch, about), `longest` (of a row that is used), `seed` and `collate`.
    """

    pool_name = "pool"
    first_noise_seed = 0

    @cached_property
    def _pools(self) -> dict[int, tuple[int, list]]:
        """Number and batches of the pool that was read last, for each of those that are read side by side."""
        return {}

    @property
    def batches_per_pool(self) -> int:
        """How many steps read one pool."""
        return max(4, POOL_TOKENS // self.tokens)

    def rows(self, number: int) -> list:
        """All rows of a pool."""
        raise NotImplementedError

    def size(self, row) -> int:
        """Tokens of a row."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        turn, place = divmod(step, SIDE_BY_SIDE)
        round_number, within = divmod(turn, self.batches_per_pool)
        number = round_number * SIDE_BY_SIDE + place
        if self._pools.get(place, (-1,))[0] != number:
            self._pools[place] = (number, self._make_pool(number))
        rows = self._pools[place][1][within]
        generator = torch.Generator()
        generator.manual_seed(self.seed * 1_000_003 + self.first_noise_seed + step)
        return self.collate(rows, generator)

    def _make_pool(self, number: int) -> list[list]:
        """Equally many tokens in each batch: with Muon a step of few tokens moves the weights as far as any other."""
        rng = random.Random(f"{self.seed}/{self.pool_name}/{number}")
        rows = [row for row in self.rows(number) if self.size(row) <= self.longest]
        rng.shuffle(rows)
        ends = list(accumulate(self.size(row) for row in rows))
        rows = rows[: bisect_right(ends, self.batches_per_pool * self.tokens)]
        rows.sort(key=lambda row: self.size(row) + 4 * rng.random())
        share = sum(map(self.size, rows)) / self.batches_per_pool
        batches = [[] for _ in range(self.batches_per_pool)]
        read = 0
        for row in rows:
            batches[int(read / share)].append(row)
            read += self.size(row)
        rng.shuffle(batches)
        return batches


@dataclass
class PlannedBatches(PooledBatches):
    """Documents: item i is {"input_ids": (B, L), …}, made by `collate` from lists of ids.

    Args:
        tokenizer: of the model.
        tokens: per batch, about.
        steps: number of batches.
        longest: documents with more ids than this are left out.
        collate: (rows of ids, generator) → batch.
        seed: of the documents and their order.
        first_document: number of the first document read.
        kinds: how often each kind of document is read.
    """

    tokenizer: PreTrainedTokenizerBase
    tokens: int
    steps: int
    longest: int
    collate: Callable
    seed: int = 0
    first_document: int = 0
    kinds: dict[str, int] = field(default_factory=lambda: dict(KINDS))

    def rows(self, number: int) -> list[list[int]]:
        count = self.batches_per_pool * self.tokens // MEAN_TOKENS
        first = self.first_document + number * count
        documents = [document("train", i, self.seed, self.kinds) for i in range(first, first + count)]
        texts = [as_text(each) for each in documents]
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
        bos = self.tokenizer.bos_token_id
        eos = self.tokenizer.eos_token_id
        return [[bos, *ids, eos] for ids in encoded["input_ids"]]

    def size(self, row: list[int]) -> int:
        return len(row)


def padded(rows: list[list[int]], filler: int, width: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows made equally long. Returns ids (B, L) and their lengths (B,); L is `width`, or a multiple of `ROUND_TO`."""
    lengths = torch.tensor([len(ids) for ids in rows])
    width = width or -(-int(lengths.max()) // ROUND_TO) * ROUND_TO
    ids = torch.full((len(rows), width), filler)
    for padded_row, row in zip(ids, rows, strict=True):
        padded_row[: len(row)] = torch.tensor(row)
    return ids, lengths


@dataclass
class AnswerFinder:
    """Where the answers are: what follows a question mark, to the end of the sentence, or of the assistant's line.

    Args:
        question_mark, full_stop, line_break: token ids.
    """

    question_mark: int
    full_stop: int
    line_break: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> AnswerFinder:
        """For a tokenizer that has a token for each of the three."""
        ids = [tokenizer(mark, add_special_tokens=False)["input_ids"][-1] for mark in ("?", ".", "\n")]
        return cls(*ids)

    def __call__(self, row: list[int]) -> list[int]:
        """Places of the answers in a row; none where it asks fewer than two questions."""
        if row.count(self.question_mark) < 2:
            return []
        places = []
        is_answer = False
        lines = 0
        for place, token in enumerate(row):
            if is_answer:
                places.append(place)
                lines += token == self.line_break
                # In a chat come three: after the question, after <|assistant|>, after the answer.
                is_answer = token != self.full_stop and lines < 3
            if token == self.question_mark:
                is_answer = True
                lines = 0
        return places


@dataclass
class CausalCollator:
    """Rows for next-token training. Some tokens are replaced, so that the model copes with words it never read.

    Args:
        filler: id of [PAD].
        rare: ids to replace tokens by: bytes, and words that no training text has.
        chance: the probability that a row has replaced tokens.
        answers: finds the answers of a row with questions; None where all rows are learned from whole.
        answers_alone: the probability that such a row is learned from in its answers alone.
    """

    filler: int
    rare: list[int]
    chance: float = 0.1
    answers: AnswerFinder | None = None
    answers_alone: float = 0.0

    def __call__(self, rows: list[list[int]], generator: torch.Generator) -> dict[str, torch.Tensor]:
        ids, lengths = padded(rows, self.filler)
        inside = torch.arange(ids.shape[1]) < lengths[:, None]
        labels = ids.masked_fill(~inside, -100)
        labels[:, 0] = -100
        for label, row in zip(labels, rows, strict=True):
            self._keep_answers_(label, row, generator)
        rare = torch.tensor(self.rare)
        for row in range(len(ids)):
            if torch.rand((), generator=generator) < self.chance:
                count = int(torch.randint(1, 4, (), generator=generator))
                where = torch.randint(1, int(lengths[row]), (count,), generator=generator)
                ids[row, where] = rare[torch.randint(len(rare), (count,), generator=generator)]
                labels[row, where] = -100
        return {"input_ids": ids, "labels": labels}

    def _keep_answers_(self, label: torch.Tensor, row: list[int], generator: torch.Generator) -> None:
        if self.answers is None or torch.rand((), generator=generator) >= self.answers_alone:
            return
        places = self.answers(row)
        if places:
            kept = label[places]
            label.fill_(-100)
            label[places] = kept
