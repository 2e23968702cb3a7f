"""Real mistakes of published code, kept to be looked at: the mistake, small, and the probe that catches it.

Only the notebooks and the tests use them. None of them raises an error, which is why they lived so long.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tess2lite import chat_template
from tess2lite.generation import generate
from tess2lite.guidance import LogitUpdate, RewardGuidance
from tess2lite.sampling import denoise
from tess2lite.tokens import encode


def switch_layers(model):
    """Exhibit 1, the mistake: meant to let every position see all others. Eager attention never reads it."""
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


@torch.no_grad()
def share_that_notices(model, ids: torch.Tensor, padded: bool = False) -> float:
    """Exhibit 1: a switch that leaves the model causal; change the last token and count who notices.

    ids: (1, L), at least 3. padded: whether the first token is filler. Returns the share of the earlier positions.
    """
    seen = torch.ones_like(ids)
    seen[:, 0] = 0 if padded else 1
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % model.config.vocab_size
    one, two = (model.model(input_ids=x, attention_mask=seen, use_cache=False)[0] for x in (ids, other))
    return float((one != two)[:, 1:-1].any(-1).float().mean())


def losses_by_offset(output: torch.Tensor, ids: torch.Tensor, offsets=(-1, 0, 1, 2)) -> dict[int, float]:
    """Exhibit 2: logits off by one, a model that trains and learns less; read them at every offset, one is right.

    output: (B, L, V) of a trained model that has read ids (B, L).
    Returns nats per token if output i speaks of i + offset.
    """
    places = range(max(0, -min(offsets)), ids.shape[1] - max(0, max(offsets)))
    read, first = output[:, places.start : places.stop].flatten(0, 1), places.start
    return {
        offset: float(F.cross_entropy(read, ids[:, first + offset : places.stop + offset].flatten()))
        for offset in offsets
    }


def demo_with_sliders(lm, prompt: str, temperature: float = 1.0, steps: int = 5) -> str:
    """Exhibit 3, the mistake: a demo whose temperature is set where nothing reads it."""
    lm.config.temperature = temperature
    return generate(lm, prompt, steps=steps, length=20, progress=False).text


def dead_controls(demo: Callable, **values: tuple) -> list[str]:
    """Exhibit 3: sliders that change nothing; run the demo at two values of each control, all else equal.

    values: two of each control, as `temperature=(0.5, 2.0)`. Returns the controls at which the results are the same.
    """
    return [name for name, (one, other) in values.items() if demo(**{name: one}) == demo(**{name: other})]


class _Piling(LogitUpdate):
    def __call__(self, logits, rows):
        total = 0
        for gradients in self.gradients:
            total = total + self.gradient(logits, gradients, rows)
            logits.add_(total, alpha=self.scale)
        return logits


class AccumulatingGuidance(RewardGuidance):
    """Exhibit 4, the mistake: gradients never zeroed between inner steps, so the j-th adds the sum of the first j."""

    logit_update = _Piling


def rise(lm, batch: dict, guide: RewardGuidance, calls: int = 1) -> float:
    """Exhibit 4: gradients that pile up; n inner steps move the logits further than n calls of one inner step do.

    batch: as of `denoise`. Returns how far the first prediction's logits were moved, as a norm.
    """
    step = next(denoise(lm, batch, steps=1))
    before = step.masked_logits
    for _ in range(calls):
        guide(step)
    return float((step.masked_logits - before).norm())


def one_hot_simplex(ids: torch.Tensor, vocabulary: int, k: int = 5) -> torch.Tensor:
    """Exhibit 5, the mistake: S^w by way of `one_hot`, which is int64, 8 bytes per number. (…) → (…, V)."""
    return k * (2 * F.one_hot(ids, vocabulary) - 1)


class _Made(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        # What is written in place or merely looked at in another shape takes no new memory.
        if torch.is_tensor(made) and function._schema.returns[0].alias_info is None:
            self.bytes.append(made.numel() * made.itemsize)
        return made


def bytes_made(function: Callable, *arguments) -> list[int]:
    """Exhibit 5: half a gigabyte of int64 for each step; count the bytes of every tensor that a function makes.

    On tensors of the device "meta" nothing is computed, and any size can be asked for.
    """
    with _Made() as made:
        function(*arguments)
    return made.bytes


def stripped_prompt(messages: list[dict]) -> str:
    """Exhibit 6, the mistake: the chat template, tidied up by a `.strip()`: its last newline is gone."""
    return chat_template.chat_prompt(messages).strip()


def differs_at(tokenizer, prompt: str, messages: list[dict]) -> int | None:
    """Exhibit 6: a prompt that differs from training by one newline; compare its ids with a training row's.

    messages: of a chat, with the answer. Returns the first position that differs, None where none does.
    """
    (row,) = chat_template.encode_chat(tokenizer, messages, length=2**16, from_turn=-1)
    context = row["input_ids"][: row["span_mask"].index(True)]
    ids = [tokenizer.bos_token_id, *encode(tokenizer, prompt)]
    return next((i for i, (a, b) in enumerate(zip([*ids, None], [*context, None], strict=False)) if a != b), None)


def demo_without_ends(tokenizer, ids: list[int]) -> str:
    """Exhibit 7, the mistake: special tokens are hidden, and a text that was cut off looks as one that ended."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def with_its_end(tokenizer, ids: list[int]) -> str:
    """Exhibit 7: EOS hidden by the demo; show it as `⏹`, and where there is none say `…`, the text ran out of room."""
    end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else None
    return tokenizer.decode(ids[:end], skip_special_tokens=True).strip() + (" …" if end is None else " ⏹")
