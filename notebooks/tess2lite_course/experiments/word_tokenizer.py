"""The bundled models' tokenizer: every word of Tinytown is one token, and bytes encode everything else.

A Unigram model over the pieces that the byte-level pre-tokenizer cuts (words with their leading space). A word of
the world costs far less than the bytes that spell it, so it is always one token; any other text is spelled in bytes
and can be decoded again without loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tess2lite.tinytown.language import skeletons, words

SPECIAL = ("<unk>", "<s>", "</s>", "[PAD]")
WORD_SCORE = -1.0  # log-probabilities; only their order matters
BYTE_SCORE = -20.0
LEAST_FREQUENT = 3  # occurrences a piece needs to become a token


def _pieces(text: str) -> list[str]:
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [piece for piece, _ in pieces]


def _words_of_the_world() -> list[str]:
    """Pieces of all sentences and word lists, those that only the test split uses included."""
    vocabulary = []
    for lines in skeletons().values():
        for skeleton, _ in lines:
            vocabulary += [piece for piece in _pieces(" " + skeleton) if "{" not in piece and "}" not in piece]
    for entries in words().values():
        vocabulary += [piece for entry in entries for piece in _pieces(" " + entry)]
    return [piece for piece in vocabulary if piece.strip("Ġ").isalpha()]


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build the tokenizer from a sample of the corpus.

    Args:
        texts: documents; pieces that occur at least `LEAST_FREQUENT` times become tokens.

    Returns:
        A fast tokenizer with `<s>`, `</s>`, `<unk>` and `[PAD]`.
    """
    counts = Counter(piece for text in texts for piece in _pieces(text))
    frequent = [piece for piece, count in counts.most_common() if count >= LEAST_FREQUENT]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: 0.0 for token in SPECIAL}
    vocabulary |= {byte: BYTE_SCORE for byte in alphabet}
    for piece in [*frequent, *_words_of_the_world()]:
        if piece not in vocabulary:
            vocabulary[piece] = WORD_SCORE
    unigram = Tokenizer(models.Unigram(list(vocabulary.items()), unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    unigram.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=unigram, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="[PAD]"
    )
