"""Preference pairs, and a reward model trained on them by TRL's RewardTrainer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from peft import LoraConfig
from trl import RewardConfig, RewardTrainer

from . import loading
from .chats import check_chat, encode_chat
from .data import hub, json_lines
from .preparation import ATTENTION_AND_MLP, accumulated_passes, arguments, enough, fit_context, writable
from .recipe import RewardRecipe
from .reward import load_classifier
from .training import WholeCheckpoints

TINYTOWN_PAIRS = 6_000
TRL = {"gradient_checkpointing": False, "max_length": None}  # its defaults are others: here the recipe says


def pair_of(record: dict) -> tuple[list[dict], list[dict]]:
    """A preference record as two chats, the chosen and the rejected one.

    Accepted: `chosen` and `rejected`, each messages, or each an answer to `prompt`.
    """
    chats = []
    for side in ("chosen", "rejected"):
        answer = record.get(side)
        if isinstance(answer, str) and isinstance(record.get("prompt"), str):
            answer = [{"role": "user", "content": record["prompt"]}, {"role": "assistant", "content": answer}]
        if not isinstance(answer, list):
            raise ValueError(
                f"There is no preference in the columns {', '.join(record)}; give prompt, chosen and rejected, or "
                "chosen and rejected as messages."
            )
        check_chat(answer)
        if answer[-1]["role"] != "assistant":
            raise ValueError(f"The {side} chat does not end with the assistant; there is nothing to judge.")
        chats.append([{key: message[key] for key in ("role", "content")} for message in answer])
    if chats[0] == chats[1]:
        raise ValueError("Chosen and rejected are the same text; there is nothing to prefer.")
    return chats[0], chats[1]


def read_pairs(source: str) -> list[tuple[list[dict], list[dict]]]:
    """Preference pairs of "tinytown:cheerful", of a .jsonl file or of a hub dataset's train split."""
    if source.startswith("tinytown:"):
        from .tinytown.tasks import PREFERENCES, preferences

        if source.partition(":")[2] not in PREFERENCES:
            raise ValueError(
                f"'{source}' is no preference of Tinytown; choose tinytown:{' or tinytown:'.join(PREFERENCES)}."
            )
        records = enumerate(preferences("train", TINYTOWN_PAIRS, source.partition(":")[2]), 1)
    else:
        records = json_lines(source) if Path(source).suffix == ".jsonl" else enumerate(hub(source, streaming=False), 1)
    pairs = []
    for number, record in records:
        try:
            pairs.append(pair_of(record))
        except ValueError as problem:
            raise ValueError(f"Record {number} of '{source}': {problem}") from None
    return pairs


def pair_rows(pairs, tokenizer, length: int, seed: int):
    """Pairs as TRL takes them, `chosen_ids` and `rejected_ids`, and how many were too long.

    Each text is followed by some PAD, as what a denoiser writes is: up to `length`, how much follows from the seed.
    """
    from datasets import Dataset

    rows = []
    for number, pair in enumerate(pairs):
        last_turns = [encode_chat(tokenizer, chat, length, from_turn=-1) for chat in pair]
        if all(last_turns):
            rng = random.Random(f"{seed}/{number}")
            chosen, rejected = (_padded(turn[0]["input_ids"], tokenizer, rng) for turn in last_turns)
            rows.append({"chosen_ids": chosen, "rejected_ids": rejected})
    return Dataset.from_list(rows), len(pairs) - len(rows)


def _padded(ids: list[int], tokenizer, rng: random.Random) -> list[int]:
    """The row with only some of its PAD."""
    end = len(ids)
    while ids[end - 1] == tokenizer.pad_token_id:
        end -= 1
    return ids[: rng.randint(end, len(ids))]


class PreferenceTrainer(WholeCheckpoints, RewardTrainer):
    """TRL's RewardTrainer, as it is; where the score is read is kept with the model."""

    def create_model_card(self, *_args, **_kwargs):
        """None: it would speak of things that are not known here."""

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / "reward.json").write_text(json.dumps({"read_at": "last"}) + "\n")


def prepare_reward(recipe: RewardRecipe) -> PreferenceTrainer:
    """Everything loaded and checked; `.train()` is what is left to do."""
    output, accumulated = writable(recipe.output), accumulated_passes(recipe)
    source, device = loading.find_source(recipe.model), loading.choose_device(None)
    with loading.plain_errors(recipe.model):
        if loading.adapter_base(source):
            raise ValueError(f"'{recipe.model}' is an adapter; give the base that it stands on.")
        torch.manual_seed(recipe.seed)  # of the new head
        dtype = loading.choose_dtype(recipe.dtype, device)
        model = load_classifier(source, recipe.load_in_4bit, dtype, device, new_head=True)
    if model.tokenizer is None:
        raise ValueError(f"'{recipe.model}' has no tokenizer; a reward model needs the denoiser's own.")
    fit_context(recipe, model)
    model.name_or_path = recipe.model if recipe.model in loading.bundled() else str(Path(source).resolve())
    model.config.read_at = "last"
    rows, dropped = pair_rows(read_pairs(recipe.data), model.tokenizer, recipe.length, recipe.seed)
    if dropped:
        print(f"{dropped} of {dropped + len(rows)} pairs are longer than {recipe.length} tokens, and are left out.")
    enough(recipe, len(rows), 5, "give more of them or a larger length")
    rows = rows.shuffle(0)
    kept = min(recipe.held_out, len(rows) // 5)
    return PreferenceTrainer(
        model=model if recipe.lora_rank or recipe.load_in_4bit else model.float(),
        args=RewardConfig(**(TRL | arguments(recipe, output, accumulated, model))),
        train_dataset=rows.select(range(kept, len(rows))),
        eval_dataset=rows.select(range(kept)),
        processing_class=model.tokenizer,
        peft_config=_lora(recipe) if recipe.lora_rank else None,
    )


def _lora(recipe: RewardRecipe) -> LoraConfig:
    return LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_rank,
        target_modules=ATTENTION_AND_MLP,
        task_type="SEQ_CLS",
        modules_to_save=["score"],
    )
