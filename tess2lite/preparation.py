"""A recipe made ready: the model loaded and adapted, the rows encoded, the trainer waiting for `.train()`."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from .chats import chat_rows, read_chats
from .data import Packed, Rows, endless, read_hub, read_jsonl, read_text
from .loading import load
from .masked import MaskedTrainer
from .pretraining import PretrainingTrainer, collator, load_left_to_right
from .recipe import MaskedRecipe, PretrainingRecipe, Recipe, Training
from .training import DiffusionCollator, DiffusionTrainer

TINYTOWN_TEXTS = 30_000  # however long the run: a longer one must see the same rows first
TINYTOWN_CHATS = 2_000  # of each task
ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EMBEDDINGS = ["embed_tokens", "lm_head"]


def texts(recipe: Recipe, split: str = "train") -> Iterable[str]:
    """The recipe's texts, in order. split: of Tinytown; files and hub sets have only the one."""
    if recipe.data == "tinytown":
        from .tinytown.stories import corpus

        return corpus(split, TINYTOWN_TEXTS if split == "train" else TINYTOWN_TEXTS // 50)
    suffix = Path(recipe.data).suffix
    if suffix not in (".txt", ".jsonl") and Path(recipe.data).exists():
        raise ValueError(f"'{recipe.data}' is neither .txt nor .jsonl; rename or convert it.")
    if suffix == ".txt":
        return [read_text(recipe.data)]
    return read_jsonl(recipe.data, recipe.column) if suffix == ".jsonl" else read_hub(recipe.data, recipe.column)


def chats(recipe: Recipe, split: str = "train"):
    """The recipe's chats, a `datasets.Dataset` of `messages`."""
    world, _, task = recipe.data.partition(":")
    if world != "tinytown":
        return read_chats(recipe.data)
    from datasets import concatenate_datasets

    from .tinytown.tasks import TASKS, as_chat, examples

    if task and task not in TASKS:
        raise ValueError(
            f"'{recipe.data}' is no task of Tinytown; choose tinytown, or tinytown: and {', '.join(TASKS)}."
        )
    number = TINYTOWN_CHATS * (len(TASKS) if task else 1) // (1 if split == "train" else 50)
    return concatenate_datasets([as_chat(examples(one, split, number)) for one in ([task] if task else TASKS)])


def chat_datasets(recipe: Recipe, tokenizer):
    """(rows to train on, rows held out) of chats; turns longer than a row are dropped, and counted aloud."""
    rows, dropped = chat_rows(chats(recipe), tokenizer, recipe.length)
    if dropped:
        print(
            f"{dropped} of {dropped + len(rows)} answers are longer than {recipe.length} tokens with what comes before "
            "them, and are left out."
        )
    enough(recipe, len(rows), 5, "give more of them or a larger length")
    kept = min(recipe.held_out, len(rows) // 5)
    if recipe.data.partition(":")[0] == "tinytown":
        held_out, _ = chat_rows(chats(recipe, "validation").shuffle(0), tokenizer, recipe.length)
        held_out = held_out.select(range(min(kept, len(held_out))))
    else:
        rows = rows.shuffle(0)  # files are sorted by source or by task
        held_out, rows = rows.select(range(kept)), rows.select(range(kept, len(rows)))
    return Rows(rows, recipe.steps * recipe.batch, recipe.seed), _fixed(held_out)


def datasets(recipe: Recipe, tokenizer):
    """(rows to train on, rows held out): files and Tinytown are held in memory, hub datasets streamed."""
    if recipe.masking == "response":
        return chat_datasets(recipe, tokenizer)
    rows = packed = Packed(partial(texts, recipe), tokenizer, recipe.length)
    if recipe.data != "tinytown" and Path(recipe.data).suffix not in (".txt", ".jsonl"):
        held_out = list(itertools.islice(rows, recipe.held_out))
        enough(recipe, len(held_out), recipe.held_out)
        return endless(dataclasses.replace(rows, skip=len(held_out)), recipe.seed), _fixed(held_out)
    rows = list(rows)
    enough(recipe, len(rows), 5)
    kept = min(recipe.held_out, len(rows) // 5)
    held_out = rows[-kept:]
    if recipe.data == "tinytown":  # whose bundled models have read the whole train split
        held_out = list(dataclasses.replace(packed, texts=partial(texts, recipe, "validation")))[: recipe.held_out]
    else:
        rows = rows[:-kept]
    return Rows(rows, recipe.steps * recipe.batch, recipe.seed), _fixed(held_out)


def enough(recipe: Training, rows: int, least: int, remedy: str = "give more text or a smaller length") -> None:
    if rows < least:
        raise ValueError(
            f"'{recipe.data}' gives {rows} rows of {recipe.length} tokens; at least {least} are needed: {remedy}."
        )


def _fixed(rows: Iterable) -> list[dict]:
    """Held-out rows; their masks and noise never change, so that runs compare."""
    rows = [row if isinstance(row, dict) else {"input_ids": row} for row in rows]
    return [{**row, "example": number} for number, row in enumerate(rows)]


def adapt(lm, recipe: Recipe):
    """The model as the recipe trains it: itself, or with LoRA. The timestep embedding is trained in any case."""
    if getattr(lm, "peft_config", None):
        raise ValueError(
            f"'{recipe.model}' is an adapter; merge it into its base first, then train on the merged model."
        )
    torch.manual_seed(recipe.seed)  # of LoRA's first weights
    if not recipe.lora_rank:
        return lm.float()  # at a rate of 1e-5 half precision would round every update away
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_rank,
        target_modules=ATTENTION_AND_MLP + EMBEDDINGS * (recipe.embeddings == "lora"),
        modules_to_save=["timestep_embed"] + EMBEDDINGS * (recipe.embeddings == "trained"),
    )
    adapted = get_peft_model(lm, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def prepare(recipe: Recipe | PretrainingRecipe, edit: Callable | None = None) -> DiffusionTrainer:
    """Everything loaded and checked; `.train()` is what is left to do.

    edit: lm → lm, an experiment on the model before it is adapted.
    """
    output, accumulated = writable(recipe.output), accumulated_passes(recipe)
    left_to_right = isinstance(recipe, PretrainingRecipe)
    lm = load_left_to_right(recipe) if left_to_right else load(recipe.model, recipe.load_in_4bit, recipe.dtype)
    if lm.tokenizer is None:
        raise ValueError(f"'{recipe.model}' has no tokenizer; a recipe needs one to read text.")
    fit_context(recipe, lm)
    lm = edit(lm) if edit else lm
    train_rows, held_out = datasets(recipe, lm.tokenizer)
    shared = {
        "args": TrainingArguments(**arguments(recipe, output, accumulated, lm)),
        "train_dataset": train_rows,
        "eval_dataset": held_out,
        "processing_class": lm.tokenizer,
    }
    if left_to_right:
        return PretrainingTrainer(lm, data_collator=collator(lm, recipe.objective, recipe.seed), **shared)
    vars(lm.config).pop("diffusion", None)  # what it was before; a MaskedTrainer says it anew
    return (MaskedTrainer if isinstance(recipe, MaskedRecipe) else DiffusionTrainer)(
        model=adapt(lm, recipe),
        data_collator=DiffusionCollator("given" if recipe.masking == "response" else recipe.masking, recipe.seed),
        self_conditioning=recipe.self_conditioning,
        **shared,
    )


def fit_context(recipe: Training, lm) -> None:
    """Rows longer than the context are learned when every weight is: rotary positions have no table to outgrow."""
    context = lm.config.max_position_embeddings
    if recipe.length > context and recipe.lora_rank:
        raise ValueError(
            f"length is {recipe.length}; the context of '{recipe.model}' is {context}: give a smaller length, or "
            "lora_rank=0 to tune all of it to longer texts."
        )
    lm.config.max_position_embeddings = max(context, recipe.length)


def writable(output: str) -> Path:
    path = Path(output)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / ".writable").touch()
        (path / ".writable").unlink()
    except OSError as problem:
        raise ValueError(f"Nothing can be written to '{output}': {problem.strerror}; choose another output.") from None
    return path


def accumulated_passes(recipe: Training) -> int:
    """Forward passes of each process in one step."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    accumulated, rest = divmod(recipe.batch, recipe.rows_at_once * processes)
    if rest:
        raise ValueError(
            f"batch is {recipe.batch}, which {processes} processes of {recipe.rows_at_once} rows at once do not divide."
        )
    return accumulated


def arguments(recipe: Training, output: Path, accumulated: int, lm) -> dict:
    """Of a transformers Trainer."""
    on_gpu = lm.device.type == "cuda"
    # Inputs are embeddings: there is nothing else to re-enter a checkpointed layer by.
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return dict(
        output_dir=str(output),
        max_steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=recipe.warmup,
        per_device_train_batch_size=recipe.rows_at_once,
        per_device_eval_batch_size=recipe.rows_at_once,
        gradient_accumulation_steps=accumulated,
        bf16=on_gpu and torch.cuda.is_bf16_supported(including_emulation=False),
        fp16=on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False),
        use_cpu=lm.device.type == "cpu",
        optim="paged_adamw_8bit" if recipe.load_in_4bit and lm.device.type == "cuda" else "adamw_torch",
        logging_steps=max(1, min(25, recipe.steps // 20)),
        eval_strategy="steps",
        eval_steps=recipe.evaluate_every,
        save_steps=recipe.save_every,
        save_total_limit=2,
        remove_unused_columns=False,
        accelerator_config={"dispatch_batches": False},
        report_to=[],
        seed=recipe.seed,
        **(checkpointing if recipe.gradient_checkpointing else {}),
    )
