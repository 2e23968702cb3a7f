"""A recipe's data as rows to train on and rows that are held out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast

from datasets import Dataset, concatenate_datasets
from torch.utils.data import ConcatDataset
from tqdm import tqdm

from ..tinytown.stories import corpus
from ..tinytown.tasks import TASKS, as_chat, examples
from ..validation import InputError
from .data import (
    MixedRows,
    Row,
    Rows,
    as_example,
    chat_rows,
    document_ids,
    endless,
    first_exchange,
    group_chats,
    interleave,
    pack,
    pack_ids,
    proportional_counts,
    read_chats,
    split_documents,
    split_rows,
)
from .forms import text_of
from .recipe import PretrainingRecipe, Recipe, Training
from .sources import Reader, Source, parse_sources, suffix_of

TINYTOWN_TEXTS = 30_000  # however long the run: a longer one must see the same rows first
TINYTOWN_CHATS = 2_000  # of each task
MIN_ROWS = 5

TextRecipe = Recipe | PretrainingRecipe


def build_datasets(recipe: TextRecipe, tokenizer: Any) -> tuple[Any, list[dict]]:
    """Returns (rows to train on, rows held out): files and Tinytown are held in memory, hub texts streamed.

    No chat and no document is in both. The rows to train on are as many as the recipe's steps take.
    """
    sources = parse_sources(recipe.data)
    _check_columns(recipe, sources)
    is_chats = recipe.masking == "response"
    if not is_chats and not all(source.is_local or source.is_tinytown for source in sources):
        return _streamed_rows(recipe, sources, tokenizer)
    split = _chat_rows if is_chats else _text_rows
    shares = _shares(recipe, sources)
    parts = [split(recipe, source, tokenizer, share) for source, share in zip(sources, shares, strict=True)]
    train_parts = [train for train, _ in parts]
    held_out = list(itertools.chain.from_iterable(evaluation for _, evaluation in parts))
    return mix(recipe, sources, train_parts), as_held_out(held_out)


def mix(recipe: Training, sources: Sequence[Source], parts: Sequence[Sequence]) -> Rows | MixedRows:
    """Returns several sets' rows as one, by weight or all together, as many as the recipe's steps take."""
    total = sum(map(len, parts))
    examples = recipe.steps * recipe.batch_size
    if recipe.epochs:
        examples = round(recipe.epochs * total / recipe.batch_size) * recipe.batch_size
    if not examples:
        raise InputError(f"epochs is {recipe.epochs}, less than one step on {total} rows; give more, or steps.")
    weights = [source.weight for source in sources if source.weight is not None]
    if len(parts) > 1 and weights:
        return MixedRows(parts, weights, examples, recipe.seed)
    together: Any = parts[0] if len(parts) == 1 else ConcatDataset(cast(Any, parts))
    return Rows(together, examples, recipe.seed)


def as_held_out(rows: Iterable) -> list[dict]:
    """Held-out rows; their masks and noise never change, so that runs compare."""
    return [as_example(row, number) for number, row in enumerate(rows)]


def require_min_rows(recipe: Training, count: int, least: int = MIN_ROWS, remedy: str = "") -> None:
    """Raise InputError if there are fewer rows than `least`."""
    if count < least:
        remedy = remedy or "give more text or a smaller length"
        raise InputError(
            f"'{data_name(recipe)}' gives {count} rows of {recipe.length} tokens; "
            f"at least {least} are needed: {remedy}."
        )


def data_name(recipe: Training) -> str:
    """The sets of a recipe, for a sentence."""
    return ", ".join(source.path for source in parse_sources(recipe.data))


def _shares(recipe: Training, sources: Sequence[Source]) -> list[int]:
    """How many held-out rows each set gives."""
    total = max(recipe.num_eval_examples, len(sources))
    return proportional_counts([source.weight or 1.0 for source in sources], total)


def _check_columns(recipe: TextRecipe, sources: Sequence[Source]) -> None:
    for source in sources:
        column = source.column or recipe.column
        is_without = recipe.masking == "response" or source.is_tinytown or suffix_of(source.path) == ".txt"
        if column != "text" and is_without:
            raise InputError(f"column is {column!r}, but '{source.path}' is read without columns: leave it out.")


def texts(recipe: TextRecipe, source: Source, split: str = "train") -> Iterable[str]:
    """Returns the texts of a source, in order, to be read again and again.

    Args:
        recipe: Gives the column, where the source does not.
        source: What to read.
        split: Of Tinytown; other sources say theirs.
    """
    if source.is_tinytown:
        if source.path != "tinytown":
            raise InputError(f"'{source.path}' is a set of chats; set masking: response, or give 'tinytown'.")
        return corpus(split, TINYTOWN_TEXTS if split == "train" else TINYTOWN_TEXTS // 50)
    parse = partial(text_of, column=source.column or recipe.column)
    return Reader(source, parse, streaming=True)


def _encoded(texts: Iterable[str], tokenizer: Any) -> list[Row]:
    bar = tqdm(texts, desc="encoding texts", leave=False, delay=2)
    return [document_ids(tokenizer, text) for text in bar]


def _text_rows(recipe: TextRecipe, source: Source, tokenizer: Any, share: int) -> tuple[list[Row], list[Row]]:
    if source.is_tinytown:  # whose bundled models have read the whole train split
        rows = list(pack(texts(recipe, source), tokenizer, recipe.length))
        validation = pack(texts(recipe, source, "validation"), tokenizer, recipe.length)
        return rows, list(itertools.islice(validation, share))
    documents = _encoded(texts(recipe, source), tokenizer)
    train, held_out = split_documents(documents, recipe.length, share)
    require_min_rows(recipe, len(train) + len(held_out))
    if not held_out:  # its few texts are shorter than a row each
        held_out = train[-1:]
        train = train[:-1]
    return train, held_out


def source_chats(source: Source, split: str = "train") -> list[list[dict[str, str]]]:
    """Returns the chats of a source, as lists of messages."""
    if not source.is_tinytown:
        return list(read_chats(source)["messages"])
    task = source.path.partition(":")[2]
    if task and task not in TASKS:
        raise InputError(
            f"'{source.path}' is not a task of Tinytown; give tinytown, or tinytown: and {', '.join(TASKS)}."
        )
    names = [task] if task else list(TASKS)
    number = TINYTOWN_CHATS * len(TASKS) // len(names) // (1 if split == "train" else 50)
    chats = concatenate_datasets([as_chat(examples(name, split, number)) for name in names])
    return list(chats["messages"])


def _encode_chats(recipe: TextRecipe, chats: list, tokenizer: Any) -> tuple[Dataset, int]:
    if recipe.chat_turns == "first":
        chats = [first_exchange(messages) for messages in chats]
    return chat_rows(Dataset.from_list([{"messages": messages} for messages in chats]), tokenizer, recipe.length)


def _chat_rows(recipe: TextRecipe, source: Source, tokenizer: Any, share: int) -> tuple[Dataset, Dataset]:
    chats = source_chats(source)
    rows, dropped = _encode_chats(recipe, chats, tokenizer)
    say_dropped(recipe, dropped, len(rows), "answers")
    require_min_rows(recipe, len(rows), remedy="give more of them or a larger length")
    if source.is_tinytown:
        validation, _ = _encode_chats(recipe, source_chats(source, "validation"), tokenizer)
        held_out = validation.shuffle(0).select(range(min(share, len(validation))))
        return rows.remove_columns("chat"), held_out.remove_columns("chat")
    groups = group_chats(chats)
    train, held_out = split_rows([groups[chat] for chat in rows["chat"]], share)
    rows = rows.remove_columns("chat")
    return rows.select(train), rows.select(held_out)


def say_dropped(recipe: Training, dropped: int, remaining: int, what: str) -> None:
    """Print how many of the encoded rows were longer than a row may be."""
    if dropped:
        part = f"{dropped} of {dropped + remaining} {what}"
        print(f"{part} are longer than {recipe.length} tokens with what comes before them, and are left out.")


def _streamed_rows(recipe: TextRecipe, sources: Sequence[Source], tokenizer: Any) -> tuple[Any, list[dict]]:
    if recipe.epochs:
        raise InputError(
            f"epochs is {recipe.epochs}, but '{data_name(recipe)}' is streamed, its size unknown; give steps."
        )
    if len(sources) > 1 and sources[0].weight is None:
        raise InputError("data names several sets, one of them streamed, its size unknown; give each a weight.")
    streams: list[Callable[[], Iterable[Row]]] = []
    held_out: list[Row] = []
    for source, share in zip(sources, _shares(recipe, sources), strict=True):
        stream, rows = _hold_out_first(recipe, texts(recipe, source), tokenizer, share)
        streams.append(stream)
        held_out += rows
    if len(streams) == 1:
        return endless(streams[0], recipe.seed), as_held_out(held_out)
    weights = [source.weight for source in sources if source.weight is not None]
    return endless(partial(interleave, streams, weights, recipe.seed), recipe.seed), as_held_out(held_out)


def _hold_out_first(
    recipe: TextRecipe, source: Iterable[str], tokenizer: Any, share: int
) -> tuple[Callable[[], Iterator[Row]], list[Row]]:
    """A maker of the rows of all texts but the first ones, and `share` rows of those."""
    first: list[Row] = []
    held_out_texts: set[str] = set()
    tokens = 0
    for text in source:
        first.append(document_ids(tokenizer, text))
        held_out_texts.add(text)
        tokens += len(first[-1])
        if tokens >= share * recipe.length:
            break
    held_out = list(pack_ids(first, recipe.length))[:share]
    number = len(first)

    def rest(excluded: set[str]) -> Iterator[Row]:
        others = (text for text in itertools.islice(source, number, None) if text not in excluded)
        return pack(others, tokenizer, recipe.length)

    if next(rest(held_out_texts), None) is None:  # a stream of a few texts, repeated
        held_out_texts = set()
    has_more = next(rest(held_out_texts), None) is not None
    require_min_rows(recipe, len(held_out) + has_more, share + 1)
    return partial(rest, held_out_texts), held_out
