"""generate() and infill(): text in, text out, with the trajectory of how it came about."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from types import FunctionType

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from . import mask_diffusion, validation
from .chat_template import chat_prompt
from .sampling import denoise
from .span_masks import after
from .tokens import encode, encode_blanks
from .trajectory import Recorder, Trajectory, token_strings_of
from .viz.byte_tokens import partial_bytes
from .viz.explorer import as_trajectory, explorer, pins_of

CHOSEN = ("steps", "top_p", "temperature", "seed")


@dataclass
class Generation:
    """A text that was written by denoising; in a notebook it shows itself.

    prompt: what was given. text: what was written (for `infill`, the whole text). token_ids: of the whole
    sequence, known and written. ended: whether the model ended the text by itself with EOS; else it filled all
    the room it had. seed: repeats this text. trajectory: how it came about.
    """

    prompt: str
    text: str
    token_ids: list[int] = field(repr=False)
    ended: bool
    seed: int
    trajectory: Trajectory

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        note = "" if self.ended else "The text filled its room without an end (no EOS). "
        made, planned = self.trajectory.first + len(self.trajectory), self.trajectory.settings["steps"]
        return explorer(self.trajectory, note + (f"Stopped after {made} of {planned} steps." if made < planned else ""))


class Interrupted(KeyboardInterrupt):
    """A run was stopped by the keyboard; `generations` holds what there was."""

    def __init__(self, made: int, planned: int, generations: list[Generation]):
        super().__init__(f"Stopped after {made} of {planned} steps; catch t2.Interrupted, its `generations` are there.")
        self.generations = generations


def generate(
    lm, prompt, steps=100, top_p=0.99, temperature=1.0, seed=0, length=None, hooks=(), record=5, progress=True
) -> Generation | list[Generation]:
    """Continue a prompt: all new tokens are denoised together.

    lm: a denoiser from `load`; one trained as masked diffusion (`config.diffusion`) is one too (`mask_diffusion.py`).
    prompt: a text that is continued as it stands, or messages, [{"role": "user", "content": …}], that the assistant
    answers in the chat format it was trained on (`chat_template.py`); or a list of these, written as one batch.
    steps: of diffusion, 1 or more. top_p: nucleus that tokens are drawn from, above 0 and at most 1; None for argmax.
    temperature: of that draw, above 0. seed: one for all prompts or one each, None for a fresh one; the same seed
    gives the same text, alone or in a batch. length: tokens to write after the prompt; by default the rest of the
    model's context, at most 256. hooks: callables on each `Step`, in order, as in `denoise`. record: how many of the
    likeliest tokens of each position the trajectory keeps. progress: show a bar.

    Returns a `Generation`, or a list of them for a list of prompts. Raises ValueError or TypeError before the first
    step; `Interrupted`, which holds what there is, when the keyboard stops it.
    """
    check_model(lm)
    single = isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(m, dict) for m in prompt))
    prompts = [prompt] if single and prompt else prompt
    if isinstance(prompts, (list, tuple)):
        prompts = [chat_prompt(each) if isinstance(each, list) else each for each in prompts]
    prompts = check_texts("prompt", prompts)
    rows = [_continuation(lm, text, length) for text in prompts]
    written = _run(lm, prompts, rows, (steps, top_p, temperature, seed), hooks, record, progress)
    return written[0] if single else written


def infill(
    lm, text, steps=100, top_p=0.99, temperature=1.0, seed=0, hooks=(), record=5, progress=True
) -> Generation | list[Generation]:
    """Fill the blanks of a text or of each in a list; every underscore is one token: `"A ___ in the barn."` has three.

    Other arguments, what is returned and raised: as in `generate`. For any other mask call `denoise` with `input_ids`
    and `span_mask`.
    """
    check_model(lm)
    texts = check_texts("text", text)
    rows = [_blanks(lm, text) for text in texts]
    written = _run(lm, texts, rows, (steps, top_p, temperature, seed), hooks, record, progress, from_start=True)
    return written[0] if isinstance(text, str) else written


def replay(lm, trajectory: Trajectory, hooks=(), seed=None, start=0, span_mask=None, progress=True) -> Generation:
    """A recorded run once more: to the bit the same on the same model, alone in its batch, unless something is changed.

    trajectory: of `generate` or `infill`, or the `Generation` itself. hooks: interventions such as `Pin` or `Branch`; a
    run that was made with hooks needs them again. seed: another one. start: a step's index; above 0, the recorded text
    is noised as that step would read it, and denoised again from there. span_mask: (L,) bool, write only here and keep
    the rest of the recorded text. progress: show a bar.

    Returns a `Generation`. Raises as `generate` does, and ValueError for a trajectory that is not of this model.
    """
    check_model(lm)
    trajectory, hooks = as_trajectory(trajectory), validation.as_hooks(hooks)
    settings = trajectory.settings | ({} if seed is None else {"seed": seed})
    if missing := {"prompt", "from_start", "start", "hooks", "model", *CHOSEN} - settings.keys():
        lost = ", ".join(sorted(missing))
        raise ValueError(f"This trajectory does not say its {lost}; replay one of generate or infill.")
    if token_strings_of(trajectory.token_strings, lm.tokenizer.decode) != trajectory.token_strings:
        raise ValueError(f"This trajectory was written with another tokenizer; load its model, '{settings['model']}'.")
    if settings["start"] and not start:
        raise ValueError(f"This run began at step {settings['start']} with the text of another; replay that one.")
    if absent := set(settings["hooks"]) - {type(hook).__name__ for hook in hooks}:
        raise ValueError(f"This run was made with {', '.join(sorted(absent))}; give these hooks again.")
    mask = trajectory.span_mask if span_mask is None else torch.as_tensor(span_mask, dtype=torch.bool)
    needed = trajectory.span_mask.shape
    if mask.shape != needed:
        raise ValueError(f"span_mask has shape {tuple(mask.shape)}; this text needs {tuple(needed)}.")
    row, chosen = (trajectory.tokens[-1].long(), mask), [settings[name] for name in CHOSEN]
    record, from_start = trajectory.top_ids.shape[-1], settings["from_start"] or span_mask is not None
    return _run(lm, [settings["prompt"]], [row], chosen, hooks, record, progress, start, from_start)[0]


class Chat:
    """A conversation with a denoiser: `chat("Tell me a story.")` answers as a Generation and keeps both turns.

    lm: an instruction-tuned denoiser. system: a system prompt, ours; TESS 2 has none. settings: of `generate`, for
    every turn. messages: what was said so far. A turn that fails is not kept.
    """

    def __init__(self, lm, system: str | None = None, **settings):
        validation.check_denoiser(lm)
        self.lm, self.settings = lm, settings
        self.messages = [{"role": "system", "content": system}] if system is not None else []

    def __call__(self, text: str, **settings):
        """The answer to one more turn of the user's. settings: of `generate`, for this turn alone."""
        asked = [*self.messages, {"role": "user", "content": text}]
        context = self.lm.config.max_position_embeddings
        if len(encode(self.lm.tokenizer, chat_prompt(asked))) + 1 >= context:
            raise ValueError(
                f"With these words the conversation fills this model's context of {context} tokens; say less, "
                "shorten `chat.messages`, or begin anew."
            )
        answer = generate(self.lm, asked, **(self.settings | settings))
        self.messages = [*asked, {"role": "assistant", "content": answer.text.strip() or "…"}]
        return answer


def check_model(lm) -> None:
    """Raises TypeError or ValueError unless this is a denoiser with a tokenizer."""
    validation.check_denoiser(lm)
    if lm.tokenizer is None:
        raise ValueError("This model was loaded without a tokenizer; use denoise with token ids, or set lm.tokenizer.")


def check_texts(name: str, given) -> list[str]:
    """A text or several as a list. Raises TypeError or ValueError unless they are strings with something in them."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} is {type(given).__name__}; give a string, or a list of strings.")
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"{name} is empty; give at least one word to start from.")
    if halves := [text for text in texts if any("\ud800" <= sign <= "\udfff" for sign in text)]:
        raise ValueError(f"{name} {halves[0][:60]!r} has half a sign in it; give text that can be encoded.")
    return list(texts)


def _known(lm, text: str, ids: list[int]) -> None:
    """ids: of the text alone, since `<unk>` may share its id with a special token."""
    if lm.tokenizer.unk_token_id in ids:
        raise ValueError(f"The tokenizer has no tokens for part of {text[:60]!r}; leave the unusual signs out.")


def _continuation(lm, prompt: str, length: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    ids = [lm.tokenizer.bos_token_id, *encode(lm.tokenizer, prompt)]
    _known(lm, prompt, ids[1:])
    known, context = len(ids), lm.config.max_position_embeddings
    if known >= context:
        raise ValueError(f"The prompt is {known} tokens long and fills this model's context of {context}; shorten it.")
    room = context - known
    length = min(room, 256) if length is None else validation.check_int("length", length, 1)
    if length > room:
        raise ValueError(f"length is {length}, but after a prompt of {known} tokens only {room} of {context} are left.")
    return torch.tensor(ids + [lm.tokenizer.pad_token_id] * length), after(known + length, known)


def _blanks(lm, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = encode_blanks(lm.tokenizer, text)
    _known(lm, text, [number for number, blank in zip(ids[1:], mask[1:], strict=True) if not blank])
    if not any(mask):
        raise ValueError(f"{text[:60]!r} has no blanks; write one underscore for every token to fill in.")
    return torch.tensor(ids), torch.tensor(mask)


def _run(lm, prompts, rows, chosen, hooks, record, progress, start=0, from_start=False) -> list[Generation]:
    steps, top_p, temperature, seed = chosen
    seeds = validation.expand_seeds(secrets.randbits(31) if seed is None else seed, len(rows))
    hooks, recorder = validation.as_hooks(hooks), Recorder(validation.check_int("record", record, 1))
    denoising = denoise
    if getattr(lm.config, "diffusion", "simplex") != "simplex":
        denoising = mask_diffusion.denoise
    run = denoising(lm, _batch(rows), steps, top_p, temperature, seeds, [*hooks, recorder], start=start)
    top_p = None if top_p is None else float(top_p)
    settings = {"model": lm.name_or_path, "steps": int(steps), "top_p": top_p, "temperature": float(temperature)}
    settings["hooks"] = [type(hook).__name__ for hook in hooks if not isinstance(hook, FunctionType)]
    settings |= {"start": start, "from_start": from_start}  # whether texts show what was known before the first blank
    settings |= {"eos_token_id": lm.tokenizer.eos_token_id, "pad_token_id": lm.tokenizer.pad_token_id}
    settings["pins"] = pins_of(hooks)

    def generations():
        return [
            as_generation(lm.tokenizer, span_mask, i, recorder, settings | {"prompt": prompt, "seed": seeds[i]})
            for i, (prompt, (_, span_mask)) in enumerate(zip(prompts, rows, strict=True))
        ]

    bar = tqdm(run, total=steps, initial=start, desc="denoising", unit="step", disable=not progress, leave=False)
    try:
        with bar:
            for step in bar:
                bar.set_postfix(entropy=f"{step.entropy[step.span_mask].mean():.2f} nats", refresh=False)
    except KeyboardInterrupt:
        if not recorder.steps:
            raise
        raise Interrupted(len(recorder.steps), steps - start, generations()) from None
    return generations()


def _batch(rows) -> dict[str, torch.Tensor]:
    """Rows of different lengths side by side; filler on the right is neither attended nor written."""
    ids, masks = zip(*rows, strict=True)
    parts = {"input_ids": ids, "span_mask": masks, "attention_mask": [torch.ones_like(row) for row in ids]}
    return {name: pad_sequence(part, batch_first=True) for name, part in parts.items()}  # (B, L)


def as_generation(tokenizer, span_mask, index, recorder, settings) -> Generation:
    shown_from = 1 if settings["from_start"] else int(span_mask.nonzero()[0, 0])
    trajectory = recorder.trajectory(index, span_mask, tokenizer.decode, shown_from, settings)
    trajectory.token_bytes = partial_bytes(tokenizer, trajectory.token_strings)
    ids = trajectory.tokens[-1].tolist()
    last_known = int((~span_mask).nonzero()[-1, 0])  # an end before known text is none
    end = next((i for i in range(last_known + 1, len(ids)) if ids[i] == tokenizer.eos_token_id), None)
    text = tokenizer.decode(ids[shown_from:end], skip_special_tokens=True)
    ended = end is not None or not bool(span_mask[-1])  # blanks with known text after them have their end given
    return Generation(settings["prompt"], text, ids, ended, settings["seed"], trajectory)
