"""Text in, rows of token ids out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def read_text(path) -> str:
    """The text of a UTF-8 file of the user's."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no text file '{path}'; give the path of an existing one.")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"'{path}' is not UTF-8 text; convert it, or give a plain .txt file.") from None
    if "\x00" in text or not text.strip():
        raise ValueError(f"'{path}' holds {'binary data' if text.strip() else 'no text'}; give a plain .txt file.")
    return text


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
    for piece in re.split(r"( ?_+)", text):  # a token carries its own leading space
        blank = piece.lstrip(" ")
        if blank and set(blank) == {"_"}:
            ids += [tokenizer.pad_token_id] * len(blank)
            mask += [True] * len(blank)
        elif piece:
            new = encode(tokenizer, piece) if len(ids) == 1 else encode_continuation(tokenizer, piece)
            ids += new
            mask += [False] * len(new)
    return ids, mask


def pack(texts: Iterable[str], tokenizer, length: int):
    """Texts as rows of exactly `length` ids, `<s>text</s><s>text</s>…`, no padding.

    Every row starts with a fresh text, as a prompt does; what does not fit is cut off.
    Returns a `datasets.Dataset` with one column, `input_ids`.
    """
    from datasets import Dataset

    rows, row = [], []
    for text in texts:
        row += [tokenizer.bos_token_id, *encode(tokenizer, text), tokenizer.eos_token_id]
        if len(row) >= length:
            rows.append(row[:length])
            row = []
    if not rows:
        raise ValueError(f"The texts hold fewer than {length} tokens together; give more text or a smaller length.")
    return Dataset.from_dict({"input_ids": rows})


def chat_prompt(messages: list[dict[str, str]]) -> str:
    """TESS 2's chat format up to where the assistant speaks, BOS apart: `<|user|>\\n…\\n<|assistant|>\\n`.

    messages: [{"role": "user" or "assistant", "content": …}, …], ending with the user. Turns are joined by a
    newline, with no EOS between them.
    """
    for message in messages:
        if message.get("role") not in ("user", "assistant"):
            raise ValueError(f"A message has the role {message.get('role')!r}; roles are 'user' and 'assistant'.")
    turns = [f"<|{message['role']}|>\n{message['content'].strip()}\n" for message in messages]
    return "".join(turns) + "<|assistant|>\n"


def encode_chat(tokenizer, messages: list[dict[str, str]], length: int) -> list[dict[str, list]]:
    """One example for each assistant turn: the conversation so far, then the response to be denoised.

    Returns [{"input_ids": …, "span_mask": …}], rows of `length`: `<s>` + prompt + response + `</s>`, then PAD
    to the end. The mask is True on the response, its `</s>` and the PAD after it, which teaches the model to end.
    Turns that do not fit into `length` are left out.
    """
    rows = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        context = [tokenizer.bos_token_id, *encode(tokenizer, chat_prompt(messages[:turn]))]
        response = [*encode_continuation(tokenizer, message["content"].strip()), tokenizer.eos_token_id]
        padding = length - len(context) - len(response)
        if padding < 0:
            continue
        ids = context + response + [tokenizer.pad_token_id] * padding
        rows.append({"input_ids": ids, "span_mask": [i >= len(context) for i in range(length)]})
    return rows
