"""The strings that tokens show, decoded so that the space which a token carries is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise


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


def word_spans(strings: list[str]) -> list[tuple[int, int]]:
    """(first, past last) indices of each word: tokens that meet in letters or digits are of one word."""
    starts = [0]
    for i, (left, right) in enumerate(pairwise(strings), 1):
        is_inside = left[-1:].isalnum() and right[:1].isalnum()
        if not is_inside:
            starts.append(i)
    ends = [*starts[1:], len(strings)]
    return list(zip(starts, ends, strict=True))
