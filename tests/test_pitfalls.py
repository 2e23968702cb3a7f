"""Each exhibit shows its symptom, and its probe tells the mistake from what the package does instead."""

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

import tess2lite as t2
from tess2lite.chat_template import chat_prompt
from tess2lite.simplex import noisy_simplex_
from tess2lite.tinytown.stories import stories
from tess2lite.tokens import encode
from tess2lite_course.tools import pitfalls

IDS = torch.tensor([[1, 40, 41, 42, 43, 44, 45]])  # (B, L)
ASK = [{"role": "user", "content": "Who has the red kite now?"}]
CHAT = [*ASK, {"role": "assistant", "content": "Anna"}]


@pytest.fixture(scope="module")
def lm():
    return t2.load("tinytown-instruct")


@pytest.mark.parametrize("kernel, padded", [("eager", False), ("eager", True), ("sdpa", True)])
def test_1_the_layers_switch_leaves_the_model_causal(kernel, padded, tiny):
    ar = AutoModelForCausalLM.from_pretrained(t2.bundled()["tinytown-ar"], attn_implementation=kernel).eval()
    assert pitfalls.share_that_notices(pitfalls.switch_layers(ar), IDS, padded) == 0
    lm = tiny()
    lm.set_attn_implementation(kernel)
    assert pitfalls.share_that_notices(lm, IDS, padded) == 1


def test_2_one_offset_is_right_and_no_other_comes_near():
    ar = AutoModelForCausalLM.from_pretrained(t2.bundled()["tinytown-ar"]).eval()
    tokenizer = t2.load("tinytown-base").tokenizer
    ids = torch.tensor([[1, *encode(tokenizer, stories("validation", 1)[0])]])
    with torch.no_grad():
        losses = pitfalls.losses_by_offset(ar(ids).logits, ids)
    assert min(losses, key=losses.get) == 1
    assert all(loss > 3 * losses[1] for offset, loss in losses.items() if offset != 1)


def test_2_counts_the_offsets_from_each_position():
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    for offset in (-1, 0, 1, 2):
        output = 50.0 * torch.nn.functional.one_hot(ids.roll(-offset, 1), 10)  # output i speaks of i + offset
        losses = pitfalls.losses_by_offset(output, ids)
        assert [name for name, loss in losses.items() if loss < 1e-3] == [offset]


def test_3_the_demos_slider_is_dead_and_ours_are_not():
    base = t2.load("tinytown-base")

    def ours(**control):
        return t2.generate(base, "Tom had a drum.", length=20, progress=False, **({"steps": 5} | control)).text

    demo = partial(pitfalls.demo_with_sliders, base, "Tom had a drum.")
    assert pitfalls.dead_controls(demo, temperature=(0.5, 3.0), steps=(1, 5)) == ["temperature"]
    assert not pitfalls.dead_controls(ours, temperature=(0.5, 3.0), top_p=(0.01, 1.0), steps=(1, 5), seed=(0, 1))


def test_4_gradients_pile_up_with_several_inner_steps_only(lm):
    judge = t2.load_reward("tinytown-reward", base=lm)
    ids = torch.tensor([[1, *encode(lm.tokenizer, chat_prompt(ASK)), *[0] * 20]])
    batch = {"input_ids": ids, "span_mask": torch.arange(ids.shape[1])[None] >= ids.shape[1] - 20}
    ours, piling = (partial(kind, judge, 30.0) for kind in (t2.RewardGuidance, pitfalls.AccumulatingGuidance))
    single = pitfalls.rise(lm, batch, ours(inner_steps=1), calls=4)
    assert pitfalls.rise(lm, batch, ours(inner_steps=4)) == pytest.approx(single, rel=1e-3)
    assert pitfalls.rise(lm, batch, piling(inner_steps=4)) > 1.5 * single
    assert pitfalls.rise(lm, batch, piling(inner_steps=1), calls=4) == pytest.approx(single, rel=1e-3)


def test_5_the_one_hot_takes_half_a_gigabyte_and_the_scatter_next_to_nothing():
    rows, vocabulary = 2048, 32_000
    ids = torch.zeros(rows, dtype=torch.long, device="meta")
    made = pitfalls.bytes_made(pitfalls.one_hot_simplex, ids, vocabulary)
    assert max(made) == rows * vocabulary * 8 == 524_288_000
    noise = torch.empty(rows, vocabulary, device="meta")  # which both need
    assert sum(pitfalls.bytes_made(noisy_simplex_, noise, ids, torch.tensor(0.3, device="meta"))) < 100


def test_5_and_both_are_the_same_simplex_to_softmax():
    ids, level = torch.tensor([3, 0, 7]), torch.tensor(0.4)
    noise = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    slow = level.sqrt() * pitfalls.one_hot_simplex(ids, 9) + (1 - level).sqrt() * 5 * noise
    torch.testing.assert_close(noisy_simplex_(noise.clone(), ids, level).softmax(1), slow.softmax(1))


def test_6_a_stripped_prompt_ends_before_the_training_rows_does(lm):
    prompt = chat_prompt(ASK)
    known = 1 + len(encode(lm.tokenizer, prompt))
    assert pitfalls.differs_at(lm.tokenizer, prompt, CHAT) is None
    assert pitfalls.differs_at(lm.tokenizer, pitfalls.stripped_prompt(ASK), CHAT) == known - 1
    assert pitfalls.differs_at(lm.tokenizer, prompt + "\n", CHAT) == known
    assert pitfalls.stripped_prompt(ASK) == prompt[:-1]


def test_7_a_text_without_an_end_looks_finished_until_ends_are_shown(lm):
    tokenizer = lm.tokenizer
    words = encode(tokenizer, "Anna was glad.")
    ended = [*words, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.pad_token_id]
    assert (
        pitfalls.demo_without_ends(tokenizer, words) == pitfalls.demo_without_ends(tokenizer, ended) == "Anna was glad."
    )
    assert pitfalls.with_its_end(tokenizer, ended) == "Anna was glad. ⏹"
    assert pitfalls.with_its_end(tokenizer, words) == "Anna was glad. …"


def test_7_and_what_stands_behind_an_end_is_no_part_of_the_text(lm):
    words, more = encode(lm.tokenizer, "Anna was glad."), encode(lm.tokenizer, " Ben Ben.")
    ids = [*words, lm.tokenizer.eos_token_id, *more]
    assert pitfalls.demo_without_ends(lm.tokenizer, ids) == "Anna was glad. Ben Ben."
    assert pitfalls.with_its_end(lm.tokenizer, ids) == "Anna was glad. ⏹"
