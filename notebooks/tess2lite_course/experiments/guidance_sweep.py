"""What guidance does, scale by scale: `make findings ROW=7` (findings 7 and 8 of the paper).

Every arm answers the same requests from the same noise, so arms are compared in pairs. Of each text: the reward that
the reward model predicts, the true one, and the perplexity under a left-to-right judge, which has read stories and
never such answers: it compares arms, and says nothing by itself.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from transformers import AutoModelForCausalLM

from tess2lite.evaluation.results import stamp, write_json
from tess2lite.generation import generate
from tess2lite.guidance import RewardGuidance, best_of
from tess2lite.loading import bundled, load
from tess2lite.reward import load_reward
from tess2lite.tinytown.tasks import Example, broken, examples, reward

from .text_metrics import corpus_perplexity, distinct, perplexity

DENOISER, JUDGE = "tinytown-instruct", "tinytown-ar"
KINDS = {"tinytown-reward": "cheerful", "tinytown-reward-brief": "brief"}  # reward model → the true reward behind it
STEPS, LENGTH, SEEDS, PER_SEED, BATCH, SHOWN = 15, 80, (0, 1, 2), 168, 56, 4


@dataclass(frozen=True)
class Arm:
    """model: the reward model that is asked. scale: of guidance, 0 for none. best_of: answers drawn, the best kept."""

    model: str
    scale: float = 0
    best_of: int = 1

    @property
    def name(self) -> str:
        return f"{self.model}, best of {self.best_of}" if self.best_of > 1 else f"{self.model}, scale {self.scale:g}"


ARMS = [
    *(Arm("tinytown-reward", scale) for scale in (0, 3, 10, 30, 100)),
    Arm("tinytown-reward", best_of=4),
    *(Arm("tinytown-reward-brief", scale) for scale in (0, 10)),
]


def requests(number: int) -> list[Example]:
    """Requests of the test split: there are ten, asked again and again, each time from other noise."""
    different = list({example.prompt: example for example in examples("request", "test", 500)}.values())
    return list(itertools.islice(itertools.cycle(different), number))


def answers(lm, reward_model, arm: Arm, asked: list[Example], seed: int, steps: int) -> list:
    """One Generation a request. Noise is a function of (seed, place in the list), the same for every arm."""
    chats = [[{"role": "user", "content": example.prompt}] for example in asked]
    drawn = []
    for draw in range(arm.best_of):
        seeds = [seed * 100_000 + draw * 10_000 + place for place in range(len(asked))]
        for start in range(0, len(asked), BATCH):
            some = slice(start, start + BATCH)
            hooks = [RewardGuidance(reward_model, arm.scale)] if arm.scale else []
            drawn.append(_written(lm, chats[some], seeds[some], hooks, steps))
    drawn = list(itertools.chain(*drawn))
    candidates = [drawn[place :: len(asked)] for place in range(len(asked))]
    return [some[best_of(reward_model, some)[0]] for some in candidates]


def _written(lm, chats, seeds, hooks, steps) -> list:
    return generate(lm, chats, steps, seed=seeds, length=LENGTH, hooks=hooks, record=1, progress=False)


def measured(judge, reward_model, example: Example, out) -> dict:
    """What is kept of one answer."""
    _, (predicted,) = best_of(reward_model, [out])
    ((nll, tokens),) = perplexity(judge, reward_model.tokenizer, [out.text])
    return {
        "prompt": example.prompt, "text": out.text, "seed": out.seed, "predicted": float(predicted), "nll": nll,
        "tokens": tokens,
    }  # fmt: skip


def true_rewards(rows: list[dict], kind: str) -> list[float]:
    """What the reward model was trained to predict, by the program that decides it."""
    asked = {example.prompt: example for example in requests(PER_SEED)}
    return [reward(asked[row["prompt"]], row["text"], kind) for row in rows]


def mean(values: list[float]) -> list[float]:
    """[mean, half width of its 95 % interval]."""
    return [statistics.mean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))]


def summary(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """By arm: means with intervals, and the paired gain in true reward over the same model's scale 0."""
    found = {}
    for arm in ARMS:
        if arm.name not in runs:
            continue
        rows, plain = runs[arm.name], runs[Arm(arm.model).name]
        true, unguided = true_rewards(rows, KINDS[arm.model]), true_rewards(plain, KINDS[arm.model])
        gains = [mine - other for mine, other in zip(true, unguided, strict=True)]
        by_seed = [gains[i : i + PER_SEED] for i in range(0, len(gains), PER_SEED)]
        found[arm.name] = {
            "model": arm.model, "scale": arm.scale, "best_of": arm.best_of, "answers": len(rows),
            "predicted": mean([row["predicted"] for row in rows]), "true": mean(true),
            "gain": mean(gains), "gain_by_seed": [statistics.mean(some) for some in by_seed],
            "perplexity": corpus_perplexity([(row["nll"], row["tokens"]) for row in rows]),
            "broken": mean([broken(row["text"]) for row in rows]),
            "distinct_2": distinct([row["text"] for row in rows]),
        }  # fmt: skip
    return found


def verdicts(found: dict[str, dict]) -> list[dict]:
    """On findings 7 (first helps, then hurts) and 8 (so does another reward model), from a summary, as findings are."""
    says = []
    for row, model in zip((7, 8), KINDS, strict=True):
        sweep = {arm["scale"]: arm for arm in found.values() if arm["model"] == model and arm["best_of"] == 1}
        plain, guided = sweep.pop(0), sweep.values()
        best, last = max(guided, key=lambda arm: arm["gain"][0]), max(guided, key=lambda arm: arm["scale"])
        says.append(_said(row, f"η = {best['scale']:g} helps{'' if row == 7 else ' the brief judge'}", best, plain, 1))
        if last is not best:
            says.append(_said(row, f"η = {last['scale']:g} hurts", last, plain, -1))
    return says


def _said(row: int, what: str, arm: dict, plain: dict, sign: int) -> dict:
    mean, half = arm["gain"]
    says = "holds" if sign * mean > half else "does not hold" if sign * mean < -half else "too small to tell"
    return {
        "row": row, "what": what, "metric": "true reward", "sides": [arm["true"], plain["true"]],
        "gain": [sign * mean, half], "verdict": says,
    }  # fmt: skip


def run(path: Path, smoke: bool = False) -> dict:
    """All arms and seeds that the file beside `path` lacks; the summary, and the texts of some answers, in `path`.

    smoke: one seed, two answers and two steps an arm, to see that it runs.
    """
    seeds, number, steps = (SEEDS[:1], 2, 2) if smoke else (SEEDS, PER_SEED, STEPS)
    work = path.with_suffix(".runs.json")
    runs = json.loads(work.read_text()) if work.exists() else {}
    lm = load(DENOISER)
    judge = AutoModelForCausalLM.from_pretrained(bundled()[JUDGE], use_safetensors=True).eval()
    models = {name: load_reward(name, base=lm) for name in KINDS}
    asked, start = requests(number), time.monotonic()
    for arm, (place, seed) in tqdm([*itertools.product(ARMS, enumerate(seeds))], desc="guidance", unit="run"):
        rows = runs.setdefault(arm.name, [])
        if len(rows) > place * number:
            continue
        written = answers(lm, models[arm.model], arm, asked, seed, steps)
        rows += [measured(judge, models[arm.model], *pair) for pair in zip(asked, written, strict=True)]
        write_json(work, runs)
    found = {
        "claim": "Guidance first helps, then hurts; and it works across reward models",
        "paper": "AlpacaEval 63.1 → 66.1 at η = 0.25, then gibberish; +3 to 4 points across reward models",
        "command": "make findings ROW=guidance", "seeds": [*seeds], "steps": steps,
        "minutes_of_last_run": round((time.monotonic() - start) / 60, 1), "environment": stamp(),
        "summary": summary(runs), "verdicts": verdicts(summary(runs)),
        "texts": {name: [row["text"] for row in rows[:SHOWN]] for name, rows in runs.items()},
        "prompts": [example.prompt for example in asked[:SHOWN]],
    }  # fmt: skip
    write_json(path, found)
    return found
