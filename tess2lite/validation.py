"""What users give, checked: one clear sentence for each mistake, before anything is computed."""

import math
import numbers
import operator
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch


class InputError(ValueError):
    """A user's mistake: what was given, what is accepted, what to do. Notebooks show this one sentence."""

    _was_shown = False

    def _render_traceback_(self) -> list[str]:
        """What IPython prints: one sentence; all frames for who asks again (`%tb`) or wants them (`%xmode Verbose`)."""
        from IPython import get_ipython  # only IPython calls this

        long_form = get_ipython().InteractiveTB
        asked_for = self._was_shown or long_form.mode == "Verbose"
        self._was_shown = True
        if asked_for:
            return long_form.structured_traceback(type(self), self, self.__traceback__)
        return [f"{type(self).__name__}: {self}"]


UNSET = re.compile(r"\$\w+|\$\{\w+\}|^~[^/]*")


def expand_path(path: str | os.PathLike) -> str:
    """Replaces `~` and environment variables in a path; every function that takes a user's path calls this.

    Raises:
        InputError: The path is not text, or holds a variable that is not set: a folder called "$SCRATCH" helps nobody.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"The path is {path!r}; give text or a pathlib.Path.")
    expanded = os.path.expandvars(os.path.expanduser(os.fspath(path)))
    unset = UNSET.search(expanded)
    if unset and not os.path.lexists(expanded):
        raise InputError(f"The path '{path}' contains '{unset[0]}', which is not set; set it, or write the path out.")
    return expanded


def check_int(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """Return a whole number as an int; raise InputError unless it is from `least` to `most`."""
    with suppress(TypeError):  # of operator.index, for what is not a whole number
        if not isinstance(value, bool) and least <= operator.index(value) <= most:
            return operator.index(value)
    accepted = f"of {least} or more" if most == math.inf else f"from {least} to {most}"
    raise InputError(f"{name} is {value!r}; give a whole number {accepted}.")


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Raise InputError unless a value is a number from `least` to `most`."""
    if not _is_number(value) or not least <= value <= most:
        raise InputError(f"{name} is {value!r}; give a number from {least:g} to {most:g}.")


FINALS = ("argmax", "sample")


def check_sampling_args(top_p: float | None, temperature: float, final: str) -> None:
    """Raise InputError unless these can be settings of the projection to tokens."""
    if top_p is not None and not (_is_number(top_p) and 0 < top_p <= 1):
        raise InputError(f"top_p is {top_p!r}; give a number above 0 and at most 1, or None for argmax.")
    if not (_is_number(temperature) and 0 < temperature < math.inf):
        raise InputError(f"temperature is {temperature!r}; give a number above 0 (top_p=None for argmax).")
    if top_p is None and temperature != 1:
        raise InputError(
            f"temperature is {temperature!r}, but top_p=None takes the most likely token at any; leave it out."
        )
    if final not in FINALS:
        raise InputError(f"final is {final!r}; choose one of {', '.join(FINALS)}.")


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def expand_seeds(seed: Any, sequences: int) -> list[int]:
    """Return a seed per sequence, from one for all or one each."""
    is_list = isinstance(seed, Iterable) and getattr(seed, "ndim", 1)
    seeds = list(seed) if is_list else [seed] * sequences
    if len(seeds) != sequences or not all(isinstance(s, numbers.Integral) for s in seeds):
        raise InputError(f"seed is {seed!r}; give one whole number, or one for each of the {sequences} sequences.")
    return [int(s) for s in seeds]


def as_hooks(hooks: Any) -> list:
    """Return hooks as a list; raise InputError unless each follows the protocol (`hooks.Hook`)."""
    hooks = list(hooks) if isinstance(hooks, Iterable) else [hooks]
    for hook in hooks:
        if not callable(hook) or isinstance(hook, type):
            raise InputError(f"hooks holds {hook!r}; give functions of a step, or instances such as Halt().")
        if not callable(getattr(hook, "check", as_hooks)):
            raise InputError(f"The hook {hook!r} has a `check` that cannot be called; make it a method check(lm).")
        check_int(f"top_k of the hook {hook!r}", getattr(hook, "top_k", 1), 1)
    return hooks


def check_ids(ids: torch.Tensor, vocabulary: int) -> None:
    """Raise InputError unless the model has these token ids."""
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"Token ids are {ids.dtype}; give whole numbers.")
    if ids.min() < 0 or ids.max() >= vocabulary:
        wrong = int(ids[(ids < 0) | (ids >= vocabulary)][0])
        raise InputError(f"Token id {wrong} is outside this model's vocabulary of {vocabulary}; check the tokenizer.")


def check_denoiser(lm: Any, name: str = "lm") -> None:
    """Raise InputError unless this is a model from `load`, neither a name nor another model."""
    if not hasattr(lm, "embedding_matrix"):
        raise InputError(f"{name} is a {type(lm).__name__}; give a denoiser from tess2lite.load.")


def check_simplex(lm: Any) -> None:
    """Raise InputError unless this is a denoiser of noisy simplexes, not of masked texts."""
    check_denoiser(lm)
    if getattr(lm.config, "diffusion", "simplex") != "simplex":
        raise InputError("This model is one of masked diffusion; use tess2lite.mask_diffusion.denoise, or generate.")


def check_batch(lm: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return ids, span mask and attention mask on the model's device; raise InputError for what is wrong with them.

    The attention mask is None where there is no filler.
    """
    if not isinstance(batch, Mapping):
        raise InputError(f"batch is a {type(batch).__name__}; give a dict of input_ids and span_mask, both (B, L).")
    for name in ("input_ids", "span_mask"):
        if not torch.is_tensor(batch.get(name)) or batch[name].dim() != 2 or not batch[name].numel():
            raise InputError(f"The batch has no '{name}' of shape (B, L) with something in it; give one row a text.")
    ids, mask = batch["input_ids"].to(lm.device), batch["span_mask"].to(lm.device)
    attention = batch.get("attention_mask")
    attention = torch.ones_like(ids) if attention is None else attention.to(lm.device).long()
    for name, tensor in (("span_mask", mask), ("attention_mask", attention)):
        if tensor.shape != ids.shape:
            raise InputError(f"{name} has shape {tuple(tensor.shape)}, input_ids {tuple(ids.shape)}; both are (B, L).")
    if mask.dtype != torch.bool:
        raise InputError(f"span_mask is {mask.dtype}; give a bool tensor, True where the model writes.")
    length, context = int(attention.sum(1).max()), lm.config.max_position_embeddings
    if length > context:
        raise InputError(f"The text is {length} tokens long; this model's context is {context}; shorten it.")
    if not mask.any(1).all():
        raise InputError("span_mask has a row with nothing to denoise; every row needs a True.")
    if (mask & (attention == 0)).any():
        raise InputError("span_mask marks filler (attention_mask 0); only real tokens can be denoised.")
    if (mask[:, 1:] & (attention[:, :-1] == 0) & (attention.cumsum(1)[:, 1:] > 1)).any():
        raise InputError("attention_mask has filler inside a text, before a masked token; filler stands at its ends.")
    if (mask & (attention.cumsum(1) == 1)).any():
        raise InputError(
            "span_mask covers a row's first token, which has no left neighbour to be predicted from; begin with BOS."
        )
    check_ids(ids.masked_fill(mask | (attention == 0), 0), lm.config.vocab_size)
    ids = ids.long().masked_fill(mask, 0)  # never read; ids of another vocabulary may stand there
    return ids, mask, None if attention.all() else attention
