"""Batches that the bundled denoisers learn from, and the starting weights of the AR model."""

import random
import re

import pytest
import torch

from tess2lite.tinytown.documents import document, pairs, roster
from tess2lite.tinytown.language import words
from tess2lite_course.experiments import build, instruct
from tess2lite_course.experiments.batches import AnswerFinder, CausalCollator, PlannedBatches, as_text
from tess2lite_course.experiments.denoising_batches import (
    PAD_WEIGHT,
    PAD_WEIGHT_IN_CHATS,
    Answers,
    PlannedChats,
    WriteOrFill,
    tuning_chat,
)
from tess2lite_course.experiments.word_tokenizer import make_tokenizer

PAD, EOS, BOS = 3, 2, 1
LENGTH = 256


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(as_text(document("train", n)) for n in range(2_000))


@pytest.fixture(scope="module")
def texts(tokenizer):
    plan = PlannedBatches(tokenizer, 512, 64, LENGTH, WriteOrFill(PAD, BOS, 512, LENGTH))
    return [plan[step] for step in range(64)]


@pytest.fixture(scope="module")
def chats(tokenizer):
    def encode(chat):
        return instruct.encode_pair(tokenizer, chat)

    plan = PlannedChats(encode, Answers(PAD, 512, LENGTH), 512, 64, LENGTH)
    return [plan[step] for step in range(64)]


def test_the_first_token_is_never_masked(texts, chats):
    assert not any(batch["span_mask"][:, 0].any() for batch in [*texts, *chats])


def test_rows_fit_into_the_context_and_batches_into_their_size(texts, chats):
    for batch in [*texts, *chats]:
        assert batch["input_ids"].shape[1] <= LENGTH
        assert batch["input_ids"].numel() <= max(1.6 * 512, LENGTH)


@pytest.mark.parametrize("tokens", [512, 2048])
def test_all_batches_of_a_pool_read_about_as_many_tokens(tokenizer, tokens):
    """A step of few tokens would move the weights as far as any other."""
    plan = PlannedBatches(tokenizer, tokens, 200, LENGTH, lambda rows, _: sum(map(len, rows)))
    read = [plan[step] for step in range(120)]
    assert min(read) > tokens - LENGTH
    assert max(read) <= tokens + LENGTH
    assert sum(read) / len(read) > 0.9 * tokens


def test_pad_is_always_to_be_written_and_weighs_little(texts, chats):
    for batch, weight in [*((b, PAD_WEIGHT) for b in texts)]:
        pad = batch["input_ids"] == PAD
        assert batch["span_mask"][pad].all()
        assert (batch["loss_weights"][pad] == weight).all()
    assert any((batch["input_ids"] == PAD).any() for batch in texts)
    assert all(batch["span_mask"][batch["input_ids"] == PAD].all() for batch in chats)


def test_texts_with_blanks_have_known_tokens_on_both_sides(texts):
    def filled(mask):
        return bool((mask[:-1] & ~mask[1:]).any())

    rows = [mask for batch in texts for mask in batch["span_mask"]]
    share = sum(map(filled, rows)) / len(rows)
    assert 0.1 < share < 0.6


def test_an_answer_of_n_tokens_weighs_the_root_of_n(chats):
    for batch in chats[:20]:
        for ids, mask, weights in zip(batch["input_ids"], batch["span_mask"], batch["loss_weights"], strict=True):
            answer = mask & (ids != PAD)
            length = int(answer.sum())
            assert float(weights[answer].sum()) == pytest.approx(length**0.5, rel=1e-4)
            assert torch.allclose(weights[mask & ~answer], torch.tensor(PAD_WEIGHT_IN_CHATS / length**0.5))
            assert ids[answer][-1] == EOS


def test_most_timesteps_of_texts_lie_in_the_window(texts):
    t = torch.cat([batch["t"] for batch in texts]) / 5000
    inside = ((t >= 0.15) & (t <= 0.65)).float().mean()
    assert 0.75 < inside < 0.95
    assert (t > 0.65).any()
    assert (t < 0.15).any()


def test_a_batch_of_chats_follows_from_its_number(tokenizer, chats):
    def encode(chat):
        return instruct.encode_pair(tokenizer, chat)

    again = PlannedChats(encode, Answers(PAD, 512, LENGTH), 512, 64, LENGTH)
    for name, value in again[7].items():
        assert torch.equal(value, chats[7][name]), name


def test_tuning_chats_end_with_an_answer_and_have_up_to_four_turns():
    turns = {len(tuning_chat(n)) // 2 for n in range(200)}
    assert turns == {1, 2, 3, 4}
    assert all(tuning_chat(n)[-1]["role"] == "assistant" for n in range(50))


def test_next_tokens_are_learned_on_the_last_answer_alone(tokenizer):
    pairs = [instruct.encode_pair(tokenizer, tuning_chat(n)) for n in range(6)]
    batch = instruct.NextTokens(PAD)(pairs, torch.Generator())
    for labels, (context, answer) in zip(batch["labels"], pairs, strict=True):
        assert labels[labels != -100].tolist() == answer
        assert (labels[: len(context)] == -100).all()


def attention_of(model, layer, ids):
    with torch.no_grad():
        return model(input_ids=ids, output_attentions=True).attentions[layer][0]


def test_fresh_heads_attend_to_the_tokens_before(tokenizer):
    model = build.new_model(tokenizer).eval()
    ids = torch.randint(10, len(tokenizer), (1, 60), generator=torch.Generator().manual_seed(0))
    attention = attention_of(model, 0, ids)
    for head, weights in enumerate(attention):
        assert weights[20:].diagonal(19 - head).mean() > 0.5, head


def test_a_fresh_head_finds_what_followed_an_equal_token(tokenizer):
    """Words said twice: the first head of layer 1 looks one past the first occurrence more than anywhere else."""
    model = build.new_model(tokenizer).eval()
    words = 10 + torch.randperm(len(tokenizer) - 10, generator=torch.Generator().manual_seed(0))[:24]
    ids = torch.cat([torch.tensor([BOS]), words, words])[None]
    weights = attention_of(model, 1, ids)[0]
    second = torch.arange(25, 48)
    followed = weights[second, second - 23].mean()
    others = (weights[second].sum(1) - weights[second, second - 23]).mean() / 30
    assert followed > 4 * others


def test_answers_are_found_in_texts_and_in_chats(tokenizer):
    find = AnswerFinder.of(tokenizer)
    text = "Clara has the pen. Who has the pen? Clara. What does Clara have? The pen."
    chat = as_text(
        [
            {"role": "user", "content": "Clara had a pen.\nWho has the pen now?"},
            {"role": "assistant", "content": "Clara"},
            {"role": "user", "content": "What does Clara have now?"},
            {"role": "assistant", "content": "the pen"},
        ]
    )
    expected = {text: " Clara. The pen.", chat: "\n<|assistant|>\nClara\n\n<|assistant|>\nthe pen"}
    for source, answers in expected.items():
        ids = tokenizer(source, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode([ids[place] for place in find(ids)]) == answers
    assert find(tokenizer("Where is Tom? In the mill.", add_special_tokens=False)["input_ids"]) == []


def test_a_row_with_questions_is_learned_from_in_its_answers_alone_as_often_as_said(tokenizer):
    row = [BOS, *tokenizer("Clara has the pen. Who has the pen? Clara. The pen? Clara.")["input_ids"], EOS]
    find = AnswerFinder.of(tokenizer)
    collate = CausalCollator(PAD, [5], chance=0.0, answers=find, answers_alone=0.3)
    labels = collate([row] * 400, torch.Generator().manual_seed(0))["labels"]
    is_alone = (labels != -100).sum(1) == len(find(row))
    assert 0.2 < is_alone.float().mean() < 0.4
    assert ((labels != -100).sum(1)[~is_alone] == len(row) - 1).all()
    assert (labels[is_alone].nonzero()[:, 1].unique().numel()) >= len(find(row))


@pytest.mark.parametrize("make", [pairs, roster])
def test_questions_of_pairs_and_rosters_are_answered_by_what_was_said(make):
    known = words()
    keys = {word.lower() for kind in ("girls", "boys", "thing") for word in known[kind]}
    keys |= {place.split()[-1] for place in known["place"]}
    for number in range(200):
        text = _plain(make(random.Random(number))).lower().replace("'s", "")
        said, *asked = re.split(r"(?<=\.) (?=(?:who|what|where|how) )", text)
        sentences = [set(re.findall(r"\w+", line)) for line in said.split(".")]
        for pair in asked:
            question, answer = (set(re.findall(r"\w+", half)) for half in pair.split("?"))
            about = [line for line in sentences if question & keys & line]
            assert len(about) == 1, text
            assert answer - {"the"} <= about[0], text


def _plain(document):
    """A chat as the text that it says."""
    if isinstance(document, str):
        return document
    said = [message["content"] + ("." if message["role"] == "assistant" else "") for message in document]
    return " ".join(" ".join(said).split())
