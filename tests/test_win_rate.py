"""Win rates by hand; a reward model's scores against its own reading of the same rows."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tess2lite as t2
from tess2lite.chat_template import encode_chat
from tess2lite.evaluation.intervals import mean_interval
from tess2lite.tinytown.tasks import preferences
from tess2lite_course.experiments import win_rate

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def model():
    return t2.load_reward("tinytown-reward")


@pytest.fixture(scope="module")
def pairs():
    return list(preferences("test", 40))


def test_win_rate_by_hand():
    share, low, high = win_rate.win_rate([3, 1, 2, 5], [1, 3, 2, 4])
    assert share == (1 + 0 + 0.5 + 1) / 4
    assert (share, low, high) == mean_interval([1, 0, 0.5, 1], bounds=(0, 1)) and low < share < high
    back = win_rate.win_rate([1, 3, 2, 4], [3, 1, 2, 5])
    assert back[0] == pytest.approx(1 - share) and back[1:] == pytest.approx((1 - high, 1 - low), abs=0.02)
    even = win_rate.win_rate([2.0] * 5, torch.full((5,), 2.0))
    assert even[0] == 0.5 and even[1] < 0.4 and even[2] > 0.6
    many = win_rate.win_rate([3, 1, 2, 5] * 100, [1, 3, 2, 4] * 100)
    assert many[0] == share and many[2] - many[1] < 0.2 * (high - low)


@pytest.mark.parametrize(
    "a, b, says",
    [
        ([1, 2], [1], "There are 2 and 1 scores"),
        ([], [], "There are no scores"),
        ([float("nan")], [1], "not finite"),
        ([1], [float("inf")], "not finite"),
    ],
)
def test_scores_that_do_not_compare(a, b, says):
    with pytest.raises(ValueError, match=says):
        win_rate.win_rate(a, b)


@pytest.mark.parametrize("score_position", ["last", "eos"])
def test_a_reward_model_reads_rows_as_it_was_trained_on(model, pairs, score_position, monkeypatch):
    """Against `encode_chat`'s rows with 8 of their PADs; a reader at EOS is told the same whatever follows."""
    monkeypatch.setattr(model.config, "score_position", score_position)
    prompts, texts = ["Say a word.", "Tell me something about the hill."], ["  It was good. ", "Nobody laughs there."]
    found = win_rate.scores(model, prompts, texts)
    for prompt, text, score in zip(prompts, texts, found, strict=True):
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        ids = encode_chat(model.tokenizer, chat, 100)[0]["input_ids"]
        ids = ids[: ids.index(2) + 1 + 8] if score_position == "last" else ids
        assert score == pytest.approx(float(model.score_ids(torch.tensor([ids]))[0]), rel=1e-5)
    assert found[0] != found[1]


def test_neither_order_nor_company_changes_a_score(model, pairs):
    prompts, texts = [pair["prompt"] for pair in pairs[:4]], [pair["chosen"] for pair in pairs[:4]]
    texts[1] = ""
    found = win_rate.scores(model, prompts, texts)
    assert win_rate.scores(model, prompts[::-1], texts[::-1])[::-1] == found
    assert [win_rate.scores(model, [p], [t])[0] for p, t in zip(prompts, texts, strict=True)] == found
    assert win_rate.scores(model, prompts[1:2], ["  \n"]) == found[1:2]


def test_the_truly_better_answer_wins(model, pairs):
    """By the true reward always; by the reward model, which was trained on such pairs, mostly."""
    prompts = [pair["prompt"] for pair in pairs]
    true = {(pair["prompt"], pair[side]): pair[f"{side}_reward"] for pair in pairs for side in ("chosen", "rejected")}
    chosen, rejected = ([pair[side] for pair in pairs] for side in ("chosen", "rejected"))

    def verdict(judge):
        return win_rate.win_rate(*(win_rate.scores(judge, prompts, texts) for texts in (chosen, rejected)))

    found = verdict(lambda prompt, text: true[prompt, text])
    assert found.mean == found.high == 1 and found.low > 0.9
    share, low, _ = verdict(model)
    assert share > 0.8 and low > 0.5


def test_judges_that_cannot_judge(model, monkeypatch):
    with pytest.raises(TypeError, match="The judge is a str; give a reward model, or a function"):
        win_rate.scores("tinytown-reward", ["a"], ["b"])
    with pytest.raises(ValueError, match="The reward model is a MistralForCausalLM"):
        win_rate.scores(AutoModelForCausalLM.from_pretrained(t2.bundled()["tinytown-ar"]), ["a"], ["b"])
    large = AutoTokenizer.from_pretrained(t2.bundled()["tinytown-ar"])
    large.add_tokens(["«one»", "«more»"])
    for tokenizer, says in (
        (None, "its own tokenizer, .* with BOS and EOS and PAD"),
        (large, "its own tokenizer, of 1359 tokens at most"),
    ):
        monkeypatch.setattr(model, "tokenizer", tokenizer)
        with pytest.raises(ValueError, match=says):
            win_rate.scores(model, ["a"], ["b"])


def test_answers_that_do_not_fit(model):
    for prompts, texts, says in (
        (["a"], ["b", "c"], "There are 1 prompts; give 2"),
        (["a"], ["happy " * 260], "context is 256"),
        ([" "], ["b"], "user's message has no content"),
        (["a"], "b", "texts is str; give a list of strings"),
    ):
        with pytest.raises(ValueError, match=says):
            win_rate.scores(model, prompts, texts)
