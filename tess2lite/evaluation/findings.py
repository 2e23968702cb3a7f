"""The paper in miniature: `python -m tess2lite.evaluation.findings 01` trains every arm of a finding with every seed.

A finding is a YAML file: a recipe, and arms that change its fields or, by `edit`, the model. The results are one JSON
file that grows run by run; a run that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
import yaml
from scipy.stats import t as student

from ..preparation import prepare
from ..recipe import NAMED, Recipe
from ..training import last_checkpoint


def random_weights(lm):
    """The same architecture, nothing learned."""
    fresh = type(lm)(lm.config).to(lm.device)
    fresh.tokenizer = lm.tokenizer
    return fresh


def causal(lm):
    """Attention as the AR model had it: no position sees a later one."""
    lm.config.is_causal = True
    return lm


def unshifted(lm):
    """Each position is read from its own hidden state, not from the one before, as an AR model never was."""
    shifted = lm.hidden_states
    lm.hidden_states = lambda *args: shifted(*args).roll(-1, dims=1)
    return lm


EDITS = {edit.__name__: edit for edit in (random_weights, causal, unshifted)}


def read_finding(name: str) -> dict:
    """claim, paper, seeds, recipe and arms of a finding that comes with the package ("01") or of a YAML file."""
    path = NAMED / "findings" / f"{name}.yaml"
    path = path if path.exists() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (NAMED / "findings").glob("*.yaml")))
        raise ValueError(f"There is no finding '{name}'; give a YAML file or one of {known}.")
    return yaml.safe_load(path.read_text())


def run(name: str, results: Path, work: Path) -> dict:
    """All runs of a finding that its results lack. Returns the results."""
    finding = read_finding(name)
    path = results / f"{Path(name).stem}.json"
    known = json.loads(path.read_text()) if path.exists() else finding | {"runs": []}
    if any(known[part] != finding[part] for part in ("recipe", "arms")) and known["runs"]:
        raise ValueError(f"'{path}' holds results of another recipe; move it away first.")
    known = finding | {"command": f"python -m tess2lite.evaluation.findings {name}", "runs": known["runs"]}
    done = {(entry["arm"], entry["seed"]) for entry in known["runs"]}
    for seed in finding["seeds"]:
        for arm, changes in finding["arms"].items():
            if (arm, seed) not in done:
                known["runs"].append(_run(finding["recipe"], changes or {}, arm, seed, work / path.stem))
                known["summary"] = summary(known)
                results.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(".part")  # a kill in mid-write must not cost what is there
                part.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
                part.replace(path)
    return known


def _run(fields: dict, changes: dict, arm: str, seed: int, work: Path) -> dict:
    # Named after all that it was made from: a changed recipe does not go on from another's checkpoint.
    folder = work / hashlib.sha256(json.dumps([fields, changes, seed]).encode()).hexdigest()[:16]
    edit = EDITS[changes["edit"]] if "edit" in changes else None
    changes = {name: value for name, value in changes.items() if name != "edit"}
    recipe = Recipe(**fields | changes, output=str(folder), seed=seed)
    torch.manual_seed(seed)  # of random weights and of LoRA's
    trainer, begin = prepare(recipe, edit), time.monotonic()
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    trainer.grid_masking = "prefix"
    after_prefix = trainer.evaluate()["eval_loss"]
    shutil.rmtree(folder)
    return {
        "arm": arm,
        "seed": seed,
        "steps": [entry["step"] for entry in evaluations],
        "loss": [round(entry["eval_loss"], 4) for entry in evaluations],
        "loss_after_prefix": round(after_prefix, 4),
        "loss_at": {key.rsplit("_", 1)[1]: round(v, 4) for key, v in evaluations[-1].items() if "_at_" in key},
        "trained_weights": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
        },
    }


def final_losses(finding: dict) -> dict[str, list[float]]:
    """arm → last held-out loss of each seed."""
    return {arm: [e["loss"][-1] for e in finding["runs"] if e["arm"] == arm] for arm in finding["arms"]}


def interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half width of Student's interval over seeds; infinite from a single one."""
    mean, n = statistics.mean(values), len(values)
    if n < 2:
        return mean, float("inf")
    return mean, float(student.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / n**0.5


def summary(finding: dict) -> dict[str, dict]:
    """arm → mean, 95 % interval over seeds, whether that lies clear of the first arm's; None from a single seed."""
    losses = {arm: values for arm, values in final_losses(finding).items() if values}
    first = interval(next(iter(losses.values())))
    summed = {}
    for arm, values in losses.items():
        mean, half = interval(values)
        several = half < float("inf")
        summed[arm] = {
            "mean": round(mean, 4),
            "interval": [round(mean - half, 4), round(mean + half, 4)] if several else None,
            "clear_of_first": abs(mean - first[0]) > half + first[1] if several else None,
        }
    return summed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Give a finding: python -m tess2lite.evaluation.findings 01.")
    try:
        finding = run(sys.argv[1], Path("assets/findings"), Path("runs/findings"))
    except ValueError as problem:
        sys.exit(str(problem))
    for arm, values in final_losses(finding).items():
        print("{:28} {:.3f} ± {:.3f}  ({} seeds)".format(arm, *interval(values), len(values)))
