"""What early halting costs: `python -m tess2lite_course.experiments.early_stopping`.

Every run continues to its end, and beside it the hook of `hooks.py` says for each patience where it would have stopped.
So a halted text and the full one come from the same noise, and their scores are compared in pairs.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import SimpleNamespace

from tqdm import tqdm

from tess2lite.evaluation.intervals import compare, mean_interval
from tess2lite.evaluation.results import write_text
from tess2lite.generation import generate
from tess2lite.hooks import Halt
from tess2lite.loading import load
from tess2lite.tinytown.language import split_sentences
from tess2lite.tinytown.stories import stories
from tess2lite.tinytown.world import verify

PATIENCES = (1, 2, 3, 5, 8, 12, 20)
BATCH, PROMPTS, STEPS, ENTROPY = 50, 1_000, 100, 0.3


class HaltRecorder:
    """A hook that notes, row by row, the step at which each patience would have halted, and the text at that step.

    Attributes:
        halted: For each row, patience → (steps made, text).
    """

    def __init__(self, rows: int, tokenizer):
        """
        Args:
            rows: Sequences of the batch.
            tokenizer: Decodes their texts.
        """
        self.tokenizer = tokenizer
        self.waiting = [{patience: Halt(patience, ENTROPY) for patience in PATIENCES} for _ in range(rows)]
        self.halted: list[dict[int, tuple[int, str]]] = [{} for _ in range(rows)]

    def __call__(self, step) -> None:
        tokens = step.tokens
        argmax = step.argmax
        entropy = step.entropy
        text_mask = step.text_mask
        for row, waiting in enumerate(self.waiting):
            seen = SimpleNamespace(
                index=step.index, argmax=argmax[row], entropy=entropy[row], text_mask=text_mask[row], stop=False
            )
            for patience in list(waiting):
                seen.stop = step.is_last
                waiting[patience](seen)
                if seen.stop:
                    written = tokens[row][step.span_mask[row]].tolist()
                    self.halted[row][patience] = (step.index + 1, self._text(written))
                    del waiting[patience]

    def _text(self, ids: list[int]) -> str:
        eos = self.tokenizer.eos_token_id
        end = ids.index(eos) if eos in ids else None
        return self.tokenizer.decode(ids[:end], skip_special_tokens=True)


def measure(lm, prompts: list[str], seed: int) -> list[dict]:
    """Returns, for each prompt, whether the full text is a valid story, and steps and validity for each patience."""
    recorder = HaltRecorder(len(prompts), lm.tokenizer)
    seeds = range(seed, seed + len(prompts))
    outs = generate(lm, prompts, steps=STEPS, seed=seeds, hooks=[recorder], progress=False)
    rows = []
    for prompt, out, halted in zip(prompts, outs, recorder.halted, strict=True):
        at = {str(p): [steps, verify(prompt + text) is None] for p, (steps, text) in halted.items()}
        rows.append({"valid": verify(prompt + out.text) is None, "halted": at})
    return rows


def summary(rows: list[dict], patience: int) -> dict[str, float]:
    """Returns mean steps, share of valid texts, and the paired change against the full run with its 95 % interval."""
    halted = [row["halted"][str(patience)] for row in rows]
    changes = [float(valid) - row["valid"] for row, (_, valid) in zip(rows, halted, strict=True)]
    gain = compare(changes, bounds=(-1, 1)).gain
    return {
        "steps": statistics.mean(steps for steps, _ in halted),
        "valid": mean_interval([valid for _, valid in halted], bounds=(0, 1)).mean,
        "change": gain.mean,
        "low": gain.low,
        "high": gain.high,
        "half_width": gain.half_width,
    }


def run(path: Path, prompts: int = PROMPTS) -> dict:
    """Makes all batches that the file at `path` lacks, and returns its content."""
    results = json.loads(path.read_text()) if path.exists() else {"rows": []}
    results |= {"model": "tinytown-base", "steps": STEPS, "entropy": ENTROPY}
    lm = load("tinytown-base")
    openings = [" ".join(split_sentences(text)[:2]) for text in stories("test", prompts)]
    for start in tqdm(range(len(results["rows"]), prompts, BATCH), desc="halting", unit="batch"):
        results["rows"] += measure(lm, openings[start : min(start + BATCH, prompts)], start)
        write_text(path, json.dumps(results) + "\n")
    return results


if __name__ == "__main__":
    rows = run(Path("assets/findings/halting.json"))["rows"]
    print(f"all {STEPS} steps: {statistics.mean(row['valid'] for row in rows):.1%} of {len(rows)} stories valid")
    for patience in PATIENCES:
        found = summary(rows, patience)
        line = "patience {:2}: {steps:5.1f} steps, change {change:+.1%} ({low:+.1%} to {high:+.1%})"
        print(line.format(patience, **found))
