"""What an experiment measures of a model, once per seed: numbers, and scores of answers, by name."""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM

from tess2lite.chat_template import chat_prompt
from tess2lite.generation import generate
from tess2lite.hooks import NoSelfConditioning
from tess2lite.pretrained.sources import bundled
from tess2lite.tinytown.language import split_sentences
from tess2lite.tinytown.stories import corpus, stories
from tess2lite.tinytown.tasks import score
from tess2lite.tinytown.world import verify
from tess2lite.tokens import encode
from tess2lite.training.data import pack

from . import instruct
from .diversity import longest_copied_run, sentence_runs
from .early_stopping import HaltRecorder
from .instruct import continued as autoregressive_text
from .lookup import lookup_accuracy
from .text_metrics import corpus_perplexity, distinct, perplexity

JUDGE = "tinytown-ar"
BATCH = 50  # texts written together
TRAINING_STORIES = 20_000  # that generated texts are searched for in
FEWER_IS_BETTER = ("loss", "nats", "perplexity", "log-perplexity", "seconds", "CPU seconds")  # how such metrics begin


class Answers(NamedTuple):
    """One score per answer, and the question it belongs to.

    Attributes:
        questions: An id of each prompt; the same prompt has the same id.
        scores: In the same order.
    """

    questions: list[str]
    scores: list[float]


def question_id(prompt) -> str:
    """Returns a short id of a prompt, a function of its text alone."""
    return hashlib.blake2b(str(prompt).encode(), digest_size=4).hexdigest()


@dataclass
class ModelUnderTest:
    """A model, and how texts are drawn from it.

    Attributes:
        lm: A denoiser, or an autoregressive model with its `tokenizer`.
        trainer: Of the run that made it; None if it was loaded.
        steps: Of the sampler.
        length: Tokens to write, at most; None for the rest of the context.
        self_condition: Whether each step reads the last prediction.
        patience: Take each text where `Halt` of this patience would have stopped it; 0 for never.
        sampling: Further settings of `generate`, such as timestep_spacing and final.
    """

    lm: object
    trainer: object = None
    steps: int = 50
    length: int | None = None
    self_condition: bool = True
    patience: int = 0
    sampling: dict | None = None

    @property
    def is_denoiser(self) -> bool:
        """Whether it writes by denoising."""
        return hasattr(self.lm, "embedding_matrix")

    @property
    def context(self) -> int:
        """Tokens that the model can read."""
        return self.lm.config.max_position_embeddings

    def write(self, prompts: list, seeds: list[int]) -> list[tuple[str, int]]:
        """Returns (text, steps it took) for each prompt; an autoregressive model takes 0."""
        if not self.is_denoiser:
            return [(autoregressive_text(self.lm, prompt), 0) for prompt in prompts]
        texts_by_prompt = {}
        groups = {}
        for place, prompt in enumerate(prompts):
            groups.setdefault(self._length(prompt), []).append(place)
        for length, places in groups.items():
            for start in range(0, len(places), BATCH):
                batch = places[start : start + BATCH]
                texts = self._denoise([prompts[i] for i in batch], [seeds[i] for i in batch], length)
                texts_by_prompt.update(zip(batch, texts, strict=True))
        return [texts_by_prompt[place] for place in range(len(prompts))]

    def _length(self, prompt) -> int | None:
        """Tokens to write after a prompt; None for the rest of the context where less than `length` is left."""
        if self.length is None:
            return None
        text = chat_prompt(prompt) if isinstance(prompt, list) else prompt
        room = self.context - 1 - len(encode(self.lm.tokenizer, text))
        return self.length if self.length <= room else None

    def _denoise(self, prompts: list, seeds: list[int], length: int | None) -> list[tuple[str, int]]:
        recorder = HaltRecorder(len(prompts), self.lm.tokenizer)
        hooks = [] if self.self_condition else [NoSelfConditioning()]
        if self.patience:
            hooks.append(recorder)
        outs = generate(
            self.lm,
            prompts,
            steps=self.steps,
            seed=seeds,
            length=length,
            hooks=hooks,
            record=1,
            progress=False,
            **self.sampling or {},
        )
        if not self.patience:
            return [(out.text, self.steps) for out in outs]
        halted = [row[self.patience] for row in recorder.halted]
        return [(text, steps) for steps, text in halted]


def loss(model: ModelUnderTest, **_) -> dict[str, float]:
    """Returns the last held-out loss on the run's own masks, and the one with prefix masks alone."""
    trainer = model.trainer
    own = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    trainer.grid_masking = "prefix"
    return {"loss": own, "loss after a prefix": trainer.evaluate()["eval_loss"]}


def long_loss(model: ModelUnderTest, prompts: int, **_) -> dict[str, float]:
    """Returns the held-out loss on rows as long as the context, whatever length the run was trained on."""
    rows = list(pack(corpus("validation", 8 * prompts), model.lm.tokenizer, model.context))[:prompts]
    rows = [{"input_ids": row, "example": number} for number, row in enumerate(rows)]
    return {"loss at full length": model.trainer.evaluate(rows)["eval_loss"]}


def story_metrics(model: ModelUnderTest, prompts: int, seed: int, **_) -> dict[str, float | Answers]:
    """Continues test stories after two sentences.

    Returns:
        Shares of valid stories and nats per token under the AR judge, by story; perplexity of all, dist-1 to dist-4,
        the longest run of sentences copied from training, steps, and CPU seconds per text.
    """
    openings = [" ".join(split_sentences(text)[:2]) for text in stories("test", prompts, seed)]
    started = time.process_time()  # a shared machine's clock says more about the other programs
    written = model.write(openings, [seed * 10_000 + i for i in range(prompts)])
    seconds = time.process_time() - started
    texts = [text for text, _ in written]
    judge = AutoModelForCausalLM.from_pretrained(bundled()[JUDGE], use_safetensors=True).eval()
    judged = perplexity(judge, model.lm.tokenizer, texts, openings)
    valid = [float(verify(opening + text) is None) for opening, text in zip(openings, texts, strict=True)]
    training_runs = sentence_runs(corpus("train", TRAINING_STORIES))
    questions = [question_id(opening) for opening in openings]
    return {
        "valid stories": Answers(questions, valid),
        "nats per token": Answers(questions, [nll / tokens for nll, tokens in judged]),
        "perplexity": corpus_perplexity(judged),
        "log-perplexity": math.log(corpus_perplexity(judged)),
        **{f"dist-{n}": distinct(texts, n) for n in (1, 2, 3, 4)},
        "longest copied run": max(longest_copied_run(text, training_runs) for text in texts),
        "steps": statistics.mean(steps for _, steps in written),
        "CPU seconds per text": seconds / prompts,
    }


def task_accuracy(model: ModelUnderTest, prompts: int, seed: int, tasks: list[str]) -> dict[str, float | Answers]:
    """Returns scores of answers to each task's test questions, and CPU seconds per answer."""
    accuracies = {}
    started = time.process_time()
    for task in tasks:
        examples = instruct.test_examples(task, model.lm.tokenizer, model.context, seed, prompts)
        chats = [[{"role": "user", "content": example.prompt}] for example in examples]
        written = model.write(chats, [seed * 10_000 + i for i in range(len(chats))])
        for example, (text, _) in zip(examples, written, strict=True):
            answers = accuracies.setdefault(instruct.kind(example), Answers([], []))
            answers.questions.append(question_id(example.prompt))
            answers.scores.append(score(example, text))
    number = sum(len(answers.scores) for answers in accuracies.values())
    return accuracies | {"CPU seconds per answer": (time.process_time() - started) / number}


def lookup(model: ModelUnderTest, prompts: int, seed: int, **_) -> dict[str, Answers]:
    """Returns, for each kind of second mention in dense stories, whether the argmax is right given the true past."""
    accuracies = {}
    for kind, mentions in lookup_accuracy(model.lm, prompts, seed).items():
        accuracies[f"lookup: {kind}"] = Answers([m.story for m in mentions], [float(m.is_right) for m in mentions])
    return accuracies


def latency(model: ModelUnderTest, seed: int, lengths: list[int], **_) -> dict[str, float]:
    """Returns seconds to write that many tokens after a prompt; the AR model has a KV cache and does not end early."""
    lm = model.lm
    lm.config.max_position_embeddings = 2 * max(lengths)  # rotary positions have no table to outgrow
    prompt = "Tom had a drum."
    ids = torch.tensor([[lm.tokenizer.bos_token_id, *encode(lm.tokenizer, prompt)]])
    seconds = {}
    for length in lengths:
        started = time.monotonic()
        if model.is_denoiser:
            generate(lm, prompt, steps=model.steps, seed=seed, length=length, record=1, progress=False)
        else:
            with torch.inference_mode():
                lm.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    min_new_tokens=length,
                    max_new_tokens=length,
                    pad_token_id=lm.tokenizer.pad_token_id,
                )
        seconds[f"seconds for {length}"] = time.monotonic() - started
    return seconds


METRICS = {metric.__name__: metric for metric in (loss, long_loss, story_metrics, task_accuracy, lookup, latency)}
