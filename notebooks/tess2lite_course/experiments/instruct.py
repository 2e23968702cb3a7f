"""What tinytown-instruct is tuned on, and how well its answers are."""

from __future__ import annotations

import json
import random
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, MistralForCausalLM

from tess2lite.chat_template import chat_prompt, encode_chat
from tess2lite.evaluation.intervals import mean_interval
from tess2lite.generation import generate
from tess2lite.loading import load
from tess2lite.tinytown.documents import passage_chat, tellings_for
from tess2lite.tinytown.tasks import TASKS, Example, examples, fitting, score, side
from tess2lite.tokens import encode, encode_continuation

from .batches import padded


def encode_pair(tokenizer, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """A chat as (ids up to the last answer, ids of that answer with EOS)."""
    context = [tokenizer.bos_token_id, *encode(tokenizer, chat_prompt(messages[:-1]))]
    answer = [*encode_continuation(tokenizer, messages[-1]["content"].strip()), tokenizer.eos_token_id]
    return context, answer


@dataclass
class NextTokens:
    """Chats for an AR model: next-token loss on the last answer and its end.

    Args:
        filler: id of [PAD], which makes rows equally long.
    """

    filler: int

    def __call__(self, rows: list[tuple[list[int], list[int]]], generator: torch.Generator) -> dict[str, torch.Tensor]:
        ids, _ = padded([context + answer for context, answer in rows], self.filler)
        labels = torch.full_like(ids, -100)
        for label, (context, answer) in zip(labels, rows, strict=True):
            label[len(context) : len(context) + len(answer)] = torch.tensor(answer)
        return {"input_ids": ids, "labels": labels}


AIMS = {
    "reading": 0.95,
    "knowledge": 0.90,
    "constraints": 0.80,
    "request": 0.98,
    "sorting": 0.80,
    "counting": 0.80,
    "tracking": 0.80,
}
SEEDS = (0, 1, 2)
PER_SEED = 100  # questions of a task
STEPS = 25
BATCH = 50
MOST_NEW_TOKENS = 160  # of an AR model's answer
ANSWER_ROOM = 128  # tokens that a denoiser has for one; the rest of the context where the prompt leaves fewer
PUZZLES = 3  # times as many: they come in four kinds
CONVERSATIONS = 100  # about a passage, of three turns each
TURNS = 3


def test_examples(task: str, tokenizer, length: int, seed: int, number: int | None = None) -> list[Example]:
    """Examples of the test split whose prompt and reference answer fit into `length`; of puzzles, three times more."""
    count = number or PER_SEED
    if task == "puzzle":
        count *= PUZZLES
    return fitting(examples(task, "test", 3 * count, seed), tokenizer, length)[:count]


def kind(example: Example) -> str:
    """The task, or which of the four puzzles."""
    if example.task != "puzzle":
        return example.task
    if example.prompt.startswith("Sort these"):
        return "sorting"
    if example.prompt.startswith("I have"):
        return "counting"
    return "boolean" if example.prompt.endswith(" is") else "tracking"


def scores(answer: Callable[[list[str], int], list[str]], tokenizer, length: int) -> dict[str, dict]:
    """Returns, by task, the mean score with its 95 % interval by question, numbers, and the mean of each seed.

    Args:
        answer: (list of prompts, sampling seed) → texts.
        tokenizer: Of the models that are compared.
        length: Tokens that prompt and reference answer may have.
    """
    answers = defaultdict(list)
    for task in tqdm(TASKS, desc="scoring"):
        for seed in SEEDS:
            questions = test_examples(task, tokenizer, length, seed)
            texts = answer([example.prompt for example in questions], seed)
            for example, text in zip(questions, texts, strict=True):
                answers[kind(example)].append((example.prompt, seed, score(example, text)))
    return {name: _summary(scored) for name, scored in answers.items()}


def _summary(answers: list[tuple[str, int, float]]) -> dict:
    """Of (prompt, seed, score) triples."""
    prompts = [prompt for prompt, _, _ in answers]
    values = [value for _, _, value in answers]
    interval = mean_interval(values, prompts, bounds=(0, 1))
    of_seed = defaultdict(list)
    for _, seed, value in answers:
        of_seed[seed].append(value)
    return {
        "score": round(interval.mean, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "half_width": round(interval.half_width, 4),
        "n": len(values),
        "questions": len(set(prompts)),
        "by_seed": [round(statistics.mean(values), 4) for values in of_seed.values()],
    }


def conversations(number: int, tokenizer, length: int) -> list[list[dict[str, str]]]:
    """Chats of the test split: a passage, a question about it, and two more."""
    found = []
    attempt = 0
    while len(found) < number:
        rng = random.Random(f"test/conversation/{attempt}")
        attempt += 1
        messages = passage_chat(rng, tellings_for("dense"), TURNS)
        is_whole = len(messages) == 2 * TURNS and encode_chat(tokenizer, messages, length)
        if is_whole and side(messages[0]["content"]) == "test":
            found.append(messages)
    return found


def turn_scores(answer: Callable[[list, int], list[str]], tokenizer, length: int) -> list[float]:
    """Returns the share of right answers in each turn of a conversation, after the true answers of the turns before.

    Args:
        answer, tokenizer, length: As of `scores`; `answer` takes chats.
    """
    chats = conversations(CONVERSATIONS, tokenizer, length)
    shares = []
    for turn in range(TURNS):
        asked = [chat[: 2 * turn + 1] for chat in chats]
        texts = answer(asked, 0)
        right = [text.strip() == chat[2 * turn + 1]["content"] for chat, text in zip(chats, texts, strict=True)]
        shares.append(sum(right) / len(right))
    return shares


def as_messages(prompt: str | list[dict[str, str]]) -> list[dict[str, str]]:
    """A prompt as a chat."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def by_denoising(folder: Path) -> Callable[[list, int], list[str]]:
    """Returns what answers with a denoiser: (prompts or chats, seed) → texts."""
    lm = load(folder)
    context = lm.config.max_position_embeddings

    def answer(prompts: list, seed: int) -> list[str]:
        chats = [as_messages(prompt) for prompt in prompts]
        sizes = [1 + len(encode(lm.tokenizer, chat_prompt(chat))) for chat in chats]
        by_size = sorted(range(len(chats)), key=sizes.__getitem__)
        texts = [""] * len(chats)
        for start in range(0, len(chats), BATCH):
            batch = by_size[start : start + BATCH]
            has_room = sizes[batch[-1]] + ANSWER_ROOM <= context
            written = generate(
                lm,
                [chats[i] for i in batch],
                length=ANSWER_ROOM if has_room else None,
                steps=STEPS,
                seed=[seed * 10_000 + i for i in batch],
                record=1,
                progress=False,
            )
            for i, out in zip(batch, written, strict=True):
                texts[i] = out.text
        return texts

    return answer


def autoregressively(folder: Path) -> Callable[[list, int], list[str]]:
    """Returns what answers with an AR model, greedily: (prompts or chats, seed) → texts."""
    model = MistralForCausalLM.from_pretrained(folder).eval()
    model.tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda prompts, seed: [continued(model, as_messages(prompt)) for prompt in prompts]


@torch.inference_mode()
def continued(model, prompt) -> str:
    """Returns an AR model's greedy continuation of a text, or its answer to a chat. model: with its `tokenizer`."""
    tokenizer = model.tokenizer
    text = chat_prompt(prompt) if isinstance(prompt, list) else prompt
    ids = torch.tensor([[tokenizer.bos_token_id, *encode(tokenizer, text)]], device=model.device)
    room = min(MOST_NEW_TOKENS, model.config.max_position_embeddings - ids.shape[1])
    limits = {"max_new_tokens": room, "pad_token_id": tokenizer.pad_token_id}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **limits)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def score_models(out: Path, length: int) -> None:
    """Writes the scores of all models into tinytown-instruct's card, those that it lacks."""
    path = out / "tinytown-instruct" / "card.json"
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    models = {
        "diffusion": lambda: by_denoising(out / "tinytown-instruct"),
        "ar": lambda: autoregressively(out / "tinytown-ar-instruct"),
        "base": lambda: by_denoising(out / "tinytown-base"),
    }
    for name, make in models.items():
        card = json.loads(path.read_text())
        known = card.setdefault("scores", {})
        if not any(name in task for task in known.values()):
            answer = make()
            for task, result in scores(answer, tokenizer, length).items():
                known.setdefault(task, {})[name] = result
            card.setdefault("right_by_turn", {})[name] = turn_scores(answer, tokenizer, length)
            card |= {"aims": AIMS, "scored": f"{STEPS} diffusion steps, top-p 0.99; AR greedily; {len(SEEDS)} seeds"}
            path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
