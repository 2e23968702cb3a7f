"""The count of causes: its texts by hand, one measurement, and how it resumes."""

import pytest
import torch

import tess2lite as t2
from tess2lite.trajectory import Trajectory
from tess2lite_course.experiments import causes


def test_the_second_mention_is_blanked():
    story = "Anna met Ben. Anna was glad. Ben had a kite."
    assert causes.blank_second_mention(story) == "Anna met Ben. _ was glad."
    assert causes.blank_second_mention("Anna ran. Anna hid. Ben came. Was Ben sad? No.") == (
        "Anna ran. Anna hid. Ben came. Was _ sad?"
    )
    assert causes.blank_second_mention("Anna ran. Anna hid.") is None
    assert causes.blank_second_mention("Anna met Ben. Annabel ran.") is None


def test_the_first_mention_stands_before_and_alone():
    ids = torch.tensor([[9, 4, 5, 6, 4, 7, 5, 5]])
    run = Trajectory(ids, ids[..., None], ids[..., None], ids, ids[:, 0], ids[0] > 0, ["x"], {})
    assert causes.first_mention(run, 4) == 1
    assert causes.first_mention(run, 1) is None  # the other stands after it
    assert causes.first_mention(run, 7) is None  # two others
    assert causes.first_mention(run, 3) is None  # no other


@pytest.fixture(scope="module")
def lm():
    return t2.load("tinytown-base")


def test_a_flip_is_undone_only_if_the_second_run_says_so(lm, monkeypatch):
    monkeypatch.setattr(causes, "STORY_STEPS", 8)
    monkeypatch.setattr(causes, "LENGTH", 8)
    rows = causes.flips(lm, "Anna had a kite.", seed=1)
    assert rows and all(1 <= row["causes"] <= 3 for row in rows)
    monkeypatch.setattr(causes, "put_back", lambda lm, run, *_, **__: t2.replay(lm, run, progress=False))
    assert not any(row["undone"] for row in causes.flips(lm, "Anna had a kite.", seed=1))


def test_it_resumes_and_gives_the_same(tmp_path, monkeypatch):
    for name, value in {"BLANK_STEPS": 2, "STORY_STEPS": 3, "LENGTH": 6}.items():
        monkeypatch.setattr(causes, name, value)
    one, two = (causes.run(tmp_path / "a.json", mentions, flips) for mentions, flips in ((1, 5), (2, 10)))
    assert two["mentions"][:1] == one["mentions"] and two["flips"][: len(one["flips"])] == one["flips"]
    whole = causes.run(tmp_path / "b.json", 2, 10)
    assert whole == two and len(whole["mentions"]) == 2


def test_summary_by_hand():
    mentions = [{"occlusion": i, "gradient": 9, "correlation": 0.5} for i in (1, 3, 4, 1)]
    flips = [{"story": i, "causes": 1 + i, "own": False, "undone": i == 0} for i in (0, 0, 1)]
    found = causes.summary({"mentions": mentions, "flips": flips})
    means = [interval.mean for interval in found.values()]
    assert means == pytest.approx([0.75, 0, 0.5, 2 / 3, 4 / 3, 0])
