"""Arms × seeds of a finding: resumed, refused when changed, and each edit of the model a real one."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml

import tess2lite as t2
from tess2lite.pretrained.probes import check_bidirectional
from tess2lite.training.recipe import TRAININGS
from tess2lite_course.experiments import metrics, report, runner, steps_figure
from tess2lite_course.experiments.early_stopping import PATIENCES

ROOT = Path(__file__).parent.parent
TINY = {
    "model": "tinytown-ar",
    "data": "tinytown",
    "length": 16,
    "batch_size": 4,
    "micro_batch_size": 4,
    "steps": 2,
    "learning_rate": 1e-3,
    "warmup": 1,
    "num_eval_examples": 4,
    "evaluate_every": 1,
    "save_every": 1,
}
KINDS = ("reading", "knowledge", "arithmetic", "sorting", "counting", "tracking", "boolean")


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    monkeypatch.setattr("tess2lite.training.rows.TINYTOWN_TEXTS", 50)


def write(path, **changes):
    finding = {
        "claim": "c",
        "paper": "p",
        "seeds": [0, 1],
        "prompts": 2,
        "recipe": TINY,
        "measure": {"loss": None},
        "arms": {"plain": None, "random": {"edit": "random_weights"}},
        "compare": [{"row": 1, "what": "plain is better", "metric": "loss", "better": "plain", "than": "random"}],
    }
    path.write_text(yaml.safe_dump(finding | changes))
    return str(path)


def test_results_grow_run_by_run_and_are_kept(tmp_path):
    name = write(tmp_path / "one.yaml", seeds=[0])
    first = runner.run_experiment(name, tmp_path / "results", tmp_path / "work")
    more = runner.run_experiment(write(tmp_path / "one.yaml"), tmp_path / "results", tmp_path / "work")
    assert [(run["arm"], run["seed"]) for run in more["runs"]] == [
        ("plain", 0),
        ("random", 0),
        ("plain", 1),
        ("random", 1),
    ]
    assert more["runs"][:2] == first["runs"]
    assert json.loads((tmp_path / "results" / "one.json").read_text())["runs"] == more["runs"]
    for run in more["runs"]:
        assert run["steps"] == sorted(set(run["steps"])) and run["loss"][-1] == run["measured"]["loss"]
        assert sum(run["loss_at"].values()) / len(run["loss_at"]) == pytest.approx(run["measured"]["loss"], abs=1e-3)
    losses = runner.final_losses(more)
    assert len({*losses["plain"], *losses["random"]}) == 4  # every arm and every seed is another run
    (said,) = more["verdicts"]
    gains = [b - a for a, b in zip(losses["plain"], losses["random"], strict=True)]
    assert said["gain"][0] == pytest.approx(sum(gains) / 2, abs=1e-4) and said["row"] == 1  # kept with four places
    wider = {"plain": None, "random": {"edit": "random_weights"}, "causal": {"edit": "causal"}}
    widened = runner.run_experiment(write(tmp_path / "one.yaml", arms=wider), tmp_path / "results", tmp_path / "work")
    assert widened["runs"][:4] == more["runs"] and [run["arm"] for run in widened["runs"][4:]] == ["causal"] * 2
    with pytest.raises(ValueError, match="another recipe"):
        runner.run_experiment(
            write(tmp_path / "one.yaml", arms={"plain": {"steps": 3}}, compare=[]), tmp_path / "results", tmp_path / "w"
        )


def test_an_unknown_finding_names_those_there_are():
    with pytest.raises(ValueError, match="no experiment '99'.*01"):
        runner.run_experiment("99", None, None)
    assert runner.resolve("9") == ["09", "09-stories"] and runner.resolve("4") == ["09", "09-stories", "ladder"]
    assert (
        runner.resolve("09") == ["09"]
        and runner.resolve("ladder") == ["ladder"]
        and runner.resolve("7") == ["guidance"]
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": None}, "has no seeds; it needs seeds, prompts, recipe, arms, measure"),
        ({"measure": {"beauty": None}}, "no metric 'beauty'; choose one of loss"),
        ({"arms": {"plain": {"edit": "magic"}, "random": None}}, "no edit 'magic'; choose one of random_weights"),
        ({"arms": {"plain": None}}, "no arm 'random'; choose one of plain"),
    ],
)
def test_ones_own_finding_is_checked_before_it_runs(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        runner.read_experiment(write(tmp_path / "mine.yaml", **changes))


@pytest.mark.parametrize("text", ["", "- a list", "{: no"])
def test_a_file_that_is_no_finding(tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ValueError, match="has no seeds|is not YAML"):
        runner.read_experiment(str(tmp_path / "odd.yaml"))


def test_every_row_of_the_table_has_a_finding():
    known = {row for name in runner.names() for row in runner._rows(runner.read_experiment(name))}
    assert known == {*report.PAPER} == {*range(1, 15)}


def test_edits_do_what_their_names_say():
    lm = t2.load("tinytown-base")
    ids = torch.arange(5, 15)[None]
    before = lm.hidden_states(lm.embedding_matrix()[ids], None)
    after = runner.unshifted(lm).hidden_states(lm.embedding_matrix()[ids], None)
    assert torch.equal(after[:, 3], before[:, 4])
    with pytest.raises(RuntimeError, match="causal"):
        check_bidirectional(runner.causal(t2.load("tinytown-base")))
    fresh = runner.random_weights(t2.load("tinytown-base"))
    assert fresh.tokenizer and not torch.equal(fresh.lm_head.weight, lm.lm_head.weight)
    assert fresh.num_parameters() == lm.num_parameters()
    check_bidirectional(fresh)


def test_small_bases_differ_as_they_say():
    lm = t2.load("tinytown-base")
    mistral, llama = runner.small_mistral(lm), runner.small_llama(lm)
    assert type(mistral).__name__ == "MistralForCausalLM" and type(llama).__name__ == "LlamaForCausalLM"
    ids = torch.arange(5, 15)[None]
    other = ids.clone()
    other[0, -1] = 99
    for model in (mistral, llama):
        before, after = (model(input_ids=i).logits for i in (ids, other))
        assert torch.equal(before[:, :-1], after[:, :-1]) and model.tokenizer is lm.tokenizer


@pytest.mark.parametrize("name", runner.names())
def test_findings_of_the_package_are_whole(name):
    finding = runner.read_experiment(name)
    if "study" in finding:
        return
    known = {"loss", "loss at full length", "nats per token", "valid stories", *KINDS, "seconds for 1024"}
    assert {c["metric"] for c in finding.get("compare", [])} <= known
    assert all({c["better"], c["than"]} <= finding["arms"].keys() for c in finding.get("compare", []))
    assert finding["measure"].keys() <= metrics.METRICS.keys()
    for arm, changes in finding["arms"].items():
        changes = changes or {}
        assert changes.get("edit", "causal") in runner.EDITS, arm
        settings = finding.get("write", {}) | changes.get("write", {})
        metrics.ModelUnderTest(None, **settings)
        assert settings.get("patience", PATIENCES[0]) in PATIENCES
        fields = finding["recipe"] | {k: v for k, v in changes.items() if k not in runner.ARM_FIELDS}
        if "data" in fields:
            TRAININGS[changes.get("kind", "denoiser")](**fields, output="x")


COMMITTED = sorted((ROOT / "assets" / "findings").glob("*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_sum_up_right(path):
    committed = json.loads(path.read_text())
    if "runs" in committed:
        assert committed["summary"] == json.loads(json.dumps(runner.summary(committed)))
        assert committed["verdicts"] == json.loads(json.dumps(runner.verdicts(committed)))


def is_of_today(path):
    """Results of the models of 0.1 are of the recipes of that time; the table says which they are."""
    committed = json.loads(path.read_text())
    return "runs" in committed and not report.has_old_models(committed)


@pytest.mark.parametrize("path", filter(is_of_today, COMMITTED), ids=lambda path: path.stem)
def test_committed_results_are_of_their_recipes(path):
    committed = json.loads(path.read_text())
    recipe = runner.read_experiment(path.stem)
    assert all(committed[part] == recipe[part] for part in ("recipe", "arms", "seeds", "prompts", "claim", "measure"))
    done = [(run["arm"], run["seed"]) for run in committed["runs"]]
    assert sorted(done) == sorted((arm, seed) for arm in recipe["arms"] for seed in recipe["seeds"])


def test_lora_and_four_bits_come_close_to_full_tuning():
    losses = runner.final_losses(json.loads((ROOT / "assets" / "findings" / "lora.json").read_text()))
    full = min(losses[arm][0] for arm in losses if arm.startswith("full tuning"))
    assert losses["rank 64"][0] <= 1.15 * full and losses["rank 64, nf4"][0] <= 1.1 * losses["rank 64"][0]


def test_summary_and_verdicts_of_one_number_per_seed():
    losses = {"a": [1.0, 2.0, 3.0], "b": [11.0, 12.0, 13.5], "c": [2.0, 1.0, 3.0]}
    runs = [{"arm": arm, "seed": s, "measured": {"loss": losses[arm][s]}} for s in (2, 0, 1) for arm in losses]
    compare = [{"what": "", "metric": "loss", "better": better, "than": than} for better, than in ("ab", "ba", "ac")]
    finding = {"arms": dict.fromkeys(losses), "runs": runs, "compare": compare}
    half = 4.3027 / 3**0.5  # Student's for two degrees of freedom
    mean, low, high = runner.summary(finding)["a"]["loss"]
    assert mean == 2 and (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert runner.summary(finding | {"runs": runs[:1]})["a"]["loss"] == [3, None, None]
    holds, does_not, unclear = runner.verdicts(finding)
    assert holds["gain"][0] == pytest.approx((10 + 10 + 10.5) / 3, abs=1e-3) and holds["verdict"] == "holds"
    assert does_not["verdict"] == "does not hold" and unclear["verdict"] == "too small to tell"
    # Gains are paired seed by seed: their spread is not that of the arms.
    assert (holds["gain"][2] - holds["gain"][1]) / 2 == pytest.approx(4.3027 * 0.5 / 3, rel=0.1)
    assert runner.verdicts(finding | {"runs": runs[:1]}) == []


def answered(arm, seed, scores, questions, **more):
    answers = {"reading": {"questions": questions, "scores": scores}}
    return {"arm": arm, "seed": seed, "measured": {"reading": sum(scores) / len(scores)}, "answers": answers} | more


def test_answers_are_paired_by_question_and_training_seeds_count():
    questions = [f"q{i}" for i in range(40)]
    better = [float(i % 4 > 0) for i in range(40)]
    than = [float(i % 4 > 1) for i in range(40)]
    compare = [{"row": 6, "what": "", "metric": "reading", "better": "a", "than": "b"}]
    runs = [answered("a", 0, better, questions), answered("b", 0, than, questions)]
    finding = {"arms": {"a": None, "b": None}, "runs": runs, "compare": compare}
    (record,) = runner.verdicts(finding)
    assert record["gain"][0] == 0.25 and record["verdict"] == "holds"
    assert (record["questions"], record["training_seeds"], record["is_share"]) == (40, None, True)
    assert record["sides"][0][0] == 0.75 and record["sides"][0][2] <= 1
    # The same answers of three trained models whose gains differ from seed to seed by far.
    runs = []
    for seed, share in enumerate((1.0, 0.25, -0.5)):
        runs.append(answered("a", seed, [float(i < 40 * share) for i in range(40)], questions, trained_weights=1))
        runs.append(answered("b", seed, [float(i < -40 * share) for i in range(40)], questions, trained_weights=1))
    (record,) = runner.verdicts(finding | {"runs": runs})
    assert record["gain"][0] == 0.25 and record["verdict"] == "too small to tell" and record["training_seeds"] == 3
    runs[-1] = answered("b", 2, [1.0] * 40, [f"other{i}" for i in range(40)], trained_weights=1)
    assert runner.verdicts(finding | {"runs": runs}) == []  # not the same questions


def test_a_margin_is_the_loss_that_would_not_matter():
    rng = random.Random(1)
    questions = [f"q{i}" for i in range(400)]
    than = [float(rng.random() < 0.9) for _ in questions]
    better = [score if rng.random() < 0.97 else 1 - score for score in than]
    compare = [{"row": 14, "what": "", "metric": "reading", "better": "a", "than": "b"}]
    runs = [answered("a", 0, better, questions), answered("b", 0, than, questions)]
    finding = {"arms": {"a": None, "b": None}, "runs": runs, "compare": compare}
    assert runner.verdicts(finding)[0]["verdict"] != "holds"
    compare[0]["margin"] = 0.1
    assert runner.verdicts(finding)[0]["verdict"] == "holds"


def test_smoke_runs_one_seed_in_two_steps_and_writes_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runner.main([write(tmp_path / "one.yaml", recipe=TINY | {"steps": 500, "warmup": 99}), "--smoke"])
    (result,) = (tmp_path / "runs/findings/smoke").glob("*.json")
    assert [run["steps"][-1] for run in json.loads(result.read_text())["runs"]] == [2, 2]
    assert not (tmp_path / "assets").exists() and "one · plain: loss" in capsys.readouterr().out


def test_a_finding_is_made_again_beside_the_committed_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = write(tmp_path / "one.yaml", seeds=[0])
    (tmp_path / "assets/findings").mkdir(parents=True)
    said = {"what": "plain is better", "gain": [7.0, 6.0, 8.0], "verdict": "holds"}
    (tmp_path / "assets/findings/one.json").write_text(json.dumps({"verdicts": [said]}))
    runner.main([name])
    assert len(json.loads((tmp_path / "runs/findings/again/one.json").read_text())["runs"]) == 2
    assert json.loads((tmp_path / "assets/findings/one.json").read_text()) == {"verdicts": [said]}
    assert "committed · plain is better: holds (gain 7, 6 to 8)" in capsys.readouterr().out


def test_an_arm_may_make_its_own_base_and_another_kind_of_model(tmp_path):
    arms = {
        "base": {"pretrain": {"edit": "small_llama", "objective": "prefix"}},
        "masked": {"kind": "masked", "model": "tinytown-ar"},
        "autoregressive": {"kind": "ar", "model": "tinytown-ar"},
        "as it is": {"model": "tinytown-base", "data": "tinytown"},
    }
    name = write(tmp_path / "two.yaml", arms=arms, seeds=[0], pretrain=TINY, recipe=TINY | {"model": ""}, compare=[])
    found = runner.run_experiment(name, tmp_path / "results", tmp_path / "work")
    sizes = {run["arm"]: run["trained_weights"] for run in found["runs"]}
    assert sizes["base"] < sizes["masked"] == sizes["autoregressive"] == sizes["as it is"] - 192  # no timestep there


def test_a_model_that_is_not_there_says_how_to_make_it():
    with pytest.raises(ValueError, match="no model 'runs/nowhere'; python -m tess2lite_course.experiments.build"):
        runner._load("runs/nowhere", {"kind": "ar"}, smoke=False)
    model = runner._load("runs/nowhere", {"kind": "ar"}, smoke=True)
    assert metrics.autoregressive_text(model, "Tom had a drum.").strip()


def record(row, p_value, verdict="holds", **more):
    facts = {"row": row, "what": "more steps", "metric": "reading", "verdict": verdict, "p_value": p_value}
    facts |= {"sides": [[0.5, 0.4, 0.6], [0.25, 0.2, 0.3]], "gain": [0.25, 0.1, 0.4], "smallest_effect": 0.12}
    return facts | {"questions": 60, "training_seeds": 3, "is_share": True} | more


def test_table_says_what_the_results_say(tmp_path):
    today = {"environment": {"tess2lite": "0.2.0"}, "verdicts": [record(9, 0.001), record(9, 0.04)]}
    (tmp_path / "a.json").write_text(json.dumps(today))
    (tmp_path / "b.json").write_text(json.dumps({"verdicts": [record(1, 0.5, "too small to tell")]}))
    rows = report.rows(tmp_path)
    assert len(rows) == 14
    line = "more steps: **holds** (reading 50 % [40 to 60] against 25 % [20 to 30]; 60 questions, 3 seeds)"
    assert report.line(rows[8].records[0]) == line
    assert report.line(rows[0].records[0]).endswith("3 seeds, models of 0.1)")
    # Holm: 3 × 0.001 stays below 0.05, 2 × 0.04 does not.
    assert [report.is_kept(record) for record in rows[8].records] == [True, False]
    table = report.markdown(rows)
    assert f"{line}<br>{line} | yes<br>no | 0.12<br>0.12 |" in table and "not measured" in table
    assert "`make findings ROW=9`" in table
    assert report.counts(rows) == {"holds": 2, "too small to tell": 1, "kept by Holm": 1}


def test_paper_column_names_base_models():
    paper = {row.number: row.paper for row in report.rows(ROOT / "nowhere")}
    assert "8.4 against 43.3" in paper[11] and "49.3 against 50.4" in paper[14]
    assert all("v0.1" in paper[row] for row in (1, 2, 5, 11, 13, 14))


def test_findings_page_shows_the_committed_results():
    folder = ROOT / "assets" / "findings"
    assert (folder / "README.md").read_text() == report.page(folder)


def test_experiment_files_have_one_run_per_line(tmp_path):
    path = tmp_path / "a.json"
    experiment = {"claim": "c", "runs": [{"arm": "a", "answers": {"x": [1, 2]}}, {"arm": "b"}]}
    runner.write_experiment(path, experiment)
    assert json.loads(path.read_text()) == experiment and len(path.read_text().splitlines()) == 7


def test_steps_within_noise_by_hand():
    questions = [f"q{i}" for i in range(50)]
    worse = {"5 uniform": 1.0, "25 uniform": 0.0, "50 uniform": 0.3, "100 uniform": 0.0, "200 uniform": -0.5}
    rng = random.Random(0)
    runs = []
    for arm, offset in worse.items():
        scores = [2 + offset + rng.gauss(0, 0.1) for _ in questions]
        runs.append({"arm": arm, "seed": 0, "answers": {"nats per token": {"questions": questions, "scores": scores}}})
    experiment = {"arms": dict.fromkeys(worse), "runs": runs}
    assert steps_figure.steps_within_noise(experiment, "nats per token", "uniform") == 100
    runs[2]["answers"]["nats per token"]["scores"] = runs[3]["answers"]["nats per token"]["scores"]
    assert steps_figure.steps_within_noise(experiment, "nats per token", "uniform") == 25
