"""What early halting costs: `python -m tess2lite_course.experiments.early_stopping`.

Every run goes on to its end, and beside it the hook of `hooks.py` says for each patience where it would have stopped.
So a halted text and the full one come of the same noise, and their scores are compared in pairs.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import SimpleNamespace

from tqdm import tqdm

from tess2lite.generation import generate
from tess2lite.hooks import Halt
from tess2lite.loading import load
from tess2lite.tinytown.language import split_sentences
from tess2lite.tinytown.stories import stories
from tess2lite.tinytown.world import verify

PATIENCES = (1, 2, 3, 5, 8, 12, 20)
BATCH, PROMPTS, STEPS, ENTROPY = 50, 1_000, 100, 0.3


class Bystander:
    """A hook that notes, row by row, the step at which each patience would have halted and the text at that step."""

    def __init__(self, rows: int, tokenizer):
        self.tokenizer = tokenizer
        self.waiting = [{patience: Halt(patience, ENTROPY) for patience in PATIENCES} for _ in range(rows)]
        self.halted = [{} for _ in range(rows)]  # patience → (steps made, text)

    def __call__(self, step) -> None:
        tokens, argmax, entropy, text = step.tokens, step.argmax, step.entropy, step.text_mask
        for row, waiting in enumerate(self.waiting):
            seen = SimpleNamespace(index=step.index, argmax=argmax[row], entropy=entropy[row], text_mask=text[row])
            for patience in [*waiting]:
                seen.stop = step.t == 0
                waiting[patience](seen)
                if seen.stop:
                    written = tokens[row][step.span_mask[row]].tolist()
                    self.halted[row][patience] = (step.index + 1, self._text(written))
                    del waiting[patience]

    def _text(self, ids: list[int]) -> str:
        eos = self.tokenizer.eos_token_id
        return self.tokenizer.decode(ids[: ids.index(eos)] if eos in ids else ids, skip_special_tokens=True)


def measure(lm, prompts: list[str], seed: int) -> list[dict]:
    """For each prompt: whether the full text is a valid story, and for each patience the steps made and the same."""
    bystander = Bystander(len(prompts), lm.tokenizer)
    full = generate(lm, prompts, STEPS, seed=range(seed, seed + len(prompts)), hooks=[bystander], progress=False)
    return [
        {
            "valid": verify(prompt + out.text) is None,
            "halted": {str(p): [steps, verify(prompt + text) is None] for p, (steps, text) in halted.items()},
        }
        for prompt, out, halted in zip(prompts, full, bystander.halted, strict=True)
    ]


def summary(rows: list[dict], patience: int) -> dict[str, float]:
    """Mean steps, share of valid texts, and the paired change against the full run with its 95 % half width."""
    halted = [row["halted"][str(patience)] for row in rows]
    change = [valid - row["valid"] for row, (_, valid) in zip(rows, halted, strict=True)]
    return {
        "steps": statistics.mean(steps for steps, _ in halted),
        "valid": statistics.mean(valid for _, valid in halted),
        "change": statistics.mean(change),
        "half_width": 1.96 * statistics.stdev(change) / len(rows) ** 0.5,
    }


def run(path: Path, prompts: int = PROMPTS) -> dict:
    """All batches that the file at `path` lacks. Returns its content."""
    known = json.loads(path.read_text()) if path.exists() else {"rows": []}
    known |= {"model": "tinytown-base", "steps": STEPS, "entropy": ENTROPY}
    lm, texts = load("tinytown-base"), stories("test", prompts)
    given = [" ".join(split_sentences(text)[:2]) for text in texts]
    for start in tqdm(range(len(known["rows"]), prompts, BATCH), desc="halting", unit="batch"):
        known["rows"] += measure(lm, given[start : min(start + BATCH, prompts)], start)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(known) + "\n")
        part.replace(path)
    return known


if __name__ == "__main__":
    rows = run(Path("assets/findings/halting.json"))["rows"]
    print(f"all {STEPS} steps: {statistics.mean(row['valid'] for row in rows):.1%} of {len(rows)} stories valid")
    for patience in PATIENCES:
        found = summary(rows, patience)
        print("patience {:2}: {steps:5.1f} steps, change {change:+.1%} ± {half_width:.1%}".format(patience, **found))
