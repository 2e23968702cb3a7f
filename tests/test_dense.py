"""Dense stories and the documents for pretraining: true by the verifier, and disjoint from the test split."""

import random

import pytest

from tess2lite.tinytown import facts
from tess2lite.tinytown.dense import DENSE_PLOTS, DenseTeller, dense_story
from tess2lite.tinytown.documents import (
    KINDS,
    askable_facts,
    chat,
    document,
    questions,
    roll_call,
)
from tess2lite.tinytown.language import skeletons, split_sentences
from tess2lite.tinytown.tasks import side
from tess2lite.tinytown.world import verify

ANNA_AND_BEN = "Anna had a red kite. Ben had a blue drum. "

TRUE = {
    "treasures": ANNA_AND_BEN + 'The blue drum belonged to Ben. "That red kite is Anna\'s," said Ben.',
    "holder": ANNA_AND_BEN + '"Ben has the blue drum," said Anna. Anna took the red kite home.',
    "tidy": "Anna had a red kite. Anna hid the red kite in the barn. The red kite lay in the barn. "
    "Anna took the red kite from the barn.",
    "whereabouts": "Anna went to the barn. Ben went to the pond. Anna was still in the barn. Ben stayed near the pond.",
    "two things": "In the barn lay a red kite and a blue drum. "
    "Anna took the red kite, and Ben got the other one, the blue drum. Now Ben had the blue drum.",
    "baskets": "Anna had five apples. Ben had three apples. Anna gave Ben two apples. Now Ben had five apples. "
    "Now Anna had three apples. Together Anna and Ben had eight apples. Ben had more apples than Anna.",
    "hiders": "Anna hid in the barn. Ben hid in the mill. Anna was hiding in the barn. "
    "At last Tom found Ben in the mill.",
}
FALSE = {
    "another's thing": ANNA_AND_BEN + "The blue drum belonged to Anna.",
    "wrong holder": ANNA_AND_BEN + '"Ben has the red kite," said Anna.',
    "wrong place": "Anna had a red kite. Anna hid the red kite in the barn. The red kite lay in the mill.",
    "taken from elsewhere": "Anna had a red kite. Anna hid the red kite in the barn. "
    "Anna took the red kite from the mill.",
    "laid by another": ANNA_AND_BEN + "Ben hid the red kite in the barn.",
    "elsewhere": "Anna went to the barn. Ben went to the pond. Anna stayed near the pond.",
    "three of two": "In the barn lay a red kite and a blue drum. It was a good day. "
    "Anna took the red kite, and Ben got the other one, the old hat.",
    "twice the same": "It was a warm day. In the barn lay a red kite and a red kite. It was a good day.",
    "both counts change": "Anna had five apples. Ben had three apples. Anna gave Ben two apples. "
    "Now Ben had three apples.",
    "wrong sum": "Anna had five apples. Ben had three apples. Together Anna and Ben had nine apples.",
    "not more": "Anna had five apples. Ben had three apples. Ben had more apples than Anna.",
    "hiding elsewhere": "Anna hid in the barn. Ben hid in the mill. Anna was hiding in the mill.",
}


@pytest.mark.parametrize("text", TRUE.values(), ids=TRUE)
def test_a_true_story_is_true(text):
    assert verify(text) is None


@pytest.mark.parametrize("text", FALSE.values(), ids=FALSE)
def test_a_false_story_is_found_out(text):
    assert verify(text) is not None


@pytest.mark.parametrize("plot", set(DENSE_PLOTS), ids=lambda plot: plot.__name__)
@pytest.mark.parametrize("held_out", ["never", "also"])
def test_every_dense_story_is_true(plot, held_out):
    for number in range(60):
        teller = DenseTeller(random.Random(number), held_out)
        plot(teller)
        text = " ".join(teller.sentences)
        assert len(teller.sentences) < 3 or verify(text) is None, text


def test_dense_stories_hold_two_things_or_people_at_once():
    worlds = [dense_story(random.Random(number), "never").world for number in range(200)]
    assert all(max(len(w.holder), len(w.place), len(w.count), len(w.people)) >= 2 for w in worlds)


def test_documents_never_use_a_held_out_sentence():
    held_out = {line for lines in skeletons().values() for line, unseen in lines if unseen}
    told = [dense_story(random.Random(number), "never") for number in range(200)]
    assert not held_out & {line for teller in told for line, _ in teller.used}


def test_no_training_chat_asks_what_the_test_asks():
    asked = [message["content"] for n in range(400) for message in chat(random.Random(n))[::2]]
    of_the_test = {facts.question(*fact) for fact in askable_facts("test")}
    assert of_the_test
    assert not of_the_test & set(asked)
    first = [prompt for prompt in asked if not prompt.startswith("What") and "Who is the keeper" not in prompt]
    assert all(side(prompt) == "train" for prompt in first)


def test_answers_follow_from_the_passage():
    teller = DenseTeller(random.Random(0), "never")
    teller.tell("have", A="Anna", o="red kite")
    teller.tell("count_have", A="Ben", i="apples", n="four")
    teller.tell("lay", A="Anna", o="red kite", at="in the barn")
    assert set(questions(teller.world)) == {
        ("Where is the red kite?", "in the barn"),
        ("How many apples does Ben have now?", "four"),
        ("Who does the red kite belong to?", "Anna"),
    }


def test_a_roll_call_says_the_same_twice():
    for number in range(100):
        said = split_sentences(roll_call(random.Random(number)))
        assert len(said) >= 6


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_document_follows_from_its_number(split):
    assert [document(split, n) for n in range(50)] == [document(split, n) for n in range(50)]
    assert document(split, 0) != document(split, 0, seed=1)


def test_every_kind_of_document_can_be_made():
    for kind in KINDS:
        assert document("train", 0, kinds={kind: 1})
