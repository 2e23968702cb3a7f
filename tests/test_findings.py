"""Arms × seeds of a finding: resumed, refused when changed, and each edit of the model a real one."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from scipy.stats import t as student

import tess2lite as t2
from tess2lite.evaluation import findings
from tess2lite.model import check_bidirectional

ROOT = Path(__file__).parent.parent
TINY = {
    "model": "tinytown-ar", "data": "tinytown", "length": 16, "batch": 4, "rows_at_once": 4, "steps": 2,
    "learning_rate": 1e-3, "warmup": 1, "held_out": 4, "evaluate_every": 1, "save_every": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    monkeypatch.setattr("tess2lite.preparation.TINYTOWN_TEXTS", 50)


def write(path, **changes):
    finding = {"claim": "c", "paper": "p", "seeds": [0, 1], "recipe": TINY,
               "arms": {"plain": None, "random": {"edit": "random_weights"}}}  # fmt: skip
    path.write_text(yaml.safe_dump(finding | changes))
    return str(path)


def test_results_grow_run_by_run_and_are_kept(tmp_path):
    name = write(tmp_path / "one.yaml", seeds=[0])
    first = findings.run(name, tmp_path / "results", tmp_path / "work")
    more = findings.run(write(tmp_path / "one.yaml"), tmp_path / "results", tmp_path / "work")
    assert [(run["arm"], run["seed"]) for run in more["runs"]] == [
        ("plain", 0), ("random", 0), ("plain", 1), ("random", 1)]  # fmt: skip
    assert more["runs"][:2] == first["runs"]
    assert json.loads((tmp_path / "results" / "one.json").read_text())["runs"] == more["runs"]
    losses = findings.final_losses(more)
    assert len({*losses["plain"], *losses["random"]}) == 4  # every arm and every seed is another run
    with pytest.raises(ValueError, match="another recipe"):
        findings.run(write(tmp_path / "one.yaml", arms={"plain": {"steps": 3}}), tmp_path / "results", tmp_path / "w")


def test_an_unknown_finding_names_those_there_are():
    with pytest.raises(ValueError, match="no finding '99'.*01"):
        findings.run("99", None, None)


def test_edits_do_what_their_names_say():
    lm = t2.load("tinytown-base")
    ids = torch.arange(5, 15)[None]
    before = lm.hidden_states(lm.embedding_matrix()[ids], None)
    after = findings.unshifted(lm).hidden_states(lm.embedding_matrix()[ids], None)
    assert torch.equal(after[:, 3], before[:, 4])
    with pytest.raises(RuntimeError, match="causal"):
        check_bidirectional(findings.causal(t2.load("tinytown-base")))
    fresh = findings.random_weights(t2.load("tinytown-base"))
    assert fresh.tokenizer and not torch.equal(fresh.lm_head.weight, lm.lm_head.weight)
    assert fresh.num_parameters() == lm.num_parameters()
    check_bidirectional(fresh)


def test_the_interval_over_seeds():
    """Student's t of two degrees of freedom at 97.5 % is 4.303."""
    mean, half = findings.interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert student.cdf(4.303, 2) == pytest.approx(0.975, abs=1e-4)
    assert findings.interval([1.0]) == (1.0, float("inf"))


def test_findings_of_the_package_are_whole():
    for path in sorted((findings.NAMED / "findings").glob("*.yaml")):
        finding = findings.read_finding(path.stem)
        for arm, changes in finding["arms"].items():
            changes = {k: v for k, v in (changes or {}).items() if k != "edit" or v not in findings.EDITS}
            findings.Recipe(**finding["recipe"] | changes, output="x"), arm


@pytest.mark.parametrize("name", ["01", "lora", "ladder"])
def test_what_is_committed_is_its_recipes_and_sums_up_right(name):
    committed = json.loads((ROOT / "assets" / "findings" / f"{name}.json").read_text())
    recipe = findings.read_finding(name)
    assert all(committed[part] == recipe[part] for part in ("recipe", "arms", "seeds", "claim"))
    done = [(run["arm"], run["seed"]) for run in committed["runs"]]
    assert sorted(done) == sorted((arm, seed) for arm in recipe["arms"] for seed in recipe["seeds"])
    assert committed["summary"] == findings.summary(committed)


def test_the_left_to_right_past_helps():
    committed = json.loads((ROOT / "assets" / "findings" / "01.json").read_text())["summary"]
    assert committed["from AR weights"]["interval"][1] < committed["from random weights"]["interval"][0]
    assert committed["from random weights"]["clear_of_first"]


def test_lora_and_four_bits_come_close_to_full_tuning():
    losses = findings.final_losses(json.loads((ROOT / "assets" / "findings" / "lora.json").read_text()))
    full = min(losses[arm][0] for arm in losses if arm.startswith("full tuning"))
    assert losses["rank 64"][0] <= 1.15 * full and losses["rank 64, nf4"][0] <= 1.1 * losses["rank 64"][0]


def test_summary_by_hand():
    losses = {"a": [1.0, 2.0, 3.0], "b": [11.0, 12.0, 13.0], "c": [2.0, 3.0, 4.0]}
    runs = [{"arm": arm, "seed": seed, "loss": [9.0, losses[arm][seed]]} for arm in losses for seed in range(3)]
    summed = findings.summary({"arms": {"a": None, "b": None, "c": None}, "runs": runs})
    half = 4.3027 / 3**0.5  # Student's for two degrees of freedom
    assert summed["a"]["mean"] == 2 and summed["a"]["interval"] == pytest.approx([2 - half, 2 + half], abs=1e-3)
    assert summed["b"]["clear_of_first"] and not summed["c"]["clear_of_first"]
    assert findings.summary({"arms": {"a": None}, "runs": runs[:1]})["a"]["interval"] is None
