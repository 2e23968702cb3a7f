"""Best-of-n: write several texts, keep the one that the reward model likes best."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..reward import RewardModel, check_reward_model
from ..validation import InputError

if TYPE_CHECKING:
    from ..generation import Generation


def best_of(reward_model: RewardModel, generations: list[Generation]) -> tuple[int, torch.Tensor]:
    """Best-of-n, the baseline of guidance: `best_of(rm, generate(lm, [prompt] * n, seed=range(n)))`.

    Args:
        reward_model: From `tess2lite.load_reward`.
        generations: What `generate` returned for a list of prompts.

    Returns:
        The index of the generation with the highest reward, and the rewards of all, (n,).
    """
    check_reward_model(reward_model)
    is_list = isinstance(generations, (list, tuple)) and len(generations) > 0
    if not is_list or not all(hasattr(g, "token_ids") for g in generations):
        raise InputError("generations holds no texts of generate; give what generate returned for a list of prompts.")
    rewards = torch.stack([reward_model.score_ids(torch.tensor([g.token_ids]))[0] for g in generations])
    return int(rewards.argmax()), rewards
