"""generate(), infill(), replay(), Chat: text in, text out, with the trajectory of how it came about."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from . import mask_diffusion, validation
from .chat_template import chat_prompt
from .hooks import Hook, Recorder
from .recording.settings import check_complete, check_replay, resolved_settings
from .recording.strings import generated_text
from .sampling import denoise
from .span_masks import after
from .tokens import encode, encode_blanks, eos_token_ids
from .trajectory import Trajectory, as_trajectory
from .validation import InputError
from .viz.byte_tokens import partial_bytes
from .viz.explorer import explorer, pins_of

if TYPE_CHECKING:
    from .model import SimplexDenoiser

Row = tuple[torch.Tensor, torch.Tensor]  # ids and span mask of one sequence, (L,) each
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class SamplingParams:
    """How a text is sampled; `generate`, `infill` and `Chat` take its fields as keyword arguments, too.

    Attributes:
        steps: Of diffusion; None for 100.
        top_p: Nucleus that tokens are sampled from, in (0, 1]; None for argmax.
        temperature: Divides the logits before sampling, above 0.
        seed: One for all prompts or one each, None for a fresh one; the same seed gives the same text, alone or in a
            batch.
        timestep_spacing: "uniform", "informative" or falling times t/T, as in `denoise`; None for the model's own.
        final: "argmax" or "sample", as in `denoise`.
    """

    steps: int | None = None
    top_p: float | None = 0.99
    temperature: float = 1.0
    seed: int | Iterable[int] | None = 0
    timestep_spacing: str | Sequence[float] | None = None
    final: str = "argmax"

    @classmethod
    def merged(cls, params: SamplingParams | None, changes: dict[str, Any]) -> SamplingParams:
        """`params`, or the defaults, with some fields changed."""
        if params is not None and not isinstance(params, cls):
            raise InputError(f"params is {params!r}; give a SamplingParams, or its fields as keyword arguments.")
        names = [field.name for field in fields(cls)]
        if unknown := [name for name in changes if name not in names]:
            raise InputError(f"{unknown[0]} is not a sampling parameter; choose from {', '.join(names)}.")
        return replace(params or cls(), **changes)


@dataclass
class Generation:
    """A text that was written by denoising; in a notebook it shows itself.

    Attributes:
        prompt: The prompt.
        text: The generated text (for `infill`, the whole text).
        token_ids: Of the whole sequence, context and generated.
        ended: Whether the model ended the text with EOS; else it filled all the room it had.
        seed: Repeats this text.
        trajectory: How it came about.
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
        notes = [] if self.ended else ["The text filled its room without an end (no EOS)."]
        steps_done = self.trajectory.first + len(self.trajectory)
        planned = self.trajectory.settings["steps"]
        if steps_done < planned:
            notes.append(f"Stopped after {steps_done} of {planned} steps.")
        return explorer(self.trajectory, " ".join(notes))


class Interrupted(KeyboardInterrupt):
    """A run was stopped by the keyboard; `generations` holds what there was."""

    def __init__(self, steps_done: int, planned: int, generations: list[Generation]):
        super().__init__(
            f"Stopped after {steps_done} of {planned} steps; catch t2.Interrupted, its `generations` are there."
        )
        self.generations = generations


def generate(
    lm: SimplexDenoiser,
    prompt: str | Messages | Sequence[str | Messages],
    params: SamplingParams | None = None,
    *,
    length: int | None = None,
    hooks: Hook | Iterable[Hook] = (),
    record: int = 5,
    progress: bool = True,
    **changes: Any,
) -> Any:
    """Continue a prompt: all new tokens are denoised together.

    Args:
        lm: A denoiser from `load`, of simplex or masked diffusion (`mask_diffusion.py`).
        prompt: A text that is continued as it stands, or messages, [{"role": "user", "content": …}], that the
            assistant answers in the chat format it was trained on (`chat_template.py`); or a list of these, written as
            one batch.
        params: How to sample; by default `SamplingParams()`.
        length: Tokens to write after the prompt; None for the rest of the model's context, at most 256.
        hooks: Called on each `Step`, in order, as in `denoise`.
        record: How many of the most likely tokens of each position the trajectory keeps.
        progress: Show a bar.
        changes: Fields of `SamplingParams`, such as steps=50, seed=3.

    Returns:
        A `Generation`, or a list of them for a list of prompts.

    Raises:
        InputError: Before the first step.
        Interrupted: When the keyboard stops the run; it holds what there is.
    """
    check_model(lm)
    params = SamplingParams.merged(params, changes)
    single = isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(m, dict) for m in prompt))
    prompts: Any = [prompt] if single and prompt else prompt
    if isinstance(prompts, (list, tuple)):
        prompts = [chat_prompt(each) if isinstance(each, list) else each for each in prompts]
    prompts = check_texts("prompt", prompts)
    rows = [_continuation(lm, text, length) for text in prompts]
    generations = _generate(lm, prompts, rows, params, hooks, record, progress)
    return generations[0] if single else generations


def infill(
    lm: SimplexDenoiser,
    text: str | Sequence[str],
    params: SamplingParams | None = None,
    *,
    hooks: Hook | Iterable[Hook] = (),
    record: int = 5,
    progress: bool = True,
    **changes: Any,
) -> Any:
    """Fill the blanks of a text or of each in a list; every underscore is one token: `"A ___ in the barn."` has three.

    Other arguments, what is returned and raised: as in `generate`. For any other mask call `denoise` with `input_ids`
    and `span_mask`.
    """
    check_model(lm)
    params = SamplingParams.merged(params, changes)
    texts = check_texts("text", text)
    rows = [_blanks(lm, text) for text in texts]
    generations = _generate(lm, texts, rows, params, hooks, record, progress, from_start=True)
    return generations[0] if isinstance(text, str) else generations


def params_of(trajectory: Trajectory) -> SamplingParams:
    """How a recorded run was sampled. Raises InputError for a trajectory that does not say."""
    names = [field.name for field in fields(SamplingParams)]
    check_complete(trajectory.settings, names)
    return SamplingParams(**{name: trajectory.settings[name] for name in names})


def replay(
    lm: SimplexDenoiser,
    trajectory: Trajectory | Generation,
    hooks: Hook | Iterable[Hook] = (),
    seed: int | None = None,
    start: int = 0,
    span_mask: torch.Tensor | Sequence[bool] | None = None,
    progress: bool = True,
    final: str | None = None,
) -> Generation:
    """Repeats a recorded run: bit for bit the same on the same model, alone in its batch, unless something is changed.

    Args:
        lm: The model that wrote it.
        trajectory: Of `generate` or `infill`, or the `Generation` itself.
        hooks: Interventions such as `Pin` or `Branch`; a run that was made with hooks needs them again.
        seed: Another one.
        start: A step's index; above 0, the recorded text is noised as that step would read it, and denoised again.
        span_mask: (L,) bool, write only here and keep the rest of the recorded text.
        progress: Show a bar.
        final: Another one.

    Raises:
        InputError: As `generate`, and for a trajectory that is not of this model.
    """
    check_model(lm)
    trajectory = as_trajectory(trajectory)
    hooks = validation.as_hooks(hooks)
    changes = {"seed": seed, "final": final}
    changes = {name: value for name, value in changes.items() if value is not None}
    params = SamplingParams.merged(params_of(trajectory), changes)
    settings = trajectory.settings
    check_replay(trajectory, lm.tokenizer, hooks, start)
    mask = trajectory.span_mask if span_mask is None else torch.as_tensor(span_mask, dtype=torch.bool)
    needed = tuple(trajectory.span_mask.shape)
    if mask.shape != needed:
        raise InputError(f"span_mask has shape {tuple(mask.shape)}; this text needs {needed}.")
    row = (trajectory.tokens[-1].long(), mask)
    record = trajectory.top_ids.shape[-1]
    from_start = settings["from_start"] or span_mask is not None
    return _generate(lm, [settings["prompt"]], [row], params, hooks, record, progress, start, from_start)[0]


class Chat:
    """A conversation with a denoiser: `chat("Tell me a story.")` answers as a Generation and keeps both turns.

    When the context is full the oldest turns are dropped, with a warning. A turn that fails is not kept.

    Args:
        lm: An instruction-tuned denoiser.
        system: A system prompt, ours; TESS 2 has none.
        settings: Of `generate`, for every turn.

    Attributes:
        messages: The conversation that the model reads.
        dropped: Messages that no longer fit, oldest first.
    """

    def __init__(self, lm: SimplexDenoiser, system: str | None = None, **settings: Any):
        validation.check_denoiser(lm)
        self.lm = lm
        self.settings = settings
        self.messages: Messages = [] if system is None else [{"role": "system", "content": system}]
        self.dropped: Messages = []

    def __call__(self, text: str, **settings: Any) -> Generation:
        """The answer to one more turn of the user. settings: of `generate`, for this turn alone."""
        settings = self.settings | settings
        messages = [*self.messages, {"role": "user", "content": text}]
        context = self.lm.config.max_position_embeddings
        room = settings.get("length") or context // 4  # tokens to keep for the answer
        first = int(messages[0]["role"] == "system")
        dropped: Messages = []
        while len(messages) > first + 1 and self._length(messages) + room > context:
            dropped += messages[first : first + 2]
            messages = messages[:first] + messages[first + 2 :]
        if self._length(messages) + 1 > context:
            raise InputError(
                f"With these words the conversation fills this model's context of {context} tokens; say less, or "
                "shorten the system prompt."
            )
        answer = generate(self.lm, messages, **settings)
        if dropped:
            self.dropped += dropped
            warnings.warn(f"The context is full: the {len(dropped)} oldest messages were dropped.", stacklevel=2)
        self.messages = [*messages, {"role": "assistant", "content": answer.text.strip() or "…"}]
        return answer

    def _length(self, messages: Messages) -> int:
        return 1 + len(encode(self.lm.tokenizer, chat_prompt(messages)))


def check_model(lm: SimplexDenoiser) -> None:
    """Raises InputError unless this is a denoiser with a tokenizer."""
    validation.check_denoiser(lm)
    if lm.tokenizer is None:
        raise InputError("This model was loaded without a tokenizer; use denoise with token ids, or set lm.tokenizer.")


def check_texts(name: str, value: Any) -> list[str]:
    """A text or several as a list. Raises InputError unless they are strings with something in them."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} is {type(value).__name__}; give a string, or a list of strings.")
    if not texts or not all(text.strip() for text in texts):
        raise InputError(f"{name} is empty; give at least one word to start from.")
    for text in texts:
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise InputError(f"{name} {text[:60]!r} contains an unpaired surrogate and cannot be encoded as UTF-8.")
    return list(texts)


def _check_tokens(lm: SimplexDenoiser, text: str, ids: list[int]) -> None:
    """ids: of the text alone, since `<unk>` may share its id with a special token."""
    if lm.tokenizer.unk_token_id in ids:
        raise InputError(f"The tokenizer has no tokens for part of {text[:60]!r}; leave the unusual characters out.")


def _continuation(lm: SimplexDenoiser, prompt: str, length: int | None) -> Row:
    ids = [lm.tokenizer.bos_token_id, *encode(lm.tokenizer, prompt)]
    _check_tokens(lm, prompt, ids[1:])
    context = lm.config.max_position_embeddings
    room = context - len(ids)
    if room <= 0:
        raise InputError(
            f"The prompt is {len(ids)} tokens long and fills this model's context of {context}; shorten it."
        )
    length = min(room, 256) if length is None else validation.check_int("length", length, 1)
    if length > room:
        raise InputError(
            f"length is {length}, but after a prompt of {len(ids)} tokens only {room} of {context} are left."
        )
    return torch.tensor(ids + [lm.tokenizer.pad_token_id] * length), after(len(ids) + length, len(ids))


def _blanks(lm: SimplexDenoiser, text: str) -> Row:
    ids, mask = encode_blanks(lm.tokenizer, text)
    pairs = zip(ids[1:], mask[1:], strict=True)
    context = [token for token, is_blank in pairs if not is_blank]
    _check_tokens(lm, text, context)
    if not any(mask):
        raise InputError(f"{text[:60]!r} has no blanks; write one underscore for every token to fill in.")
    return torch.tensor(ids), torch.tensor(mask)


def _generate(
    lm: SimplexDenoiser,
    prompts: list[str],
    rows: list[Row],
    params: SamplingParams,
    hooks: Hook | Iterable[Hook],
    record: int,
    progress: bool,
    start: int = 0,
    from_start: bool = False,
) -> list[Generation]:
    """Runs one batch; from_start: whether texts show the context before the first blank."""
    seeds = validation.expand_seeds(secrets.randbits(31) if params.seed is None else params.seed, len(rows))
    hooks = validation.as_hooks(hooks)
    recorder = Recorder(validation.check_int("record", record, 1))
    is_simplex = getattr(lm.config, "diffusion", "simplex") == "simplex"
    chosen = vars(params) | {"seed": seeds}
    run = (denoise if is_simplex else mask_diffusion.denoise)(
        lm, make_batch(rows), hooks=[*hooks, recorder], start=start, **chosen
    )
    settings = resolved_settings(params, lm.config) | {
        "model": lm.name_or_path,
        "hooks": [type(hook).__name__ for hook in hooks if not isinstance(hook, FunctionType)],
        "start": start,
        "from_start": from_start,
        "eos_token_id": eos_token_ids(lm),
        "pad_token_id": lm.tokenizer.pad_token_id,
        "pins": pins_of(hooks),
    }
    steps = settings["steps"]

    def generations() -> list[Generation]:
        own = [{"prompt": prompt, "seed": seed} for prompt, seed in zip(prompts, seeds, strict=True)]
        return [as_generation(lm.tokenizer, rows[i][1], i, recorder, settings | own[i]) for i in range(len(rows))]

    bar = tqdm(run, total=steps, initial=start, desc="denoising", unit="step", disable=not progress, leave=False)
    try:
        with bar:
            for step in bar:
                bar.set_postfix(entropy=f"{step.mean_entropy:.2f} nats", refresh=False)
    except KeyboardInterrupt:
        if not recorder.steps:
            raise
        raise Interrupted(len(recorder.steps), steps - start, generations()) from None
    return generations()


def make_batch(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Rows of different lengths side by side; filler on the right is neither attended nor written."""
    ids, masks = zip(*rows, strict=True)
    parts = {"input_ids": ids, "span_mask": masks, "attention_mask": [torch.ones_like(row) for row in ids]}
    return {name: pad_sequence(part, batch_first=True) for name, part in parts.items()}  # (B, L)


def as_generation(
    tokenizer: Any,
    span_mask: torch.Tensor,
    row: int,
    recorder: Recorder,
    settings: dict[str, Any],
) -> Generation:
    """One sequence of a recorded batch as a text. span_mask: (L,), of its real length."""
    first = int(span_mask.nonzero()[0, 0])
    shown_from = 1 if settings["from_start"] else first
    trajectory = recorder.trajectory(row, span_mask, tokenizer.decode, shown_from, settings)
    trajectory.token_bytes = partial_bytes(tokenizer, trajectory.token_strings)
    ids = trajectory.tokens[-1].tolist()
    text, ended = generated_text(tokenizer, ids, span_mask.tolist(), settings["eos_token_id"], shown_from)
    return Generation(settings["prompt"], text, ids, ended, settings["seed"], trajectory)
