"""What findings measure: texts that do not depend on their company, and numbers counted by hand."""

import math
import random

import pytest
import torch

import tess2lite as t2
from tess2lite.tinytown.language import split_sentences
from tess2lite.tinytown.stories import stories
from tess2lite.tinytown.tasks import score
from tess2lite.tinytown.world import verify
from tess2lite.tokens import encode
from tess2lite_course.experiments import instruct, metrics, runner
from tess2lite_course.experiments.diversity import longest_copied_run, sentence_runs
from tess2lite_course.experiments.metrics import ModelUnderTest

STEPS, LENGTH = 6, 24


@pytest.fixture(scope="module")
def lm():
    return t2.load("tinytown-base")


@pytest.fixture(scope="module")
def prompts():
    return [" ".join(split_sentences(text)[:2]) for text in stories("test", 9, 3)]


def written_in_every_company(lm, prompts, monkeypatch):
    """The same prompts with the same seeds: together, alone, by twos, and in another order."""
    seeds, order = [100 + i for i in range(len(prompts))], list(range(len(prompts)))
    random.Random(0).shuffle(order)
    model = ModelUnderTest(lm, steps=STEPS, length=LENGTH)
    found = []
    for batch, places in ((9, None), (1, None), (2, None), (4, order)):
        monkeypatch.setattr(metrics, "BATCH", batch)
        places = places or list(range(len(prompts)))
        texts = [text for text, _ in model.write([prompts[i] for i in places], [seeds[i] for i in places])]
        found.append([text for _, text in sorted(zip(places, texts, strict=True))])
    return found


def test_in_float64_texts_are_the_same_in_every_batch_and_order(prompts, monkeypatch):
    found = written_in_every_company(t2.load("tinytown-base", dtype="float64"), prompts, monkeypatch)
    assert all(texts == found[0] for texts in found) and len(set(found[0])) == len(prompts)


def test_in_float32_near_ties_are_few(lm, prompts, monkeypatch):
    found = written_in_every_company(lm, prompts, monkeypatch)
    differing = sum(a != b for texts in found[1:] for a, b in zip(found[0], texts, strict=True))
    assert differing <= 2, f"{differing} of {3 * len(prompts)} texts depend on their batch"


def test_every_setting_of_writing_changes_the_text(lm, prompts):
    plain = ModelUnderTest(lm, steps=STEPS, length=LENGTH).write(prompts, [*range(9)])
    for changed in ({"steps": 7}, {"length": 25}, {"self_condition": False}):
        assert ModelUnderTest(lm, **{"steps": STEPS, "length": LENGTH} | changed).write(prompts, [*range(9)]) != plain
    halted = ModelUnderTest(lm, steps=60, length=LENGTH, patience=2).write(prompts, [*range(9)])
    full = ModelUnderTest(lm, steps=60, length=LENGTH).write(prompts, [*range(9)])
    assert {steps for _, steps in full} == {60} and any(steps < 60 for _, steps in halted)


def test_story_metrics_by_hand(lm, monkeypatch):
    monkeypatch.setattr(metrics, "verify", lambda text: None if text.endswith("1") else "wrong")
    write = lambda self, prompts, seeds: [(f" a b {s % 3}", 10 + s % 3) for s in seeds]  # noqa: E731
    monkeypatch.setattr(ModelUnderTest, "write", write)
    monkeypatch.setattr(metrics, "TRAINING_STORIES", 5)
    monkeypatch.setattr(metrics, "perplexity", lambda *_: [(4.0, 2), (2.0, 1), (6.0, 3)])
    found = metrics.story_metrics(ModelUnderTest(lm), prompts=3, seed=0)
    valid, nats = found["valid stories"], found["nats per token"]
    assert valid.scores == [0, 1, 0] and nats.scores == [2, 2, 2]
    assert valid.questions == nats.questions and len(set(valid.questions)) == 3
    assert (found["steps"], found["dist-2"], found["longest copied run"]) == (11, 4 / 6, 0)
    assert found["log-perplexity"] == pytest.approx(2) and found["perplexity"] == pytest.approx(math.exp(2))


def test_answers_are_scored_by_task_and_kind(monkeypatch):
    lm = t2.load("tinytown-instruct")
    context = lm.config.max_position_embeddings
    right = {
        e.prompt: e for task in ("reading", "puzzle") for e in instruct.test_examples(task, lm.tokenizer, context, 5, 4)
    }

    def half(self, prompts, seeds):
        examples = [right[chat[0]["content"]] for chat in prompts]
        return [(example.response if i % 2 else "no", 1) for i, example in enumerate(examples)]

    monkeypatch.setattr(ModelUnderTest, "write", half)
    found = metrics.task_accuracy(ModelUnderTest(lm), prompts=4, seed=5, tasks=["reading", "puzzle"])
    assert found["reading"].scores == [0, 1, 0, 1]
    assert len(set(found["reading"].questions)) == 4 and found["CPU seconds per answer"] > 0
    by_kind = {}
    for i, example in enumerate(e for e in right.values() if e.task == "puzzle"):
        by_kind.setdefault(instruct.kind(example), []).append(score(example, example.response if i % 2 else "no"))
    assert {kind: found[kind].scores for kind in by_kind} == by_kind


def test_latency_is_of_as_many_tokens_as_were_asked_for(lm):
    written = []
    model = runner._load("tinytown-ar", {"kind": "ar"}, smoke=False)
    whole = model.generate
    model.generate = lambda *args, **kwargs: written.append(whole(*args, **kwargs)) or written[-1]
    found = metrics.latency(ModelUnderTest(model), seed=0, lengths=[3, 200])
    known = written[0].shape[1] - 3
    assert [out.shape[1] - known for out in written] == [3, 200] and found["seconds for 200"] > found["seconds for 3"]
    assert metrics.latency(ModelUnderTest(t2.load("tinytown-base"), steps=2), 0, [150])["seconds for 150"] > 0


def test_autoregressive_text_is_the_likeliest_each_time():
    model = runner._load("tinytown-ar", {"kind": "ar"}, smoke=False)
    ids = model.tokenizer("<s>Tom had a drum.")["input_ids"]
    for _ in range(12):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    by_hand = model.tokenizer.decode(ids[len(model.tokenizer("<s>Tom had a drum.")["input_ids"]) :])
    assert metrics.autoregressive_text(model, "Tom had a drum.").startswith(by_hand.split("</s>")[0])


def test_the_judge_of_stories_calls_true_stories_valid():
    assert all(verify(text) is None for text in stories("test", 20, 1))


def test_question_ids_are_a_function_of_the_prompt():
    chat = [{"role": "user", "content": "Who?"}]
    assert metrics.question_id("a") == metrics.question_id("a") != metrics.question_id("b")
    assert metrics.question_id(chat) == metrics.question_id([{"role": "user", "content": "Who?"}])


def test_longest_copied_run_by_hand():
    known = sentence_runs(["Tom ran. Ann sat. It rained. Sam slept.", "Ann sat. Tom ran."])
    copied = {
        "Tom ran. Ann sat. It snowed.": 2,
        "It snowed. Ann sat. It rained. Sam slept.": 3,
        "Sam slept. It rained.": 1,
        "Nobody came.": 0,
        "": 0,
    }
    assert {text: longest_copied_run(text, known) for text in copied} == copied


def test_a_long_prompt_leaves_less_room_than_was_asked_for(lm, prompts):
    context = lm.config.max_position_embeddings
    long = "The dog saw the cat. " * (context // 12)
    room = context - 1 - len(encode(lm.tokenizer, long))
    assert 0 < room < context
    model = ModelUnderTest(lm, steps=2, length=room + 1)
    asked = [prompts[0], long, prompts[1]]
    together = model.write(asked, [1, 2, 3])
    alone = [model.write([prompt], [seed])[0] for seed, prompt in enumerate(asked, 1)]
    assert together == alone
    assert t2.generate(lm, long, steps=2, seed=2, progress=False).text == together[1][0]
