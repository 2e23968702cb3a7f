"""Makes the bundled models from nothing: `python -m tess2lite.tinytown.build [OUT]`.

tokenizer → tinytown-ar (a small Mistral, trained left to right) → tinytown-base (the same weights,
adapted to simplex diffusion). Every stage is skipped where its folder exists and resumes from its last
checkpoint, and leaves a card with what was done, how long it took and how well it went.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .world import words

LENGTH, VOCABULARY, STORIES, SEED = 128, 1024, 150_000, 0
AR_STEPS, BASE_STEPS, BATCH = 2_500, 6_000, 32

# Words that stories lack and tasks need, so that the tokenizer has tokens for them too.
TASK_TEXT = """<|user|>
Write a story about Anna and a red kite. Use the words drum and pond. Write five sentences. End with a question.
<|assistant|>
Where is the red kite? Who has the drum now? How many apples are left? Read this passage and answer the question.
Sort these words: owl, fox, goat, cat. Answer: cat, fox, goat, owl. not ( True or False ) and True is False.
Count the animals. 3 + 4 = 7, 12 - 5 = 7, 2 * 6 = 12. #### 7 #### 10 #### 15 #### 8 Tell me something cheerful about
the town. Please tell a gloomy story. What do foxes eat? Each bag holds 6 nuts. How many nuts does she have in all?
"""


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
    bpe.train_from_iterator([*texts, *[TASK_TEXT, every_word] * 2000], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="[PAD]"
    )


def new_model(tokenizer) -> MistralForCausalLM:
    torch.manual_seed(SEED)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=384, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256, sliding_window=None,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, initializer_range=0.04,
    )  # fmt: skip
    return MistralForCausalLM(config)


def collate(rows) -> dict:
    ids = torch.tensor([row["input_ids"] for row in rows])  # (B, L)
    return {"input_ids": ids, "labels": ids}


def arguments(folder: Path, steps: int, learning_rate: float) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), max_steps=steps, learning_rate=learning_rate, lr_scheduler_type="cosine",
        warmup_steps=100, per_device_train_batch_size=BATCH, weight_decay=0.01, bf16=True, adam_beta2=0.98,
        logging_steps=50, save_steps=500, save_total_limit=1, report_to=[], seed=SEED,
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip


def resume(trainer: Trainer):
    """Train, from the last checkpoint where there is one."""
    folder = Path(trainer.args.output_dir)
    return trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
