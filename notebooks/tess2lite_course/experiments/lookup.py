"""Whether a model looks up what a story has said: its likeliest word where only the past can tell.

In dense stories two or three people, things and places are alive at once. At a second mention the true past is given,
the rest is unknown, and the argmax is compared with the word that the story has. Chance is one in two or three.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

import torch

from tess2lite.sampling import denoise
from tess2lite.tinytown.dense import dense_story
from tess2lite.tinytown.language import place_of, words
from tess2lite.tinytown.stories import belongs

KINDS = ("name", "adjective", "noun given it", "place")
BATCH = 64  # rows denoised together


class Mention(NamedTuple):
    """A word that was mentioned before, and whether the model's argmax is it.

    Attributes:
        story: The story's number.
        is_right: Of the word's first token, given all before it.
    """

    story: int
    is_right: bool


def dense_stories(number: int, seed: int = 0, split: str = "test") -> list[str]:
    """Returns dense stories that training never reads, in sentences that it does read."""
    texts = []
    for i in range(20 * number + 100):
        text = " ".join(dense_story(random.Random(f"{seed}/lookup/{i}"), "never").sentences)
        if belongs(split, text):
            texts.append(text)
        if len(texts) == number:
            break
    return texts


def second_mentions(text: str) -> Iterator[tuple[str, int]]:
    """Yields (kind, character where the word begins) of words that the past tells.

    A word counts when the story has named it before, and at least one other of its kind.
    """
    patterns = {
        "name": _either(words()["girls"] + words()["boys"]),
        "thing": rf"({_either(words()['colour'] + words()['look'])}) ({_either(words()['thing'])})",
        "place": rf"the ({_either(place_of(at).removeprefix('the ') for at in words()['place'])})",
    }
    seen = {kind: set() for kind in KINDS}
    for match in re.finditer("|".join(rf"(?P<{kind}>\b{p}\b)" for kind, p in patterns.items()), text):
        groups = [group for group in range(1, match.re.groups + 1) if match.group(group) is not None]
        kind = match.lastgroup
        spans = [match.span(group) for group in groups if group != match.re.groupindex[kind]]
        if kind == "name":
            spans = [match.span(kind)]
        targets = ("adjective", "noun given it") if kind == "thing" else (kind,)
        mention = match.group(kind)
        for target, (start, end) in zip(targets, spans, strict=True):
            key = mention if kind == "thing" else text[start:end]
            if key in seen[target] and len(seen[target]) > 1:
                yield target, start
        for target, (start, end) in zip(targets, spans, strict=True):
            seen[target].add(mention if kind == "thing" else text[start:end])


def _either(options) -> str:
    return "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True))


@torch.inference_mode()
def lookup_accuracy(lm, number: int = 150, seed: int = 0) -> dict[str, list[Mention]]:
    """Returns the mentions of each kind in `number` dense stories.

    Args:
        lm: A denoiser, which sees pure noise after the past and makes one step; or an autoregressive model.
        number: Of stories.
        seed: Of the stories, and of the noise.
    """
    hits = {kind: [] for kind in KINDS}
    rows = []
    for story, text in enumerate(dense_stories(number, seed)):
        encoded = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = [lm.tokenizer.bos_token_id, *encoded["input_ids"]]
        starts = [start + (text[start : start + 1] == " ") for start, _ in encoded["offset_mapping"]]
        for kind, character in second_mentions(text):
            if character in starts:
                rows.append((kind, story, ids, 1 + starts.index(character)))
    rows = [row for row in rows if len(row[2]) <= lm.config.max_position_embeddings]
    predict = _denoised if hasattr(lm, "embedding_matrix") else _autoregressive
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        predicted = predict(lm, [(ids, position) for _, _, ids, position in batch], seed)
        for (kind, story, ids, position), token in zip(batch, predicted, strict=True):
            hits[kind].append(Mention(story, token == ids[position]))
    return hits


def _autoregressive(lm, rows: list[tuple[list[int], int]], seed: int) -> list[int]:
    """Likeliest token at each row's position, from its past."""
    tokens = []
    logits = {}
    for ids, position in rows:
        if tuple(ids) not in logits:
            logits[tuple(ids)] = lm(input_ids=torch.tensor([ids], device=lm.device)).logits[0]
        tokens.append(int(logits[tuple(ids)][position - 1].argmax()))
    return tokens


def _denoised(lm, rows: list[tuple[list[int], int]], seed: int) -> list[int]:
    longest = max(len(ids) for ids, _ in rows)
    batch = {
        "input_ids": torch.full((len(rows), longest), lm.tokenizer.pad_token_id),
        "span_mask": torch.zeros(len(rows), longest, dtype=torch.bool),
        "attention_mask": torch.zeros(len(rows), longest, dtype=torch.long),
    }
    for i, (ids, position) in enumerate(rows):
        batch["input_ids"][i, : len(ids)] = torch.tensor(ids)
        batch["span_mask"][i, position : len(ids)] = True
        batch["attention_mask"][i, : len(ids)] = 1
    (step,) = denoise(lm, batch, 1, top_p=None, seed=seed)
    return [int(row[position]) for row, (_, position) in zip(step.argmax, rows, strict=True)]
