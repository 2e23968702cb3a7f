"""Makes the bundled models from nothing: `python -m tess2lite_course.experiments.build [OUT]`.

corpus and tokenizer → tinytown-ar (a small Mistral, trained left to right) → tinytown-base (the same weights,
adapted to simplex diffusion) → tinytown-instruct (tuned on chats of all tasks, beside an AR model that is tuned on
the same ones) → tinytown-reward and tinytown-reward-brief (adapters that judge its answers). A stage whose folder
exists is skipped, one that was interrupted goes on from its last checkpoint, and each leaves a card with what was
done, how long it took and how well it went.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerState,
    TrainingArguments,
)

from tess2lite.generation import generate
from tess2lite.loading import load
from tess2lite.tinytown.language import skeletons, split_sentences, words
from tess2lite.tinytown.stories import corpus, stories
from tess2lite.tinytown.world import verify
from tess2lite.training.autoregressive import PretrainingCollator, PretrainingTrainer
from tess2lite.training.data import Rows, pack
from tess2lite.training.trainer import DiffusionCollator, DiffusionTrainer, last_checkpoint

from . import instruct, rewards
from .muon import MuonAdamW

SEED, LENGTH, VOCABULARY, DOCUMENTS = 0, 128, 1024, 150_000
SCORED = 200  # test stories
EOS = 2
AIMS = {"tinytown-ar": 0.95, "tinytown-base": 0.85}  # share of valid stories


@dataclass(frozen=True)
class Phase:
    """A stretch of training with a cosine of its own."""

    steps: int
    batch: int
    learning_rate: float


PHASES = {
    "tinytown-ar": [Phase(2_500, 32, 6e-3)],
    "tinytown-base": [Phase(4_000, 24, 5e-3)],
    "tinytown-instruct": [Phase(3_600, 24, 3e-3)],
    "tinytown-ar-instruct": [Phase(3_600, 24, 3e-3)],  # to compare with; not bundled
}

TRAINED_FROM = {
    "tinytown-ar": "nothing",
    "tinytown-base": "tinytown-ar",
    "tinytown-instruct": "tinytown-base",
    "tinytown-ar-instruct": "tinytown-ar",
}

# Words that stories lack and tasks need, so that the tokenizer has tokens for them too.
TASK_TEXT = """<|user|>
Write a story about Anna and a red kite. Use the words drum and pond. Write five sentences. End with a question.
<|assistant|>
Where is the red kite? Who has the drum now? How many apples are left? Read this passage and answer the question.
Sort these words: owl, fox, goat, cat. Answer: cat, fox, goat, owl. not ( True or False ) and True is False.
Count the animals. 3 + 4 = 7, 12 - 5 = 7, 2 * 6 = 12. #### 7 #### 10 #### 15 #### 8 Tell me something cheerful about
the town. Please tell a gloomy story. What do foxes eat? Each bag holds 6 nuts. How many nuts does she have in all?
"""


def build(out: Path) -> None:
    """All stages, each skipped where it is done."""
    tokenizer, rows = prepare(out)
    causal = PretrainingCollator("causal", SEED, EOS)
    train(out, "tinytown-ar", lambda: new_model(tokenizer), PretrainingTrainer, causal, tokenizer, rows)
    denoised = DiffusionCollator("ul2", SEED)
    train(out, "tinytown-base", lambda: load(out / "tinytown-ar"), DiffusionTrainer, denoised, tokenizer, rows)
    chats = instruct.rows(tokenizer, LENGTH, SEED)
    given = DiffusionCollator("given", SEED)
    train(out, "tinytown-instruct", lambda: load(out / "tinytown-base"), DiffusionTrainer, given, tokenizer, chats)
    train(
        out, "tinytown-ar-instruct", lambda: MistralForCausalLM.from_pretrained(out / "tinytown-ar"),
        PretrainingTrainer, causal, tokenizer, chats,
    )  # fmt: skip
    instruct.score_models(out, LENGTH)
    for name in rewards.KINDS:
        rewards.build_reward(out, name, LENGTH)
    score(out / "tinytown-ar", continue_left_to_right, "left to right, temperature 1")
    score(out / "tinytown-base", continue_by_denoising, "100 diffusion steps, top-p 0.99, temperature 1")


def prepare(out: Path) -> tuple[PreTrainedTokenizerFast, list[list[int]]]:
    """A tokenizer made from the corpus, and the corpus in packed rows."""
    texts = corpus("train", DOCUMENTS, SEED)
    if not (out / "tokenizer").exists():
        train_tokenizer(texts[:20_000]).save_pretrained(out / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    return tokenizer, list(pack(tqdm(texts, desc="packing the corpus", leave=False), tokenizer, LENGTH))


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text can be encoded, Tinytown's words are mostly one token each."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "[PAD]"]
    every_word = " ".join(" ".join(w) for w in words().values())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator([*texts, *[TASK_TEXT, every_word] * 20], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="[PAD]"
    )


def new_model(tokenizer) -> MistralForCausalLM:
    torch.manual_seed(SEED)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=384, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=LENGTH, sliding_window=None,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, initializer_range=0.04,
    )  # fmt: skip
    return MistralForCausalLM(config)


def train(out: Path, name: str, make, trainer_class, collator, tokenizer, rows: list[list[int]]) -> None:
    """One stage: train phase by phase, from the last checkpoint where there is one, and save with a card."""
    if (out / name).exists():
        return
    model, losses, start = make(), [], time.monotonic()
    for number, phase in enumerate(PHASES[name]):
        work = out / f"{name}-training" / f"phase-{number}"
        trainer = trainer_class(
            model=model,
            args=_arguments(work, phase, number),
            train_dataset=Rows(rows, phase.steps * phase.batch, SEED + number),
            data_collator=collator,
            processing_class=tokenizer,
            optimizers=(MuonAdamW(model, phase.learning_rate), None),
        )
        newest = last_checkpoint(work)
        if newest and newest.endswith(f"-{phase.steps}"):  # this phase is done: only its weights are needed
            trainer._load_from_checkpoint(newest)
            trainer.state = TrainerState.load_from_json(f"{newest}/trainer_state.json")
        else:
            trainer.train(resume_from_checkpoint=newest)
        losses.append(round(_last_loss(trainer), 3))
    whole = out / f"{name}-training" / "whole"
    model.save_pretrained(whole)
    tokenizer.save_pretrained(whole)
    write_card(
        whole,
        model=name,
        trained_from=TRAINED_FROM[name],
        data_seed=SEED,
        **({"examples": instruct.EXAMPLES} if name.endswith("instruct") else {"documents": DOCUMENTS}),
        phases=[asdict(phase) for phase in PHASES[name]],
        tokens=sum(phase.steps * phase.batch * LENGTH for phase in PHASES[name]),
        final_losses=losses,
        minutes_of_last_run=round((time.monotonic() - start) / 60, 1),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
    )
    whole.rename(out / name)  # a folder of that name is always whole


def _arguments(folder: Path, phase: Phase, number: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), max_steps=phase.steps, learning_rate=phase.learning_rate, lr_scheduler_type="cosine",
        warmup_steps=50, per_device_train_batch_size=phase.batch, bf16=torch.cuda.is_available(),
        logging_steps=min(50, phase.steps), save_steps=250, save_total_limit=2, report_to=[], seed=SEED + number,
        use_cpu=not torch.cuda.is_available(), remove_unused_columns=False,
    )  # fmt: skip


def _last_loss(trainer: Trainer) -> float:
    """Mean of the last tenth of the logged losses."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def write_card(folder: Path, **facts) -> None:
    """Adds facts to a model's card.json."""
    path = folder / "card.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | facts, indent=1, ensure_ascii=False) + "\n")


def continue_left_to_right(folder: Path, prompts: list[str]) -> list[str]:
    """What the AR model writes after each prompt, sampled at temperature 1."""
    model = MistralForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    torch.manual_seed(SEED)
    inputs = tokenizer(["<s>" + prompt for prompt in prompts], return_tensors="pt", padding=True)
    room = LENGTH - inputs["input_ids"].shape[1]
    with torch.inference_mode():
        ids = model.generate(
            **{key: inputs[key] for key in ("input_ids", "attention_mask")}, do_sample=True, top_k=0,
            max_new_tokens=room, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    return tokenizer.batch_decode(ids[:, -room:], skip_special_tokens=True)


def continue_by_denoising(folder: Path, prompts: list[str]) -> list[str]:
    """What the denoiser writes after each prompt, in 100 steps at top-p 0.99."""
    lm, texts = load(folder), []
    for start in range(0, len(prompts), 50):
        batch = prompts[start : start + 50]
        texts += [out.text for out in generate(lm, batch, seed=range(start, start + len(batch)))]
    return texts


def score(folder: Path, complete, sampled: str) -> None:
    """Completes the first two sentences of test stories and counts how many become valid stories."""
    if "stories_valid" in json.loads((folder / "card.json").read_text()):
        return
    prompts = [" ".join(split_sentences(text)[:2]) for text in stories("test", SCORED, SEED)]
    problems = [verify(prompt + text) for prompt, text in zip(prompts, complete(folder, prompts), strict=True)]
    sentences = [held_out for lines in skeletons().values() for _, held_out in lines]
    write_card(
        folder,
        sentence_skeletons=len(sentences),
        skeletons_only_in_test=sum(sentences),
        sampled=sampled,
        stories_scored=SCORED,
        stories_valid_aim=AIMS[folder.name],
        stories_valid=sum(problem is None for problem in problems) / SCORED,
        what_was_wrong=[problem for problem in problems if problem][:5],
    )


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tinytown"))
