"""Preference pairs, and a reward model trained on them by TRL's RewardTrainer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from trl import RewardConfig, RewardTrainer

from ..chat_template import encode_chat
from ..pretrained.reward_models import load_classifier
from ..pretrained.sources import bundled, find_source, plain_errors
from ..tinytown.tasks import PREFERENCES, preferences
from ..validation import InputError
from .build import (
    check_context_length,
    check_run,
    check_targets,
    early_stopping,
    lora_config,
    optimizer_settings,
    set_attention,
    train_in_float32_,
    training_arguments,
)
from .checkpoints import CompleteCheckpoints, write_atomically
from .data import split_rows
from .forms import Chat, opening, pair_of
from .recipe import RewardRecipe
from .rows import require_min_rows, say_dropped
from .sources import Reader, Source, parse_sources

TINYTOWN_PAIRS = 6_000

Pair = tuple[Chat, Chat]


def read_pairs(source: str | Source) -> list[Pair]:
    """Returns the preference pairs of "tinytown:cheerful", or of a file, folder or hub dataset."""
    source = source if isinstance(source, Source) else Source(source)
    if not source.is_tinytown:
        return list(Reader(source, pair_of))
    kind = source.path.partition(":")[2]
    if kind not in PREFERENCES:
        choices = " or tinytown:".join(PREFERENCES)
        raise InputError(f"'{source.path}' is not a preference of Tinytown; choose tinytown:{choices}.")
    return [pair_of(record) for record in preferences("train", TINYTOWN_PAIRS, kind)]


def pair_rows(pairs: list[Pair], tokenizer: Any, length: int, seed: int) -> tuple[Dataset, int]:
    """Encodes pairs as TRL takes them.

    Each text is followed by some PAD, as what a denoiser writes is: up to `length`, how much follows from the seed.

    Returns:
        A Dataset of `chosen_ids`, `rejected_ids` and `opening` (the chat's first question), and how many pairs
        were too long.
    """
    rows = []
    for number, pair in enumerate(pairs):
        turns = [encode_chat(tokenizer, chat, length, from_turn=-1) for chat in pair]
        if not all(turns):
            continue
        rng = random.Random(f"{seed}/{number}")
        chosen, rejected = (_with_some_padding(turn[0]["input_ids"], tokenizer, rng) for turn in turns)
        rows.append({"chosen_ids": chosen, "rejected_ids": rejected, "opening": opening(pair[0])})
    return Dataset.from_list(rows), len(pairs) - len(rows)


def _with_some_padding(ids: list[int], tokenizer: Any, rng: random.Random) -> list[int]:
    length = len(ids)
    end = length - ids[::-1].index(tokenizer.eos_token_id)  # where PAD begins
    return ids[: rng.randint(end, length)]


class PreferenceTrainer(CompleteCheckpoints, RewardTrainer):
    """TRL's RewardTrainer, as it is; where the score is read is kept with the model."""

    def create_model_card(self, *_args: Any, **_kwargs: Any) -> None:
        """None: it would speak of things that are not known here."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.require_finite_loss(loss[0] if isinstance(loss, tuple) else loss)
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            write_atomically(Path(output_dir or self.args.output_dir, "reward.json"), '{"score_position": "last"}\n')


def prepare_reward(recipe: RewardRecipe) -> PreferenceTrainer:
    """Returns a trainer with everything loaded and checked; `.train()` is what is left to do."""
    check_run(recipe)
    source = find_source(recipe.model)
    torch.manual_seed(recipe.seed)  # of the new head
    with plain_errors(recipe.model):
        model = load_classifier(source, recipe.load_in_4bit, recipe.dtype, None, new_head=True)
    check_context_length(recipe, model)
    set_attention(recipe, model)
    tokenizer = model.tokenizer
    model.name_or_path = recipe.model if recipe.model in bundled() else source
    model.config.score_position = "last"
    train_rows, held_out = _split_pairs(recipe, tokenizer)
    if recipe.lora_rank:
        config = lora_config(recipe, check_targets(recipe, model), ["score"], task_type="SEQ_CLS")
        model = get_peft_model(model, config)
        train_in_float32_(model)
    else:
        model = model.float()
    steps = recipe.steps or max(1, round(recipe.epochs * len(train_rows) / recipe.batch_size))
    return PreferenceTrainer(
        model=model,
        args=RewardConfig(max_length=None, **training_arguments(recipe, steps)),  # TRL must not cut the rows
        train_dataset=train_rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        callbacks=early_stopping(recipe),
        **optimizer_settings(recipe),
    )


def _split_pairs(recipe: RewardRecipe, tokenizer: Any) -> tuple[Dataset, Dataset]:
    """Pairs to train on and pairs held out, no question in both."""
    sources = parse_sources(recipe.data)
    if any(source.weight is not None for source in sources):
        raise InputError("data gives weights; sets of pairs are trained on together: leave the weights out.")
    pairs: list[Pair] = []
    for source in sources:
        pairs += read_pairs(source)
    rows, dropped = pair_rows(pairs, tokenizer, recipe.length, recipe.seed)
    say_dropped(recipe, dropped, len(rows), "pairs")
    require_min_rows(recipe, len(rows), remedy="give more of them or a larger length")
    openings = rows["opening"]
    groups = openings if len(set(openings)) >= 5 else [str(ids) for ids in rows["chosen_ids"]]
    train, held_out = split_rows(groups, recipe.num_eval_examples)
    rows = rows.remove_columns("opening")
    return rows.select(train).shuffle(0), rows.select(held_out)
