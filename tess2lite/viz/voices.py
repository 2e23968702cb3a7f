"""Voices beside a guided answer: texts without a trajectory, each with its reward and what it cost.

Costs are passes: one run of a network over the page. A gradient counts as two, as is usual in counts of operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..chat_template import chat_prompt
from ..evaluation.best_of import best_of
from ..pretrained.sources import bundled, plain_errors
from ..tokens import encode, eos_token_ids
from ..validation import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..generation import Generation
    from ..guidance import RewardGuidance
    from ..model import SimplexDenoiser
    from ..reward import RewardModel

PARENT = "tinytown-ar"
PASSES_OF_A_GRADIENT = 2


@dataclass(frozen=True)
class Voice:
    """A text as the explorer lists it among others that answer the same prompt.

    Attributes:
        name: Who speaks.
        text: What was written after the prompt.
        reward: What the reward model says of it.
        passes: How often a network was run for it.
        unchosen: Rewards of the texts that were written too and not chosen.
    """

    name: str
    text: str
    reward: float
    passes: int
    unchosen: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The voice as the contract in explorer.mjs has it."""
        return asdict(self) | {"reward": round(self.reward, 4), "unchosen": [round(r, 4) for r in self.unchosen]}


def single_voice(name: str, reward_model: RewardModel, written: Generation, passes: int) -> Voice:
    """One run's final text."""
    _, rewards = best_of(reward_model, [written])
    return Voice(name, written.text, float(rewards[0]), passes)


def best_voice(reward_model: RewardModel, written: Sequence[Generation], steps: int) -> Voice:
    """The text that the reward model likes best among several of `steps` steps, each scored once."""
    index, rewards = best_of(reward_model, list(written))
    unchosen = rewards.tolist()
    reward = unchosen.pop(index)
    passes = len(written) * (steps + 1)
    return Voice(f"best of {len(written)}", written[index].text, reward, passes, tuple(unchosen))


def guided_passes(guidance: RewardGuidance, steps: int) -> int:
    """Passes of a guided run: one per step, and one with a gradient per ascent and reward model."""
    fractions = [step / steps for step in range(steps)]
    guided = sum(guidance.start <= fraction < guidance.end for fraction in fractions) if guidance.scale > 0 else 0
    ascents = guided * guidance.inner_steps * len(guidance.models)
    return steps + ascents * (1 + PASSES_OF_A_GRADIENT)


def number_at_equal_cost(passes: int, steps: int) -> int:
    """How many unguided texts of `steps` steps, each scored once, cost about so many passes; at least two."""
    return max(2, round(passes / (steps + 1)))


@cache
def _bundled_parent() -> PreTrainedModel:
    folder = bundled()[PARENT]
    with plain_errors(PARENT):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        model.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval()


def bundled_parent(lm: SimplexDenoiser) -> PreTrainedModel | None:
    """tinytown-ar if it has this denoiser's tokens."""
    if PARENT not in bundled():
        return None
    model = _bundled_parent()
    return model if model.tokenizer.get_vocab() == lm.tokenizer.get_vocab() else None


def autoregressive_voice(
    model: PreTrainedModel,
    lm: SimplexDenoiser,
    messages: list[dict[str, str]],
    reward_model: RewardModel,
) -> Voice:
    """What an AR model answers, word after word, the likeliest each time.

    Args:
        model: Of transformers, with the denoiser's tokens; PAD may be missing.
        lm: The denoiser that it is compared with.
        messages: As for `generate`.
        reward_model: Scores the text with as much padding as a denoiser's.

    Raises:
        InputError: The models do not have the same tokens.
    """
    missing = lm.config.vocab_size - model.config.vocab_size
    if missing not in (0, 1):
        raise InputError(
            f"The autoregressive model has {model.config.vocab_size} tokens and the denoiser {lm.config.vocab_size}; "
            "give the denoiser's parent, or another model with its tokenizer."
        )
    prompt = [lm.tokenizer.bos_token_id, *encode(lm.tokenizer, chat_prompt(messages))]
    room = min(lm.config.max_position_embeddings - len(prompt), 256)  # as for `generate`
    ids = torch.tensor([prompt], device=model.device)
    ends = eos_token_ids(lm)
    with torch.no_grad():
        row = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=room,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=ends[0],  # one row needs none
        )[0].tolist()
    written = row[len(prompt) :]
    words = [token for token in written if token not in ends]
    padding = [lm.tokenizer.pad_token_id] * (room - len(written))
    reward = reward_model.score_ids(torch.tensor([row + padding]))
    name = f"{Path(model.name_or_path).name or 'a model'} (AR)"
    return Voice(name, lm.tokenizer.decode(words).strip(), float(reward), len(written))
