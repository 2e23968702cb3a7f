"""The paper in miniature: `python -m tess2lite_course.experiments.runner 02` repeats row 2 of its table.

An experiment is a YAML file: arms, which are models trained by a recipe or loaded as they are; what is measured of
each; and comparisons, which say what should be better than what. Every arm runs with every seed. The results are one
JSON file in runs/findings/again that grows run by run; an interrupted run resumes from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tess2lite.evaluation.intervals import mean_interval
from tess2lite.evaluation.results import stamp, write_text
from tess2lite.loading import load
from tess2lite.pretrained.sources import bundled
from tess2lite.training.build import build_trainer
from tess2lite.training.recipe import TRAININGS
from tess2lite.training.trainer import last_checkpoint
from tess2lite.validation import InputError, expand_path

from . import guidance_sweep
from .comparisons import judge
from .metrics import FEWER_IS_BETTER, METRICS, Answers, ModelUnderTest

RECIPES = Path(__file__).parent / "recipes"
ARM_FIELDS = ("edit", "kind", "pretrain", "write")  # what an arm may say beside fields of its recipe
REQUIRED = ("seeds", "prompts", "recipe", "arms", "measure")
SMOKE_FIELDS = {"steps": 2, "warmup": 1, "num_eval_examples": 2, "evaluate_every": 2, "save_every": 2}


def random_weights(lm):
    """Returns the same architecture with nothing learned."""
    return _fresh(type(lm), lm.config, lm)


def causal(lm):
    """Makes attention causal, as the AR model's was."""
    lm.config.is_causal = True
    return lm


def unshifted(lm):
    """Reads each position from its own hidden state instead of the one before, as an AR model never was."""
    shifted = lm.hidden_states
    lm.hidden_states = lambda *args: shifted(*args).roll(-1, dims=1)
    return lm


def small_mistral(lm):
    """Returns a Mistral of 1 M weights with nothing learned."""
    return _fresh(MistralForCausalLM, MistralConfig(**_small(lm), num_key_value_heads=2, sliding_window=None), lm)


def small_llama(lm):
    """Returns the same in Llama's manner: a key and a value for each head, slower rotations (those of Llama 3)."""
    rotations = {"rope_type": "default", "rope_theta": 5e5}
    config = LlamaConfig(**_small(lm), num_key_value_heads=4, rope_parameters=rotations)
    return _fresh(LlamaForCausalLM, config, lm)


def _small(lm) -> dict:
    fields = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    return {name: getattr(lm.config, name) for name in fields} | shape | {"initializer_range": 0.04}


def _fresh(kind, config, lm):
    fresh = kind(config).to(lm.device)
    fresh.tokenizer = lm.tokenizer
    return fresh


EDITS = {edit.__name__: edit for edit in (random_weights, causal, unshifted, small_mistral, small_llama)}


def names() -> list[str]:
    """Returns the names of the experiments that come with the course."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def resolve(name: str) -> list[str]:
    """Returns the experiments meant by a file's name ("09-stories"), a row of the table ("9") or a YAML file's path."""
    if name in names():
        return [name]
    return [stem for stem in names() if name in map(str, _rows(read_experiment(stem)))] or [name]


def read_experiment(name: str) -> dict:
    """Reads an experiment that comes with the course, by its name, or one's own YAML file.

    Raises:
        InputError: For an unknown name, a file that is not YAML, or an experiment that cannot run.
    """
    path = RECIPES / f"{name}.yaml"
    path = path if path.exists() else Path(expand_path(name))
    if not path.is_file():
        raise InputError(
            f"There is no experiment '{name}'; give a YAML file, a row of the table (1 to 14), or one of "
            f"{', '.join(names())}."
        )
    try:
        experiment = yaml.safe_load(path.read_text())
    except yaml.YAMLError as problem:
        raise InputError(f"'{path}' is not YAML: {str(problem).splitlines()[0]}.") from None
    _check(path, experiment)
    return experiment | {"name": path.stem}


def _check(path: Path, experiment) -> None:
    """Refuses an experiment that would fail, before hours are spent on it."""
    if isinstance(experiment, dict) and "study" in experiment:
        return
    missing = [part for part in REQUIRED if not isinstance(experiment, dict) or not experiment.get(part)]
    if missing:
        raise InputError(f"'{path}' has no {missing[0]}; it needs {', '.join(REQUIRED)}, and perhaps compare.")
    arms = experiment["arms"]
    compared = [c.get(side) for c in experiment.get("compare", []) for side in ("better", "than")]
    used = {
        "metric": (list(experiment["measure"]), METRICS),
        "edit": ([arm["edit"] for arm in arms.values() if arm and "edit" in arm], EDITS),
        "arm": (compared, arms),
    }
    for what, (names, choices) in used.items():
        unknown = [name for name in names if name not in choices]
        if unknown:
            raise InputError(f"'{path}' has no {what} '{unknown[0]}'; choose one of {', '.join(choices)}.")


def _rows(experiment: dict) -> list[int]:
    return [comparison["row"] for comparison in experiment.get("compare", []) if "row" in comparison]


def run_experiment(name: str, results: Path, work: Path, smoke: bool = False) -> dict:
    """Makes all runs that the results lack.

    Args:
        name: As in `read_experiment`.
        results: Folder of the JSON file.
        work: Folder of checkpoints.
        smoke: One seed, two steps and two prompts, only to see that it runs.

    Returns:
        The experiment with its runs, summary and verdicts, as the file has it.

    Raises:
        InputError: If the file holds results of another recipe.
    """
    experiment = read_experiment(name)
    if experiment.get("study") == "guidance":  # compares answers in pairs, and keeps their texts
        return experiment | guidance_sweep.run(results / "guidance.json", smoke)
    if smoke:
        experiment |= {"seeds": experiment["seeds"][:1], "prompts": 2, "smoke": True}
    path = results / f"{experiment['name']}.json"
    saved = json.loads(path.read_text()) if path.exists() else experiment | {"runs": []}
    done = {(run["arm"], run["seed"]) for run in saved["runs"]}
    changed_arms = any(saved["arms"][arm] != experiment["arms"].get(arm, "gone") for arm, _ in done)
    changed = changed_arms or any(saved[part] != experiment[part] for part in ("recipe", "measure", "prompts"))
    if done and changed:
        raise InputError(f"'{path}' holds results of another recipe; move it away first.")
    saved = experiment | {"command": f"make findings ROW={experiment['name']}", "runs": saved["runs"]}
    for seed in experiment["seeds"]:
        for arm in experiment["arms"]:
            if (arm, seed) not in done:
                saved["runs"].append(_run(experiment, arm, seed, work / path.stem))
                write_experiment(path, saved | {"summary": summary(saved), "verdicts": verdicts(saved)})
    return saved | {"summary": summary(saved), "verdicts": verdicts(saved)}


def write_experiment(path: Path, experiment: dict) -> None:
    """Writes an experiment's JSON file with one run per line."""
    head = {name: value for name, value in experiment.items() if name != "runs"}
    text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    runs = ",\n".join(f"  {json.dumps(run, ensure_ascii=False)}" for run in experiment["runs"])
    write_text(path, f'{text},\n "runs": [\n{runs}\n ]\n}}\n')


def _run(experiment: dict, arm: str, seed: int, work: Path) -> dict:
    started = time.monotonic()
    changes = experiment["arms"][arm] or {}
    how = {part: changes[part] for part in ARM_FIELDS if part in changes}
    fields = experiment["recipe"] | {name: value for name, value in changes.items() if name not in ARM_FIELDS}
    torch.manual_seed(seed)  # of random weights and of LoRA's
    is_smoke = experiment.get("smoke", False)
    is_trained = "data" in fields
    trainer = None
    if is_trained:
        if "pretrain" in how:
            fields["model"] = _pretrain(experiment, how["pretrain"], seed, work)
        trainer, folder = _train(fields, how, seed, work, is_smoke)
        model = trainer.model
    else:
        model = _load(fields["model"], how, is_smoke)
    training_minutes = (time.monotonic() - started) / 60
    curve = _curve(trainer) if trainer else {}  # before other held-out losses are measured, which are logged as well
    write = experiment.get("write", {}) | how.get("write", {})
    if is_smoke:
        write["steps"] = 2
    tested = ModelUnderTest(model, trainer, **write)
    entry = {"arm": arm, "seed": seed, "measured": {}, "answers": {}}
    for name, settings in experiment["measure"].items():
        measured = METRICS[name](tested, prompts=experiment["prompts"], seed=seed, **settings or {})
        for metric, value in measured.items():
            if isinstance(value, Answers):
                entry["answers"][metric] = value._asdict()
                value = sum(value.scores) / len(value.scores) if value.scores else 0.0
            entry["measured"][metric] = round(value, 4)
    if trainer:
        shutil.rmtree(folder)
        entry |= curve | {"minutes of training": round(training_minutes, 1)}
    return entry | {"minutes": round((time.monotonic() - started) / 60, 1), "environment": stamp()}


def _train(fields: dict, how: dict, seed: int, work: Path, smoke: bool):
    """(trainer, its folder) of a recipe that was run to its end."""
    # Named after all that it was made from: a changed recipe does not resume from another's checkpoint.
    folder = work / hashlib.sha256(json.dumps([fields, how, seed]).encode()).hexdigest()[:16]
    if smoke:
        fields = fields | SMOKE_FIELDS
    recipe = TRAININGS[how.get("kind", "denoiser")](**fields, output=str(folder), seed=seed)
    trainer = build_trainer(recipe, EDITS[how["edit"]] if "edit" in how else None)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.model.tokenizer = trainer.processing_class
    return trainer, folder


def _pretrain(experiment: dict, changes: dict, seed: int, work: Path) -> str:
    """Folder of an autoregressive model that an arm begins with."""
    how = {"kind": "ar"}
    if "edit" in changes:
        how["edit"] = changes["edit"]
    fields = experiment["pretrain"] | {name: value for name, value in changes.items() if name != "edit"}
    trainer, folder = _train(fields, how, seed, work / "pretrained", experiment.get("smoke", False))
    trainer.save_model(str(folder))
    return str(folder)


def _load(name: str, how: dict, smoke: bool):
    if how.get("kind") != "ar":
        return load(name)
    folder = bundled().get(name, Path(expand_path(name)))
    if smoke and not folder.is_dir():  # not bundled, and made in an hour
        folder = bundled()["tinytown-ar"]
    if not folder.is_dir():
        raise InputError(
            f"There is no model '{name}'; python -m tess2lite_course.experiments.build runs/tinytown makes it."
        )
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
    model.tokenizer = AutoTokenizer.from_pretrained(folder)
    return model


def _curve(trainer) -> dict:
    """Held-out losses by step, and how many weights were trained."""
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    last = evaluations[-1]
    return {
        "steps": [entry["step"] for entry in evaluations],
        "loss": [round(entry["eval_loss"], 4) for entry in evaluations],
        "loss_at": {key.rsplit("_", 1)[1]: round(value, 4) for key, value in last.items() if "_at_" in key},
        "trained_weights": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }


def final_losses(experiment: dict) -> dict[str, list[float]]:
    """Returns the last held-out loss of each seed, by arm."""
    return measured(experiment, "loss")


def measured(experiment: dict, metric: str) -> dict[str, list[float]]:
    """Returns what was measured, seed by seed, by arm."""
    runs = sorted(experiment["runs"], key=lambda run: run["seed"])
    return {
        arm: [run["measured"][metric] for run in runs if run["arm"] == arm and metric in run["measured"]]
        for arm in experiment["arms"]
    }


def summary(experiment: dict) -> dict[str, dict]:
    """Returns arm → metric → [mean, low, high], the 95 % interval by question and training seed; null if unknown."""
    intervals = {}
    metrics = dict.fromkeys(name for run in experiment["runs"] for name in run["measured"])
    for arm in experiment["arms"]:
        runs = [run for run in experiment["runs"] if run["arm"] == arm]
        for metric in metrics:
            scores, questions, seeds = _scores([run for run in runs if metric in run["measured"]], metric)
            if not scores:
                continue
            bounds = (0, 1) if questions and all(0 <= score <= 1 for score in scores) else None
            interval = mean_interval(scores, questions, seeds, bounds)
            is_known = interval.half_width < float("inf")
            intervals.setdefault(arm, {})[metric] = [
                round(number, 4) if is_known or number == interval.mean else None for number in interval
            ]
    return intervals


def _scores(runs: list[dict], metric: str) -> tuple[list[float], list | None, list | None]:
    """(scores, questions, training seeds) of some runs; questions and seeds are None where they do not count."""
    scores = []
    questions = []
    seeds = []
    by_answer = all(metric in run.get("answers", {}) for run in runs)
    for run in sorted(runs, key=lambda run: run["seed"]):
        own = run["answers"][metric]["scores"] if by_answer else [run["measured"][metric]]
        scores += own
        questions += run["answers"][metric]["questions"] if by_answer else []
        seeds += [run["seed"]] * len(own)
    is_trained = any("trained_weights" in run for run in runs)
    return scores, questions if by_answer else None, seeds if is_trained or not by_answer else None


def verdicts(experiment: dict) -> list[dict]:
    """Returns what may be said of each comparison: gains are paired by question and seed.

    A comparison is left out where its sides were not asked the same questions, or where one number cannot be judged.
    """
    records = []
    for claim in experiment.get("compare", []):
        metric = claim["metric"]
        sides = [_runs_by_seed(experiment, claim[side], metric) for side in ("better", "than")]
        both = sorted(set(sides[0]) & set(sides[1]))
        (better, questions, seeds), (than, other_questions, other_seeds) = (
            _scores([side[seed] for seed in both], metric) for side in sides
        )
        is_paired = questions == other_questions and len(better) == len(than)
        if is_paired and len(better) > 1:
            training_seeds = seeds or other_seeds  # one side may have been loaded
            fewer = metric.startswith(FEWER_IS_BETTER)
            records.append(judge(claim, better, than, questions, training_seeds, fewer))
    return records


def _runs_by_seed(experiment: dict, arm: str, metric: str) -> dict[int, dict]:
    return {run["seed"]: run for run in experiment["runs"] if run["arm"] == arm and metric in run["measured"]}


def main(arguments: list[str]) -> None:
    """Repeats experiments, in a folder of their own, and shows them beside the committed ones."""
    smoke = "--smoke" in arguments
    work = Path("runs/findings")
    stems = [stem for name in arguments if name != "--smoke" for stem in resolve(name)]
    for name in stems or names():
        experiment = run_experiment(name, work / ("smoke" if smoke else "again"), work, smoke)
        if "arms" in experiment:
            _print_summary(experiment)
        committed = Path("assets/findings") / f"{experiment['name']}.json"
        expected = json.loads(committed.read_text())["verdicts"] if committed.exists() else []
        for source, records in (("here", experiment["verdicts"]), ("committed", expected)):
            for record in records:
                print(f"{source:9} · {record['what']}: {record['verdict']} (gain {_with_spread(record['gain'])})")


def _print_summary(experiment: dict) -> None:
    for arm, metrics in experiment["summary"].items():
        numbers = [f"{metric} {_with_spread(interval)}" for metric, interval in metrics.items()]
        print(f"{experiment['name']} · {arm}: {', '.join(numbers)}")


def _with_spread(interval: list[float | None]) -> str:
    mean, low, high = interval
    return f"{mean:.4g}" if low is None else f"{mean:.4g}, {low:.4g} to {high:.4g}"


def command(run: Callable, *arguments) -> None:
    """Runs a command that ends in one sentence instead of a traceback."""
    try:
        run(*arguments)
    except ValueError as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit("Stopped; the same command resumes from the last checkpoint.")


if __name__ == "__main__":
    command(main, sys.argv[1:])
