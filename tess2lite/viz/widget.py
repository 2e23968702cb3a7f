"""The explorer with a kernel: write another word into a run and see its future stream in beside the old one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

import anywidget
import torch
import traitlets

from .. import generation, validation
from ..guidance import RewardGuidance
from ..hooks import NoSelfConditioning, Pin, Recorder
from ..recording.strings import context_strings_of, token_strings_of
from ..sampling import SamplerState, Step, loop
from ..schedule import sampling_times
from ..tokens import encode_continuation, eos_token_ids
from ..trajectory import Trajectory
from ..validation import InputError
from .byte_tokens import partial_bytes
from .explorer import MODULE, Run, as_trajectory, pins_of, run_data, run_header

if TYPE_CHECKING:
    from ..hooks import Hook
    from ..model import SimplexDenoiser
    from .voices import Voice

Hooks: TypeAlias = "Hook | Iterable[Hook]"

EMPTY: dict[str, Any] = {  # a run of no steps
    "name": "",
    "steps": 0,
    "positions": [],
    "known": [""],
    "pieces": [],
    "tokens": "",
    "alpha_bar": [],
}
MOST_KEPT = 2**29  # bytes of step inputs that one run may keep
SMALL = 50_000_000  # parameters of models that replay a run in the background, to be ready for wishes
STATELESS = (Pin, RewardGuidance, NoSelfConditioning)  # hooks for which a run may begin in its middle


class Explorer(anywidget.AnyWidget):
    """The explorer of a run, live: choose a word at a step, choose or type another, and watch what follows.

    Each future is exactly `t2.replay(lm, run, [*hooks, Pin(...)])`; `runs` holds all of them, the given one first.

    Args:
        lm: The denoiser that wrote the run.
        run: A `Generation` or `Trajectory`; None for an empty explorer that `stream` fills.
        hooks: Those that the run was made with, such as its guidance.

    Raises:
        TypeError, ValueError: If the model or the run cannot be used.
    """

    _esm = MODULE.read_text(encoding="utf-8")
    data = traitlets.Dict().tag(sync=True)
    can_explain = traitlets.Bool(False).tag(sync=True)
    fields: traitlets.List[Any] = traitlets.List().tag(sync=True)
    says = traitlets.Unicode("").tag(sync=True)

    def __init__(self, lm: SimplexDenoiser, run: Run | None = None, hooks: Hooks = (), **traits: Any):
        generation.check_model(lm)
        can_explain = find_spec("tess2lite.insides.attribution") is not None
        super().__init__(can_explain=can_explain, **traits)
        # ipykernel gives a wish to the shell that made this widget, where a cell may run for long. Let the front end
        # choose: JupyterLab can name a subshell that is free.
        self.comm._reply_subshell_for = None
        self.lm = lm
        self.futures: list[Future] = []
        self.thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self.data = {"runs": [EMPTY]}
        if run is not None:
            future = Future("as it was", as_trajectory(run), validation.as_hooks(hooks))
            self._keep(future)
        self.on_msg(self._answer)

    @property
    def runs(self) -> list[Trajectory]:
        """All trajectories, the given one first."""
        return [future.trajectory for future in self.futures]

    def stream(self, name: str, work: Callable, hooks: Hooks = (), beside: int | None = None) -> generation.Generation:
        """Run work(hooks) → Generation in this thread, and show its steps as they are made.

        Args:
            name: Label of its tab.
            work: Called with the hooks and one more that shows each step.
            hooks: Those that a future of this run needs again.
            beside: Index of the run that it is compared with.
        """
        hooks = validation.as_hooks(hooks)
        feed = _Feed(self, name, hooks=hooks, beside=beside)
        written = work([*hooks, feed])
        self._keep(Future(name, written.trajectory, hooks))
        feed.end()
        return written

    def what_if(self, run: int, step: int, position: int, tokens: list[int]) -> generation.Generation:
        """Write tokens from this position on, at a step (index) and all later ones, and stream what follows."""
        parent = self.futures[run]
        trajectory = parent.trajectory
        pins = {position + i: token for i, token in enumerate(tokens)}
        hooks = [*parent.hooks, Pin(pins, start=step)]
        strings = trajectory.token_strings | self._strings(tokens)
        old_token = int(trajectory.tokens[step, position])
        old = strings[old_token].strip()
        new = "".join(strings[token] for token in tokens).strip()
        name = f"{old} → {new} at step {step + 1}"
        feed = _Feed(self, name, trajectory, step, hooks, beside=run)
        written, inputs = parent.continued(self.lm, step, hooks, feed)
        self._keep(Future(feed.name, written.trajectory, hooks, inputs))
        feed.end()
        return written

    @property
    def stopped(self) -> bool:
        """Whether Stop was pressed since the last wish."""
        return self._stopped.is_set()

    def _keep(self, future: Future) -> None:
        self.futures.append(future)
        self._refresh()
        if not future.inputs and self.lm.num_parameters() <= SMALL:
            filling = threading.Thread(target=future.fill, args=(self.lm,))
            filling.start()

    def add_voices(self, run: int, voices: Sequence[Voice]) -> None:
        """Set final texts beside a run that answer the same prompt."""
        self.futures[run].voices = [voice.as_dict() for voice in voices]
        self.send({"type": "voices", "run": run, "voices": self.futures[run].voices})
        self._refresh()

    def _refresh(self) -> None:
        """What a reader without a kernel sees."""
        data = [run_data(each.trajectory, each.name) | {"voices": each.voices} for each in self.futures]
        self.data = {"runs": data}

    def _answer(self, _, message: dict, __) -> None:
        """A wish of the front end. Work goes on in a thread, so that the kernel stays free for Stop."""
        wishes = {"what if": self._imagine, "why": self._explain, "go": self._write}
        wish = message.get("type")
        if wish == "stop":
            self._stopped.set()
        elif wish in wishes:
            if self.thread is not None:
                self.thread.join(0.3)  # it may just have sent its last message
            if self.thread is not None and self.thread.is_alive():
                self.say("One thing at a time: this run is still being written.", busy=True)
                return
            self._stopped.clear()
            self.thread = threading.Thread(target=self._guarded, args=(wishes[wish], message))
            self.thread.start()

    def _guarded(self, work: Callable, message: dict) -> None:
        try:
            work(message)
            self.say("")
        except Exception as problem:  # in a thread nothing else would show it
            sentence = str(problem) or type(problem).__name__
            if message["type"] == "go":
                self.send({"type": "fail", "sentence": sentence})
            else:
                self.say(sentence)

    def _imagine(self, message: dict) -> None:
        parent = self.futures[message["run"]].trajectory
        position = message["position"]
        step = message["step"] - parent.first
        if "token" in message:
            tokens = [sorted(parent.token_strings)[message["token"]]]
        else:
            tokens = self.token_ids(parent, position, message["text"])
        written = parent.span_mask.nonzero()[:, 0].tolist()
        if position + len(tokens) - 1 not in written:
            raise InputError(
                f"{message['text']!r} is {len(tokens)} tokens long and does not fit here; choose a shorter word."
            )
        self.say("Writing another future …", busy=True)
        self.what_if(message["run"], step, position, tokens)

    def _write(self, message: dict) -> None:
        """What the form above the explorer asks for; panels say what that is."""
        raise NotImplementedError

    def _explain(self, message: dict) -> None:
        from ..insides.attribution import attribute  # only where somebody asks

        future = self.futures[message["run"]]
        self.say("Looking for reasons …", busy=True)
        step = message["step"] - future.trajectory.first
        why = attribute(self.lm, future.trajectory, step, message["position"], hooks=future.hooks)
        self.send({"type": "why", "run": message["run"], "entry": why.as_dict()})

    def token_ids(self, trajectory: Trajectory, position: int, text: str) -> list[int]:
        """Tokens of a typed word; a space before it is added where the old word had one, or where that is shorter."""
        tokenizer = self.lm.tokenizer
        if not text.strip():
            raise InputError("No word is given; type one.")
        generation.check_texts("The word", text)
        if text.strip() in tokenizer.all_special_tokens:
            return [tokenizer.convert_tokens_to_ids(text.strip())]
        old = trajectory.token_strings[int(trajectory.tokens[-1, position])]
        spaced = " " + text.lstrip()
        spellings = [spaced, text] if old.startswith(" ") else [text, spaced]
        encoded = [encode_continuation(tokenizer, spelling) for spelling in spellings]
        ids = min(encoded, key=len)
        if tokenizer.unk_token_id in ids:
            raise InputError(f"The tokenizer has no tokens for {text!r}; type another word.")
        return ids

    def say(self, sentence: str, busy: bool = False) -> None:
        """Show a sentence in the explorer's first row."""
        self.send({"type": "say", "sentence": sentence, "busy": busy})

    def _strings(self, ids: list[int]) -> dict[int, str]:
        return token_strings_of(set(ids), self.lm.tokenizer.decode) if ids else {}


@dataclass
class Future:
    """A run that can be continued from any of its steps.

    Attributes:
        name: Of its tab.
        trajectory: What was recorded.
        hooks: Those it was made with.
        inputs: What each step read, (N, H); they spare a replay up to the step where a future begins.
        voices: Final texts that answer the same prompt, as explorer.mjs has them.
    """

    name: str
    trajectory: Trajectory
    hooks: list
    inputs: list[torch.Tensor] = field(default_factory=list)
    voices: list[dict] = field(default_factory=list)
    _filling: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def resumable(self, lm: SimplexDenoiser) -> bool:
        """Whether the run may begin in its middle, and what that needs is not too large."""
        if getattr(lm.config, "diffusion", "simplex") != "simplex":
            return False
        if self.trajectory.first != 0 or not _are_stateless(self.hooks):
            return False
        positions = int(self.trajectory.span_mask.sum())
        values = positions * lm.config.hidden_size * len(self.trajectory)
        return values * 4 <= MOST_KEPT

    def fill(self, lm: SimplexDenoiser) -> None:
        """Replay once to find what each step reads."""
        with self._filling:
            if self.inputs or not self.resumable(lm):
                return
            sampler = _sampler(lm, self.trajectory)
            tokens = sampler.gather_masked(sampler.input_ids)
            for _ in loop(sampler, self.hooks, Step, 0, tokens):
                pass
            self.inputs = sampler.inputs

    def continued(self, lm: SimplexDenoiser, step: int, hooks: list, feed: _Feed) -> tuple[generation.Generation, list]:
        """The run from a step on with other hooks, as `replay` would write it, and what its steps read."""
        self.fill(lm)
        run = self.trajectory
        if not self.inputs or not _are_stateless(hooks):
            return generation.replay(lm, run, [*hooks, feed], progress=False), []
        sampler = _sampler(lm, run, self.inputs[: step + 1])
        if "noisy_tokens" in run.records:
            noisy = run.records["noisy_tokens"][step, run.span_mask]
            sampler.noisy_tokens[step] = noisy.to(sampler.masked_idx)
        candidates = run.top_ids.shape[-1]
        recorder = Recorder(candidates, _recorded(run, step), run.alpha_bar[:step].tolist())
        unread = sampler.gather_masked(sampler.input_ids)  # the first step's input is kept
        for _ in loop(sampler, [*hooks, recorder, feed], Step, step, unread):
            pass
        names = [type(hook).__name__ for hook in hooks]
        settings = run.settings | {"hooks": names, "pins": pins_of(hooks)}
        written = generation.as_generation(lm.tokenizer, run.span_mask, 0, recorder, settings)
        return written, sampler.inputs


def _are_stateless(hooks: list) -> bool:
    return all(type(hook) in STATELESS for hook in hooks)


class _KeepingSampler(SamplerState):
    """A sampler that keeps what each step reads, and begins with what it was given."""

    inputs: list[torch.Tensor]

    def first_input(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        return self.inputs.pop() if self.inputs else super().first_input(index, tokens)

    def read(self, state: torch.Tensor, index: int) -> torch.Tensor:
        self.inputs.append(state)
        return super().read(state, index)


def _sampler(lm: SimplexDenoiser, run: Trajectory, inputs: Sequence[torch.Tensor] = ()) -> _KeepingSampler:
    ids = run.tokens[-1:].long()  # (1, L)
    batch = {
        "input_ids": ids,
        "span_mask": run.span_mask[None],
        "attention_mask": torch.ones_like(ids),
    }
    params: Any = generation.params_of(run)  # complete, as a run keeps them
    loss_curve = getattr(lm.config, "loss_curve", None)
    times = sampling_times(params.steps, params.timestep_spacing, loss_curve)
    sampler = _KeepingSampler(
        lm,
        batch,
        times,
        params.top_p,
        params.temperature,
        params.seed,
        params.final,
    )
    sampler.inputs = list(inputs)
    return sampler


def _recorded(run: Trajectory, steps: int) -> list[dict]:
    """A trajectory's first steps as a `Recorder` kept them."""
    columns = {
        "tokens": run.tokens,
        "top_ids": run.top_ids,
        "top_p": run.top_p,
        "entropy": run.entropy,
        **run.records,
    }
    recorded = []
    for step in range(steps):
        recorded.append({name: values[step : step + 1] for name, values in columns.items()})
    return recorded


class _Feed:
    """A hook that sends each step to the front end as it is made; put it last."""

    def __init__(
        self,
        explorer: Explorer,
        name: str,
        parent: Trajectory | None = None,
        start: int = 0,
        hooks: Sequence = (),
        beside: int | None = None,
    ):
        self.explorer = explorer
        self.name = name
        self.parent = parent
        self.start = start
        self.pins = pins_of(hooks)
        self.beside = beside
        self.run = len(explorer.futures)
        self.index: dict[int, int] = {}
        self.began = False
        self.recorder = Recorder()
        self.top_k = self.recorder.top_k

    def __call__(self, step: Step) -> None:
        step.stop = step.stop or self.explorer.stopped
        if step.index < self.start:
            return
        self.recorder(step)
        if not self.began:
            self._begin(step)
        frame = self._frame(self.recorder.steps.pop())
        frame["alpha_bar"] = step.alpha_bar
        self.explorer.send({"type": "step", "run": self.run, "step": frame})

    def end(self) -> None:
        """Tell the front end that the run is complete."""
        self.explorer.send({"type": "end", "run": self.run, "more": {}})

    def _begin(self, step: Step) -> None:
        """The run's header; a future has its parent's steps up to where it begins."""
        self.began = True
        self.positions = step.span_mask[0].nonzero()[:, 0].cpu()
        if self.parent is None:
            run = self._empty(step)
        elif self.start == 0:
            run = run_header(self.parent, self.name) | {"pieces": [], "tokens": [], "alpha_bar": []}
        else:
            run = run_data(_first_steps(self.parent, self.start), self.name)
        special = self._special()
        if run["pieces"] and self.parent is not None:
            self.index = {token: i for i, token in enumerate(sorted(self.parent.token_strings))}
        run["pieces"] += self._pieces([*special["end"], *special["pad"]])
        run |= {name: [self.index[token] for token in tokens] for name, tokens in special.items()}
        run["pins"] = [self._named(pin) for pin in self.pins]
        self.explorer.send({"type": "run", "run": run, "beside": self.beside})

    def _named(self, pin: dict) -> dict:
        """A pin that names its token by its text."""
        (text,) = self.explorer._strings([pin["token"]]).values()
        return pin | {"token": text}

    def _special(self) -> dict[str, list[int]]:
        lm = self.explorer.lm
        pad = lm.tokenizer.pad_token_id
        return {"end": eos_token_ids(lm), "pad": [] if pad is None else [pad]}

    def _empty(self, step: Step) -> dict:
        ids = step.input_ids[0].tolist()
        span_mask = step.span_mask[0].cpu()
        nothing = torch.empty(0)
        run = Trajectory(
            tokens=nothing,
            top_ids=nothing,
            top_p=nothing,
            entropy=nothing,
            alpha_bar=nothing,
            span_mask=span_mask,
            texts=[],
            token_strings={},
            context_strings=context_strings_of(ids, span_mask.tolist(), self.explorer.lm.tokenizer.decode),
            settings={"steps": step.steps, "start": step.index},
        )
        return run_header(run, self.name) | {"pieces": [], "tokens": [], "alpha_bar": []}

    def _pieces(self, ids: list[int]) -> list[str]:
        """Texts of those ids that the front end does not know yet."""
        new = [token for token in dict.fromkeys(ids) if token not in self.index]
        for token in new:
            self.index[token] = len(self.index)
        strings = self.explorer._strings(new)
        partial = partial_bytes(self.explorer.lm.tokenizer, new)
        for token, values in partial.items():
            strings[token] = bytes(values).decode("utf-8", "surrogateescape")
        return [strings[token] for token in new]

    def _frame(self, recorded: dict) -> dict:
        """One step's columns as the contract has them."""
        columns = {}
        for name, value in recorded.items():
            of_run = value[0].cpu()  # (L, …), or one number
            columns[name] = of_run[self.positions] if of_run.dim() else of_run
        p = (columns["top_p"] * 255).round().int()
        listed = p > 0
        listed[:, 0] = True
        ids = {"tokens": columns["tokens"], "top": columns["top_ids"][listed]}
        for name, record in (("before", "argmax_before_guidance"), ("noisy", "noisy_tokens")):
            if record in columns:
                ids[name] = columns[record]
        pieces = self._pieces(torch.cat(list(ids.values())).tolist())
        entropy = (columns["entropy"] * 16).round().clamp(0, 255)
        frame = {
            "pieces": pieces,
            "sure": p[:, 0].tolist(),
            "counts": listed.sum(1).tolist(),
            "p": p[listed].tolist(),
            "entropy": entropy.int().tolist(),
        }
        for name, part in ids.items():
            frame[name] = self._indices(part)
        if "before" in ids:
            gain = (columns["logprob_gain"] * 100).round().clamp(-32_767, 32_767)
            frame["gain"] = gain.int().tolist()
            frame["reward"] = float(columns["reward"])
        if "token_p" in columns:
            frame["drawn"] = (columns["token_p"] * 255).round().int().tolist()
        return frame

    def _indices(self, ids: torch.Tensor) -> list[int]:
        return [self.index[token] for token in ids.tolist()]


def _first_steps(run: Trajectory, steps: int) -> Trajectory:
    """A trajectory's first steps alone."""
    return replace(
        run,
        tokens=run.tokens[:steps],
        top_ids=run.top_ids[:steps],
        top_p=run.top_p[:steps],
        entropy=run.entropy[:steps],
        alpha_bar=run.alpha_bar[:steps],
        texts=run.texts[:steps],
        records={name: values[:steps] for name, values in run.records.items()},
    )
