"""Text ↔ token ids, and texts with blanks."""

from __future__ import annotations

import re
from collections.abc import Iterable


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of plain text: no special tokens of the tokenizer's own accord, and none that the text spells."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def encode_continuation(tokenizer, text: str) -> list[int]:
    """Ids of a text that goes on in mid-line: tokenizers that mark a text's start with a space must not here."""
    newline = encode(tokenizer, "\n")
    ids = encode(tokenizer, "\n" + text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else encode(tokenizer, text)


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


def partial_bytes(tokenizer, ids: Iterable[int]) -> dict[int, list[int]]:
    """Return the bytes of those tokens that are not whole characters, by id.

    Args:
        tokenizer: One of byte-level pieces (Ã ¤) or with byte fallback (<0xC3>).
        ids: Token ids; those that decode to whole characters are left out.
    """
    found = {}
    for token in ids:
        if "\ufffd" not in tokenizer.decode([token]):
            continue
        name = tokenizer.convert_ids_to_tokens(token)
        if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):
            found[token] = [int(match[1], 16)]
        elif set(name) <= BYTE_SIGNS.keys():
            found[token] = [BYTE_SIGNS[sign] for sign in name]
    return found


def _byte_signs() -> dict[str, int]:
    """The sign that stands for each byte in a byte-level vocabulary (the table of GPT-2's encoder)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    signs = {chr(byte): byte for byte in printable}
    return signs | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_SIGNS = _byte_signs()
