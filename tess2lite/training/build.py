"""A recipe made ready: the model loaded and adapted, the rows encoded, the trainer waiting for `.train()`."""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from datasets import concatenate_datasets
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from ..loading import adapter_base, choose_device, find_source, load, plain_errors
from ..mask_diffusion import mask_token_id
from ..tinytown.stories import corpus
from ..tinytown.tasks import TASKS, as_chat, examples
from .autoregressive import PretrainingCollator, PretrainingTrainer, load_left_to_right
from .data import Rows, chat_rows, endless, pack, read_chats, read_column, read_text
from .mask_diffusion import MaskedTrainer
from .recipe import MaskedRecipe, PretrainingRecipe, Recipe, Training
from .trainer import DiffusionCollator, DiffusionTrainer

TINYTOWN_TEXTS = 30_000  # however long the run: a longer one must see the same rows first
TINYTOWN_CHATS = 2_000  # of each task
ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EMBEDDINGS = ["embed_tokens", "lm_head"]


def texts(recipe: Recipe, split: str = "train") -> Iterable[str]:
    """The recipe's texts, in order. split: of Tinytown; files and hub sets have only the one."""
    if recipe.data == "tinytown":
        return corpus(split, TINYTOWN_TEXTS if split == "train" else TINYTOWN_TEXTS // 50)
    suffix = Path(recipe.data).suffix
    if suffix == ".txt":
        return [read_text(recipe.data)]
    if suffix != ".jsonl" and Path(recipe.data).exists():
        raise ValueError(f"'{recipe.data}' is neither .txt nor .jsonl; rename or convert it.")
    return read_column(recipe.data, recipe.column)


def chats(recipe: Recipe, split: str = "train"):
    """The recipe's chats, a `datasets.Dataset` of `messages`."""
    world, _, task = recipe.data.partition(":")
    if world != "tinytown":
        return read_chats(recipe.data)
    if task and task not in TASKS:
        raise ValueError(f"'{recipe.data}' is no task of Tinytown; give tinytown, or tinytown: and {', '.join(TASKS)}.")
    chosen = [task] if task else list(TASKS)
    number = TINYTOWN_CHATS * len(TASKS) // len(chosen) // (1 if split == "train" else 50)
    return concatenate_datasets([as_chat(examples(one, split, number)) for one in chosen])


def build_datasets(recipe: Recipe | PretrainingRecipe, tokenizer):
    """(rows to train on, rows held out): files and Tinytown are held in memory, hub datasets streamed."""
    if recipe.column != "text" and (recipe.masking == "response" or recipe.data.endswith(("tinytown", ".txt"))):
        raise ValueError(f"column is {recipe.column!r}, but '{recipe.data}' is read without columns: leave it out.")
    if recipe.masking == "response":
        rows, held_out = _chat_rows(recipe, tokenizer)
    elif recipe.data == "tinytown" or Path(recipe.data).suffix in (".txt", ".jsonl"):
        rows, held_out = _text_rows(recipe, tokenizer)
    else:
        first = itertools.islice(pack(texts(recipe), tokenizer, recipe.length), recipe.num_eval_examples + 1)
        *held_out, _ = require_min_rows(recipe, list(first), recipe.num_eval_examples + 1)
        streamed = endless(partial(texts, recipe), tokenizer, recipe.length, recipe.num_eval_examples, recipe.seed)
        return streamed, _fixed(held_out)
    return Rows(rows, recipe.steps * recipe.batch_size, recipe.seed), _fixed(held_out)


def _text_rows(recipe: Recipe, tokenizer):
    rows = require_min_rows(recipe, list(pack(texts(recipe), tokenizer, recipe.length)))
    kept = min(recipe.num_eval_examples, len(rows) // 5)
    if recipe.data == "tinytown":  # whose bundled models have read the whole train split
        return rows, itertools.islice(
            pack(texts(recipe, "validation"), tokenizer, recipe.length), recipe.num_eval_examples
        )
    return rows[:-kept], rows[-kept:]


def _chat_rows(recipe: Recipe, tokenizer):
    rows, dropped = chat_rows(chats(recipe), tokenizer, recipe.length)
    train_rows, held_out = train_eval_split(recipe, rows, dropped, "answers")
    if recipe.data.partition(":")[0] == "tinytown":
        validation, _ = chat_rows(chats(recipe, "validation").shuffle(0), tokenizer, recipe.length)
        return rows, validation.select(range(min(len(held_out), len(validation))))
    return train_rows, held_out


def train_eval_split(recipe: Training, rows, dropped: int, what: str):
    """(rows to train on, rows held out) of encoded rows; those `dropped`, as longer than a row, are counted aloud."""
    if dropped:
        part = f"{dropped} of {dropped + len(rows)} {what}"
        print(f"{part} are longer than {recipe.length} tokens with what comes before them, and are left out.")
    rows = require_min_rows(recipe, rows, remedy="give more of them or a larger length").shuffle(0)  # files are sorted
    kept = min(recipe.num_eval_examples, len(rows) // 5)
    return rows.select(range(kept, len(rows))), rows.select(range(kept))


def require_min_rows(recipe: Training, rows, least: int = 5, remedy: str = "give more text or a smaller length"):
    """The rows, if they are."""
    if len(rows) < least:
        raise ValueError(
            f"'{recipe.data}' gives {len(rows)} rows of {recipe.length} tokens; at least {least} are needed: {remedy}."
        )
    return rows


def _fixed(rows: Iterable) -> list[dict]:
    """Held-out rows; their masks and noise never change, so that runs compare."""
    return [{**(row if isinstance(row, dict) else {"input_ids": row}), "example": j} for j, row in enumerate(rows)]


def lora_config(rank: int, matrices: list[str], whole: list[str], **more) -> LoraConfig:
    """On some matrices, beside modules that are trained whole."""
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=matrices, modules_to_save=whole, **more)


def apply_lora(lm, recipe: Recipe):
    """The model as the recipe trains it: itself, or with LoRA. The timestep embedding is trained in any case."""
    torch.manual_seed(recipe.seed)  # of LoRA's first weights
    if not recipe.lora_rank:
        return lm.float()  # at a rate of 1e-5 half precision would round every update away
    matrices = ATTENTION_AND_MLP + EMBEDDINGS * (recipe.embeddings == "lora")
    whole = ["timestep_embed"] + EMBEDDINGS * (recipe.embeddings == "trained")
    adapted = get_peft_model(lm, lora_config(recipe.lora_rank, matrices, whole))
    for parameter in (p for p in adapted.parameters() if p.requires_grad):
        parameter.data = parameter.data.float()
    # PEFT would put the base's own E and head beside their LoRA: half a gigabyte for a Mistral-7B.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def build_trainer(recipe: Recipe | PretrainingRecipe, edit: Callable | None = None) -> DiffusionTrainer:
    """Everything loaded and checked; `.train()` is what is left to do.

    edit: lm → lm, an experiment on the model before it is adapted.
    """
    given, left_to_right = training_arguments(recipe), isinstance(recipe, PretrainingRecipe)
    lm = load_left_to_right(recipe) if left_to_right else load(recipe.model, recipe.load_in_4bit, recipe.dtype)
    check_context_length(recipe, lm)
    lm = edit(lm) if edit else lm
    train_rows, held_out = build_datasets(recipe, lm.tokenizer)
    args = TrainingArguments(**given)
    shared = dict(args=args, train_dataset=train_rows, eval_dataset=held_out, processing_class=lm.tokenizer)
    if left_to_right:
        unknown = mask_token_id(lm) if recipe.objective == "masked" else None
        collator = PretrainingCollator(recipe.objective, recipe.seed, lm.tokenizer.eos_token_id, unknown)
        return PretrainingTrainer(lm, data_collator=collator, **shared)
    vars(lm.config).pop("diffusion", None)  # what it was before; a MaskedTrainer says it anew
    trainer = MaskedTrainer if isinstance(recipe, MaskedRecipe) else DiffusionTrainer
    collator = DiffusionCollator("given" if recipe.masking == "response" else recipe.masking, recipe.seed)
    return trainer(apply_lora(lm, recipe), data_collator=collator, self_conditioning=recipe.self_conditioning, **shared)


def check_context_length(recipe: Training, lm) -> None:
    """Rows longer than the context are learned when every weight is: rotary positions have no table to outgrow."""
    if lm.tokenizer is None:
        raise ValueError(f"'{recipe.model}' has no tokenizer; training needs the model's own.")
    context = lm.config.max_position_embeddings
    if recipe.length > context and recipe.lora_rank:
        raise ValueError(
            f"length is {recipe.length}; the context of '{recipe.model}' is {context}: give a smaller length, or "
            "lora_rank=0 to tune all of it to longer texts."
        )
    lm.config.max_position_embeddings = max(context, recipe.length)


def _check(recipe: Training) -> None:
    """What can be known of a run before anything is loaded."""
    if not isinstance(recipe, Training):
        raise TypeError(f"recipe is {recipe!r}; give a Recipe, or what read_recipe returns.")
    source, output = find_source(recipe.model), Path(recipe.output)
    with plain_errors(recipe.model):
        if adapter_base(source):
            raise ValueError(f"'{recipe.model}' is an adapter; merge it into its base first, or give that base.")
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as problem:
        raise ValueError(f"Nothing can be written to '{output}': {problem.strerror}; choose another output.") from None


def training_arguments(recipe: Training) -> dict:
    """Of a transformers Trainer, of a recipe that can be begun."""
    _check(recipe)
    processes, on_gpu = int(os.environ.get("WORLD_SIZE", 1)), choose_device(None).type == "cuda"
    bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    accumulated, rest = divmod(recipe.batch_size, recipe.micro_batch_size * processes)
    if rest:
        raise ValueError(
            f"batch_size is {recipe.batch_size}; "
            f"{processes} processes of {recipe.micro_batch_size} rows do not divide it."
        )
    return dict(
        output_dir=recipe.output, seed=recipe.seed, max_steps=recipe.steps, gradient_accumulation_steps=accumulated,
        per_device_train_batch_size=recipe.micro_batch_size, per_device_eval_batch_size=recipe.micro_batch_size,
        learning_rate=recipe.learning_rate, lr_scheduler_type="constant_with_warmup", warmup_steps=recipe.warmup,
        optim="paged_adamw_8bit" if recipe.load_in_4bit and on_gpu else "adamw_torch",
        bf16=bf16, fp16=on_gpu and not bf16, use_cpu=not on_gpu, logging_steps=max(1, min(25, recipe.steps // 20)),
        eval_strategy="steps", eval_steps=recipe.evaluate_every, save_steps=recipe.save_every, save_total_limit=2,
        remove_unused_columns=False, accelerator_config={"dispatch_batches": False}, report_to=[],
        # None, as transformers warns of False. Inputs are embeddings: there is nothing else to re-enter a layer by.
        gradient_checkpointing=recipe.gradient_checkpointing or None,
        gradient_checkpointing_kwargs={"use_reentrant": False} if recipe.gradient_checkpointing else None,
    )  # fmt: skip
