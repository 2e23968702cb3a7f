"""Text ↔ token ids, texts with blanks, and the special tokens that a denoiser needs."""

from __future__ import annotations

import re

import torch


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of plain text: no special tokens of the tokenizer's own accord, and none that the text spells."""
    # Not verbose: a text that is longer than the context may only be on its way into rows.
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def encode_continuation(tokenizer, text: str) -> list[int]:
    """Ids of a text that goes on in mid-line: tokenizers that mark a text's start with a space must not here."""
    newline = encode(tokenizer, "\n")
    ids = encode(tokenizer, "\n" + text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else encode(tokenizer, text)


def eos_token_ids(model) -> list[int]:
    """Every id that ends a text: the tokenizer's EOS and the configuration's, which has none, one or several."""
    ids = model.config.eos_token_id
    ids = ids if isinstance(ids, (list, tuple)) else [ids]
    return sorted({*ids, getattr(getattr(model, "tokenizer", None), "eos_token_id", None)} - {None})


def up_to_eos(ids: torch.Tensor, eos: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Which positions come before or at the first EOS inside `where`: (B, L) bool; all of a row without one.

    Args:
        ids: (B, L).
        eos: (E,) ids that end a text, perhaps none.
        where: (B, L) bool.
    """
    ends = (torch.isin(ids, eos) & where).long()
    return ends.cumsum(1) - ends == 0


def encode_blanks(tokenizer, text: str) -> tuple[list[int], list[bool]]:
    """A text with blanks: every underscore is one token to be written, `"Tom saw a ___ in the barn."` three.

    Returns (ids with BOS, span mask); ids under the mask are PAD and never read.
    """
    ids, mask = [tokenizer.bos_token_id], [False]
    for i, piece in enumerate(re.split(r"( ?_+)", text)):  # every other one is blanks; a token carries its own space
        if i % 2:
            new = [tokenizer.pad_token_id] * piece.count("_")
        else:
            new = encode(tokenizer, piece) if len(ids) == 1 else encode_continuation(tokenizer, piece)
        ids += new
        mask += [i % 2 == 1] * len(new)
    return ids, mask
