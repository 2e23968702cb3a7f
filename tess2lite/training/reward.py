"""Preference pairs, and a reward model trained on them by TRL's RewardTrainer."""

import random
from pathlib import Path

import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from ..chat_template import check_chat, encode_chat
from ..loading import bundled, find_source, plain_errors
from ..reward import load_classifier
from ..tinytown.tasks import PREFERENCES, preferences
from .build import ATTENTION_AND_MLP, check_context_length, lora_config, train_eval_split, training_arguments
from .data import read_records
from .recipe import RewardRecipe
from .trainer import WholeCheckpoints

TINYTOWN_PAIRS = 6_000


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
    world, _, kind = source.partition(":")
    if world == "tinytown":
        if kind not in PREFERENCES:
            known = " or tinytown:".join(PREFERENCES)
            raise ValueError(f"'{source}' is no preference of Tinytown; choose tinytown:{known}.")
        return [pair_of(record) for record in preferences("train", TINYTOWN_PAIRS, kind)]
    return read_records(source, pair_of)


def pair_rows(pairs, tokenizer, length: int, seed: int):
    """Pairs as TRL takes them, `chosen_ids` and `rejected_ids`, and how many were too long.

    Each text is followed by some PAD, as what a denoiser writes is: up to `length`, how much follows from the seed.
    """
    rows = []
    for number, pair in enumerate(pairs):
        turns = [encode_chat(tokenizer, chat, length, from_turn=-1) for chat in pair]
        if all(turns):
            rng = random.Random(f"{seed}/{number}")
            texts = [turn[0]["input_ids"] for turn in turns]
            ends = [length - ids[::-1].index(tokenizer.eos_token_id) for ids in texts]  # where PAD begins
            chosen, rejected = (ids[: rng.randint(end, length)] for ids, end in zip(texts, ends, strict=True))
            rows.append({"chosen_ids": chosen, "rejected_ids": rejected})
    return Dataset.from_list(rows), len(pairs) - len(rows)


class PreferenceTrainer(WholeCheckpoints, RewardTrainer):
    """TRL's RewardTrainer, as it is; where the score is read is kept with the model."""

    def create_model_card(self, *_args, **_kwargs):
        """None: it would speak of things that are not known here."""

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            Path(output_dir or self.args.output_dir, "reward.json").write_text('{"read_at": "last"}\n')


def prepare_reward(recipe: RewardRecipe) -> PreferenceTrainer:
    """Everything loaded and checked; `.train()` is what is left to do."""
    given, source = training_arguments(recipe), find_source(recipe.model)
    torch.manual_seed(recipe.seed)  # of the new head
    with plain_errors(recipe.model):
        model = load_classifier(source, recipe.load_in_4bit, recipe.dtype, None, new_head=True)
    check_context_length(recipe, model)
    model.name_or_path = recipe.model if recipe.model in bundled() else source
    model.config.read_at = "last"
    rows, dropped = pair_rows(read_pairs(recipe.data), model.tokenizer, recipe.length, recipe.seed)
    train_rows, held_out = train_eval_split(recipe, rows, dropped, "pairs")
    config = (
        lora_config(recipe.lora_rank, ATTENTION_AND_MLP, ["score"], task_type="SEQ_CLS") if recipe.lora_rank else None
    )
    return PreferenceTrainer(  # rows have their length: TRL shall not cut them
        model=model if config else model.float(), args=RewardConfig(max_length=None, **given), peft_config=config,
        train_dataset=train_rows, eval_dataset=held_out, processing_class=model.tokenizer,
    )  # fmt: skip
