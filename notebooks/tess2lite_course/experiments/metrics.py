"""What a finding measures of a model, once a seed: numbers by name."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from tess2lite.generation import generate
from tess2lite.hooks import NoSelfConditioning
from tess2lite.loading import bundled
from tess2lite.tinytown.language import split_sentences
from tess2lite.tinytown.stories import corpus, stories
from tess2lite.tinytown.tasks import score
from tess2lite.tinytown.world import verify
from tess2lite.tokens import encode
from tess2lite.training.data import pack

from . import instruct
from .early_stopping import Bystander
from .instruct import continued as left_to_right
from .text_metrics import corpus_perplexity, distinct, perplexity

JUDGE = "tinytown-ar"
BATCH = 50  # texts at once
CONTEXT = 128  # of Tinytown's models


@dataclass
class Subject:
    """A model, and how texts are drawn from it. trainer: of the run that made it, None where it was loaded whole.

    halted: look at each text where halting would have stopped it, with this patience; 0 for never.
    """

    lm: object
    trainer: object = None
    steps: int = 50
    length: int | None = None
    conditioned: bool = True
    halted: int = 0

    def write(self, prompts: list, seeds: list[int]) -> list[tuple[str, int]]:
        """(text, steps it took) for each prompt."""
        if not hasattr(self.lm, "embedding_matrix"):
            return [(left_to_right(self.lm, prompt), 0) for prompt in prompts]
        written = []
        for start in range(0, len(prompts), BATCH):
            some, hooks = prompts[start : start + BATCH], [] if self.conditioned else [NoSelfConditioning()]
            bystander = Bystander(len(some), self.lm.tokenizer)
            hooks += [bystander] if self.halted else []
            settings = {"seed": seeds[start : start + BATCH], "length": self.length, "hooks": hooks}
            outs = generate(self.lm, some, self.steps, **settings, record=1, progress=False)
            written += (
                [(out.text, self.steps) for out in outs]
                if not self.halted
                else [tuple(reversed(row[self.halted])) for row in bystander.halted]
            )
        return written


def loss(subject: Subject, **_) -> dict[str, float]:
    """The last held-out loss of the run's own rows, and the one with every mask a prefix's."""
    trainer = subject.trainer
    last = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    trainer.grid_masking = "prefix"
    return {"loss": last, "loss after a prefix": trainer.evaluate()["eval_loss"]}


def long_loss(subject: Subject, prompts: int, **_) -> dict[str, float]:
    """Held-out loss on rows as long as the context, whatever length the run was trained on."""
    rows = list(pack(corpus("validation", 4 * prompts), subject.lm.tokenizer, CONTEXT))[:prompts]
    rows = [{"input_ids": row, "example": j} for j, row in enumerate(rows)]
    return {"loss at 128 tokens": subject.trainer.evaluate(rows)["eval_loss"]}


def told(subject: Subject, prompts: int, seed: int, **_) -> dict[str, float]:
    """Test stories continued after two sentences: how many are valid, perplexity under the AR judge, dist-2.

    Of perplexities it is the logarithm that is compared: a single broken word may multiply one.
    """
    tellable = [" ".join(split_sentences(text)[:2]) for text in stories("test", prompts, seed)]
    begun = time.process_time()  # a shared machine's clock says more of the others
    written = subject.write(tellable, [seed * 10_000 + i for i in range(prompts)])
    seconds, texts = time.process_time() - begun, [text for text, _ in written]
    judge = AutoModelForCausalLM.from_pretrained(bundled()[JUDGE], use_safetensors=True).eval()
    judged = corpus_perplexity(perplexity(judge, subject.lm.tokenizer, texts, tellable))
    valid = [verify(prompt + text) is None for prompt, text in zip(tellable, texts, strict=True)]
    return {
        "valid stories": statistics.mean(valid),
        "perplexity": judged,
        "log-perplexity": math.log(judged),
        "dist-2": distinct(texts, 2),
        "steps": statistics.mean(steps for _, steps in written),
        "CPU seconds a text": seconds / prompts,
    }


def answered(subject: Subject, prompts: int, seed: int, tasks: list[str]) -> dict[str, float]:
    """Accuracy on each task's test questions, and seconds an answer."""
    scores, begun = {}, time.process_time()
    for task in tasks:
        asked = instruct.test_examples(task, subject.lm.tokenizer, CONTEXT, seed, prompts)
        chats = [[{"role": "user", "content": example.prompt}] for example in asked]
        written = subject.write(chats, [seed * 10_000 + i for i in range(len(chats))])
        for example, (text, _) in zip(asked, written, strict=True):
            scores.setdefault(instruct.kind(example), []).append(score(example, text))
    number = sum(map(len, scores.values()))
    seconds = {"CPU seconds an answer": (time.process_time() - begun) / number}
    return {task: statistics.mean(values) for task, values in scores.items()} | seconds


def timed(subject: Subject, seed: int, lengths: list[int], **_) -> dict[str, float]:
    """Seconds to write so many tokens after a short prompt; the AR model with its KV cache, and never ending early."""
    lm, seconds = subject.lm, {}
    lm.config.max_position_embeddings = 2 * max(lengths)  # rotary positions have no table to outgrow
    ids = torch.tensor([[lm.tokenizer.bos_token_id, *encode(lm.tokenizer, "Tom had a drum.")]])
    for length in lengths:
        begun = time.monotonic()
        if hasattr(lm, "embedding_matrix"):
            generate(lm, "Tom had a drum.", subject.steps, seed=seed, length=length, record=1, progress=False)
        else:
            exactly = {"min_new_tokens": length, "max_new_tokens": length, "pad_token_id": lm.tokenizer.pad_token_id}
            with torch.inference_mode():
                lm.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **exactly)
        seconds[f"seconds for {length}"] = time.monotonic() - begun
    return seconds


MEASURES = {measure.__name__: measure for measure in (loss, long_loss, told, answered, timed)}
FEWER_IS_BETTER = ("loss", "perplexity", "log-perplexity", "seconds", "CPU seconds")  # metrics that begin so
