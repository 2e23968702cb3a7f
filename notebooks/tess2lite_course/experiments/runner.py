"""The paper in miniature: `python -m tess2lite_course.experiments.runner 02` makes row 2 of its table again.

A finding is a YAML file: arms, which are models trained by a recipe or loaded as they are; what is measured of each;
and comparisons, which say what should be better than what. Every arm runs with every seed. The results are one JSON
file in runs/findings/again that grows run by run; a run that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
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

from tess2lite.evaluation.intervals import compare, mean_interval
from tess2lite.evaluation.results import stamp, write_json
from tess2lite.loading import bundled, load
from tess2lite.training.build import build_trainer
from tess2lite.training.recipe import TRAININGS
from tess2lite.training.trainer import last_checkpoint

from . import guidance_sweep
from .metrics import FEWER_IS_BETTER, MEASURES, Subject

RECIPES = Path(__file__).parent / "recipes"
HOW = ("edit", "kind", "pretrain", "write")  # what an arm may say beside fields of its recipe
PARTS = ("seeds", "prompts", "recipe", "arms", "measure")  # that a finding cannot do without
SMOKE = {"steps": 2, "warmup": 1, "num_eval_examples": 2, "evaluate_every": 2, "save_every": 2}


def random_weights(lm):
    """The same architecture, nothing learned."""
    return _fresh(type(lm), lm.config, lm)


def causal(lm):
    """Attention as the AR model had it: no position sees a later one."""
    lm.config.is_causal = True
    return lm


def unshifted(lm):
    """Each position is read from its own hidden state, not from the one before, as an AR model never was."""
    shifted = lm.hidden_states
    lm.hidden_states = lambda *args: shifted(*args).roll(-1, dims=1)
    return lm


def small_mistral(lm):
    """A Mistral of 1 M weights, nothing learned."""
    return _fresh(MistralForCausalLM, MistralConfig(**_small(lm), num_key_value_heads=2, sliding_window=None), lm)


def small_llama(lm):
    """The same in Llama's manner: a key and a value for each head, slower rotations (those of Llama 3)."""
    config = LlamaConfig(
        **_small(lm), num_key_value_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    return _fresh(LlamaForCausalLM, config, lm)


def _small(lm) -> dict:
    kept = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    return {name: getattr(lm.config, name) for name in kept} | shape | {"initializer_range": 0.04}


def _fresh(kind, config, lm):
    fresh = kind(config).to(lm.device)
    fresh.tokenizer = lm.tokenizer
    return fresh


EDITS = {edit.__name__: edit for edit in (random_weights, causal, unshifted, small_mistral, small_llama)}


def names() -> list[str]:
    return sorted(path.stem for path in (RECIPES).glob("*.yaml"))


def chosen(name: str) -> list[str]:
    """The findings meant by a file's name ("09-stories"), by a row of the table ("9") or by a YAML file's path."""
    rows = [stem for stem in names() if name in map(str, _rows(read_finding(stem)))]
    return [name] if name in names() else rows or [name]


def read_finding(name: str) -> dict:
    """A finding that comes with the package, by its file's name, or one's own YAML file."""
    path = RECIPES / f"{name}.yaml"
    path = path if path.exists() else Path(name)
    if not path.is_file():
        raise ValueError(
            f"There is no finding '{name}'; give a YAML file, a row of the table (1 to 14), or one of "
            f"{', '.join(names())}."
        )
    try:
        finding = yaml.safe_load(path.read_text())
    except yaml.YAMLError as problem:
        raise ValueError(f"'{path}' is not YAML: {str(problem).splitlines()[0]}.") from None
    _check(path, finding)
    return finding | {"name": path.stem}


def _check(path: Path, finding) -> None:
    """One's own finding, before hours are spent on it."""
    if isinstance(finding, dict) and "study" in finding:
        return
    missing = [part for part in PARTS if not isinstance(finding, dict) or not finding.get(part)]
    if missing:
        raise ValueError(f"'{path}' has no {missing[0]}; a finding has {', '.join(PARTS)}, and perhaps compare.")
    used = {
        "measure": ([*finding["measure"]], MEASURES),
        "edit": ([arm["edit"] for arm in finding["arms"].values() if arm and "edit" in arm], EDITS),
        "arm": ([c.get(side) for c in finding.get("compare", []) for side in ("better", "than")], finding["arms"]),
    }
    for what, (given, known) in used.items():
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"'{path}' has no {what} '{unknown[0]}'; choose one of {', '.join(known)}.")


def _rows(finding: dict) -> list[int]:
    return [comparison["row"] for comparison in finding.get("compare", []) if "row" in comparison]


def run(name: str, results: Path, work: Path, smoke: bool = False) -> dict:
    """All runs of a finding that its results lack. smoke: one seed, two steps and two prompts, to see that it runs."""
    finding = read_finding(name)
    if finding.get("study") == "guidance":  # which compares answers in pairs, and keeps their texts
        return finding | guidance_sweep.run(results / "guidance.json", smoke)
    if smoke:
        finding |= {"seeds": finding["seeds"][:1], "prompts": 2, "smoke": True}
    path = results / f"{finding['name']}.json"
    known = json.loads(path.read_text()) if path.exists() else finding | {"runs": []}
    done = {(entry["arm"], entry["seed"]) for entry in known["runs"]}
    changed = any(known["arms"][arm] != finding["arms"].get(arm, "gone") for arm, _ in done)
    if done and (changed or any(known[part] != finding[part] for part in ("recipe", "measure"))):
        raise ValueError(f"'{path}' holds results of another recipe; move it away first.")
    known = finding | {"command": f"make findings ROW={finding['name']}", "runs": known["runs"]}
    for seed in finding["seeds"]:
        for arm in finding["arms"]:
            if (arm, seed) not in done:
                known["runs"].append(_run(finding, arm, seed, work / path.stem))
                write_json(path, known | {"summary": summary(known), "verdicts": verdicts(known)})
    return known | {"summary": summary(known), "verdicts": verdicts(known)}


def _run(finding: dict, arm: str, seed: int, work: Path) -> dict:
    changes, begun = finding["arms"][arm] or {}, time.monotonic()
    how = {part: changes[part] for part in HOW if part in changes}
    fields = finding["recipe"] | {name: value for name, value in changes.items() if name not in HOW}
    torch.manual_seed(seed)  # of random weights and of LoRA's
    smoke, trained = finding.get("smoke", False), "data" in fields
    if trained:
        if "pretrain" in how:
            fields["model"] = _pretrained(finding, how["pretrain"], seed, work)
        trainer, folder = _train(fields, how, seed, work, smoke)
        model = trainer.model
    else:
        trainer, model = None, _as_it_is(fields["model"], how, smoke)
    trained_minutes = (time.monotonic() - begun) / 60
    write = finding.get("write", {}) | how.get("write", {}) | ({"steps": 2} if smoke else {})
    subject = Subject(model, trainer, **write)
    measured = {}
    for measure, settings in finding["measure"].items():
        measured |= MEASURES[measure](subject, prompts=finding["prompts"], seed=seed, **settings or {})
    entry = {"arm": arm, "seed": seed, "measured": {name: round(value, 4) for name, value in measured.items()}}
    if trained:
        shutil.rmtree(folder)
        entry |= _course(trainer) | {"minutes of training": round(trained_minutes, 1)}
    return entry | {"minutes": round((time.monotonic() - begun) / 60, 1), "environment": stamp()}


def _train(fields: dict, how: dict, seed: int, work: Path, smoke: bool):
    """(trainer, its folder) of a recipe that was run to its end."""
    # Named after all that it was made from: a changed recipe does not go on from another's checkpoint.
    folder = work / hashlib.sha256(json.dumps([fields, how, seed]).encode()).hexdigest()[:16]
    fields = fields | {name: value for name, value in SMOKE.items() if smoke}
    recipe = TRAININGS[how.get("kind", "denoiser")](**fields, output=str(folder), seed=seed)
    trainer = build_trainer(recipe, EDITS[how["edit"]] if "edit" in how else None)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.model.tokenizer = trainer.processing_class
    return trainer, folder


def _pretrained(finding: dict, changes: dict, seed: int, work: Path) -> str:
    """Folder of a left-to-right model that a finding's arm begins with."""
    how = {"kind": "ar", **({"edit": changes["edit"]} if "edit" in changes else {})}
    fields = finding["pretrain"] | {name: value for name, value in changes.items() if name != "edit"}
    trainer, folder = _train(fields, how, seed, work / "pretrained", finding.get("smoke", False))
    trainer.save_model(str(folder))
    return str(folder)


def _as_it_is(name: str, how: dict, smoke: bool):
    if how.get("kind") != "ar":
        return load(name)
    folder = bundled().get(name, Path(name))
    if smoke and not folder.is_dir():  # not bundled, and made in an hour
        folder = bundled()["tinytown-ar"]
    if not folder.is_dir():
        raise ValueError(
            f"There is no model '{name}'; python -m tess2lite_course.experiments.build runs/tinytown makes it."
        )
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
    model.tokenizer = AutoTokenizer.from_pretrained(folder)
    return model


def _course(trainer) -> dict:
    """The held-out loss on the way, and how many weights were trained."""
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return {
        "steps": [entry["step"] for entry in evaluations],
        "loss": [round(entry["eval_loss"], 4) for entry in evaluations],
        "loss_at": {key.rsplit("_", 1)[1]: round(v, 4) for key, v in evaluations[-1].items() if "_at_" in key},
        "trained_weights": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }


def final_losses(finding: dict) -> dict[str, list[float]]:
    """arm → last held-out loss of each seed."""
    return measured(finding, "loss")


def measured(finding: dict, metric: str) -> dict[str, list[float]]:
    """arm → what was measured, seed by seed."""
    runs = sorted(finding["runs"], key=lambda entry: entry["seed"])
    return {
        arm: [entry["measured"][metric] for entry in runs if entry["arm"] == arm and metric in entry["measured"]]
        for arm in finding["arms"]
    }


def summary(finding: dict) -> dict[str, dict]:
    """arm → metric → [mean, half width of the 95 % interval over seeds; None from a single one]."""
    found = {}
    for metric in dict.fromkeys(name for entry in finding["runs"] for name in entry["measured"]):
        for arm, values in measured(finding, metric).items():
            if values:
                mean, half = _seed_interval(values)
                found.setdefault(arm, {})[metric] = [round(mean, 4), round(half, 4) if len(values) > 1 else None]
    return found


def _seed_interval(values: list[float]) -> list[float]:
    interval = mean_interval(values, seeds=range(len(values)))
    return [interval.mean, interval.half_width]


def verdicts(finding: dict) -> list[dict]:
    """What may be said of each comparison: gains are paired, seed by seed."""
    says = []
    for comparison in finding.get("compare", []):
        values = measured(finding, comparison["metric"])
        better, than = values[comparison["better"]], values[comparison["than"]]
        sign = -1 if comparison["metric"].startswith(FEWER_IS_BETTER) else 1
        gains = [sign * (mine - other) for mine, other in zip(better, than, strict=False)]
        if len(gains) > 1:
            judged = compare(gains, seeds=range(len(gains)))
            sides = [_seed_interval(better), _seed_interval(than)]
            gain = [judged.gain.mean, judged.gain.half_width]
            says.append(comparison | {"sides": sides, "gain": gain, "verdict": judged.verdict})
    return says


def main(arguments: list[str]) -> None:
    """Makes findings again, in a folder of their own, and shows them beside the ones that are committed."""
    smoke, work = "--smoke" in arguments, Path("runs/findings")
    wanted = [stem for name in arguments if name != "--smoke" for stem in chosen(name)]
    for name in wanted or names():
        finding = run(name, work / ("smoke" if smoke else "again"), work, smoke)
        for arm, metrics in finding["summary"].items() if "arms" in finding else ():
            numbers = (f"{metric} {mean:.4g} ± {half or 0:.2g}" for metric, (mean, half) in metrics.items())
            print(f"{finding['name']} · {arm}: {', '.join(numbers)}")
        committed = Path("assets/findings") / f"{finding['name']}.json"
        known = json.loads(committed.read_text())["verdicts"] if committed.exists() else []
        for which, verdicts_ in (("here", finding["verdicts"]), ("committed", known)):
            for said in verdicts_:
                print("{:9} · {what}: {verdict} (gain {:.3g} ± {:.2g})".format(which, *said["gain"], **said))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit("Stopped; the same command goes on from the last checkpoint.")
