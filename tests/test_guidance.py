"""Reward guidance against the official numbers, finite differences and what it is for."""

import shutil

import pytest
import torch
from conftest import GOLDEN
from parity import close

import tess2lite as t2
from tess2lite.reward import reward_of_embeddings


@pytest.fixture(scope="module")
def reward_model():
    return t2.load_reward(GOLDEN / "reward")


class Held:
    """A step with given logits, as a hook sees it."""

    def __init__(self, golden, logits):
        self.input_ids, self.span_mask, self.attention_mask = golden["input_ids"], golden["span_mask"], None
        self.masked_logits, self.reward = logits[self.span_mask], None


@pytest.mark.parametrize("scale", [0.25, 2.0])
def test_guided_logits_and_rewards_are_the_official_ones(golden, reward_model, scale):
    """Five ascents, rewards read before each."""
    step, rewards = Held(golden, golden["logits_selfcond"]), []
    for _ in range(5):
        t2.RewardGuidance(reward_model, scale)(step)
        rewards.append(step.reward)
    close(torch.stack(rewards), golden[f"guided_rewards_eta{scale}"])
    close(step.masked_logits, golden[f"guided_logits_eta{scale}"][golden["span_mask"]])
    at_once = Held(golden, golden["logits_selfcond"])
    t2.RewardGuidance(reward_model, scale, inner_steps=5)(at_once)
    close(at_once.masked_logits, step.masked_logits, 1e-6)
    close(at_once.reward, rewards[0], 1e-6)


def test_the_gradient_by_finite_differences(golden):
    model = t2.load_reward(GOLDEN / "reward", dtype="float64")
    step = Held(golden, golden["logits_selfcond"].double())
    guide = t2.RewardGuidance(model)
    _, gradient = guide._gradient(step, step.masked_logits)
    for row, token in ((0, 5), (7, 60), (20, 11)):
        change = torch.zeros_like(step.masked_logits)
        change[row, token] = 1e-2
        above, below = (guide._gradient(step, step.masked_logits + sign * change)[0].sum() for sign in (1, -1))
        assert gradient[row, token].item() == pytest.approx((above - below).item() / 2e-2, rel=5e-3, abs=1e-6)


def test_an_ascent_raises_the_predicted_reward_of_every_text(golden, reward_model):
    step, guide = Held(golden, golden["logits_selfcond"]), t2.RewardGuidance(reward_model, 0.25)
    guide(step)
    before = step.reward
    guide(step)
    assert (step.reward > before).all()


def test_guidance_is_part_of_the_run(golden, golden_lm, reward_model):
    batch = {"input_ids": golden["input_ids"], "span_mask": golden["span_mask"]}

    def run(*hooks):
        *_, step = t2.denoise(golden_lm, batch, steps=10, top_p=None, hooks=hooks)
        return step

    guided = run(t2.RewardGuidance(reward_model, 5.0))
    assert not torch.equal(guided.tokens, run().tokens) and guided.reward.shape == (3,)
    assert torch.equal(run(t2.RewardGuidance(reward_model, 0)).tokens, run().tokens)
    assert torch.equal(guided.tokens[~golden["span_mask"]], golden["input_ids"][~golden["span_mask"]])


def test_filler_changes_no_reward(golden, reward_model):
    embeddings = reward_model.get_input_embeddings()(golden["input_ids"][:1])
    alone = reward_of_embeddings(reward_model, embeddings, None)
    for left, right in ((3, 0), (0, 2)):
        padded = torch.nn.functional.pad(embeddings, (0, 0, left, right))
        mask = torch.nn.functional.pad(torch.ones(1, embeddings.shape[1], dtype=torch.long), (left, right))
        close(reward_of_embeddings(reward_model, padded, mask), alone, 1e-5)


def test_mistakes_get_a_sentence(tiny, golden, reward_model, tmp_path):
    batch = {"input_ids": torch.arange(1, 9)[None], "span_mask": torch.arange(8)[None] > 2}
    with pytest.raises(ValueError, match="reads 96 tokens, the denoiser writes 326"):
        list(t2.denoise(tiny(), batch, steps=1, hooks=[t2.RewardGuidance(reward_model)]))
    with pytest.raises(ValueError, match="inner_steps is 0"):
        t2.RewardGuidance(reward_model, inner_steps=0)
    with pytest.raises(ValueError, match="is no reward model"):
        t2.load_reward(GOLDEN / "checkpoint")
    with pytest.raises(ValueError, match="There is no model"):
        t2.load_reward(tmp_path / "nothing")
    shutil.copytree(GOLDEN / "reward", tmp_path / "spoiled")
    (tmp_path / "spoiled" / "model.safetensors").rename(tmp_path / "spoiled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights"):
        t2.load_reward(tmp_path / "spoiled")
