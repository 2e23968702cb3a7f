"""The model `tess2lite` of the EleutherAI harness: `python -m tess2lite.evaluation.lm_eval_adapter run …`.

The command registers the model and calls lm-eval's own; `--model_args` are those of `Denoiser`. lm-eval's own command
knows no model of another package, but before it looks one up it imports what a YAML file among its tasks names, and
tess2lite.yaml, beside this file, is a group without tasks that names it:

    lm_eval --model tess2lite --model_args pretrained=NAME --tasks gsm8k,tess2lite/evaluation/tess2lite.yaml
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from .. import mask_diffusion, sampling, validation
from ..chat_template import chat_prompt
from ..loading import load
from ..pretrained.sources import find_source
from ..tokens import encode, encode_continuation, eos_token_ids
from ..validation import InputError
from .likelihood import log_likelihood
from .results import Log

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as problem:
    raise ImportError("Evaluation on public tasks needs lm-eval: pip install 'tess2lite[eval]'.") from problem

DEFAULT_LENGTH = 256  # tokens of an answer, where neither the task nor the user says how many
UNSPECIFIED = -1

Row = tuple[list[int], list[int]]  # ids of the prompt with BOS, ids that are written or scored


class Denoiser(LM):
    """A denoiser that answers the harness's requests.

    Noise is a function of `seed` and of a request's own text, so scores depend neither on batch_size nor on the order.
    Of a task's own settings `until` and the length count; its temperature is for autoregressive models.
    """

    def __init__(
        self,
        pretrained,
        steps: int = 50,
        top_p: float | None = 0.99,
        length: int | None = None,
        batch_size: int = 8,
        seed: int = 0,
        bound_steps: int = 2,
        samples: int = 16,
        chat: bool = False,
        load_in_4bit: bool = False,
        device=None,
        answers=None,
        **unknown,
    ):
        """
        Args:
            pretrained: Any name that `load` accepts, or a loaded denoiser.
            steps: Of the sampler.
            top_p: Of the sampler.
            length: Of answers in tokens, at most; the task may ask for less. A prompt that leaves less than that, and
                less than half of the model's context (a 32nd where nobody says a length), is truncated on its left,
                with a warning.
            batch_size: Requests computed together.
            seed: Of all noise.
            bound_steps: Steps of the chain whose bound stands for a log-likelihood (`likelihood.py`).
            samples: Runs that the bound averages.
            chat: Put each prompt into the chat template as the user's turn.
            load_in_4bit: As in `load`.
            device: As in `load`.
            answers: A JSON-lines file that keeps all answers, with the bound's standard error, and from which an
                interrupted evaluation resumes.
            unknown: Refused, with the arguments there are.

        Raises:
            InputError: Before the model is loaded, for a setting that cannot be.
        """
        super().__init__()
        if unknown:
            *accepted, _ = inspect.signature(Denoiser).parameters
            raise InputError(f"tess2lite has no argument {', '.join(unknown)}; it has {', '.join(accepted)}.")
        self.steps = validation.check_int("steps", steps, 1)
        self.samples = validation.check_int("samples", samples, 1)
        self.bound_steps = validation.check_int("bound_steps", bound_steps, 1)
        self.seed = validation.check_int("seed", seed, 0)
        self.length = None if length is None else validation.check_int("length", length, 1)
        if str(batch_size).isdigit():  # lm-eval's own option gives text
            batch_size = int(batch_size)
        self.batch_size = validation.check_int("batch_size", batch_size, 1)
        validation.check_sampling_args(top_p, 1.0, "argmax")
        for name, value in (("chat", chat), ("load_in_4bit", load_in_4bit)):
            if not isinstance(value, bool):
                raise InputError(f"{name} is {value!r}; give true or false.")
        self.top_p = top_p
        self.chat = chat
        self.log = Log(answers)
        self.truncated_prompts = 0
        by_name = isinstance(pretrained, (str, Path))
        self.lm: Any = load(pretrained, load_in_4bit, device=device) if by_name else pretrained
        self.weights = [self.lm.name_or_path, str(self.lm.dtype), load_in_4bit]
        if by_name:
            self.weights += _weight_files(pretrained)
        self._device = self.lm.device
        self.context = self.lm.config.max_position_embeddings

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> Denoiser:
        """As in lm-eval, but `model_args` win over its options, which have defaults of their own."""
        options = dict(additional_config or {})
        if not torch.cuda.is_available():
            options["device"] = None  # lm-eval says cuda:0 on any machine
        settings = {name: value for name, value in options.items() if value is not None}
        return cls(**settings | arg_dict)

    @property
    def tokenizer_name(self) -> str:
        """Name under which lm-eval caches prompts."""
        return self.lm.name_or_path

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns the conversation in TESS 2's format; a last turn of the assistant's is the beginning of its answer.

        Raises:
            InputError: If `chat=true` puts prompts into the template already.
        """
        if self.chat:
            raise InputError("chat=true puts prompts into the chat template already; leave --apply_chat_template out.")
        if add_generation_prompt or chat_history[-1]["role"] != "assistant":
            return chat_prompt(chat_history)
        *turns, beginning = chat_history  # a task's gen_prefix
        return chat_prompt(turns) + beginning["content"]

    @property
    def settings(self) -> dict:
        """Everything an answer depends on besides weights and seed."""
        return {name: getattr(self, name) for name in ("steps", "top_p", "length", "bound_steps", "samples", "chat")}

    def get_model_info(self) -> dict:
        """Returns what a reader of the results has to know."""
        return self.settings | {
            "log_likelihood": "a lower bound, by Monte Carlo",
            "prompts_truncated": self.truncated_prompts,
        }

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Returns answers, truncated at the first of the task's `until` and at EOS."""
        return [record["text"] for record in self._answers("generate_until", requests, self._write)]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Returns a lower bound of log p(continuation | context), and whether argmax writes exactly that."""
        records = self._answers("loglikelihood", requests, self._score)
        return [(record["log_likelihood"], record["is_greedy"]) for record in records]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Returns a lower bound of log p(text); one longer than the context is a sum of pieces that know only BOS."""
        records = self._answers("loglikelihood_rolling", requests, self._score_text)
        return [record["log_likelihood"] for record in records]

    def _answers(self, kind: str, requests: list[Instance], compute: Callable) -> list[dict]:
        """A record for each request: from the log where it has one, else computed, a batch at a time."""
        if not self.log.path:
            self.log.records.clear()  # the model may have been trained since
        repeats: Counter[str] = Counter()
        keys = []
        seeds = []
        for request in requests:
            text = json.dumps([kind, *request.args])
            repeats[text] += 1  # a repeated request gets an answer of its own
            keys.append(_digest([*self.weights, self.settings, self.seed, text, repeats[text]]))
            seeds.append(int(_digest([self.seed, request.args[0], repeats[text]])[:8], 16))
        waiting = [i for i, key in enumerate(keys) if key not in self.log.records]
        for start in tqdm(range(0, len(waiting), self.batch_size), desc=kind, unit="batch", leave=False):
            batch = waiting[start : start + self.batch_size]
            records = compute([requests[i].args for i in batch], [seeds[i] for i in batch])
            for i, record in zip(batch, records, strict=True):
                self.log.add(keys[i], record)
        records = [self.log.records[key] for key in keys]
        truncated = sum(record.get("truncated", False) for record in records)
        if truncated:
            logging.getLogger(__name__).warning("%d prompts did not fit and were truncated on the left.", truncated)
        self.truncated_prompts += truncated
        return records

    def _prompt_ids(self, text: str) -> list[int]:
        """Ids of a prompt without BOS."""
        if self.chat:
            text = chat_prompt([{"role": "user", "content": text}])
        return encode(self.lm.tokenizer, text)

    def _answer_length(self, asked: int) -> tuple[int, int]:
        """Tokens to write at most, and the room for them that a long prompt must leave."""
        if asked == UNSPECIFIED and self.length is None:
            return DEFAULT_LENGTH, self.context // 32
        length = validation.check_int("max_gen_toks", self.length if asked == UNSPECIFIED else asked, 1)
        if self.length:
            length = min(length, self.length)
        return length, min(length, self.context // 2)

    def _truncate(self, ids: list[int], room: int) -> tuple[list[int], bool]:
        """BOS and the last ids that leave `room` for the answer, and whether that lost some."""
        lost = max(0, len(ids) + 1 + room - self.context)
        return [self.lm.tokenizer.bos_token_id, *ids[lost:]], lost > 0

    def _write(self, requests: list[tuple], seeds: list[int]) -> list[dict]:
        tokenizer = self.lm.tokenizer
        eos = eos_token_ids(self.lm)
        settings = [normalize_gen_kwargs(setting, UNSPECIFIED) for _, setting in requests]
        rows = []
        records = []
        for (text, _), setting in zip(requests, settings, strict=True):
            length, room = self._answer_length(setting["max_gen_toks"])
            prompt, truncated = self._truncate(self._prompt_ids(text), room)
            length = min(length, self.context - len(prompt))
            rows.append((prompt, [tokenizer.pad_token_id] * length))
            records.append({"prompt": text, "truncated": truncated})
        written = self._denoise(rows, self.top_p, seeds)
        for record, setting, ids in zip(records, settings, written, strict=True):
            ends = [place for place, token in enumerate(ids) if token in eos]
            end = ends[0] if ends else None
            answer = _decode_continuation(tokenizer, ids[:end])
            for stop in filter(None, setting["until"]):
                answer = answer.split(stop)[0]
            record["text"] = answer
            record["ended"] = bool(ends)
        return records

    def _denoise(self, rows: list[Row], top_p: float | None, seeds: list[int]) -> list[list[int]]:
        is_simplex = getattr(self.lm.config, "diffusion", "simplex") == "simplex"
        denoise = (sampling if is_simplex else mask_diffusion).denoise
        batch = _batch(rows)
        for step in denoise(self.lm, batch, self.steps, top_p, seed=seeds):
            tokens = step.tokens
        return [ids[mask].tolist() for ids, mask in zip(tokens.cpu(), batch["span_mask"], strict=True)]

    def _score(self, requests: list[tuple], seeds: list[int]) -> list[dict]:
        rows = []
        records = []
        for context, continuation in requests:
            prompt, scored = self._split(context, continuation)
            prompt, truncated = self._truncate(prompt, len(scored))
            rows.append((prompt, scored))
            records.append({"context": context, "continuation": continuation, "truncated": truncated})
        bounds, errors = log_likelihood(self.lm, _batch(rows), self.bound_steps, self.samples, seeds)
        written = self._denoise(rows, None, seeds)
        for record, bound, error, ids, row in zip(records, bounds, errors, written, rows, strict=True):
            record["log_likelihood"] = float(bound)
            record["standard_error"] = float(error)
            record["is_greedy"] = ids == row[1]
        return records

    def _split(self, context: str, continuation: str) -> Row:
        """Ids of the context, without BOS, and of the continuation that is scored."""
        bare = context
        if self.chat:
            continuation = continuation.lstrip()
        else:
            bare = context.rstrip(" ")  # spaces belong to the word that follows them
            continuation = context[len(bare) :] + continuation
        prompt = self._prompt_ids(bare)
        scored = (encode_continuation if prompt else encode)(self.lm.tokenizer, continuation)
        if not 0 < len(scored) < self.context:
            raise InputError(
                f"The continuation {continuation[:60]!r} has {len(scored)} tokens; this model scores 1 to "
                f"{self.context - 1}."
            )
        return prompt, scored

    def _score_text(self, requests: list[tuple], seeds: list[int]) -> list[dict]:
        records = []
        size = self.context - 1
        bos = self.lm.tokenizer.bos_token_id
        for (text,), seed in zip(requests, seeds, strict=True):
            ids = encode(self.lm.tokenizer, text)
            total = 0.0
            variance = 0.0
            for start in range(0, len(ids), size):
                row = ([bos], ids[start : start + size])
                bound, error = log_likelihood(self.lm, _batch([row]), self.bound_steps, self.samples, seed)
                total += float(bound)
                variance += float(error) ** 2
            records.append({"text_scored": text, "log_likelihood": total, "standard_error": variance**0.5})
        return records


def _decode_continuation(tokenizer, ids: list[int]) -> str:
    """Text that continues a line: tokenizers that drop a text's first space keep it here."""
    before = encode(tokenizer, "a")
    full_text = tokenizer.decode([*before, *ids], skip_special_tokens=True)
    return full_text.removeprefix(tokenizer.decode(before, skip_special_tokens=True))


def _batch(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Rows side by side, filler on the right, (B, L)."""
    ids = [torch.tensor(prompt + answer) for prompt, answer in rows]
    masks = [torch.arange(len(row)) >= len(prompt) for row, (prompt, _) in zip(ids, rows, strict=True)]
    batch = {"input_ids": ids, "span_mask": masks, "attention_mask": [torch.ones_like(row) for row in ids]}
    return {name: pad_sequence(parts, batch_first=True) for name, parts in batch.items()}


def _digest(content) -> str:
    return hashlib.blake2b(json.dumps(content, ensure_ascii=False).encode(), digest_size=16).hexdigest()


def _weight_files(name) -> list[list]:
    """Which weights a folder holds: a model that is trained further needs new answers."""
    files = [(path.name, path.stat()) for path in sorted(Path(find_source(name)).glob("*.safetensors"))]
    return [[file, stat.st_size, stat.st_mtime_ns] for file, stat in files]


def command(run: Callable, *arguments) -> None:
    """Runs a command that ends in one sentence on what is wrong instead of a traceback."""
    try:
        run(*arguments)
    except ValueError as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    from . import lm_eval_adapter  # noqa: F401  registers the model: a class of __main__ would be another one

    command(cli_evaluate)
else:
    register_model("tess2lite")(Denoiser)
