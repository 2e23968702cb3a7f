"""Texts and chats in, rows of token ids out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from ..chat_template import check_chat, encode_chat
from ..tokens import encode

# Columns of a question and of its answer, as public instruction sets name them; `input` is added to the question.
FORMS = (("instruction", "output"), ("prompt", "response"), ("prompt", "completion"), ("question", "answer"))


def read_text(path) -> str:
    """The text of a UTF-8 file of the user's."""
    path = Path(str(path))
    if not path.is_file():
        raise ValueError(f"There is no text file '{path}'; give the path of an existing one.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"'{path}' is not UTF-8 text; convert it, or give a plain .txt file.") from None
    if "\x00" in text or not text.strip():
        raise ValueError(f"'{path}' holds {'binary data' if text.strip() else 'no text'}; give a plain .txt file.")
    return text


def pack(texts: Iterable[str], tokenizer, length: int) -> Iterator[list[int]]:
    """Texts as rows of exactly `length` ids, `<s>text</s><s>text</s>…`, no padding.

    A text that the end of a row cuts starts the next row again, so that rows begin as prompts do; one longer than
    a row goes on there. What is left at the very end is dropped.
    """
    if length < 1:  # rows of nothing would have no end
        raise ValueError(f"length is {length}; give 1 or more tokens a row.")
    row = []
    for text in texts:
        ids = [tokenizer.bos_token_id, *encode(tokenizer, text), tokenizer.eos_token_id]
        row += ids
        while len(row) >= length:
            yield row[:length]
            row = row[length:]
            if 0 < len(row) < len(ids) <= length:
                row = list(ids)  # which is a row of its own when it is just as long


class Rows(torch.utils.data.Dataset):
    """Rows in an endless, seeded order: example j is a function of (seed, j), whatever came before it.

    rows: lists of ids, or dicts that have them as `input_ids`. Each pass over the rows is a new permutation. An
    example carries its number as `example`.
    """

    def __init__(self, rows: Sequence, examples: int, seed: int):
        self.rows, self.examples, self.seed = rows, examples, seed
        self._pass = (None, None)

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, j: int) -> dict:
        number, place = divmod(j, len(self.rows))
        if self._pass[0] != number:
            generator = torch.Generator().manual_seed((self.seed << 20) + number)
            self._pass = (number, torch.randperm(len(self.rows), generator=generator))
        row = self.rows[int(self._pass[1][place])]
        return {**(row if isinstance(row, dict) else {"input_ids": row}), "example": j}


def endless(texts: Callable[[], Iterable[str]], tokenizer, length: int, skip: int, seed: int):
    """Packed rows of a source too large to hold, which is read anew at each pass, after the first `skip` of them.

    Returns a `datasets.IterableDataset` of `input_ids` and `example`: shuffled within 10,000 rows, seeded, without end.
    """
    from datasets import IterableDataset

    def read():
        yield from ({"input_ids": row} for row in itertools.islice(pack(texts(), tokenizer, length), skip, None))

    shuffled = IterableDataset.from_generator(read).shuffle(seed=seed, buffer_size=10_000)
    return shuffled.repeat(None).map(lambda row, j: row | {"example": j}, with_indices=True)


def json_lines(path) -> Iterator[tuple[int, dict]]:
    """(line number, record) of a JSON-lines file of records."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as problem:
            raise ValueError(f"Line {number} of '{path}' is not JSON ({problem.msg}); mend or remove it.") from None
        if not isinstance(record, dict):
            raise ValueError(f"Line {number} of '{path}' is no record but a {type(record).__name__}.")
        yield number, record


def records(source: str, streaming: bool = False) -> Iterator[tuple[int, dict]]:
    """(number, record) of a .jsonl file, or of a hub dataset's train split: "owner/set", "owner/set:configuration"."""
    if Path(source).suffix == ".jsonl":
        return json_lines(source)
    from datasets import load_dataset

    name, _, configuration = source.partition(":")
    try:
        return enumerate(load_dataset(name, configuration or None, split="train", streaming=streaming), 1)
    except Exception as problem:  # many libraries' words for: not there, no network, not a dataset
        first = (str(problem) or type(problem).__name__).splitlines()[0]
        raise ValueError(f"There is no file and no reachable hub dataset '{name}': {first}") from problem


def read_column(source: str, column: str) -> Iterator[str]:
    """The texts of one column of `records`, streamed."""
    for number, record in records(source, streaming=True):
        if not isinstance(record.get(column), str):
            found = ", ".join(record)
            raise ValueError(f"Record {number} of '{source}' has no text in column '{column}'; it has: {found}.")
        yield record[column]


def chat_rows(chats, tokenizer, length: int):
    """Chats as rows to train on, and how many assistant turns were too long for them.

    chats: a `datasets.Dataset` with a column `messages`. Returns (Dataset of `input_ids` and `span_mask`, dropped).
    """

    def encoded(batch):
        rows = [row for messages in batch["messages"] for row in encode_chat(tokenizer, messages, length)]
        return {name: [row[name] for row in rows] for name in ("input_ids", "span_mask")}

    rows = chats.map(encoded, batched=True, batch_size=100, remove_columns=chats.column_names, desc="encoding chats")
    turns = sum(message["role"] == "assistant" for messages in chats["messages"] for message in messages)
    return rows, turns - len(rows)


def messages_of(record: dict) -> list[dict[str, str]]:
    """A record of an instruction set as messages.

    Accepted: `messages`; `instruction` (and `input`) with `output`; `instruction` with `instances` of both;
    `prompt` with `response` or `completion`; `question` with `answer`. Each with `system`, or without.
    """
    if isinstance(record.get("messages"), list):
        messages = record["messages"]
    else:
        if record.get("instances"):
            record = {**record, **record["instances"][0]}
        form = next((form for form in FORMS if all(isinstance(record.get(name), str) for name in form)), None)
        if form is None:
            accepted = "messages, instruction and output, prompt and response, or question and answer"
            raise ValueError(f"There is no chat in the columns {', '.join(record)}; give {accepted}.")
        question = "\n".join(filter(None, (record[form[0]], record.get("input"))))
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": record[form[1]]}]
        if record.get("system"):
            messages.insert(0, {"role": "system", "content": record["system"]})
    check_chat(messages)
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("No assistant turn: there is nothing to learn to write; give the answer as well.")
    return [{key: message[key] for key in ("role", "content")} for message in messages]


def read_records(source: str, read) -> list:
    """What `read` makes of every record of a .jsonl file or a hub dataset; its complaints name the record."""
    found = []
    for number, record in records(source):
        try:
            found.append(read(record))
        except ValueError as problem:
            raise ValueError(f"Record {number} of '{source}': {problem}") from None
    return found


def read_chats(source: str):
    """An instruction set as a `datasets.Dataset` of `messages`: a .jsonl file, or a hub dataset's train split."""
    from datasets import Dataset

    return Dataset.from_list([{"messages": messages} for messages in read_records(source, messages_of)])
