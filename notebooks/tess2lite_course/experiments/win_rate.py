"""Which of two models answers better: scores of their answers by a local judge, compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tess2lite.chat_template import chat_prompt
from tess2lite.evaluation.intervals import bootstrap
from tess2lite.reward import RewardModel, check_reward_model

from .text_metrics import check_texts, row

FILLER = 8  # PADs after a text for judges that are read at the row's last position, where PAD stands mostly


def scores(judge: RewardModel | Callable[[str, str], float], prompts: list[str], texts: list[str]) -> list[float]:
    """A judge's score of each text as the answer to its prompt.

    judge: a reward model from `load_reward`, or a true reward, a function (prompt, text) → number. The reward model
    reads the chat with its own tokenizer, whoever wrote the text, one row at a time and laid out alike, so that no
    text's score depends on another. An empty text is an answer, too.
    """
    check_texts("texts", texts)
    check_texts("prompts", prompts, len(texts))
    if isinstance(judge, torch.nn.Module):
        check_reward_model(judge)
        judge = _predicted(judge)
    if not callable(judge):
        raise TypeError(f"The judge is a {type(judge).__name__}; give a reward model, or a function (prompt, text).")
    return [float(judge(prompt, text)) for prompt, text in zip(prompts, texts, strict=True)]


def _predicted(model: RewardModel) -> Callable[[str, str], float]:
    end = ("eos", *["pad"] * FILLER) if model.config.read_at == "last" else ("eos",)

    def ask(prompt: str, text: str) -> float:
        asked = chat_prompt([{"role": "user", "content": prompt}])
        ids, _ = row(model, model.tokenizer, text.strip(), asked, end)
        return float(model.score_ids(ids)[0])

    return ask


def win_rate(scores_a: list[float], scores_b: list[float]) -> tuple[float, float, float]:
    """(share of prompts where A wins, low, high), with its 95 % interval by resampling prompts; a tie is half a win.

    scores_a, scores_b: one score a prompt, in the same order. Of several answers to a prompt give the mean score:
    they are no independent prompts.
    """
    a, b = [float(score) for score in scores_a], [float(score) for score in scores_b]
    if len(a) != len(b):
        raise ValueError(f"There are {len(a)} and {len(b)} scores; they are compared in pairs, give one a prompt each.")
    if not all(map(math.isfinite, a + b)):
        raise ValueError("Some scores are no finite numbers, which win against nothing; look at what was judged.")
    return bootstrap([(x > y) + (x == y) / 2 for x, y in zip(a, b, strict=True)])
