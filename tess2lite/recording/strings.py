"""The strings that tokens show, decoded so that the space which a token carries is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def decode_from(ids: list[int], start: int, decode: Callable[..., str]) -> str:
    """The text of ids[start:], with the space it begins with: some decoders drop it at a text's start."""
    context = ids[max(0, start - 8) : start]
    text = decode(context + ids[start:])
    shown = decode(context)
    return text[len(shown) :]


def token_strings_of(ids: Iterable[int], decode: Callable[..., str]) -> dict[int, str]:
    """Each id's own text, with the space that it carries: some tokenizers drop it at a text's start."""
    ids = sorted(ids)
    first = ids[0]
    anchor = decode([first])
    strings = {}
    for i in ids:
        text = decode([first, i])
        strings[i] = text[len(anchor) :]
    return strings


def context_strings_of(ids: list[int], span_mask: list[bool], decode: Callable[..., str]) -> list[str]:
    """What each token of the context adds to the text; a character of several tokens is whole with its last one."""
    texts = [""] * len(ids)
    anchor = 0  # ids[anchor:shown] are decoded as context for what comes next, and are shown already
    shown = 0
    for i, is_generated in enumerate(span_mask):
        if is_generated:
            anchor = i
            shown = i + 1
            continue
        text = decode(ids[anchor : i + 1])
        if not text.endswith("\ufffd"):
            before = decode(ids[anchor:shown])
            texts[i] = text[len(before) :]
            anchor = shown
            shown = i + 1
    return texts


def generated_text(
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    span_mask: list[bool],
    eos: Collection[int],
    shown_from: int,
) -> tuple[str, bool]:
    """The text of a finished sequence up to its end, and whether it has one.

    An EOS before the context's last token does not end the text; blanks followed by context have their end given.
    """
    length = len(ids)
    last_of_context = max(i for i in range(length) if not span_mask[i])
    ends = [i for i in range(last_of_context + 1, length) if ids[i] in eos]
    end = ends[0] if ends else length

    def decode(some: list[int]) -> str:
        return tokenizer.decode(some, skip_special_tokens=True)

    text = decode_from(ids[:end], shown_from, decode)
    has_end = bool(ends) or not span_mask[-1]
    return text, has_end


def word_spans(strings: list[str]) -> list[tuple[int, int]]:
    """(first, past last) indices of each word: tokens that meet in letters or digits are of one word."""
    starts = [0]
    for i, (left, right) in enumerate(pairwise(strings), 1):
        is_inside = left[-1:].isalnum() and right[:1].isalnum()
        if not is_inside:
            starts.append(i)
    ends = [*starts[1:], len(strings)]
    return list(zip(starts, ends, strict=True))
