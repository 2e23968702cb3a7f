"""Arms × seeds of a finding: resumed, refused when changed, and each edit of the model a real one."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import tess2lite as t2
from tess2lite.model import check_bidirectional
from tess2lite.training.recipe import TRAININGS
from tess2lite_course.experiments import metrics, report, runner

ROOT = Path(__file__).parent.parent
TINY = {
    "model": "tinytown-ar", "data": "tinytown", "length": 16, "batch_size": 4, "micro_batch_size": 4, "steps": 2,
    "learning_rate": 1e-3, "warmup": 1, "num_eval_examples": 4, "evaluate_every": 1, "save_every": 1,
}  # fmt: skip
KINDS = ("reading", "knowledge", "arithmetic", "sorting", "counting", "tracking", "boolean")


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    monkeypatch.setattr("tess2lite.training.build.TINYTOWN_TEXTS", 50)


def write(path, **changes):
    finding = {
        "claim": "c", "paper": "p", "seeds": [0, 1], "prompts": 2, "recipe": TINY, "measure": {"loss": None},
        "arms": {"plain": None, "random": {"edit": "random_weights"}},
        "compare": [{"row": 1, "what": "plain is better", "metric": "loss", "better": "plain", "than": "random"}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(finding | changes))
    return str(path)


def test_results_grow_run_by_run_and_are_kept(tmp_path):
    name = write(tmp_path / "one.yaml", seeds=[0])
    first = runner.run(name, tmp_path / "results", tmp_path / "work")
    more = runner.run(write(tmp_path / "one.yaml"), tmp_path / "results", tmp_path / "work")
    assert [(run["arm"], run["seed"]) for run in more["runs"]] == [
        ("plain", 0), ("random", 0), ("plain", 1), ("random", 1)]  # fmt: skip
    assert more["runs"][:2] == first["runs"]
    assert json.loads((tmp_path / "results" / "one.json").read_text())["runs"] == more["runs"]
    losses = runner.final_losses(more)
    assert len({*losses["plain"], *losses["random"]}) == 4  # every arm and every seed is another run
    (said,) = more["verdicts"]
    gains = [b - a for a, b in zip(losses["plain"], losses["random"], strict=True)]
    assert said["gain"][0] == pytest.approx(sum(gains) / 2) and said["row"] == 1
    wider = {"plain": None, "random": {"edit": "random_weights"}, "causal": {"edit": "causal"}}
    widened = runner.run(write(tmp_path / "one.yaml", arms=wider), tmp_path / "results", tmp_path / "work")
    assert widened["runs"][:4] == more["runs"] and [run["arm"] for run in widened["runs"][4:]] == ["causal"] * 2
    with pytest.raises(ValueError, match="another recipe"):
        runner.run(
            write(tmp_path / "one.yaml", arms={"plain": {"steps": 3}}, compare=[]), tmp_path / "results", tmp_path / "w"
        )


def test_an_unknown_finding_names_those_there_are():
    with pytest.raises(ValueError, match="no finding '99'.*01"):
        runner.run("99", None, None)
    assert runner.chosen("9") == ["09", "09-stories"] and runner.chosen("4") == ["09", "09-stories", "ladder"]
    assert (
        runner.chosen("09") == ["09"] and runner.chosen("ladder") == ["ladder"] and runner.chosen("7") == ["guidance"]
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": None}, "has no seeds; a finding has seeds, prompts, recipe, arms, measure"),
        ({"measure": {"beauty": None}}, "no measure 'beauty'; choose one of loss"),
        ({"arms": {"plain": {"edit": "magic"}, "random": None}}, "no edit 'magic'; choose one of random_weights"),
        ({"arms": {"plain": None}}, "no arm 'random'; choose one of plain"),
    ],
)
def test_ones_own_finding_is_checked_before_it_runs(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        runner.read_finding(write(tmp_path / "mine.yaml", **changes))


@pytest.mark.parametrize("text", ["", "- a list", "{: no"])
def test_a_file_that_is_no_finding(tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ValueError, match="has no seeds|is not YAML"):
        runner.read_finding(str(tmp_path / "odd.yaml"))


def test_every_row_of_the_table_has_a_finding():
    known = {row for name in runner.names() for row in runner._rows(runner.read_finding(name))}
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
    finding = runner.read_finding(name)
    if "study" in finding:
        return
    known = {"loss", "loss at 128 tokens", "log-perplexity", *KINDS, *(f"seconds for {n}" for n in (1024,))}
    assert {c["metric"] for c in finding.get("compare", [])} <= known
    assert all({c["better"], c["than"]} <= finding["arms"].keys() for c in finding.get("compare", []))
    assert finding["measure"].keys() <= metrics.MEASURES.keys()
    for arm, changes in finding["arms"].items():
        changes = changes or {}
        assert changes.get("edit", "causal") in runner.EDITS, arm
        metrics.Subject(None, **finding.get("write", {}) | changes.get("write", {}))
        fields = finding["recipe"] | {k: v for k, v in changes.items() if k not in runner.HOW}
        if "data" in fields:
            TRAININGS[changes.get("kind", "denoiser")](**fields, output="x")


@pytest.mark.parametrize("path", sorted((ROOT / "assets" / "findings").glob("*.json")), ids=lambda path: path.stem)
def test_what_is_committed_is_its_recipes_and_sums_up_right(path):
    if path.stem not in runner.names() or path.stem == "guidance":
        return
    committed, recipe = json.loads(path.read_text()), runner.read_finding(path.stem)
    assert all(committed[part] == recipe[part] for part in ("recipe", "arms", "seeds", "claim", "measure"))
    done = [(run["arm"], run["seed"]) for run in committed["runs"]]
    assert sorted(done) == sorted((arm, seed) for arm in recipe["arms"] for seed in recipe["seeds"])
    assert committed["summary"] == json.loads(json.dumps(runner.summary(committed)))
    assert committed["verdicts"] == json.loads(json.dumps(runner.verdicts(committed)))


def test_lora_and_four_bits_come_close_to_full_tuning():
    losses = runner.final_losses(json.loads((ROOT / "assets" / "findings" / "lora.json").read_text()))
    full = min(losses[arm][0] for arm in losses if arm.startswith("full tuning"))
    assert losses["rank 64"][0] <= 1.15 * full and losses["rank 64, nf4"][0] <= 1.1 * losses["rank 64"][0]


def test_summary_and_verdicts_by_hand():
    losses = {"a": [1.0, 2.0, 3.0], "b": [11.0, 12.0, 13.5], "c": [2.0, 1.0, 3.0]}
    runs = [{"arm": arm, "seed": s, "measured": {"loss": losses[arm][s]}} for s in (2, 0, 1) for arm in losses]
    compare = [
        {"what": "", "metric": "loss", "better": better, "than": than} for better, than in ("ab", "ba", "ac")
    ]  # fmt: skip
    finding = {"arms": dict.fromkeys(losses), "runs": runs, "compare": compare}
    half = 4.3027 / 3**0.5  # Student's for two degrees of freedom
    assert runner.summary(finding)["a"]["loss"] == [2, pytest.approx(half, abs=1e-3)]
    assert runner.summary(finding | {"runs": runs[:1]})["a"]["loss"][1] is None
    holds, does_not, unclear = runner.verdicts(finding)
    assert holds["gain"][0] == pytest.approx((10 + 10 + 10.5) / 3) and holds["verdict"] == "holds"
    assert does_not["verdict"] == "does not hold" and unclear["verdict"] == "too small to tell"
    # Gains are paired seed by seed: their spread is not that of the arms.
    assert holds["gain"][1] == pytest.approx(4.3027 * 0.5 / 3, abs=1e-3)
    assert runner.verdicts(finding | {"runs": runs[:1]}) == []


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
    said = {"what": "plain is better", "gain": [7.0, 1.0], "verdict": "holds"}
    (tmp_path / "assets/findings/one.json").write_text(json.dumps({"verdicts": [said]}))
    runner.main([name])
    assert len(json.loads((tmp_path / "runs/findings/again/one.json").read_text())["runs"]) == 2
    assert json.loads((tmp_path / "assets/findings/one.json").read_text()) == {"verdicts": [said]}
    assert "committed · plain is better: holds (gain 7 ± 1)" in capsys.readouterr().out


def test_an_arm_may_make_its_own_base_and_another_kind_of_model(tmp_path):
    arms = {
        "base": {"pretrain": {"edit": "small_llama", "objective": "prefix"}},
        "masked": {"kind": "masked", "model": "tinytown-ar"},
        "left to right": {"kind": "ar", "model": "tinytown-ar"},
        "as it is": {"model": "tinytown-base", "data": "tinytown"},
    }
    name = write(tmp_path / "two.yaml", arms=arms, seeds=[0], pretrain=TINY, recipe=TINY | {"model": ""}, compare=[])
    found = runner.run(name, tmp_path / "results", tmp_path / "work")
    sizes = {run["arm"]: run["trained_weights"] for run in found["runs"]}
    assert sizes["base"] < sizes["masked"] == sizes["left to right"] == sizes["as it is"] - 192  # no timestep there


def test_a_model_that_is_not_there_says_how_to_make_it():
    with pytest.raises(ValueError, match="no model 'runs/nowhere'; python -m tess2lite_course.experiments.build"):
        runner._as_it_is("runs/nowhere", {"kind": "ar"}, smoke=False)
    model = runner._as_it_is("runs/nowhere", {"kind": "ar"}, smoke=True)
    assert metrics.left_to_right(model, "Tom had a drum.").strip()


def test_the_table_says_what_the_results_say(tmp_path):
    said = {"row": 9, "what": "more steps", "metric": "reading", "sides": [[0.5, 0.1], [0.25, 0.05]], "gain": [0, 0]}
    (tmp_path / "a.json").write_text(json.dumps({"seeds": [0, 1], "verdicts": [said | {"verdict": "holds"}]}))
    rows = report.rows(tmp_path)
    assert rows[8].here == ["more steps: **holds** (reading 50 ± 10 % against 25 ± 5 %, 2 seeds)"]
    assert rows[0].here == ["not measured"] and len(rows) == 14
    assert "| 9 | More diffusion steps" in report.markdown(rows) and "`make findings ROW=9`" in report.markdown(rows)


def test_the_readme_shows_the_table_of_the_committed_results():
    assert report.markdown(report.rows(ROOT / "assets" / "findings")) in (ROOT / "README.md").read_text()
