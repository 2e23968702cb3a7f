"""Tokenizers as they come, made complete: BOS, EOS and PAD, and rows in the model for them."""

from __future__ import annotations

import importlib.util
from contextlib import suppress

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..chat_template import JINJA
from ..layers.rows import align_head
from ..tokens import eos_token_ids
from ..validation import InputError
from .sources import find_file, split_gguf

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def read_tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """The source's own tokenizer as it is; None when it has none."""
    folder, gguf = split_gguf(source)
    if not gguf and find_file(source, *TOKENIZERS) is None:
        return None
    if not gguf and find_file(source, "tokenizer.json") is None and find_file(source, "tokenizer.model"):
        missing = [package for package in ("sentencepiece", "google.protobuf") if not _is_installed(package)]
        if missing:
            raise InputError(
                f"'{source}' has a tokenizer.model and no tokenizer.json: pip install sentencepiece protobuf."
            )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **gguf)
    tokenizer.chat_template = JINJA  # what a denoiser is tuned on, whatever its base had
    return tokenizer


def _is_installed(package: str) -> bool:
    with suppress(ModuleNotFoundError):  # of a parent package
        return importlib.util.find_spec(package) is not None
    return False


def find_tokenizer(source: str, lm: PreTrainedModel, adapter: str | None = None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a whole model or, where that knows more, of an adapter on it; with BOS, EOS and PAD.

    A model without PAD gets `[PAD]`, as a new last row if it has none to spare. None when there is no tokenizer.
    """
    tokenizer = read_tokenizer(source)
    own = read_tokenizer(adapter) if adapter else None
    if own is not None:
        ours, base = own.get_vocab(), tokenizer.get_vocab() if tokenizer else {}
        if base.items() <= ours.items():
            tokenizer = own
        elif not ours.items() <= base.items():
            raise InputError(f"'{adapter}' has another tokenizer than its base; give the base that it was made on.")
    if tokenizer is not None:
        _fit_tokenizer(tokenizer, lm, adapter or source)
    return tokenizer


def _fit_tokenizer(tokenizer, lm, source: str) -> None:
    """BOS, EOS and PAD for the tokenizer, and a row for PAD in the model if it has none to spare."""
    set_special_tokens(tokenizer, lm, source)
    vocabulary = lm.config.vocab_size
    outside = [token for token, number in tokenizer.get_vocab().items() if number >= vocabulary]
    if outside and outside != [tokenizer.pad_token]:
        sizes = f"{len(tokenizer)} tokens for a model of {vocabulary}"
        raise InputError(f"'{source}' has a tokenizer of {sizes}; give it the model's own.")
    if outside:
        add_rows(lm, tokenizer.pad_token_id + 1)


def set_special_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, source: str) -> None:
    """Give a tokenizer BOS, EOS and PAD, in place, and tell the model's configuration.

    Where the tokenizer lacks BOS or EOS, the configuration names it; a BOS that neither names is EOS, which then
    stands before texts as well as after them. They may share an id with each other and with UNK. PAD may share one
    with any token but an end, since the model learns to write it after the end; else it is `[PAD]`.

    Raises:
        InputError: The tokenizer has no EOS.
    """
    config, vocabulary = model.config, tokenizer.added_tokens_decoder
    ends = [vocabulary[number].content for number in eos_token_ids(model) if number in vocabulary]
    if tokenizer.eos_token_id is None:
        if not ends:
            raise InputError(f"'{source}' has a tokenizer without an EOS token; a denoiser needs one to end its texts.")
        tokenizer.eos_token = ends[0]
    if tokenizer.bos_token_id is None:
        named = vocabulary.get(config.bos_token_id)
        tokenizer.bos_token = named.content if named else tokenizer.eos_token
    if tokenizer.pad_token in (None, tokenizer.eos_token, *ends):
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    config.bos_token_id = tokenizer.bos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id


@torch.no_grad()
def add_rows(model: PreTrainedModel, size: int) -> None:
    """Grow the vocabulary to `size`, in place. New rows are the mean of the old: no noise, the same every time."""
    old = model.config.vocab_size
    model.resize_token_embeddings(size, mean_resizing=False)
    align_head(model)
    for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
        for values in filter(lambda values: values is not None, (layer.weight, getattr(layer, "bias", None))):
            values[old:] = values[:old].float().mean(0).to(values.dtype)


def check_shared_tokens(reward_model: PreTrainedModel, lm: PreTrainedModel) -> None:
    """Raise InputError unless a reward model reads all tokens that a denoiser writes."""
    if not (reward_model.tokenizer and lm.tokenizer):
        read = len(reward_model.get_input_embeddings().weight)
        written = len(lm.get_input_embeddings().weight)
        if read != written:
            raise InputError(
                f"The reward model reads {read} tokens, the denoiser writes {written}, and no tokenizer says "
                "which of them are the same; save the reward model with the denoiser's tokenizer."
            )
    elif unknown := _tokens(lm.tokenizer).items() - _tokens(reward_model.tokenizer).items():
        token, number = min(unknown, key=lambda entry: entry[1])
        raise InputError(
            f"The reward model's tokenizer does not have {token!r} as token {number}, as the denoiser's does; "
            "guidance needs a reward model with the denoiser's own tokenizer."
        )


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """A tokenizer's vocabulary, whatever name PAD has in it."""
    vocabulary = dict(tokenizer.get_vocab())
    vocabulary["PAD"] = vocabulary.pop(getattr(tokenizer, "pad_token", None), -1)
    return vocabulary


def mask_token_id(lm: PreTrainedModel) -> int:
    """The id of the mask token: the tokenizer's own, or else `<unk>`.

    Raises:
        InputError: There is neither, or it is BOS, EOS or PAD as well, which are tokens that the model writes.
    """
    tokenizer = lm.tokenizer
    for token in (getattr(tokenizer, "mask_token_id", None), getattr(tokenizer, "unk_token_id", None)):
        if token is not None and token not in (tokenizer.bos_token_id, tokenizer.pad_token_id, *eos_token_ids(lm)):
            return token
    raise InputError(
        f"'{lm.name_or_path}' has no tokenizer with an <unk> or a mask token of its own id, which stands for what is "
        "masked; save the model with a tokenizer that has a mask token."
    )
