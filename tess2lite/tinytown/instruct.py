"""What tinytown-instruct is tuned on, and how well its answers are."""

from __future__ import annotations

from datasets import concatenate_datasets

from ..chats import chat_rows
from .tasks import as_chat, examples

# Different examples of each task. There are only so many facts: they are asked again and again.
EXAMPLES = {
    "constraints": 20_000, "reading": 28_000, "knowledge": 122, "arithmetic": 12_000, "puzzle": 16_000,
    "request": 7_000,
}  # fmt: skip
FACTS_ASKED = 30  # times


def rows(tokenizer, length: int, seed: int):
    """All tasks' training examples as rows; those that do not fit into `length` are left out."""
    chats = []
    for task, number in EXAMPLES.items():
        made = as_chat(examples(task, "train", number, seed))
        chats += [made] * (FACTS_ASKED if task == "knowledge" else 1)
    return chat_rows(concatenate_datasets(chats), tokenizer, length)[0]
