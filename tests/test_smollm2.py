"""The SmolLM2 experiment on a tiny model: exact resume, the rising timesteps, and scores of blanks."""

import math

import pytest
import torch
from conftest import save_mistral

import tess2lite as t2
from tess2lite.pretrained.probes import causal
from tess2lite_course.experiments import smollm2
from tess2lite_course.experiments.smollm2 import Blank, Plan

PLAN = Plan(seed=0, start="AR weights", steps=4)


@pytest.fixture
def small(mistral_like_tokenizer, tmp_path, monkeypatch):
    """A folder with a tiny AR model, for rows of 16 tokens."""
    save_mistral(tmp_path / "ar", mistral_like_tokenizer, tie_word_embeddings=True)
    changes = {"LENGTH": 16, "BATCH": 4, "STORIES": 8, "SAVE_EVERY": 2, "HELD_OUT": 4}
    for name, value in changes.items():
        monkeypatch.setattr(smollm2, name, value)
    return tmp_path


def weights(folder):
    return dict(t2.load(str(folder)).named_parameters())


def test_interrupted_run_resumes_exactly(small, monkeypatch):
    smollm2.train(PLAN, str(small / "ar"), small / "whole")
    step = smollm2.MasterWeights.step

    def interrupted(training, rate):
        step(training, rate)
        interrupted.left -= 1
        if not interrupted.left:
            raise KeyboardInterrupt

    interrupted.left = 3
    with monkeypatch.context() as patch:
        patch.setattr(smollm2.MasterWeights, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            smollm2.train(PLAN, str(small / "ar"), small / "cut")
    assert not (small / "cut" / PLAN.name).exists()
    smollm2.train(PLAN, str(small / "ar"), small / "cut")
    whole, cut = weights(small / "whole" / PLAN.name), weights(small / "cut" / PLAN.name)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    start = smollm2.start_model(PLAN, str(small / "ar"))
    assert all(not torch.equal(whole[name], weight) for name, weight in start.named_parameters())


def test_timesteps_rise_from_clean_to_noisy():
    rows = torch.arange(50)[:, None].expand(-1, smollm2.LENGTH)
    plan = Plan(seed=0, start="AR weights", steps=100)
    first, middle, last = (smollm2.make_batch(plan, step, rows) for step in (0, 20, 99))
    assert first.t.max() < 1_000 <= middle.t.max() < 3_000 + 1 < last.t.max() < 5_000
    assert not first.self_condition and not middle.self_condition
    assert not first.span_mask[:, 0].any()
    again = smollm2.make_batch(plan, 99, rows)
    assert torch.equal(last.t, again.t) and torch.equal(last.span_mask, again.span_mask)


def test_blanks_are_tokens_of_held_out_stories(mistral_like_tokenizer):
    blanks = smollm2.make_blanks(mistral_like_tokenizer, 30)
    for blank in blanks:
        assert 0 < blank.place < len(blank.ids) - 1
    seen = []
    for numbers, batch in smollm2.blank_batches(blanks, size=7):
        seen += numbers
        truth = batch["input_ids"][batch["span_mask"]].tolist()
        assert truth == [blanks[number].token for number in numbers]
    assert sorted(seen) == list(range(30))


def test_ar_model_is_scored_on_the_left_side(small, mistral_like_tokenizer):
    lm = t2.load(str(small / "ar"))
    blanks = [Blank([1, 5, 9, 7, 2], 2), Blank([1, 6, 8, 2], 1)]
    with causal(lm):
        scores = smollm2.continue_left(lm, blanks, bos=1)
        other_right = [Blank([1, 5, 9, 11, 2], 2), blanks[1]]
        assert smollm2.continue_left(lm, other_right, bos=1) == scores
        hidden = lm.hidden_states(lm.embed_context(torch.tensor([[1, 5]])), None)[0, -1:]
    expected = -lm.head(hidden).log_softmax(1)[0, 9].item()
    assert scores["nats"][0] == pytest.approx(expected, abs=1e-4)


def test_denoiser_is_scored_by_its_own_first_step_and_sampler(small, mistral_like_tokenizer):
    """A head that always says token 9 fills one of two blanks."""
    lm = t2.load(str(small / "ar"))
    said = torch.full((lm.config.vocab_size,), 0.0)
    said[9] = 5.0
    lm.head = lambda hidden: said.expand(len(hidden), -1).clone()
    blanks = [Blank([1, 5, 9, 7, 2], 2), Blank([1, 6, 8, 2], 1)]
    scores = smollm2.fill_blanks(lm, blanks)
    log_sum = math.log(math.exp(5) + len(said) - 1)
    assert scores["first"] == [1.0, 0.0] and scores["sampler"] == [1.0, 0.0]
    assert scores["nats"] == pytest.approx([log_sum - 5, log_sum], abs=1e-4)


def test_frequency_knows_the_corpus_alone():
    rows = torch.tensor([[3, 3, 3, 4]])
    scores = smollm2.guess_by_frequency(rows, 6, [Blank([1, 3, 2], 1), Blank([1, 4, 2], 1)])
    assert scores["first"] == [1.0, 0.0]
    assert scores["nats"] == pytest.approx([math.log(10 / 4), math.log(10 / 2)])
