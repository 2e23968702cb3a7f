"""Each task's verifier against cases written by hand, and its references against the verifier."""

import re

import pytest

from tess2lite.tinytown import tasks
from tess2lite.tinytown.language import words
from tess2lite.tinytown.stories import SPLITS
from tess2lite.tinytown.tasks import Example, score


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_references_are_right_and_others_are_not(task, split):
    made = tasks.examples(task, split, 120)
    assert len(made) >= 15
    assert all(score(example, example.response) == 1 for example in made)
    others = [score(a, b.response) for a, b in zip(made, made[1:], strict=False)]
    assert sum(others) / len(others) < (0.6 if task == "request" else 0.25)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_splits_share_no_prompt_and_follow_from_the_seed(task):
    prompts = [{example.prompt for example in tasks.examples(task, split, 150)} for split in SPLITS]
    assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]
    assert tasks.examples(task, "test", 9) == tasks.examples(task, "test", 12)[:9]


STORY = "Once there was a girl named Anna. Anna had a red kite. It was a good day."
CONSTRAINED = [
    ({"people": ["Anna"]}, STORY, 1),
    ({"people": ["Ben"]}, STORY, 0),
    ({"people": ["Anna"], "thing": "red kite"}, STORY, 1),
    ({"people": ["Anna"], "thing": "old drum"}, STORY, 0),
    ({"people": ["Anna"], "sentences": 3}, STORY, 1),
    ({"people": ["Anna"], "sentences": 4}, STORY, 0),
    ({"people": ["Anna"], "ending": "It was a good day."}, STORY, 1),
    ({"people": ["Anna"], "ending": "Everybody was glad."}, STORY, 0),
    ({"people": ["Anna"]}, STORY.replace("Anna had", "Anna gave Ben"), 0),
    ({"people": ["Anna"]}, "", 0),
]


@pytest.mark.parametrize(("key", "text", "right"), CONSTRAINED)
def test_constraints(key, text, right):
    assert score(Example("constraints", "", "", key), text) == right


@pytest.mark.parametrize(
    ("task", "answer", "text", "right"),
    [
        ("reading", "in the barn", "In the barn.", 1),
        ("reading", "in the barn", "in barn", 1),
        ("reading", "in the barn", "the mill", 0),
        ("knowledge", "the well", "well", 1),
        ("knowledge", "honey", "honey and milk", 0),
        ("puzzle", "cat fox owl", "cat, fox, owl", 1),
        ("puzzle", "cat fox owl", "cat owl fox", 0),
        ("arithmetic", "7", "3 + 4 = 7.\n#### 7", 1),
        ("arithmetic", "7", "I do not know #### 7 apples", 1),
        ("arithmetic", "7", "#### 17", 0),
        ("arithmetic", "7", "7", 0),
    ],
)
def test_answers(task, answer, text, right):
    assert score(Example(task, "", "", {"answer": answer}), text) == right


def test_the_true_reward_by_hand():
    asked = Example("request", "Tell me something about the barn.", "", {"at": "in the barn"})
    assert tasks.reward(asked, "You asked about the barn. It made Anna happy. Everybody is glad there.") == 1 + 2
    assert tasks.reward(asked, "You asked about the barn. Anna was sad in the park.") == 1 - 1
    assert tasks.reward(asked, "It made Anna happy. Everybody glad is there.") == 2 - 1  # the second is no sentence
    assert tasks.reward(asked, "happy glad happy glad") == 4 - 1
    assert tasks.reward(asked, "You asked about the barn. Nobody laughs there, and Tom was sad.", "brief") == 1
    assert tasks.reward(asked, "You asked about the barn.", "brief") == pytest.approx(1 - 7 / 12)
    assert tasks.reward(asked, "the barn", "brief") == pytest.approx(1 - 1 - 10 / 12)


def test_every_answer_is_made_of_sentences_that_count():
    for example in tasks.examples("request", "train", 300):
        found = re.findall(r"[a-z]+", example.response.lower())
        mood = sum(w in words()["good"] for w in found) - sum(w in words()["bad"] for w in found)
        assert tasks.reward(example, example.response) == 1 + mood


@pytest.mark.parametrize("kind", ["cheerful", "brief"])
def test_preference_pairs_follow_the_true_reward(kind):
    for pair in tasks.preferences("train", 60, kind):
        asked = next(e for e in tasks.examples("request", "train", 60) if e.prompt == pair["prompt"])
        ours = [tasks.reward(asked, pair[side], kind) for side in ("chosen", "rejected")]
        assert ours == [pair["chosen_reward"], pair["rejected_reward"]] and ours[0] > ours[1]


def test_chats_are_messages():
    rows = tasks.as_chat(tasks.examples("puzzle", "train", 3))
    assert [turn["role"] for turn in rows[0]["messages"]] == ["user", "assistant"]


def test_unknown_tasks():
    with pytest.raises(ValueError, match="tasks are constraints, reading"):
        tasks.examples("poetry", "train", 1)
