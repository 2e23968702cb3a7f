"""A recipe: what is trained on what, and how. The same one in a notebook, a YAML file and on several GPUs.

`Recipe` holds the paper's values as defaults; `prepare(recipe)` turns one into a `DiffusionTrainer`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from .data import Packed, Rows, endless, read_hub, read_jsonl, read_text
from .loading import load
from .training import DiffusionCollator, DiffusionTrainer

NAMED = Path(__file__).parent / "recipes"
TINYTOWN_TEXTS = 30_000  # however long the run: a longer one must see the same rows first
ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EMBEDDINGS = ["embed_tokens", "lm_head"]


@dataclass
class Recipe:
    """Adaptation of a left-to-right model to diffusion. Comments say where a default comes from."""

    model: str  # as for `tess2lite.load`
    data: str  # "tinytown", a .txt or .jsonl file, or a hub dataset (streamed)
    output: str  # folder of checkpoints and of the finished model
    column: str = "text"  # of .jsonl and hub datasets; Dolma's name
    length: int = 2048  # tokens a row; the paper's
    batch: int = 112  # rows a step, over all processes; the paper's
    rows_at_once: int = 1  # rows a forward pass, on each process; the rest is accumulated
    steps: int = 200_000  # the paper's
    learning_rate: float = 1e-5  # the paper's, for full tuning
    warmup: int = 5_000  # steps; the paper's, constant afterwards
    masking: str = "ul2"  # the paper's: a third each of short spans, long spans, prefix
    self_conditioning: float = 0.5  # share of steps; the paper's (and TESS's)
    lora_rank: int = 0  # 0: full tuning, as in the paper
    embeddings: str = "lora"  # under LoRA, of E and the head: "lora", "trained" (whole copies) or "frozen"
    load_in_4bit: bool = False  # nf4; needs lora_rank
    gradient_checkpointing: bool = False
    dtype: str | None = None  # of weights; None as in `tess2lite.load`
    seed: int = 0
    held_out: int = 64  # rows for evaluation, never trained on
    evaluate_every: int = 1_000  # steps
    save_every: int = 1_000  # steps

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, wanted = getattr(self, field.name), hints[field.name]
            if wanted is float and _reads_as_float(value):  # YAML takes 1e-4 for a word
                setattr(self, field.name, float(value))
            elif not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
                name = getattr(wanted, "__name__", str(wanted))
                raise ValueError(f"{field.name} is {value!r}; a recipe wants {name} there.")
        self._check()

    def _check(self) -> None:
        for name in ("length", "batch", "rows_at_once", "steps", "evaluate_every", "save_every", "held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more.")
        for name in ("lora_rank", "warmup", "seed"):
            if not 0 <= getattr(self, name) < 2**32:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more.")
        if self.length < 2:
            raise ValueError(f"length is {self.length}; give 2 or more: the first token of a row is never masked.")
        for name, accepted in (("masking", ("ul2", "prefix")), ("embeddings", ("lora", "trained", "frozen"))):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(accepted)}.")
        if self.load_in_4bit and not self.lora_rank:
            raise ValueError("load_in_4bit needs LoRA: 4-bit weights cannot be tuned; set lora_rank, say 64.")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup is {self.warmup} of {self.steps} steps; give fewer, or more steps.")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; give a number above 0.")
        if not 0 <= self.self_conditioning <= 1:
            raise ValueError(f"self_conditioning is {self.self_conditioning}; give a share from 0 to 1.")


def _reads_as_float(value) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def read_recipe(source: str | Path, **changes) -> Recipe:
    """A recipe from a YAML file or the name of one that comes with the package; `changes` win over its fields."""
    path = NAMED / f"{source}.yaml" if (NAMED / f"{source}.yaml").exists() else Path(source)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in NAMED.glob("*.yaml")))
        raise ValueError(f"There is no recipe '{source}'; give a YAML file or one of {names}.")
    try:
        fields = yaml.safe_load(path.read_text())
    except yaml.YAMLError as problem:
        raise ValueError(f"'{path}' is not YAML: {str(problem).splitlines()[0]}.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"'{path}' holds no recipe; write lines of `field: value`.")
    fields |= changes
    known = [field.name for field in dataclasses.fields(Recipe)]
    unknown = [name for name in fields if name not in known]
    missing = [name for name in ("model", "data", "output") if name not in fields]
    if unknown or missing:
        what = f"knows no field '{unknown[0]}'" if unknown else f"lacks '{missing[0]}'"
        raise ValueError(f"'{source}' {what}; fields are {', '.join(known)}.")
    return Recipe(**fields)


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


def datasets(recipe: Recipe, tokenizer):
    """(rows to train on, rows held out): files and Tinytown are held in memory, hub datasets streamed."""
    rows = packed = Packed(partial(texts, recipe), tokenizer, recipe.length)
    if recipe.data != "tinytown" and Path(recipe.data).suffix not in (".txt", ".jsonl"):
        held_out = list(itertools.islice(rows, recipe.held_out))
        _enough(recipe, len(held_out), recipe.held_out)
        return endless(dataclasses.replace(rows, skip=len(held_out)), recipe.seed), _fixed(held_out)
    rows = list(rows)
    _enough(recipe, len(rows), 5)
    kept = min(recipe.held_out, len(rows) // 5)
    held_out = rows[-kept:]
    if recipe.data == "tinytown":  # whose bundled models have read the whole train split
        held_out = list(dataclasses.replace(packed, texts=partial(texts, recipe, "validation")))[: recipe.held_out]
    else:
        rows = rows[:-kept]
    return Rows(rows, recipe.steps * recipe.batch, recipe.seed), _fixed(held_out)


def _enough(recipe: Recipe, rows: int, least: int) -> None:
    if rows < least:
        raise ValueError(
            f"'{recipe.data}' gives {rows} rows of {recipe.length} tokens; at least {least} are needed: "
            "give more text or a smaller length."
        )


def _fixed(rows: list[list[int]]) -> list[dict]:
    """Held-out rows; their masks and noise never change, so that runs compare."""
    return [{"input_ids": row, "example": number} for number, row in enumerate(rows)]


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


def prepare(recipe: Recipe, edit: Callable | None = None) -> DiffusionTrainer:
    """Everything loaded and checked; `.train()` is what is left to do.

    edit: lm → lm, an experiment on the model before it is adapted.
    """
    output, accumulated = _writable(recipe.output), _accumulated(recipe)
    lm = load(recipe.model, recipe.load_in_4bit, recipe.dtype)
    if lm.tokenizer is None:
        raise ValueError(f"'{recipe.model}' has no tokenizer; a recipe needs one to read text.")
    if recipe.length > lm.config.max_position_embeddings:
        raise ValueError(
            f"length is {recipe.length}; the context of '{recipe.model}' is {lm.config.max_position_embeddings}."
        )
    lm = edit(lm) if edit else lm
    train_rows, held_out = datasets(recipe, lm.tokenizer)
    return DiffusionTrainer(
        model=adapt(lm, recipe),
        args=_arguments(recipe, output, accumulated, lm),
        train_dataset=train_rows,
        eval_dataset=held_out,
        data_collator=DiffusionCollator(recipe.masking, recipe.seed),
        processing_class=lm.tokenizer,
        self_conditioning=recipe.self_conditioning,
    )


def _writable(output: str) -> Path:
    path = Path(output)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / ".writable").touch()
        (path / ".writable").unlink()
    except OSError as problem:
        raise ValueError(f"Nothing can be written to '{output}': {problem.strerror}; choose another output.") from None
    return path


def _accumulated(recipe: Recipe) -> int:
    """Forward passes of each process in one step."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    accumulated, rest = divmod(recipe.batch, recipe.rows_at_once * processes)
    if rest:
        raise ValueError(
            f"batch is {recipe.batch}, which {processes} processes of {recipe.rows_at_once} rows at once do not divide."
        )
    return accumulated


def _arguments(recipe: Recipe, output: Path, accumulated: int, lm) -> TrainingArguments:
    on_gpu = lm.device.type == "cuda"
    # Inputs are embeddings: there is nothing else to re-enter a checkpointed layer by.
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
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
