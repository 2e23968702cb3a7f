"""The small world: its stories are true, its verifier knows a false one."""

import random

import pytest

from tess2lite.tinytown import facts, stories, world


def test_every_generated_story_verifies():
    for split in stories.SPLITS:
        for text in stories.stories(split, 300):
            assert world.verify(text) is None, text


def test_stories_follow_from_their_seed():
    assert stories.stories("train", 5) == stories.stories("train", 8)[:5]
    assert stories.stories("train", 5) != stories.stories("train", 5, seed=1)


def test_splits_are_disjoint_by_construction():
    train, validation, test = (set(stories.stories(split, 400)) for split in stories.SPLITS)
    assert not train & validation and not train & test and not validation & test
    assert all(stories.belongs("validation", text) for text in validation)
    assert not any(stories.belongs("validation", text) for text in train)


def used(split, n=3000):
    held_out = "also" if split == "test" else "never"
    return {s for i in range(n) for s, _ in stories.story(random.Random(f"{split}{i}"), held_out).used}


def test_a_third_of_the_test_sentences_was_never_seen():
    train, test = used("train"), used("test")
    assert len(train | test) >= 300
    assert len(test - train) / len(test) >= 0.3


TRUE = "Once there was a girl named Anna. Anna had a red kite. "
FALSE = {
    "Ben gave the red kite to Tom.": "Ben does not have the red kite",
    "Anna gave the blue kite to Tom.": "Anna does not have the blue kite",
    "Anna gave the red kite to Anna.": "cannot do this with",
    "Anna found a red kite in the barn.": "already somebody's",
    "Anna loved his red kite.": "a pronoun does not fit",
    "Anna mended the broken red kite.": "is not broken",
    "Anna lost the red kite in the barn. Anna looked in the barn, but the red kite was not there.": "is in the barn",
    "Anna lost the red kite in the barn. Then Anna found the red kite in the mill.": "is not in the mill",
    "Anna lost the red kite in the barn. Now Anna had the red kite.": "does not have the red kite",
    "Anna had five apples. Anna ate two apples. Now Anna had four apples.": "does not have 4 apples",
    "Anna had two apples. Anna ate five apples.": "does not have five apples",
    "Then Anna found Ben in the barn.": "Ben is not hiding",
    "The brown fox was hungry.": "nobody has met the brown fox",
    "Ben gave the red kite back to Anna.": "Ben does not have the red kite",
    "Anna flew to the moon.": "no sentence of Tinytown",
    "Anna and Ben swapped: the red kite for the old drum.": "Ben does not have the old drum",
}


@pytest.mark.parametrize("story", FALSE)
def test_false_stories_are_found_out(story):
    assert FALSE[story] in world.verify(TRUE + story)


TOLD_TRULY = [
    "Anna gave the red kite to Tom. Now Tom had the red kite.",
    "Anna lost the red kite in the barn. Then Ben found the red kite in the barn. Ben gave the red kite back to Anna.",
    "Anna had five apples. Anna ate two apples. Now Anna had three apples.",
    "Anna went to the barn. She was happy.",
    "Ben hid in the mill. Then Anna found Ben in the mill.",
]


@pytest.mark.parametrize("story", TOLD_TRULY)
def test_true_stories_pass(story):
    assert world.verify(TRUE + story) is None


def test_facts_are_few_fixed_and_stated():
    table = facts.table()
    assert len(table) == 20 * 3 + 35 * 2 + 52
    page = facts.page(random.Random(0))
    assert 4 <= page.count(".") <= 6
    assert facts.page(random.Random(0)) == page


def test_unknown_split():
    with pytest.raises(ValueError, match="split is 'dev'"):
        stories.stories("dev", 1)
