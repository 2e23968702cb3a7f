"""How much of a text is copied: runs of sentences that stand in the training stories in the same order."""

from __future__ import annotations

from collections.abc import Iterable

from tess2lite.tinytown.language import split_sentences

LONGEST = 6  # sentences; longer runs count as this


def _runs(text: str) -> Iterable[tuple[str, ...]]:
    sentences = split_sentences(text)
    for start in range(len(sentences)):
        for end in range(start + 1, min(start + LONGEST, len(sentences)) + 1):
            yield tuple(sentences[start:end])


def sentence_runs(texts: Iterable[str]) -> set[int]:
    """Returns hashes of all runs of 1 to `LONGEST` sentences of the training texts."""
    return {hash(run) for text in texts for run in _runs(text)}


def longest_copied_run(text: str, runs: set[int]) -> int:
    """Returns how many successive sentences of a text stand together in a training text, at most `LONGEST`.

    Args:
        text: A generated text.
        runs: Of the training texts, from `sentence_runs` in the same process.
    """
    return max((len(run) for run in _runs(text) if hash(run) in runs), default=0)
