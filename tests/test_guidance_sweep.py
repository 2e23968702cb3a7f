"""The study of guidance: paired arms, numbers by hand, interrupted and resumed."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

import tess2lite as t2
from tess2lite_course.experiments import guidance_sweep

COMMITTED = Path(__file__).parent.parent / "assets" / "findings" / "guidance.json"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"STEPS": 2, "LENGTH": 24, "PER_SEED": 3, "BATCH": 2, "SEEDS": (0, 1)}.items():
        monkeypatch.setattr(guidance_sweep, name, value)


def test_arms_are_paired_and_best_of_n_is_the_best(monkeypatch):
    lm = t2.load("tinytown-instruct")
    judge, asked = t2.load_reward("tinytown-reward", base=lm), guidance_sweep.requests(3)
    plain = guidance_sweep.answers(lm, judge, guidance_sweep.Arm("tinytown-reward"), asked, seed=1, steps=2)
    guided = guidance_sweep.answers(lm, judge, guidance_sweep.Arm("tinytown-reward", 1e5), asked, seed=1, steps=2)
    assert [out.seed for out in plain] == [out.seed for out in guided] == [100_000, 100_001, 100_002]
    assert all((a.trajectory.top_p[0] != b.trajectory.top_p[0]).any() for a, b in zip(plain, guided, strict=True))
    best = guidance_sweep.answers(lm, judge, guidance_sweep.Arm("tinytown-reward", best_of=3), asked, seed=1, steps=2)
    for place, (example, kept) in enumerate(zip(asked, best, strict=True)):
        chat = [{"role": "user", "content": example.prompt}]
        seeds = [100_000 + draw * 10_000 + place for draw in range(3)]
        drawn = t2.generate(lm, [chat] * 3, steps=2, seed=seeds, length=24, progress=False)
        assert kept.text == drawn[t2.best_of(judge, drawn)[0]].text
    assert best[0].prompt != best[1].prompt


def test_the_summary_is_of_pairs():
    asked = guidance_sweep.requests(3)
    told = ["It made Leo happy.", "It makes you sad."]

    def rows(texts):
        each = zip(asked * 2, texts, strict=True)
        return [{"prompt": e.prompt, "text": t, "predicted": 0.5, "nll": 2.0, "tokens": 4} for e, t in each]

    runs = {
        "tinytown-reward, scale 0": rows([told[1]] * 6),
        "tinytown-reward, scale 10": rows([told[0]] * 3 + [told[1]] * 3),
    }
    found = guidance_sweep.summary(runs)["tinytown-reward, scale 10"]
    assert found["gain"][0] == 1 and found["gain_by_seed"] == [2, 0] and found["true"][0] == 0
    assert found["perplexity"] == pytest.approx(math.exp(0.5)) and found["answers"] == 6


def test_verdicts_by_hand(monkeypatch):
    """Best scale and largest scale of each reward model, by gains that are counted by request."""
    one, two = guidance_sweep.KINDS
    gains = {(one, 0): 0, (one, 1): 0.5, (one, 9): -1, (two, 0): 0, (two, 1): 0}
    arms = [guidance_sweep.Arm(model, scale) for model, scale in gains]
    monkeypatch.setattr(guidance_sweep, "ARMS", arms)
    monkeypatch.setattr(guidance_sweep, "true_rewards", lambda rows, kind: [row["true"] for row in rows])

    def runs():
        rng = random.Random(0)
        noise = [rng.gauss(0, 0.1) for _ in range(40)]
        return {
            arm.name: [
                {"prompt": str(i % 10), "true": gains[arm.model, arm.scale] + (arm.scale and noise[i])}
                for i in range(40)
            ]
            for arm in arms
        }

    helps, hurts, other = guidance_sweep.verdicts(runs())
    assert (helps["row"], helps["verdict"], helps["questions"]) == (7, "holds", 10)
    assert helps["gain"][0] == pytest.approx(0.5, abs=0.05) and helps["sides"][1] == [0, *helps["sides"][1][1:]]
    assert (hurts["row"], hurts["verdict"]) == (7, "holds") and hurts["gain"][0] == pytest.approx(1, abs=0.05)
    assert (other["row"], other["verdict"]) == (8, "too small to tell")
    gains |= {(one, 1): 0.0, (two, 1): -0.3}
    verdicts = [record["verdict"] for record in guidance_sweep.verdicts(runs())]
    assert verdicts == ["too small to tell", "holds", "does not hold"]


def test_sweep_resumes_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(
        guidance_sweep, "ARMS", [guidance_sweep.Arm("tinytown-reward"), guidance_sweep.Arm("tinytown-reward-brief", 10)]
    )
    monkeypatch.setattr(guidance_sweep, "KINDS", guidance_sweep.KINDS)
    calls, whole = [], guidance_sweep.answers

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(guidance_sweep, "summary", lambda runs: {name: len(rows) for name, rows in runs.items()})
    monkeypatch.setattr(guidance_sweep, "verdicts", len)
    monkeypatch.setattr(guidance_sweep, "answers", stopping)
    with pytest.raises(KeyboardInterrupt):
        guidance_sweep.run(tmp_path / "a.json")
    resumed = guidance_sweep.run(tmp_path / "a.json")
    assert len(calls) == 5  # four runs, one of them twice
    assert resumed["summary"] == {"tinytown-reward, scale 0": 6, "tinytown-reward-brief, scale 10": 6}
    assert guidance_sweep.run(tmp_path / "b.json")["texts"] == resumed["texts"]


def test_what_is_committed_says_what_its_numbers_say():
    """The best scale gains for certain with whole sentences; far beyond, the prediction rises and sentences break."""
    study = json.loads(COMMITTED.read_text())
    assert {record["row"] for record in study["verdicts"]} == {7, 8}
    arms = [SimpleNamespace(**arm) for arm in study["summary"].values()]
    sweep = [arm for arm in arms if arm.model == "tinytown-reward" and arm.best_of == 1 and arm.scale]
    assert all(arm.answers >= 60 and len(arm.gain_by_seed) == 3 for arm in arms)
    whole = min(sweep, key=lambda arm: arm.broken[0])
    assert whole.gain[1] > 0
    far = max(sweep, key=lambda arm: arm.scale)
    assert far.predicted[1] > whole.predicted[2]
    assert far.broken[1] > whole.broken[2]
