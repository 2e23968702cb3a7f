"""The look-up score: mentions found by hand, and predictions compared with each model's own."""

import pytest
import torch

import tess2lite as t2
from tess2lite.tinytown.stories import belongs
from tess2lite.tinytown.world import verify
from tess2lite_course.experiments import lookup, runner

STORY = (
    "Tom had a red kite. Anna had an old drum. Tom laid the red kite in the barn. Anna laid the old drum on the hill. "
    "The old drum was on the hill, and Tom took it."
)


def test_second_mentions_by_hand():
    """A word counts once another of its kind is known, too; its first mention never does."""
    found = [(kind, STORY[start:].split()[0].strip(",."), start) for kind, start in lookup.second_mentions(STORY)]
    assert [(kind, word) for kind, word, _ in found] == [
        ("name", "Tom"),
        ("adjective", "red"),
        ("noun given it", "kite"),
        ("name", "Anna"),
        ("adjective", "old"),
        ("noun given it", "drum"),
        ("adjective", "old"),
        ("noun given it", "drum"),
        ("place", "hill"),
        ("name", "Tom"),
    ]
    assert [start for _, _, start in found] == sorted(start for _, _, start in found)
    assert list(lookup.second_mentions("Tom ran. Tom had a red kite. The red kite flew.")) == []


def test_stories_are_held_out_and_true():
    stories = lookup.dense_stories(20)
    assert len(set(stories)) == 20 and lookup.dense_stories(20) == stories
    assert all(verify(text) is None and belongs("test", text) for text in stories)
    kinds = {kind for text in stories for kind, _ in lookup.second_mentions(text)}
    assert kinds == set(lookup.KINDS)


@pytest.fixture
def one_story(monkeypatch):
    monkeypatch.setattr(lookup, "dense_stories", lambda number, seed: [STORY])


def positions(lm):
    """(kind, ids before the word, id of the word), by encoding each prefix anew."""
    whole = lm.tokenizer(STORY, add_special_tokens=False)["input_ids"]
    for kind, start in lookup.second_mentions(STORY):
        before = lm.tokenizer(STORY[:start].rstrip(), add_special_tokens=False)["input_ids"]
        assert whole[: len(before)] == before
        yield kind, [lm.tokenizer.bos_token_id, *before], whole[len(before)]


@torch.no_grad()
def test_an_autoregressive_model_is_asked_for_its_next_token(one_story):
    lm = runner._load("tinytown-ar", {"kind": "ar"}, smoke=False)
    found = lookup.lookup_accuracy(lm, 1)
    for kind in lookup.KINDS:
        expected = [
            int(lm(input_ids=torch.tensor([past])).logits[0, -1].argmax()) == word
            for own, past, word in positions(lm)
            if own == kind
        ]
        assert [mention.is_right for mention in found[kind]] == expected


def test_a_denoiser_sees_noise_after_the_past(one_story, monkeypatch):
    lm = t2.load("tinytown-base")
    whole = [lm.tokenizer.bos_token_id, *lm.tokenizer(STORY, add_special_tokens=False)["input_ids"]]
    found = lookup.lookup_accuracy(lm, 1)
    for kind in lookup.KINDS:
        expected = []
        for own, past, word in positions(lm):
            if own == kind:
                mask = torch.arange(len(whole))[None] >= len(past)
                hidden = torch.tensor([whole]).masked_fill(mask, 7)  # what stands under the mask is not read
                (step,) = t2.denoise(lm, {"input_ids": hidden, "span_mask": mask}, 1, top_p=None, seed=0)
                expected.append(int(step.argmax[0, len(past)]) == word)
        assert [mention.is_right for mention in found[kind]] == expected
