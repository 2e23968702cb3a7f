"""What guidance does, scale by scale: `make findings ROW=7` (findings 7 and 8 of the paper).

Every arm answers the same requests from the same noise, so arms are compared in pairs, and answers to one request are
resampled together. Of each text: the reward that the reward model predicts, the true one, and the perplexity under an
autoregressive judge, which has read stories and never such answers: it compares arms, and says nothing by itself.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from transformers import AutoModelForCausalLM

from tess2lite.evaluation.best_of import best_of
from tess2lite.evaluation.intervals import mean_interval
from tess2lite.evaluation.results import stamp, write_json
from tess2lite.generation import generate
from tess2lite.guidance import RewardGuidance
from tess2lite.loading import load
from tess2lite.pretrained.reward_models import load_reward
from tess2lite.pretrained.sources import bundled
from tess2lite.tinytown.tasks import Example, broken, examples, reward

from .comparisons import judge
from .text_metrics import corpus_perplexity, distinct, perplexity

DENOISER, JUDGE = "tinytown-instruct", "tinytown-ar"
KINDS = {"tinytown-reward": "cheerful", "tinytown-reward-brief": "brief"}  # reward model → the true reward behind it
STEPS = 15
LENGTH = 64  # tokens of an answer
SEEDS = (0, 1, 2)
PER_SEED = 20  # answers
BATCH = 20
SHOWN = 4  # texts of each arm that are kept


@dataclass(frozen=True)
class Arm:
    """One setting.

    Attributes:
        model: Name of the reward model.
        scale: Of guidance; 0 for none.
        best_of: Answers drawn, of which the best is kept.
    """

    model: str
    scale: float = 0
    best_of: int = 1

    @property
    def name(self) -> str:
        return f"{self.model}, best of {self.best_of}" if self.best_of > 1 else f"{self.model}, scale {self.scale:g}"


ARMS = [
    *(Arm("tinytown-reward", scale) for scale in (0, 3, 10, 30, 100, 300, 1000)),
    Arm("tinytown-reward", best_of=4),
    *(Arm("tinytown-reward-brief", scale) for scale in (0, 10)),
]


def requests(number: int) -> list[Example]:
    """Returns requests of the test split: there are ten, asked again and again, each time from other noise."""
    different = list({example.prompt: example for example in examples("request", "test", 500)}.values())
    return list(itertools.islice(itertools.cycle(different), number))


def answers(lm, reward_model, arm: Arm, prompts: list[Example], seed: int, steps: int) -> list:
    """Returns one Generation per request. Noise is a function of (seed, place in the list), the same for every arm."""
    chats = [[{"role": "user", "content": example.prompt}] for example in prompts]
    drawn = []
    for draw in range(arm.best_of):
        seeds = [seed * 100_000 + draw * 10_000 + place for place in range(len(prompts))]
        for start in range(0, len(prompts), BATCH):
            batch = slice(start, start + BATCH)
            hooks = [RewardGuidance(reward_model, arm.scale)] if arm.scale else []
            drawn.append(_written(lm, chats[batch], seeds[batch], hooks, steps))
    drawn = list(itertools.chain(*drawn))
    candidates = [drawn[place :: len(prompts)] for place in range(len(prompts))]
    return [texts[best_of(reward_model, texts)[0]] for texts in candidates]


def _written(lm, chats, seeds, hooks, steps) -> list:
    return generate(lm, chats, steps=steps, seed=seeds, length=LENGTH, hooks=hooks, record=1, progress=False)


def measured(ar_judge, reward_model, example: Example, out) -> dict:
    """Returns what is kept of one answer."""
    _, (predicted,) = best_of(reward_model, [out])
    ((nll, tokens),) = perplexity(ar_judge, reward_model.tokenizer, [out.text])
    return {
        "prompt": example.prompt,
        "text": out.text,
        "seed": out.seed,
        "predicted": float(predicted),
        "nll": nll,
        "tokens": tokens,
    }


def true_rewards(rows: list[dict], kind: str) -> list[float]:
    """Returns the reward that the reward model was trained to predict, by the program that decides it."""
    examples_by_prompt = {example.prompt: example for example in requests(PER_SEED)}
    return [reward(examples_by_prompt[row["prompt"]], row["text"], kind) for row in rows]


def summary(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """Returns, by arm, means with 95 % intervals as [mean, low, high], and the paired gain in true reward over the same
    model's scale 0."""
    summaries = {}
    for arm in ARMS:
        if arm.name not in runs:
            continue
        rows = runs[arm.name]
        prompts = [row["prompt"] for row in rows]
        true, unguided, gains = _paired(runs, arm)
        by_seed = [gains[i : i + PER_SEED] for i in range(0, len(gains), PER_SEED)]
        summaries[arm.name] = {
            "model": arm.model,
            "scale": arm.scale,
            "best_of": arm.best_of,
            "answers": len(rows),
            "requests": len(set(prompts)),
            "predicted": list(mean_interval([row["predicted"] for row in rows], prompts)),
            "true": list(mean_interval(true, prompts)),
            "gain": list(mean_interval(gains, prompts)),
            "gain_by_seed": [statistics.mean(seed_gains) for seed_gains in by_seed],
            "perplexity": corpus_perplexity([(row["nll"], row["tokens"]) for row in rows]),
            "broken": list(mean_interval([broken(row["text"]) for row in rows], prompts)),
            "distinct_2": distinct([row["text"] for row in rows]),
        }
    return summaries


def _paired(runs: dict[str, list[dict]], arm: Arm) -> tuple[list[float], list[float], list[float]]:
    """True rewards of an arm, of the same model's scale 0, and their differences."""
    true = true_rewards(runs[arm.name], KINDS[arm.model])
    unguided = true_rewards(runs[Arm(arm.model).name], KINDS[arm.model])
    return true, unguided, [mine - other for mine, other in zip(true, unguided, strict=True)]


def verdicts(runs: dict[str, list[dict]]) -> list[dict]:
    """Returns what may be said of findings 7 (first helps, then hurts) and 8 (so does another reward model)."""
    records = []
    for row, model in zip((7, 8), KINDS, strict=True):
        sweep = [arm for arm in ARMS if arm.model == model and arm.scale and arm.best_of == 1 and arm.name in runs]
        best = max(sweep, key=lambda arm: statistics.mean(_paired(runs, arm)[2]))
        last = max(sweep, key=lambda arm: arm.scale)
        what = f"η = {best.scale:g} helps{'' if row == 7 else ' the brief judge'}"
        records.append(_judge(runs, best, {"row": row, "what": what}))
        if len(sweep) > 1:
            records.append(_judge(runs, last, {"row": row, "what": f"η = {last.scale:g} hurts"}, fewer_is_better=True))
    return records


def _judge(runs: dict[str, list[dict]], arm: Arm, claim: dict, fewer_is_better: bool = False) -> dict:
    true, unguided, _ = _paired(runs, arm)
    prompts = [row["prompt"] for row in runs[arm.name]]
    return judge(claim | {"metric": "true reward"}, true, unguided, prompts, None, fewer_is_better)


def run(path: Path, smoke: bool = False) -> dict:
    """Makes all arms and seeds that the file beside `path` lacks; the summary and some texts go to `path`.

    Args:
        path: JSON file of the results.
        smoke: One seed, two answers and two steps per arm, only to see that it runs.
    """
    seeds, number, steps = (SEEDS[:1], 2, 2) if smoke else (SEEDS, PER_SEED, STEPS)
    work = path.with_suffix(".runs.json")
    runs = json.loads(work.read_text()) if work.exists() else {}
    lm = load(DENOISER)
    ar_judge = AutoModelForCausalLM.from_pretrained(bundled()[JUDGE], use_safetensors=True).eval()
    models = {name: load_reward(name, base=lm) for name in KINDS}
    prompts = requests(number)
    started = time.monotonic()
    for arm, (place, seed) in tqdm([*itertools.product(ARMS, enumerate(seeds))], desc="guidance", unit="run"):
        rows = runs.setdefault(arm.name, [])
        if len(rows) > place * number:
            continue
        written = answers(lm, models[arm.model], arm, prompts, seed, steps)
        rows += [measured(ar_judge, models[arm.model], *pair) for pair in zip(prompts, written, strict=True)]
        write_json(work, runs)
    result = {
        "claim": "Guidance first helps, then hurts; and it works across reward models",
        "paper": "AlpacaEval 63.1 → 66.1 at η = 0.25, then gibberish; +3 to 4 points across reward models",
        "command": "make findings ROW=guidance",
        "seeds": [*seeds],
        "steps": steps,
        "minutes_of_last_run": round((time.monotonic() - started) / 60, 1),
        "environment": stamp(),
        "summary": summary(runs),
        "verdicts": verdicts(runs),
        "texts": {name: [row["text"] for row in rows[:SHOWN]] for name, rows in runs.items()},
        "prompts": [example.prompt for example in prompts[:SHOWN]],
    }
    write_json(path, result)
    return result
