"""Texts and chats in, rows of token ids out; which of them are held out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..chat_template import encode_chat
from ..tokens import encode
from ..validation import InputError
from .forms import messages_of, opening, text_of
from .sources import Reader, Source, json_lines, read_text

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = [
    "MixedRows",
    "Rows",
    "chat_rows",
    "endless",
    "json_lines",
    "messages_of",
    "pack",
    "read_chats",
    "read_column",
    "read_text",
]

Row = list[int]


def read_column(source: str | Source, column: str) -> Iterator[str]:
    """Yields the texts in one column of a file, folder or hub dataset, streamed."""
    source = source if isinstance(source, Source) else Source(source)
    return iter(Reader(source, partial(text_of, column=column), streaming=True))


def read_chats(source: str | Source) -> Dataset:
    """Returns an instruction set as a `datasets.Dataset` of `messages`: a file, a folder or a hub dataset."""
    from datasets import Dataset

    source = source if isinstance(source, Source) else Source(source)
    return Dataset.from_list([{"messages": messages} for messages in Reader(source, messages_of)])


def document_ids(tokenizer: Any, text: str) -> Row:
    """Returns `<s>text</s>` as token ids."""
    return [tokenizer.bos_token_id, *encode(tokenizer, text), tokenizer.eos_token_id]


def pack(texts: Iterable[str], tokenizer: Any, length: int) -> Iterator[Row]:
    """Yields texts as rows of exactly `length` ids, `<s>text</s><s>text</s>…`, no padding; see `pack_ids`."""
    return pack_ids((document_ids(tokenizer, text) for text in texts), length)


def pack_ids(documents: Iterable[Row], length: int) -> Iterator[Row]:
    """Yields documents as rows of exactly `length` ids, in time linear in their number.

    A document that the end of a row cuts starts the next row again, so that rows begin as prompts do; one longer
    than a row continues there. What is left at the very end is dropped.
    """
    if length < 1:  # rows of nothing would have no end
        raise InputError(f"length is {length}; give 1 or more tokens per row.")
    row: Row = []
    for ids in documents:
        start = 0
        while len(row) + len(ids) - start >= length:
            taken = length - len(row)
            yield row + ids[start : start + taken]
            start += taken
            row = []
            if start < len(ids) <= length:
                start = 0  # the document is a row of its own when it is just as long
        row += ids[start:]


class Rows(torch.utils.data.Dataset):
    """Rows in an endless, seeded order: example j is a function of (seed, j), whatever came before it.

    Each pass over the rows is a new permutation. An example carries its number as `example`.

    Args:
        rows: Lists of ids, or dicts that have them as `input_ids`.
        examples: Length of the data set.
        seed: Of the permutations.
    """

    def __init__(self, rows: Sequence, examples: int, seed: int):
        self.rows = rows
        self.examples = examples
        self.order = Shuffled(len(rows), seed)

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, j: int) -> dict[str, Any]:
        return as_example(self.rows[self.order[j]], j)


class MixedRows(torch.utils.data.Dataset):
    """Several sets of rows, drawn in proportion to weights; example j is a function of (seed, j).

    Args:
        parts: Sets of rows, each as `Rows` takes them.
        weights: One for each part.
        examples: Length of the data set.
        seed: Of the order.
    """

    BLOCK = 1_000  # examples in which each part has exactly its share

    def __init__(self, parts: Sequence[Sequence], weights: Sequence[float], examples: int, seed: int):
        self.parts = parts
        self.examples = examples
        self.orders = [Shuffled(len(part), seed + 1 + number) for number, part in enumerate(parts)]
        self.counts = proportional_counts(weights, self.BLOCK)
        numbers = torch.arange(len(parts))
        self.labels = numbers.repeat_interleave(torch.tensor(self.counts))  # (BLOCK,)
        self.slots = Shuffled(self.BLOCK, seed)

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, j: int) -> dict[str, Any]:
        block = j // self.BLOCK
        slot = self.slots[j]
        part = int(self.labels[slot])
        rank = slot - sum(self.counts[:part])
        place = self.orders[part][block * self.counts[part] + rank]
        return as_example(self.parts[part][place], j)


def proportional_counts(weights: Sequence[float], total: int) -> list[int]:
    """Returns whole numbers in proportion to weights, at least 1 each, which add up to `total`."""
    shares = [weight / sum(weights) * total for weight in weights]
    counts = [max(1, int(share)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda number: int(shares[number]) - shares[number])
    for number in itertools.cycle(by_remainder):
        if sum(counts) == total:
            break
        change = 1 if sum(counts) < total else -1
        if counts[number] + change >= 1:
            counts[number] += change
    return counts


class Shuffled:
    """An endless order of `count` things: item j is a function of (seed, j), each pass a new permutation."""

    def __init__(self, count: int, seed: int):
        self.count = count
        self.seed = seed
        self._pass_number = -1
        self._permutation = torch.empty(0, dtype=torch.long)

    def __getitem__(self, j: int) -> int:
        number, place = divmod(j, self.count)
        if number != self._pass_number:
            generator = torch.Generator().manual_seed((self.seed << 20) + number)
            self._permutation = torch.randperm(self.count, generator=generator)
            self._pass_number = number
        return int(self._permutation[place])


def as_example(row: Row | dict[str, Any], number: int) -> dict[str, Any]:
    """Returns a row with its number, of which all that is random about it is a function."""
    fields = row if isinstance(row, dict) else {"input_ids": row}
    return {**fields, "example": number}


def endless(rows: Callable[[], Iterable[Row]], seed: int) -> IterableDataset:
    """Returns rows of a source too large to hold, which is read again at each pass, as a `datasets.IterableDataset`.

    Examples have `input_ids` and `example`; they are shuffled within 10,000 rows, seeded, without end.
    """
    from datasets import IterableDataset

    def read():
        for row in rows():
            yield {"input_ids": row}

    shuffled = IterableDataset.from_generator(read).shuffle(seed=seed, buffer_size=10_000)
    return shuffled.repeat(None).map(lambda row, j: row | {"example": j}, with_indices=True)


def interleave(sources: Sequence[Callable[[], Iterable[Row]]], weights: Sequence[float], seed: int) -> Iterator[Row]:
    """Yields rows of several endless sources, drawn in proportion to weights; one that ends begins again."""
    generator = torch.Generator().manual_seed(seed)
    streams = [iter(source()) for source in sources]
    chances = torch.tensor(weights, dtype=torch.float64)
    finished: set[int] = set()
    while len(finished) < len(streams):
        number = int(torch.multinomial(chances, 1, generator=generator))
        row = next(streams[number], None)
        if row is None:
            finished.add(number)
            streams[number] = iter(sources[number]())
            row = next(streams[number], None)
        if row is None:
            raise InputError(f"Set {number + 1} of data gives no rows; give more text or a smaller length.")
        yield row


def split_documents(documents: list[Row], length: int, rows_wanted: int) -> tuple[list[Row], list[Row]]:
    """Splits encoded texts into those to train on and those held out, no text in both.

    Args:
        documents: Token ids of each text.
        length: Tokens per row.
        rows_wanted: Rows to hold out, at most a fifth of all.

    Returns:
        Rows to train on and rows held out. Fewer than five different texts are cut instead, where the last fifth
        or less begins.
    """
    total = sum(map(len, documents))
    least = min(rows_wanted * length, total // 5)
    different = list(dict.fromkeys(map(tuple, documents)))
    if len(different) < 5:
        train, held_out = _cut(documents, least)
    else:
        evaluated = _choose_until(different, [len(ids) for ids in different], least)
        train = [ids for ids in documents if tuple(ids) not in evaluated]
        held_out = [list(ids) for ids in different if ids in evaluated]
    return list(pack_ids(train, length)), list(pack_ids(held_out, length))[:rows_wanted]


def _cut(documents: list[Row], least: int) -> tuple[list[Row], list[Row]]:
    """The last `least` tokens apart; the text they begin in is cut."""
    train = list(documents)
    held_out: list[Row] = []
    while least > 0:
        last = train.pop()
        if len(last) > least:
            train.append(last[:-least])
        held_out.insert(0, last[-least:])
        least -= len(last)
    return train, held_out


def _choose_until(items: Sequence[Hashable], sizes: Sequence[int], least: int) -> set[Hashable]:
    """Items in a fixed random order until their sizes reach `least`, at least one."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(items), generator=generator).tolist()
    subset: set[Hashable] = set()
    total = 0
    for number in order:
        if subset and total >= least:
            break
        if total + sizes[number] > 2 * least:
            continue  # one long text would be most of what is held out
        subset.add(items[number])
        total += sizes[number]
    smallest = min(range(len(items)), key=lambda number: sizes[number])
    return subset or {items[smallest]}


def split_rows(groups: Sequence[Hashable], rows_wanted: int) -> tuple[list[int], list[int]]:
    """Splits rows by their group (chat, prompt), so that no group is in both parts.

    Args:
        groups: The group of each row.
        rows_wanted: Rows to hold out, at most a fifth of all.

    Returns:
        Places of the rows to train on and of the rows held out. Where nearly all rows are one group, rows are split.
    """
    counts: dict[Hashable, int] = {}
    for group in groups:
        counts[group] = counts.get(group, 0) + 1
    least = min(rows_wanted, len(groups) // 5)
    if max(counts.values()) > len(groups) - least:  # nearly all rows are one group
        return split_rows(range(len(groups)), rows_wanted)
    evaluated = _choose_until(list(counts), list(counts.values()), least)
    train = [place for place, group in enumerate(groups) if group not in evaluated]
    held_out = [place for place, group in enumerate(groups) if group in evaluated]
    return train, held_out[:least]


def group_chats(chats: Sequence[list[dict[str, str]]]) -> list[str]:
    """Returns the group of each chat for `split_rows`: its opening, or all of it where few openings differ."""
    openings = [opening(messages) for messages in chats]
    if len(set(openings)) >= 5:
        return openings
    return ["\n".join(message["content"] for message in messages) for messages in chats]


def first_exchange(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Returns the first question and its answer, without a system prompt: what the official code trains on."""
    turns = [message for message in messages if message["role"] != "system"]
    return turns[:2]


def chat_rows(chats: Any, tokenizer: Any, length: int) -> tuple[Any, int]:
    """Encodes chats as rows to train on.

    Args:
        chats: A `datasets.Dataset` with a column `messages`.
        tokenizer: The model's.
        length: Tokens per row; turns that do not fit are left out.

    Returns:
        A Dataset of `input_ids`, `span_mask` and `chat` (the number of the chat that a row comes from), and how
        many assistant turns were left out.
    """

    def encoded(batch, places):
        columns: dict[str, list] = {"input_ids": [], "span_mask": [], "chat": []}
        for place, messages in zip(places, batch["messages"], strict=True):
            for row in encode_chat(tokenizer, messages, length):
                columns["input_ids"].append(row["input_ids"])
                columns["span_mask"].append(row["span_mask"])
                columns["chat"].append(place)
        return columns

    rows = chats.map(
        encoded,
        batched=True,
        batch_size=100,
        with_indices=True,
        remove_columns=chats.column_names,
        desc="encoding chats",
    )
    messages = itertools.chain.from_iterable(chats["messages"])
    turns = sum(message["role"] == "assistant" for message in messages)
    return rows, turns - len(rows)
