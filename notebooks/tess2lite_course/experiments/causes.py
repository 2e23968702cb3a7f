"""Whether causes are what Tinytown says they are: `python -m tess2lite_course.experiments.causes`.

A story that names somebody a second time depends on the first mention: which of two people is meant can be read nowhere
else. So the first mention must be among the top causes of the second. And a flip whose named cause is put back must not
happen. Both are counted, and written to assets/findings/causes.json.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from tess2lite.evaluation.intervals import Interval, mean_interval
from tess2lite.generation import generate, infill
from tess2lite.insides.attribution import attribute
from tess2lite.insides.flips import explain_flip, put_back
from tess2lite.insides.inputs import step_inputs
from tess2lite.loading import load
from tess2lite.tinytown.language import split_sentences, words
from tess2lite.tinytown.stories import stories
from tess2lite.tokens import encode
from tess2lite.trajectory import Trajectory

MODEL, MENTIONS, FLIPS = "tinytown-base", 200, 200
BLANK_STEPS, STORY_STEPS, LENGTH = 4, 50, 40
FLIPS_PER_STORY = 5
CONTEXT = 120  # tokens: longer stories are left out, to keep the count short


def names() -> list[str]:
    return words()["girls"] + words()["boys"]


def blank_second_mention(story: str) -> str | None:
    """A story up to the sentence that names one of two or more people a second time, that name a blank."""
    count = Counter()
    for match in re.finditer(rf"\b({'|'.join(names())})\b", story):
        count[match[0]] += 1
        if count[match[0]] == 2 and len(count) > 1:
            sentence_end = re.compile(r"[.!?]").search(story, match.end())
            rest = story[match.end() : sentence_end.end() if sentence_end else len(story)]
            return f"{story[: match.start()]}_{rest}"
    return None


def blanked_stories(tokenizer, stories: Iterable[str]) -> list[str]:
    """Those that can be blanked and are no longer than `CONTEXT`."""
    blanked = [blank_second_mention(story) for story in stories if "_" not in story]
    return [text for text in blanked if text is not None and len(encode(tokenizer, text)) <= CONTEXT]


def first_mention(run: Trajectory, position: int) -> int | None:
    """Where the token at a position stands before, if it does so exactly once in the whole text."""
    final = run.tokens[-1]
    (same,) = (final == final[position]).nonzero(as_tuple=True)
    others = [i for i in same.tolist() if i != position]
    return others[0] if len(others) == 1 and others[0] < position else None


def mention(lm, text: str, seed: int) -> dict | None:
    """How the first mention ranks among the causes of the second where it is decided; None if it is not a mention."""
    run = infill(lm, text, steps=BLANK_STEPS, seed=seed, progress=False).trajectory
    position = int(run.span_mask.nonzero()[0, 0])
    first = first_mention(run, position)
    if first is None or run.token_strings[int(run.tokens[-1, position])].strip() not in names():
        return None
    step = int(run.commit_step()[position])
    token = int(run.tokens[-1, position])
    inputs = step_inputs(lm, run, stop=step + 1)
    scores = {
        method: attribute(lm, run, step, position, method, token, inputs=inputs) for method in ("occlusion", "gradient")
    }
    ranks = {method: 1 + answer.top(len(run.span_mask)).index(first) for method, answer in scores.items()}
    others = torch.arange(len(run.span_mask)) != position
    correlation = spearmanr(scores["occlusion"].weights[others], scores["gradient"].weights[others]).statistic
    return {"step": step, "logprob": scores["occlusion"].logprob, **ranks, "correlation": float(correlation)}


def flips(lm, prompt: str, seed: int) -> list[dict]:
    """Some flips of one run, from anywhere in it, with their named causes put back in a second run each."""
    run = generate(lm, prompt, steps=STORY_STEPS, seed=seed, length=LENGTH, progress=False).trajectory
    inputs = step_inputs(lm, run)
    changed = (run.argmax[1:] != run.argmax[:-1]).nonzero() + torch.tensor([1, 0])
    order = torch.randperm(len(changed), generator=torch.Generator().manual_seed(seed))
    rows = []
    for step, position in changed[order[:FLIPS_PER_STORY]].tolist():
        flip = explain_flip(lm, run, step, position, inputs=inputs)
        again = put_back(lm, run, flip, inputs=inputs, stop=step + 1).trajectory
        undone = int(again.argmax[step, position]) == flip.before
        own = position in flip.causes
        rows.append({"story": seed, "step": step, "causes": len(flip.causes), "own": own, "undone": undone})
    return rows


def run(path: Path, mentions: int = MENTIONS, count: int = FLIPS) -> dict:
    """Measures what the file at `path` lacks. Returns its content."""
    results = json.loads(path.read_text()) if path.exists() else {"tried": 0, "mentions": [], "flips": []}
    results |= {"model": MODEL, "steps": [BLANK_STEPS, STORY_STEPS]}
    lm = load(MODEL)
    texts = blanked_stories(lm.tokenizer, stories("test", 20 * mentions))
    with tqdm(total=mentions, initial=len(results["mentions"]), desc="mentions", unit="text") as bar:
        while len(results["mentions"]) < mentions and results["tried"] < len(texts):
            row = mention(lm, texts[results["tried"]], results["tried"])
            results["tried"] += 1
            results["mentions"] += [row] if row else []
            bar.update(row is not None)
            _save(path, results)
    with tqdm(total=count, initial=len(results["flips"]), desc="flips", unit="flip") as bar:
        for seed, story in enumerate(stories("test", -(-count // FLIPS_PER_STORY))):
            if FLIPS_PER_STORY * seed < len(results["flips"]):
                continue
            results["flips"] += flips(lm, " ".join(split_sentences(story)[:2]), seed)
            bar.update(FLIPS_PER_STORY)
            _save(path, results)
    return results


def _save(path: Path, results: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results) + "\n")
    part.replace(path)


def summary(results: dict) -> dict[str, Interval]:
    """Measure → mean and 95 % interval; flips of one story count as one question."""
    mentions, flips = results["mentions"], results["flips"]
    stories_of_flips = [row["story"] for row in flips]
    share = (0.0, 1.0)
    return {
        "first mention among the top 3, occlusion": mean_interval(
            [row["occlusion"] <= 3 for row in mentions], bounds=share
        ),
        "first mention among the top 3, gradient": mean_interval(
            [row["gradient"] <= 3 for row in mentions], bounds=share
        ),
        "rank correlation of the two": mean_interval([row["correlation"] for row in mentions], bounds=(-1.0, 1.0)),
        "flips undone by their cause": mean_interval([row["undone"] for row in flips], stories_of_flips, bounds=share),
        "positions in a cause": mean_interval([row["causes"] for row in flips], stories_of_flips),
        "causes that name the position itself": mean_interval(
            [row["own"] for row in flips], stories_of_flips, bounds=share
        ),
    }


if __name__ == "__main__":
    known = run(Path("assets/findings/causes.json"))
    print(f"{len(known['mentions'])} second mentions in {known['tried']} texts, {len(known['flips'])} flips")
    for name, interval in summary(known).items():
        print(f"{name}: {interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})")
