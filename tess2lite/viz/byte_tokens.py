"""Tokens that are bytes of a character: what they hold, so that the explorer can show the whole character."""

from __future__ import annotations

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase


def partial_bytes(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> dict[int, list[int]]:
    """Return the bytes of those tokens that are not whole characters, by id.

    Args:
        tokenizer: One of byte-level pieces (Ã ¤) or with byte fallback (<0xC3>).
        ids: Token ids; those that decode to whole characters are left out.
    """
    partial = {}
    for token in ids:
        if "\ufffd" not in tokenizer.decode([token]):
            continue
        name = tokenizer.convert_ids_to_tokens(token)
        if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):
            partial[token] = [int(match[1], 16)]
        elif set(name) <= BYTE_SIGNS.keys():
            partial[token] = [BYTE_SIGNS[sign] for sign in name]
    return partial


def _byte_signs() -> dict[str, int]:
    """The sign that stands for each byte in a byte-level vocabulary (the table of GPT-2's encoder)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    signs = {chr(byte): byte for byte in printable}
    return signs | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_SIGNS = _byte_signs()
