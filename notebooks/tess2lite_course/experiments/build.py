"""Makes the bundled models from nothing: `python -m tess2lite_course.experiments.build [OUT]`.

Word tokenizer → tinytown-ar (a small Mistral, autoregressive) → tinytown-base (the same weights, adapted to simplex
diffusion) → tinytown-instruct (tuned on chats of all tasks, beside an AR model that is tuned on the same ones) →
tinytown-reward and tinytown-reward-brief (adapters that score its answers). A stage whose folder exists is skipped,
one that was interrupted resumes from its last checkpoint, and each leaves a card with what was done, how long it
took and how well it went.
"""

from __future__ import annotations

import json
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from tess2lite.chunks import generator_for, rows_per_chunk
from tess2lite.generation import generate
from tess2lite.loading import load
from tess2lite.loss import diffusion_loss
from tess2lite.model import SimplexDenoiser
from tess2lite.span_masks import after
from tess2lite.tinytown.dense import dense_story
from tess2lite.tinytown.documents import (
    ECHO_FIRST,
    EVERYTHING,
    KINDS,
    LOOKUP_NEXT,
    PAIRS_NEXT,
    ROSTERS_NEXT,
    STORIES_LAST,
    document,
)
from tess2lite.tinytown.language import skeletons, split_sentences
from tess2lite.tinytown.stories import stories
from tess2lite.tinytown.tasks import TASKS, examples
from tess2lite.tinytown.world import verify
from tess2lite.tokens import encode
from tess2lite.training.autoregressive import PretrainingTrainer
from tess2lite.training.muon import MuonAdamW, has_fast_bfloat16
from tess2lite.training.timesteps import measure_loss_curve
from tess2lite.training.trainer import DiffusionTrainer, last_checkpoint

from . import instruct, rewards
from .batches import SIDE_BY_SIDE, AnswerFinder, CausalCollator, PlannedBatches, as_text, padded
from .cards import write_cards
from .denoising_batches import DECISIONS, Answers, PlannedChats, WriteOrFill
from .look_up_prior import look_up_prior_
from .word_tokenizer import make_tokenizer

SEED = 0
LENGTH = 256
SAMPLE = 30_000  # documents whose pieces become the vocabulary
SCORED = 400  # test stories
STEPS = 100  # of diffusion, per scored story
FEW_STEPS = 25
STORY_ROOM = 144  # tokens after the beginning; what is left of the longest has 104
DENSE_STORY_ROOM = 180  # what is left of the longest after three sentences has 162
MEASURED = 90  # validation texts, for the loss curve
STORY_LENGTH = 64  # tokens of those that are stories
SAVE_EVERY = 250  # steps
WARMUP = 50  # steps
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ATTENTION = "sdpa" if DEVICE.type == "cuda" else "eager"  # on a CPU faster than sdpa to train: see tests/benchmarks
WORKERS = SIDE_BY_SIDE if DEVICE.type == "cuda" else 0  # processes that make batches while a GPU trains
OTHERS = 2.5  # learning rate of embeddings, head and norms, beside the matrices'
AIMS = {"tinytown-ar": 0.95, "tinytown-base": 0.85}  # share of valid stories

TRAINED_FROM = {
    "tinytown-ar": "nothing",
    "tinytown-base": "tinytown-ar",
    "tinytown-instruct": "tinytown-base",
    "tinytown-ar-instruct": "tinytown-ar",
}


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Args:
        steps: Optimizer steps.
        tokens: Per step, about.
        first_rate, last_rate: Learning rate of the matrices, linear in between.
        reads: Which documents, by the name they have in `READS`; or "chats".
    """

    steps: int
    tokens: int
    first_rate: float
    last_rate: float
    reads: str = "everything"


PHASES = {
    "tinytown-ar": [
        Phase(250, 1024, 5e-4, 5e-4, "echo"),
        Phase(1_250, 1024, 7e-4, 1e-3, "look-up"),
        Phase(2_500, 1024, 1e-3, 1e-3, "all"),
        Phase(1_000, 2048, 1e-3, 6e-4, "all"),
        Phase(9_000, 1024, 1e-3, 1e-3, "all"),
        Phase(3_500, 1024, 1e-3, 6.1e-4, "all"),
        Phase(1_000, 1024, 1e-3, 1e-3, "pairs"),
        Phase(1_500, 1024, 1e-3, 1e-3, "rosters"),
        Phase(1_500, 1024, 1e-3, 1e-3, "pairs"),
        Phase(1_000, 1024, 1e-3, 1e-3, "rosters"),
        Phase(1_500, 1024, 2e-3, 2e-3, "pairs"),
        Phase(4_000, 1024, 1e-3, 1e-3, "rosters"),
        Phase(3_000, 1024, 1e-3, 5e-4),
        Phase(8_000, 1024, 8e-4, 0.0),
        Phase(200, 24_576, 0.0, 2e-3),
        Phase(1_887, 24_576, 2e-3, 0.0),
    ],
    # Before the phases of stories, batches of one phase were of uneven size. That is mended, so a model built again
    # has other weights than this one. The rates of the last two phases fell by the clock, not by the step.
    "tinytown-base": [
        Phase(200, 32_768, 0.0, 3e-3),
        Phase(4_962, 32_768, 3e-3, 0.0),
        Phase(500, 8_192, 1e-3, 8.3e-4, "stories"),
        Phase(1_495, 8_192, 8.2e-4, 0.0, "stories"),
        Phase(4_295, 8_192, 1e-3, 0.0, "stories"),
        Phase(3_858, 8_192, 1e-3, 0.0, "stories"),
    ],
    "tinytown-instruct": [
        Phase(681, 16_384, 1.5e-3, 0.0, "chats"),
        Phase(3_332, 4_096, 6e-4, 0.0, "chats"),
    ],
    "tinytown-ar-instruct": [Phase(759, 16_384, 1.5e-3, 0.0, "chats")],  # to compare with; not bundled
}
READS = {
    "echo": ECHO_FIRST,
    "look-up": LOOKUP_NEXT,
    "all": KINDS,
    "pairs": PAIRS_NEXT,
    "rosters": ROSTERS_NEXT,
    "everything": EVERYTHING,
    "stories": STORIES_LAST,
}
WRITING_LAST = 0.85  # share of batches of "stories" that are written after a prefix
ANSWERS_ALONE = {"pairs": 1.0, "rosters": 0.7, "everything": 0.2}  # share of rows with questions; else 0


def build(out: Path) -> None:
    """All stages, each skipped where it is done."""
    tokenizer = prepare(out)
    train_stage(out, "tinytown-ar", tokenizer, lambda: new_model(tokenizer))
    train_stage(out, "tinytown-base", tokenizer, lambda: load_trainable(out / "tinytown-ar"))
    train_stage(out, "tinytown-instruct", tokenizer, lambda: load_trainable(out / "tinytown-base"))
    train_stage(out, "tinytown-ar-instruct", tokenizer, lambda: load_autoregressive(out / "tinytown-ar"))
    for name in rewards.KINDS:
        rewards.build_reward(out, name, LENGTH)
    score(out / "tinytown-ar", continue_autoregressively, "autoregressive, temperature 1")
    score(out / "tinytown-base", continue_by_denoising, f"{STEPS} informative steps, top-p 0.99, temperature 1")
    score_in_few_steps(out / "tinytown-base")
    instruct.score_models(out, LENGTH)
    write_cards(out)


def prepare(out: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, made from a sample of the corpus."""
    folder = out / "tokenizer"
    if not folder.exists():
        make_tokenizer(as_text(document("train", i, SEED)) for i in range(SAMPLE)).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def new_model(tokenizer: PreTrainedTokenizerFast) -> MistralForCausalLM:
    """A fresh Mistral of 2.9 M parameters, with look-up half wired."""
    torch.manual_seed(SEED)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04,
        attn_implementation=ATTENTION,
    )
    model = MistralForCausalLM(config)
    look_up_prior_(model)
    return model


def load_trainable(folder: Path) -> SimplexDenoiser:
    """A denoiser in float32, from a denoiser or from an AR model."""
    lm = load(folder, dtype=torch.float32)
    lm.set_attn_implementation(ATTENTION)
    return lm


def load_autoregressive(folder: Path) -> MistralForCausalLM:
    return MistralForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=ATTENTION)


class PlannedTraining:
    """Mixin for Trainers whose data set is a plan of whole batches, read in order."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class AutoregressiveStage(PlannedTraining, PretrainingTrainer):
    """Next-token training on planned batches."""


class DenoisingStage(PlannedTraining, DiffusionTrainer):
    """Diffusion training on planned batches, with one stream of noise per step instead of one per row."""

    def _denoising_loss(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], self_condition: bool, seed: int
    ) -> torch.Tensor:
        device = self.args.device
        vocabulary = model.config.vocab_size
        count = int(inputs["span_mask"].sum())
        size = rows_per_chunk(vocabulary, device)
        generator = generator_for(seed, self.state.global_step, "training noise", device)
        noise = torch.randn(count, vocabulary, generator=generator, device=device)
        return model(
            input_ids=inputs["input_ids"],
            span_mask=inputs["span_mask"],
            t=inputs["t"],
            loss=diffusion_loss,
            noise=lambda rows: noise[rows],
            blocks=[slice(start, min(start + size, count)) for start in range(0, count, size)],
            loss_weights=inputs["loss_weights"],
            self_condition=self_condition,
        )


class Plan(torch.utils.data.ConcatDataset):
    """The batches of all phases, one after the other."""


def plan(name: str, tokenizer: PreTrainedTokenizerFast) -> Plan:
    """What a stage reads. Denoisers read other documents than the AR model did."""
    first = 0 if name == "tinytown-ar" else 10_000_000
    rare = unread_tokens(tokenizer) if name == "tinytown-ar" else []
    parts = []
    for phase in PHASES[name]:
        parts.append(_planned(name, phase, tokenizer, first, rare))
        first += phase.steps * phase.tokens // 40
    return Plan(parts)


def _planned(
    name: str, phase: Phase, tokenizer: PreTrainedTokenizerFast, first: int, rare: list[int]
) -> torch.utils.data.Dataset:
    shared = {"tokens": phase.tokens, "steps": phase.steps, "longest": LENGTH, "seed": SEED, "first_document": first}
    pad = tokenizer.pad_token_id
    if phase.reads == "chats":
        collate = instruct.NextTokens(pad) if name.endswith("ar-instruct") else Answers(pad, phase.tokens, LENGTH)
        return PlannedChats(lambda chat: instruct.encode_pair(tokenizer, chat), collate, **shared)
    finder = AnswerFinder.of(tokenizer)
    if name == "tinytown-ar":
        share = ANSWERS_ALONE.get(phase.reads, 0.0)
        collate = CausalCollator(pad, rare, answers=finder, answers_alone=share)
    else:
        collate = WriteOrFill(pad, tokenizer.bos_token_id, phase.tokens, LENGTH, finder)
        if phase.reads == "stories":
            collate.writing = WRITING_LAST
            collate.window = DECISIONS
    return PlannedBatches(tokenizer, collate=collate, kinds=READS[phase.reads], **shared)


def unread_tokens(tokenizer: PreTrainedTokenizerFast, sample: int = 3_000) -> list[int]:
    """Ids that training texts do not use: bytes, and words of held-out sentences alone."""
    texts = [as_text(document("train", i, SEED)) for i in range(sample)]
    read = {i for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in ids}
    return [i for i in range(tokenizer.pad_token_id + 1, len(tokenizer)) if i not in read]


def learning_rate(name: str, step: int) -> float:
    """Of the matrices, at a step of a stage."""
    warm = min(1, (step + 1) / WARMUP)
    for phase in PHASES[name]:
        if step < phase.steps:
            return warm * (phase.first_rate + (phase.last_rate - phase.first_rate) * step / phase.steps)
        step -= phase.steps
    return PHASES[name][-1].last_rate


def make_optimizer(name: str, model: torch.nn.Module):
    """Muon and AdamW, and the schedule of their learning rates."""
    optimizer = MuonAdamW(model, 1.0)
    optimizer.param_groups[1]["lr"] = OTHERS
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(name, step))


def train_stage(out: Path, name: str, tokenizer: PreTrainedTokenizerFast, make: Callable) -> None:
    """One stage: from the last checkpoint where there is one; saved with a card."""
    if (out / name).exists():
        return
    model = make()
    work = out / f"{name}-training"
    stage = AutoregressiveStage if name in ("tinytown-ar", "tinytown-ar-instruct") else DenoisingStage
    trainer = stage(
        model=model,
        args=training_arguments(name, work),
        train_dataset=plan(name, tokenizer),
        data_collator=lambda batches: batches[0],
        processing_class=tokenizer,
        optimizers=make_optimizer(name, model),
    )
    if has_fast_bfloat16(DEVICE) and DEVICE.type == "cpu":
        model.model.compile(dynamic=True)  # whether that pays on a GPU has not been tried
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    save_stage(out, name, model, tokenizer, trainer, time.monotonic() - start)


def training_arguments(name: str, work: Path) -> TrainingArguments:
    """Of one process on whatever there is; bfloat16 where the hardware multiplies it."""
    steps = sum(phase.steps for phase in PHASES[name])
    return TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=1,
        logging_steps=min(50, steps),
        save_steps=SAVE_EVERY,
        save_total_limit=2,
        report_to=[],
        seed=SEED,
        use_cpu=DEVICE.type == "cpu",
        bf16=has_fast_bfloat16(DEVICE),
        dataloader_num_workers=WORKERS,
        dataloader_prefetch_factor=8 if WORKERS else None,
        remove_unused_columns=False,
    )


def save_stage(out: Path, name: str, model, tokenizer, trainer: Trainer, seconds: float) -> None:
    """Write the model in bfloat16 and its card; a folder of that name is always complete."""
    complete = out / f"{name}-training" / "complete"
    model.set_attn_implementation("sdpa")
    if isinstance(model, SimplexDenoiser):
        texts = answers_to_measure(tokenizer) if reads_chats(name) else stories_to_measure(tokenizer)
        choose_timesteps_(model, *texts)
    model.to(torch.bfloat16).save_pretrained(complete)
    compute_in_float32(complete)
    tokenizer.save_pretrained(complete)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    write_card(
        complete,
        model=name,
        trained_from=TRAINED_FROM[name],
        data_seed=SEED,
        phases=[asdict(phase) for phase in PHASES[name]],
        tokens=sum(phase.steps * phase.tokens for phase in PHASES[name]),
        final_loss=round(_last_loss(trainer), 3),
        minutes_of_last_run=round(seconds / 60, 1),
        device=gpu or f"{platform.machine()} CPU",
    )
    complete.rename(out / name)


def compute_in_float32(folder: Path) -> None:
    """Files are in bfloat16 to be small; who loads them, with transformers too, gets what was trained: float32."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def reads_chats(name: str) -> bool:
    """Whether a stage ends with chats."""
    return PHASES[name][-1].reads == "chats"


def choose_timesteps_(lm: SimplexDenoiser, ids: torch.Tensor, span_mask: torch.Tensor) -> None:
    """Store a denoiser's loss curve, on validation texts, and let it take its steps where the loss changes."""
    lm.eval()
    curve = measure_loss_curve(lm, ids.to(lm.device), span_mask.to(lm.device))
    lm.config.loss_curve = {key: [round(value, 4) for value in values] for key, values in curve.items()}
    lm.config.timestep_spacing = "informative"


def stories_to_measure(tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Validation stories of one length and what is to be written of them: ids and mask, (B, L)."""
    texts = stories("validation", MEASURED, SEED)
    rows = [[tokenizer.bos_token_id, *encode(tokenizer, text)] for text in texts]
    ids = torch.tensor([row[:STORY_LENGTH] for row in rows if len(row) >= STORY_LENGTH])
    return ids, after(STORY_LENGTH, STORY_LENGTH // 5).expand(ids.shape)


def answers_to_measure(tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Chats of all tasks from the validation split and their last answers: ids and mask, (B, L)."""
    chats = [
        [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.response}]
        for task in TASKS
        for example in examples(task, "validation", MEASURED // len(TASKS), SEED)
    ]
    rows = [instruct.encode_pair(tokenizer, chat) for chat in chats]
    rows = [(context, answer) for context, answer in rows if len(context) + len(answer) <= LENGTH]
    ids, lengths = padded([context + answer for context, answer in rows], tokenizer.pad_token_id)
    places = torch.arange(ids.shape[1])
    starts = torch.tensor([len(context) for context, _ in rows])
    return ids, (places >= starts[:, None]) & (places < lengths[:, None])


def _last_loss(trainer: Trainer) -> float:
    """Mean of the last tenth of the logged losses."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def write_card(folder: Path, **facts) -> None:
    """Add facts to a model's card.json."""
    path = folder / "card.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | facts, indent=1, ensure_ascii=False) + "\n")


def continue_autoregressively(folder: Path, prompts: list[str], length: int) -> list[str]:
    """What the AR model writes after each prompt, sampled at temperature 1."""
    model = MistralForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    torch.manual_seed(SEED)
    texts = []
    for start in range(0, len(prompts), 50):
        batch = ["<s>" + prompt for prompt in prompts[start : start + 50]]
        inputs = tokenizer(batch, return_tensors="pt", padding=True)
        with torch.inference_mode():
            ids = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                top_k=0,
                max_new_tokens=length,
                pad_token_id=tokenizer.pad_token_id,
            )
        texts += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def continue_by_denoising(folder: Path, prompts: list[str], length: int, steps: int = STEPS) -> list[str]:
    """What the denoiser writes after each prompt, at top-p 0.99."""
    lm = load(folder)
    texts = []
    for start in range(0, len(prompts), 50):
        batch = prompts[start : start + 50]
        seeds = range(start, start + len(batch))
        texts += [out.text for out in generate(lm, batch, length=length, steps=steps, seed=seeds, record=1)]
    return texts


def score(folder: Path, complete: Callable[[Path, list[str], int], list[str]], sampled: str) -> None:
    """Complete the first sentences of test stories and count how many become valid stories.

    Two sentences of ordinary stories; three of dense ones, in which several people have several things.
    """
    if "stories_valid" in json.loads((folder / "card.json").read_text()):
        return
    prompts = beginnings()
    dense = [dense_story(random.Random(f"test/dense/{number}"), "also") for number in range(SCORED // 2)]
    dense_prompts = [" ".join(teller.sentences[:3]) for teller in dense]
    problems = _problems(folder, complete, prompts, STORY_ROOM)
    dense_problems = _problems(folder, complete, dense_prompts, DENSE_STORY_ROOM)
    sentences = [held_out for lines in skeletons().values() for _, held_out in lines]
    write_card(
        folder,
        sentence_skeletons=len(sentences),
        skeletons_only_in_test=sum(sentences),
        sampled=sampled,
        stories_scored=SCORED,
        stories_valid_aim=AIMS[folder.name],
        stories_valid=problems.count(None) / len(problems),
        dense_stories_scored=len(dense_problems),
        dense_stories_valid=dense_problems.count(None) / len(dense_problems),
        what_was_wrong=[problem for problem in problems if problem][:5],
    )


def beginnings() -> list[str]:
    """The first two sentences of each scored story."""
    return [" ".join(split_sentences(text)[:2]) for text in stories("test", SCORED, SEED)]


def score_in_few_steps(folder: Path) -> None:
    """Count the valid stories among those that the denoiser writes in `FEW_STEPS` steps."""
    if "few_steps" in json.loads((folder / "card.json").read_text()):
        return
    complete = partial(continue_by_denoising, steps=FEW_STEPS)
    problems = _problems(folder, complete, beginnings(), STORY_ROOM)
    write_card(folder, few_steps=FEW_STEPS, stories_valid_in_few_steps=problems.count(None) / len(problems))


def _problems(folder: Path, complete: Callable, prompts: list[str], length: int) -> list[str | None]:
    """What is wrong with each completed story; None for nothing."""
    texts = complete(folder, prompts, length)
    return [verify(prompt + text) for prompt, text in zip(prompts, texts, strict=True)]


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tinytown"))
