"""Which of two models answers better: scores of their answers by a local judge, compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from tess2lite.chat_template import chat_prompt
from tess2lite.evaluation.intervals import Interval, mean_interval
from tess2lite.reward import RewardModel, check_reward_model
from tess2lite.validation import InputError

from .text_metrics import check_texts, encode_for_judge

PADS = 8  # after a text, for judges that read a row's last position, which is mostly PAD

Judge = RewardModel | Callable[[str, str], float]


def scores(judge: Judge, prompts: list[str], texts: list[str]) -> list[float]:
    """Returns a judge's score of each text as the answer to its prompt.

    Args:
        judge: A reward model from `load_reward`, or a true reward, a function (prompt, text) → number. A reward model
            reads each chat with its own tokenizer, one row at a time and laid out alike, so no text's score depends on
            another's.
        prompts: One per text.
        texts: Answers, whoever wrote them; an empty one counts, too.

    Raises:
        InputError: If the lists do not fit together.
        TypeError: If the judge is neither.
    """
    check_texts("texts", texts)
    check_texts("prompts", prompts, len(texts))
    if isinstance(judge, torch.nn.Module):
        check_reward_model(judge)
        judge = _predicted_reward(judge)
    if not callable(judge):
        raise TypeError(f"The judge is a {type(judge).__name__}; give a reward model, or a function (prompt, text).")
    return [float(judge(prompt, text)) for prompt, text in zip(prompts, texts, strict=True)]


def _predicted_reward(model: RewardModel) -> Callable[[str, str], float]:
    end = ("eos", *["pad"] * PADS) if model.config.score_position == "last" else ("eos",)

    def score(prompt: str, text: str) -> float:
        chat = chat_prompt([{"role": "user", "content": prompt}])
        ids, _ = encode_for_judge(model, model.tokenizer, text.strip(), chat, end)
        return float(model.score_ids(ids)[0])

    return score


def win_rate(scores_a: Sequence[float], scores_b: Sequence[float], prompts: Sequence[str] | None = None) -> Interval:
    """Returns the share of answers where A wins, a tie being half a win, and its 95 % interval.

    Args:
        scores_a: One score per answer.
        scores_b: In the same order.
        prompts: What was asked; answers to the same prompt are resampled together. By default all differ.

    Raises:
        InputError: If the lists differ in length or a score is not finite.
    """
    a = [float(score) for score in scores_a]
    b = [float(score) for score in scores_b]
    if len(a) != len(b):
        raise InputError(f"There are {len(a)} and {len(b)} scores; they are compared in pairs, give one a prompt each.")
    if not all(map(math.isfinite, a + b)):
        raise InputError("Some scores are not finite and win against nothing; look at what was judged.")
    wins = [(x > y) + (x == y) / 2 for x, y in zip(a, b, strict=True)]
    return mean_interval(wins, prompts, bounds=(0, 1))
