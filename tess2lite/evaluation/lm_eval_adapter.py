"""The model `tess2lite` of the EleutherAI harness: `python -m tess2lite.evaluation.lm_eval_adapter run …`.

The command registers the model and hands over to lm-eval's own; `--model_args` are those of `Denoiser`. lm-eval's own
command knows no model of another package, but before it looks one up it imports what a YAML file among its tasks names,
and tess2lite.yaml, beside this file, is a group of no tasks that names it:

    lm_eval --model tess2lite --model_args pretrained=NAME --tasks gsm8k,tess2lite/evaluation/tess2lite.yaml
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import sys
from collections import Counter
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from .. import mask_diffusion, sampling, validation
from ..chat_template import chat_prompt
from ..loading import find_source, load
from ..tokens import encode, encode_continuation
from .likelihood import log_likelihood
from .results import Log

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as problem:
    raise ImportError("Evaluation on public tasks needs lm-eval: pip install 'tess2lite[eval]'.") from problem

LENGTH, UNSAID = 256, -1  # tokens, where neither the task nor the user says how many


class Denoiser(LM):
    """A denoiser that answers the harness's requests.

    pretrained: any name that `load` takes, or a loaded denoiser. steps, top_p: of the sampler; of a task's own
    settings `until` and the length count, its temperature is for left-to-right models. length: of answers in tokens,
    at most; the task may ask for less. A prompt that leaves less than that, and less than half of the model's context
    (a 32nd where nobody says a length), loses tokens on its left, with a warning. bound_steps, samples: of the bound
    that stands for a log-likelihood (`likelihood.py`), which is tightest for chains of few steps.
    chat: put each prompt into the chat template as the user's turn. answers: a JSON-lines file that keeps all answers,
    with the bound's standard error, and from which an interrupted evaluation goes on. Noise is a function of `seed`
    and of a request's own text, so that scores depend neither on batch_size nor on the order.
    """

    def __init__(
        self, pretrained, steps=50, top_p=0.99, length=None, batch_size=8, seed=0, bound_steps=2, samples=4,
        chat=False, load_in_4bit=False, device=None, answers=None, **unknown,
    ):  # fmt: skip
        super().__init__()
        if unknown:
            *accepted, _ = inspect.signature(Denoiser).parameters
            raise ValueError(f"tess2lite has no argument {', '.join(unknown)}; it has {', '.join(accepted)}.")
        self.steps, self.samples = validation.check_int("steps", steps, 1), validation.check_int("samples", samples, 1)
        self.bound_steps, self.seed = (
            validation.check_int("bound_steps", bound_steps, 1),
            validation.check_int("seed", seed, 0),
        )
        self.length = None if length is None else validation.check_int("length", length, 1)
        batch_size = int(batch_size) if str(batch_size).isdigit() else batch_size  # text, from lm-eval's own option
        self.batch_size = validation.check_int("batch_size", batch_size, 1)
        validation.check_sampling_args(top_p, 1.0)
        for name, value in (("chat", chat), ("load_in_4bit", load_in_4bit)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; give true or false.")
        self.top_p, self.chat, self.log, self.cut = top_p, chat, Log(answers), 0
        named = isinstance(pretrained, (str, Path))
        self.lm = load(pretrained, load_in_4bit, device=device) if named else pretrained
        self.weights = [self.lm.name_or_path, str(self.lm.dtype), load_in_4bit, *(_files(pretrained) if named else ())]
        self._device, self.context = self.lm.device, self.lm.config.max_position_embeddings

    @classmethod
    def create_from_arg_obj(cls, arg_dict, additional_config=None):
        """As lm-eval has it, but `model_args` win over its options, which have defaults of their own."""
        extra = {} if torch.cuda.is_available() else {"device": None}  # it says cuda:0 on any machine
        given = {name: value for name, value in ((additional_config or {}) | extra).items() if value is not None}
        return cls(**given | arg_dict)

    @property
    def tokenizer_name(self) -> str:
        return self.lm.name_or_path

    def apply_chat_template(self, chat_history, add_generation_prompt=True) -> str:
        if self.chat:
            raise ValueError("chat=true puts prompts into the chat template already; leave --apply_chat_template out.")
        return chat_prompt(chat_history)

    @property
    def settings(self) -> dict:
        """What an answer depends on besides weights and seed."""
        return {name: getattr(self, name) for name in ("steps", "top_p", "length", "bound_steps", "samples", "chat")}

    def get_model_info(self) -> dict:
        """What a reader of the results has to know."""
        return self.settings | {"log_likelihood": "a lower bound, by Monte Carlo", "prompts_cut": self.cut}

    def generate_until(self, requests) -> list[str]:
        """Answers, cut at the first of the task's `until` and at EOS."""
        return [record["text"] for record in self._answered("generate_until", requests, self._write)]

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """A lower bound of log p(continuation | context), and whether argmax writing of as many tokens gives it."""
        records = self._answered("loglikelihood", requests, self._score)
        return [(record["log_likelihood"], record["is_greedy"]) for record in records]

    def loglikelihood_rolling(self, requests) -> list[float]:
        """A lower bound of log p(text): texts longer than the context are the sum of pieces that know only BOS."""
        records = self._answered("loglikelihood_rolling", requests, self._score_whole)
        return [record["log_likelihood"] for record in records]

    def _answered(self, kind: str, requests, compute) -> list[dict]:
        """A record for each request: from the log where it has it, else computed, a batch at a time."""
        if not self.log.path:
            self.log.known.clear()  # who brought the model may have trained it since
        seen, keys, seeds = Counter(), [], []
        for request in requests:
            text = json.dumps([kind, *request.args])
            seen[text] += 1  # asked again, it is answered anew
            keys.append(_digest([*self.weights, self.settings, self.seed, text, seen[text]]))
            seeds.append(int(_digest([self.seed, request.args[0], seen[text]])[:8], 16))
        waiting = [i for i, key in enumerate(keys) if key not in self.log.known]
        for start in tqdm(range(0, len(waiting), self.batch_size), desc=kind, unit="batch", leave=False):
            some = waiting[start : start + self.batch_size]
            records = compute([requests[i].args for i in some], [seeds[i] for i in some])
            for i, record in zip(some, records, strict=True):
                self.log.add(keys[i], record)
        records = [self.log.known[key] for key in keys]
        if cut := sum(record.get("cut", False) for record in records):
            logging.getLogger(__name__).warning("%d prompts were longer than fits and lost their left side.", cut)
        self.cut += cut
        return records

    def _prompt(self, text: str) -> list[int]:
        """Ids of a prompt without BOS."""
        text = chat_prompt([{"role": "user", "content": text}]) if self.chat else text
        return encode(self.lm.tokenizer, text)

    def _wanted(self, asked: int) -> tuple[int, int]:
        """Tokens to write at most, and the room for them that a long prompt must leave."""
        if asked == UNSAID and self.length is None:
            return LENGTH, self.context // 32
        wanted = validation.check_int("max_gen_toks", self.length if asked == UNSAID else asked, 1)
        wanted = min(wanted, self.length or wanted)
        return wanted, min(wanted, self.context // 2)

    def _fitting(self, ids: list[int], room: int) -> tuple[list[int], bool]:
        """BOS and the last ids that leave `room` for what is written, and whether that lost some."""
        lost = max(0, len(ids) + 1 + room - self.context)
        return [self.lm.tokenizer.bos_token_id, *ids[lost:]], lost > 0

    def _write(self, requests, seeds) -> list[dict]:
        rows, records, tokenizer = [], [], self.lm.tokenizer
        settings = [normalize_gen_kwargs(given, UNSAID) for _, given in requests]
        for (text, _), given in zip(requests, settings, strict=True):
            wanted, room = self._wanted(given["max_gen_toks"])
            known, cut = self._fitting(self._prompt(text), room)
            rows.append((known, [tokenizer.pad_token_id] * min(wanted, self.context - len(known))))
            records.append({"prompt": text, "cut": cut})
        for record, given, ids in zip(records, settings, self._denoised(rows, self.top_p, seeds), strict=True):
            end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else None
            answer = tokenizer.decode(ids[:end], skip_special_tokens=True)
            for stop in filter(None, given["until"]):
                answer = answer.split(stop)[0]
            record |= {"text": answer, "ended": end is not None}
        return records

    def _denoised(self, rows, top_p, seeds) -> list[list[int]]:
        simplex, batch = getattr(self.lm.config, "diffusion", "simplex") == "simplex", _batch(rows)
        for step in (sampling if simplex else mask_diffusion).denoise(self.lm, batch, self.steps, top_p, seed=seeds):
            tokens = step.tokens
        return [ids[mask].tolist() for ids, mask in zip(tokens.cpu(), batch["span_mask"], strict=True)]

    def _score(self, requests, seeds) -> list[dict]:
        rows, records = [], []
        for context, continuation in requests:
            known, scored = self._pair(context, continuation)
            known, cut = self._fitting(known, len(scored))
            rows.append((known, scored))
            records.append({"context": context, "continuation": continuation, "cut": cut})
        means, errors = log_likelihood(self.lm, _batch(rows), self.bound_steps, self.samples, seeds)
        greedy = [ids == scored for ids, (_, scored) in zip(self._denoised(rows, None, seeds), rows, strict=True)]
        for record, *found in zip(records, means.tolist(), errors.tolist(), greedy, strict=True):
            record |= zip(("log_likelihood", "standard_error", "is_greedy"), found, strict=True)
        return records

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of what is known, without BOS, and of what is scored."""
        bare = context if self.chat else context.rstrip(" ")  # spaces belong to the word that follows them
        said = continuation.lstrip() if self.chat else context[len(bare) :] + continuation
        known = self._prompt(bare)
        scored = (encode_continuation if known else encode)(self.lm.tokenizer, said)
        if not 0 < len(scored) < self.context:
            wanted = f"this model scores 1 to {self.context - 1}"
            raise ValueError(f"The continuation {continuation[:60]!r} has {len(scored)} tokens; {wanted}.")
        return known, scored

    def _score_whole(self, requests, seeds) -> list[dict]:
        records = []
        for (text,), seed in zip(requests, seeds, strict=True):
            ids, size = encode(self.lm.tokenizer, text), self.context - 1
            rows = [([self.lm.tokenizer.bos_token_id], ids[i : i + size]) for i in range(0, len(ids), size)]
            found = [log_likelihood(self.lm, _batch([row]), self.bound_steps, self.samples, seed) for row in rows]
            mean, error = sum(float(m) for m, _ in found), sum(float(e) ** 2 for _, e in found) ** 0.5
            records.append({"text_scored": text, "log_likelihood": mean, "standard_error": error})
        return records


def _batch(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Rows of (known ids, written ids), side by side, filler on the right."""
    ids = [torch.tensor(known + written) for known, written in rows]
    masks = [torch.arange(len(row)) >= len(known) for row, (known, _) in zip(ids, rows, strict=True)]
    batch = {"input_ids": ids, "span_mask": masks, "attention_mask": list(map(torch.ones_like, ids))}
    return {name: pad_sequence(some, batch_first=True) for name, some in batch.items()}


def _digest(content) -> str:
    return hashlib.blake2b(json.dumps(content, ensure_ascii=False).encode(), digest_size=16).hexdigest()


def _files(name) -> list:
    """Which weights a folder holds: a model that is trained on needs new answers."""
    found = [(path.name, path.stat()) for path in sorted(Path(find_source(name)).glob("*.safetensors"))]
    return [[file, stat.st_size, stat.st_mtime_ns] for file, stat in found]


def command(run, *arguments) -> None:
    """Runs a command, which ends in a sentence on what is wrong and not in a traceback."""
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
