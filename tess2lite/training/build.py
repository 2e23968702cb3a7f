"""A recipe made ready: the model loaded and adapted, the rows encoded, the trainer waiting for `.train()`."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.pytorch_utils import Conv1D

from ..loading import load
from ..pretrained.devices import choose_device
from ..pretrained.probes import check_bidirectional
from ..pretrained.sources import HUB_NAME, adapter_base, find_source, plain_errors
from ..pretrained.tokenizers import mask_token_id
from ..validation import InputError
from .autoregressive import PretrainingCollator, PretrainingTrainer, load_autoregressive
from .embeddings import center_adapted_embeddings_, center_embeddings_, lengthen_embeddings_
from .mask_diffusion import MaskedTrainer
from .muon import SHARE_OF_OTHERS, muon_factory
from .recipe import MUON, MaskedRecipe, PretrainingRecipe, Recipe, Training
from .rows import TextRecipe, build_datasets
from .timesteps import TimestepSampler, timestep_probabilities
from .trainer import DiffusionCollator, DiffusionTrainer, ResumableTrainer


def build_trainer(recipe: Training, edit: Callable | None = None) -> ResumableTrainer:
    """Returns a trainer with everything loaded and checked; `.train()` is what is left to do.

    Args:
        recipe: Of any kind but "reward".
        edit: lm → lm, an experiment on the model before it is adapted.
    """
    check_run(recipe)
    if isinstance(recipe, PretrainingRecipe):
        lm = _edited(recipe, load_autoregressive(recipe), edit)
        return PretrainingTrainer(lm, data_collator=_pretraining_collator(recipe, lm), **_shared(recipe, lm))
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe is a {type(recipe).__name__}; prepare_reward makes its trainer.")
    lm = _edited(recipe, load(recipe.model, recipe.load_in_4bit, recipe.dtype), edit)
    shared = _shared(recipe, lm)
    collator = _collator(recipe, lm)
    vars(lm.config).pop("diffusion", None)  # what it was before; a MaskedTrainer sets it again
    shared |= {"data_collator": collator, "clip_per_group": recipe.clip_per_group}
    adapted = apply_lora(lm, recipe)
    if isinstance(recipe, MaskedRecipe):
        return MaskedTrainer(adapted, **shared)
    return DiffusionTrainer(adapted, self_conditioning=recipe.self_conditioning, **shared)


def _edited(recipe: TextRecipe, lm: Any, edit: Callable | None) -> Any:
    """The loaded model, checked, as the experiment wants it."""
    check_context_length(recipe, lm)
    set_attention(recipe, lm)
    return edit(lm) if edit else lm


def _shared(recipe: TextRecipe, lm: Any) -> dict[str, Any]:
    """What every trainer is given."""
    train_rows, held_out = build_datasets(recipe, lm.tokenizer)
    return {
        "args": TrainingArguments(**training_arguments(recipe, count_steps(recipe, train_rows))),
        "train_dataset": train_rows,
        "eval_dataset": held_out,
        "processing_class": lm.tokenizer,
        "callbacks": early_stopping(recipe),
    } | optimizer_settings(recipe)


def optimizer_settings(recipe: Training) -> dict[str, Any]:
    """What a Trainer is given to make Muon; its own optimizers it knows by name."""
    if recipe.optim != MUON:
        return {}
    settings = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "share_of_others": SHARE_OF_OTHERS}
    return {"optimizer_cls_and_kwargs": (muon_factory, settings)}


def _uses_bfloat16(recipe: Training, on_gpu: bool) -> bool:
    """As the recipe says; where it says nothing, on GPUs that have it."""
    if recipe.bf16 is not None:
        return recipe.bf16
    return on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)


def _optimizer_name(recipe: Training, on_gpu: bool) -> str:
    """Of one that transformers knows; Muon's place is taken by `optimizer_settings`."""
    if recipe.optim and recipe.optim != MUON:
        return recipe.optim
    return "paged_adamw_8bit" if recipe.load_in_4bit and on_gpu else "adamw_torch"


def _pretraining_collator(recipe: PretrainingRecipe, lm: Any) -> PretrainingCollator:
    unknown = mask_token_id(lm) if recipe.objective == "masked" else None
    return PretrainingCollator(recipe.objective, recipe.seed, lm.tokenizer.eos_token_id, unknown)


def _collator(recipe: Recipe, lm: Any) -> DiffusionCollator:
    timesteps = None
    if recipe.timestep_sampling == "informative":
        curve = getattr(lm.config, "loss_curve", None)
        timesteps = TimestepSampler(timestep_probabilities(lm.config.vocab_size, curve))
    return DiffusionCollator(
        masking="given" if recipe.masking == "response" else recipe.masking,
        seed=recipe.seed,
        timesteps=timesteps,
        loss_weighting=recipe.loss_weighting,
        pad_weight=recipe.pad_weight,
        pad_id=lm.tokenizer.pad_token_id,
        batch_size=recipe.batch_size if recipe.pad_to == "longest" else None,
    )


class EarlyStopping(EarlyStoppingCallback):
    """transformers' early stopping; a run that resumes still knows how long its loss has not fallen."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **settings: Any) -> None:
        super().on_train_begin(args, state, control, **settings)
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        since_best = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        self.early_stopping_patience_counter = since_best
        control.should_training_stop = since_best >= self.early_stopping_patience  # at most one step more


def early_stopping(recipe: Training) -> list:
    """Callbacks that stop a run whose held-out loss no longer falls."""
    patience = recipe.early_stopping_patience
    return [EarlyStopping(early_stopping_patience=patience)] if patience else []


def count_steps(recipe: Training, rows: Any) -> int:
    """The recipe's optimizer steps, which follow from the rows where it gives epochs."""
    return len(rows) // recipe.batch_size if recipe.epochs else recipe.steps


def lora_targets(lm: Any) -> list[str]:
    """Names of the linear layers inside a model's backbone, 4-bit ones included."""
    layers = lm.base_model.named_modules()
    return sorted({name.rpartition(".")[2] for name, layer in layers if isinstance(layer, (torch.nn.Linear, Conv1D))})


def embedding_names(lm: Any) -> list[str]:
    """Names of the embedding and of the head, which most families call embed_tokens and lm_head."""
    names = {layer: name.rpartition(".")[2] for name, layer in lm.named_modules()}
    return [names[lm.get_input_embeddings()], names[lm.get_output_embeddings()]]


def lora_config(recipe: Training, targets: list[str], modules_to_save: list[str], **more: Any) -> LoraConfig:
    """LoRA on some layers, beside modules that are trained as whole copies."""
    return LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha or recipe.lora_rank,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets,
        modules_to_save=modules_to_save,
        **more,
    )


def apply_lora(lm: Any, recipe: Recipe) -> Any:
    """Returns the model as the recipe trains it, whole or with LoRA; the timestep embedding is always trained."""
    torch.manual_seed(recipe.seed)  # of LoRA's first weights
    if not recipe.lora_rank:
        lm.float()  # at a rate of 1e-5 half precision would round every update away
        if recipe.center_embeddings:
            center_embeddings_(lm.get_input_embeddings().weight)
            lengthen_embeddings_(lm)
        return lm
    embeddings = embedding_names(lm)
    targets = check_targets(recipe, lm) + embeddings * (recipe.embeddings == "lora")
    full_modules = ["timestep_embed"] + embeddings * (recipe.embeddings == "trained")
    adapted = get_peft_model(lm, lora_config(recipe, targets, full_modules))
    train_in_float32_(adapted)
    scale_embedding_lora_(adapted)
    if recipe.center_embeddings:
        center_adapted_embeddings_(adapted.get_input_embeddings())
    adapted.save_pretrained = partial(_save_adapter, adapted.save_pretrained, type(lm).__bases__[-1])
    return adapted


def _save_adapter(save: Callable, original: type, folder: str, **settings: Any) -> None:
    """Saves as PEFT does, but without the base's own E and head, half a gigabyte for a Mistral-7B.

    The class named in it is the base's own: PEFT's AutoPeftModel imports no other package than transformers.
    """
    save(folder, save_embedding_layers=False, **settings)
    path = Path(folder, "adapter_config.json")
    if path.exists():  # the process that writes
        config = json.loads(path.read_text(encoding="utf-8"))
        config["auto_mapping"] = {"base_model_class": original.__name__, "parent_library": original.__module__}
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def check_targets(recipe: Training, lm: Any) -> list[str]:
    """The layers that get LoRA; raises InputError if the model lacks one that the recipe names."""
    targets = lora_targets(lm)
    missing = [name for name in recipe.lora_targets if name not in targets]
    if missing:
        raise InputError(f"lora_targets names {missing[0]!r}; '{recipe.model}' has {', '.join(targets)}.")
    return list(recipe.lora_targets) or targets


def train_in_float32_(model: torch.nn.Module) -> None:
    """Make the trained weights float32: half precision rounds small updates away, and fp16 cannot be unscaled."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@torch.no_grad()
def scale_embedding_lora_(adapted: PeftModel) -> None:
    """Give the LoRA of E the size of E: PEFT draws its second factor from N(0, 1).

    A row of Mistral's E has an rms of some thousandths. With a factor of 1 a few steps of Adam move it further than
    it is long.
    """
    for module in adapted.modules():
        for factor in getattr(module, "lora_embedding_B", {}).values():
            factor.mul_(module.get_base_layer().weight.float().square().mean().sqrt())


def set_attention(recipe: Training, lm: Any) -> None:
    """Switch to the recipe's attention implementation, if it names one, and see that it is bidirectional."""
    name = recipe.attn_implementation
    if name is None:
        return
    try:
        lm.set_attn_implementation(name)
    except (ImportError, ValueError) as problem:
        raise InputError(f"attn_implementation is {name!r}: {str(problem).splitlines()[0]}") from problem
    if hasattr(lm, "embedding_matrix"):
        check_bidirectional(lm)


def check_context_length(recipe: Training, lm: Any) -> None:
    """Rows longer than the context are learned when every weight is: rotary positions have no table to outgrow."""
    if lm.tokenizer is None:
        raise InputError(f"'{recipe.model}' has no tokenizer; training needs the model's own.")
    context = lm.config.max_position_embeddings
    if recipe.length > context and recipe.lora_rank:
        raise InputError(
            f"length is {recipe.length}; the context of '{recipe.model}' is {context}: give a smaller length, or "
            "lora_rank=0 to tune all of it to longer texts."
        )
    lm.config.max_position_embeddings = max(context, recipe.length)


def check_run(recipe: Training) -> None:
    """Raise InputError for what can be known of a run before anything is loaded."""
    if not isinstance(recipe, Training):
        raise TypeError(f"recipe is {recipe!r}; give a Recipe, or what read_recipe returns.")
    sharded = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}") == "true"]
    if recipe.optim == MUON and sharded:
        raise InputError(f"optim is '{MUON}', which needs whole matrices, and {sharded[0]} cuts them; leave optim out.")
    if recipe.push_to_hub and not re.fullmatch(HUB_NAME, recipe.push_to_hub):
        raise InputError(f"push_to_hub is {recipe.push_to_hub!r}; give a repository as owner/name.")
    source = find_source(recipe.model)
    with plain_errors(recipe.model):
        if adapter_base(source):
            raise InputError(f"'{recipe.model}' is an adapter; merge it into its base first, or give that base.")
    output = Path(recipe.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as problem:
        raise InputError(f"Nothing can be written to '{output}': {problem.strerror}; choose another output.") from None
    _check_reports(recipe)
    _accumulation(recipe)


def _check_reports(recipe: Training) -> None:
    """Raise InputError if the losses cannot be reported to where the recipe says."""
    if recipe.report_to == "none":
        return
    try:
        for callback in get_reporting_integration_callbacks([recipe.report_to]):
            callback()
    except (ImportError, RuntimeError, ValueError) as problem:
        raise InputError(f"report_to is {recipe.report_to!r}: {problem}") from problem


def _accumulation(recipe: Training) -> int:
    """Forward passes per step on each process."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    accumulated, rest = divmod(recipe.batch_size, recipe.micro_batch_size * processes)
    if rest:
        raise InputError(
            f"batch_size is {recipe.batch_size}; "
            f"{processes} processes of {recipe.micro_batch_size} rows do not divide it."
        )
    return accumulated


def training_arguments(recipe: Training, steps: int) -> dict[str, Any]:
    """The arguments of a transformers Trainer for a recipe."""
    if recipe.warmup >= max(steps, 1):
        raise InputError(
            f"warmup is {recipe.warmup} of {steps} steps, as many as epochs={recipe.epochs} gives; "
            "give a smaller warmup, or a share of the steps below 1."
        )
    on_gpu = choose_device(None).type == "cuda"
    bf16 = _uses_bfloat16(recipe, on_gpu)
    keeps_best = recipe.load_best_model_at_end or recipe.early_stopping_patience > 0
    return {
        "output_dir": recipe.output,
        "seed": recipe.seed,
        "max_steps": steps,
        "gradient_accumulation_steps": _accumulation(recipe),
        "per_device_train_batch_size": recipe.micro_batch_size,
        "per_device_eval_batch_size": recipe.micro_batch_size,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.scheduler,
        "warmup_steps": recipe.warmup,
        "optim": _optimizer_name(recipe, on_gpu),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "bf16": bf16,
        "fp16": on_gpu and not bf16,
        "use_cpu": not on_gpu,
        "logging_steps": max(1, min(25, steps // 20)),
        "eval_strategy": "steps",
        "eval_steps": recipe.evaluate_every,
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "load_best_model_at_end": keeps_best,
        "metric_for_best_model": "eval_loss" if keeps_best else None,
        "greater_is_better": False if keeps_best else None,
        "remove_unused_columns": False,
        "accelerator_config": {"dispatch_batches": False},
        "report_to": [] if recipe.report_to == "none" else recipe.report_to,
        # None, as transformers warns of False. Inputs are embeddings: there is nothing else to re-enter a layer by.
        "gradient_checkpointing": recipe.gradient_checkpointing or None,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if recipe.gradient_checkpointing else None,
    }
