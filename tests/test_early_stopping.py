"""The study of halting counts what the hook itself would have done."""

import pytest

import tess2lite as t2
from tess2lite.hooks import Halt
from tess2lite_course.experiments import early_stopping


@pytest.fixture(scope="module")
def lm():
    return t2.load("tinytown-base")


def test_halt_recorder_sees_what_halting_would_have_kept(lm, monkeypatch):
    monkeypatch.setattr(early_stopping, "STEPS", 40)
    prompt = "Once there was a girl named Anna. Anna had a red kite."
    (row, _) = early_stopping.measure(lm, [prompt, "Tom had a drum."], seed=3)
    for patience in (1, 5):
        out = t2.generate(lm, prompt, steps=40, seed=3, hooks=[Halt(patience, early_stopping.ENTROPY)], progress=False)
        assert row["halted"][str(patience)][0] == len(out.trajectory)
    steps = [row["halted"][str(patience)][0] for patience in early_stopping.PATIENCES]
    assert steps == sorted(steps) and steps[0] < 40 == steps[-1]


def test_summary_by_hand():
    rows = [
        {"valid": valid, "halted": {"5": [steps, halted]}}
        for valid, steps, halted in ((True, 10, True), (True, 20, False), (False, 30, False), (True, 40, True))
    ]
    found = early_stopping.summary(rows, 5)
    assert found["steps"] == 25 and found["valid"] == 0.5 and found["change"] == -0.25
    assert found["low"] < -0.6 and found["high"] > 0.2 and found["half_width"] > 1.96 * 0.5 / 2  # four are few
    many = early_stopping.summary(rows * 250, 5)
    assert many["half_width"] == pytest.approx(1.96 * 0.433 / 1000**0.5, rel=0.05)


def test_study_resumes_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(early_stopping, "STEPS", 3)
    monkeypatch.setattr(early_stopping, "BATCH", 2)
    two, three = (early_stopping.run(tmp_path / "a.json", count)["rows"] for count in (2, 3))
    assert len(three) == 3 and three[:2] == two
    assert early_stopping.run(tmp_path / "b.json", 3)["rows"] == three
