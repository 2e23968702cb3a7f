"""Text ↔ token ids, texts with blanks, and the special tokens that a denoiser needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode plain text, with no special tokens: neither the tokenizer's own nor those that the text spells."""
    encoding = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        verbose=False,  # a text that is longer than the context may only be on its way into rows
    )
    return encoding["input_ids"]


def encode_continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text that continues a line: tokenizers that mark a text's start with a space must not do so here."""
    newline = encode(tokenizer, "\n")
    ids = encode(tokenizer, "\n" + text)
    first = len(newline)
    if ids[:first] != newline:
        return encode(tokenizer, text)
    return ids[first:]


def eos_token_ids(model: PreTrainedModel) -> list[int]:
    """Every id that ends a text: the tokenizer's EOS and the configuration's, which has none, one or several."""
    ids = model.config.eos_token_id
    if not isinstance(ids, (list, tuple)):
        ids = [ids]
    tokenizer = getattr(model, "tokenizer", None)
    own = getattr(tokenizer, "eos_token_id", None)
    return sorted({*ids, own} - {None})


def up_to_eos(ids: torch.Tensor, eos: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Which positions come before or at the first EOS inside `where`: (B, L) bool; all of a row without one.

    Args:
        ids: (B, L).
        eos: (E,) ids that end a text, perhaps none.
        where: (B, L) bool.
    """
    is_end = torch.isin(ids, eos) & where
    ends = is_end.long()
    ends_before = ends.cumsum(1) - ends
    return ends_before == 0


def encode_blanks(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[bool]]:
    """Encode a text with blanks: every underscore is one token to be written, `"Tom saw a ___ in the barn."` three.

    Returns:
        Ids with BOS, and the span mask; ids inside the mask are PAD and never read.
    """
    ids = [tokenizer.bos_token_id]
    mask = [False]
    for part in re.split(r"( ?_+)", text):  # a token carries its own space
        is_blank = part.endswith("_")
        if is_blank:
            new = [tokenizer.pad_token_id] * part.count("_")
        elif len(ids) == 1:
            new = encode(tokenizer, part)
        else:
            new = encode_continuation(tokenizer, part)
        ids += new
        mask += [is_blank] * len(new)
    return ids, mask
