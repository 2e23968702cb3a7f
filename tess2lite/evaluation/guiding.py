"""What guidance does, scale by scale: `python -m tess2lite.evaluation.guiding` (findings 7 and 8 of the paper).

Every arm answers the same requests from the same noise, so arms are compared in pairs. Of each text: the reward that
the reward model predicts, the true one, and the perplexity under a left-to-right judge, which has read stories and
never such answers: it compares arms, and says nothing by itself.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from ..data import encode
from ..generation import generate
from ..guidance import RewardGuidance, best_of
from ..loading import bundled, load
from ..reward import load_reward
from ..tinytown.tasks import Example, broken, examples, reward

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


def answers(lm, reward_model, arm: Arm, asked: list[Example], seed: int) -> list:
    """One Generation a request. Noise is a function of (seed, place in the list), the same for every arm."""
    chats = [[{"role": "user", "content": example.prompt}] for example in asked]
    drawn = []
    for draw in range(arm.best_of):
        seeds = [seed * 100_000 + draw * 10_000 + place for place in range(len(asked))]
        for start in range(0, len(asked), BATCH):
            some = slice(start, start + BATCH)
            hooks = [RewardGuidance(reward_model, arm.scale)] if arm.scale else []
            drawn.append(_written(lm, chats[some], seeds[some], hooks))
    drawn = list(itertools.chain(*drawn))
    candidates = [drawn[place :: len(asked)] for place in range(len(asked))]
    return [some[best_of(reward_model, some)[0]] for some in candidates]


def _written(lm, chats, seeds, hooks) -> list:
    return generate(lm, chats, STEPS, seed=seeds, length=LENGTH, hooks=hooks, record=1, progress=False)


def measured(judge, reward_model, example: Example, out) -> dict:
    """What is kept of one answer."""
    _, (predicted,) = best_of(reward_model, [out])
    nll, tokens = likelihood(judge, out.text, reward_model.tokenizer)
    return {
        "prompt": example.prompt, "text": out.text, "seed": out.seed, "predicted": float(predicted), "nll": nll,
        "tokens": tokens,
    }  # fmt: skip


@torch.no_grad()
def likelihood(judge, text: str, tokenizer) -> tuple[float, int]:
    """(summed negative log-likelihood in nats, tokens) of a text and its end under a left-to-right model."""
    ids = torch.tensor([[tokenizer.bos_token_id, *encode(tokenizer, text), tokenizer.eos_token_id]])
    logits = judge(input_ids=ids).logits[0, :-1].float()
    return float(F.cross_entropy(logits, ids[0, 1:], reduction="sum")), ids.shape[1] - 1


def true_rewards(rows: list[dict], kind: str) -> list[float]:
    """What the reward model was trained to predict, by the program that decides it."""
    asked = {example.prompt: example for example in requests(PER_SEED)}
    return [reward(asked[row["prompt"]], row["text"], kind) for row in rows]


def distinct(texts: list[str], n: int = 2) -> float:
    """dist-n: different n-grams of words among all of them."""
    grams = [gram for text in texts for gram in zip(*(text.split()[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / max(1, len(grams))


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
            "perplexity": math.exp(sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)),
            "broken": mean([broken(row["text"]) for row in rows]),
            "distinct_2": distinct([row["text"] for row in rows]),
        }  # fmt: skip
    return found


def verdicts(found: dict[str, dict]) -> dict[str, str]:
    """On findings 7 (first helps, then hurts) and 8 (so does another reward model), from a summary."""
    says = {}
    for finding, model in zip(("7", "8"), KINDS, strict=True):
        sweep = [arm for arm in found.values() if arm["model"] == model and arm["best_of"] == 1 and arm["scale"]]
        best = max(sweep, key=lambda arm: arm["gain"][0])
        gain, half = best["gain"]
        fooled = any(arm["predicted"] > best["predicted"] and arm["true"] < best["true"] for arm in sweep)
        helps = "holds" if gain > half else "too small to tell" if gain > -half else "does not hold"
        says[finding] = helps if finding == "8" or fooled else "does not hold"
    return says


def run(path: Path) -> dict:
    """All arms and seeds that the file beside `path` lacks; the summary, and the texts of some answers, in `path`."""
    work = path.with_suffix(".runs.json")
    runs = json.loads(work.read_text()) if work.exists() else {}
    lm = load(DENOISER)
    judge = AutoModelForCausalLM.from_pretrained(bundled()[JUDGE], use_safetensors=True).eval()
    models = {name: load_reward(name, base=lm) for name in KINDS}
    asked, start = requests(PER_SEED), time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    for arm, (number, seed) in tqdm([*itertools.product(ARMS, enumerate(SEEDS))], desc="guidance", unit="run"):
        rows = runs.setdefault(arm.name, [])
        if len(rows) > number * PER_SEED:
            continue
        written = answers(lm, models[arm.model], arm, asked, seed)
        rows += [measured(judge, models[arm.model], *pair) for pair in zip(asked, written, strict=True)]
        part = work.with_suffix(".part")
        part.write_text(json.dumps(runs))
        part.replace(work)
    found = {
        "finding": "Guidance first helps, then hurts; and it works across reward models",
        "paper": "AlpacaEval 63.1 → 66.1 at η = 0.25, then gibberish; +3 to 4 points across reward models",
        "command": "python -m tess2lite.evaluation.guiding", "seeds": [*SEEDS], "steps": STEPS,
        "minutes_of_last_run": round((time.monotonic() - start) / 60, 1), "device": f"{platform.machine()} CPU",
        "summary": summary(runs), "verdicts": verdicts(summary(runs)),
        "texts": {name: [row["text"] for row in rows[:SHOWN]] for name, rows in runs.items()},
        "prompts": [example.prompt for example in asked[:SHOWN]],
    }  # fmt: skip
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


if __name__ == "__main__":
    for name, arm in run(Path("assets/findings/guidance.json"))["summary"].items():
        line = "{:40} predicted {:+.2f} ± {:.2f}, true {:+.2f} ± {:.2f}, gain {:+.2f} ± {:.2f}, perplexity {:.1f}"
        print(line.format(name, *arm["predicted"], *arm["true"], *arm["gain"], arm["perplexity"]))
