"""Panels: the explorer with controls above it, to write runs, guide them and interfere; and a sentence under noise.

Each panel of runs is an `Explorer` whose form asks for new ones; its `runs` are their trajectories, `result` the last
Generation. A mistake is shown as its sentence in place of the pictures.
"""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import ipywidgets as widgets
import torch

from .. import generation, textbook, validation
from ..chunks import generator_for
from ..guidance import RewardGuidance
from ..hooks import Branch, Pin
from ..schedule import SCHEDULES, TRAINING_TIMESTEPS, alpha_bar
from ..tokens import encode
from ..validation import InputError
from .explorer import Run, as_trajectory
from .voices import (
    autoregressive_voice,
    best_voice,
    bundled_parent,
    guided_passes,
    number_at_equal_cost,
    single_voice,
)
from .widget import Explorer, Future, Hooks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..model import SimplexDenoiser
    from ..reward import RewardModel
    from ..sampling import Step

SETTINGS = ("steps", "seed")


Field: TypeAlias = dict[str, Any]
Work: TypeAlias = "Callable[[Panel, dict, dict], None]"


class Panel(Explorer):
    """An explorer with a form; `work(panel, values, held)` writes what the form asks for.

    Args:
        lm: The denoiser.
        fields: Of the form, as explorer.mjs has them.
        says: Label of its button.
        work: Called in a thread with the form's values, and the run, step and position that are held.
        run: A run to begin with.
        hooks: Those it was made with.
    """

    def __init__(
        self,
        lm: SimplexDenoiser,
        fields: list[Field],
        says: str,
        work: Work,
        run: Run | None = None,
        hooks: Hooks = (),
    ):
        super().__init__(lm, run, hooks, fields=fields, says=says)
        self.work = work
        self.result: generation.Generation | None = None

    def go(self, values: dict | None = None, run: int = 0, step: int = 0, position: int | None = None) -> None:
        """Press the button: the form's values, some of them replaced, and what is held. Returns when it is done."""
        defaults = {field["name"]: field["value"] for field in self.fields}
        message = {
            "type": "go",
            "values": defaults | (values or {}),
            "run": run,
            "step": step,
            "position": position,
        }
        self._answer(self, message, None)
        if self.thread is not None:
            self.thread.join()

    def halt(self, step: Step) -> None:
        """A hook that ends a run once Stop was pressed."""
        step.stop = step.stop or self.stopped

    def _write(self, message: dict) -> None:
        self.result = None
        self.say("Writing …", busy=True)
        held = {name: message.get(name) for name in ("run", "step", "position")}
        self.work(self, message["values"], held)

    def show(self, name: str, work: Callable, hooks: Hooks = (), beside: int | None = None) -> generation.Generation:
        """Write one run in view of the reader."""
        self.result = self.stream(name, work, hooks, beside)
        return self.result


def _number(name: str, label: str, value: float, least: float, most: float, step: float = 1) -> Field:
    return {
        "name": name,
        "label": label,
        "kind": "number",
        "value": value,
        "min": least,
        "max": most,
        "step": step,
    }


def _choice(name: str, label: str, choices: Iterable[tuple[str, str]]) -> Field:
    """choices: (what is shown, value); the first is chosen."""
    pairs = [list(pair) for pair in choices]
    _, first = pairs[0]
    return {"name": name, "label": label, "kind": "choice", "value": first, "choices": pairs}


def _prompt(text: str) -> Field:
    return {"name": "prompt", "label": "prompt", "kind": "area", "value": text}


def run_panel(lm: SimplexDenoiser, prompt: str, steps: int = 50) -> Panel:
    """A prompt and all settings of `generate`; the text streams in, and any of its words can be exchanged."""
    _check(lm, prompt, steps)
    longest = min(lm.config.max_position_embeddings - 1, 256)
    fields = [
        _prompt(prompt),
        _number("steps", "steps", steps, 1, max(200, steps)),
        _number("length", "length (0: all)", 0, 0, longest),
        _number("top_p", "top-p", 0.99, 0.01, 1, 0.01),
        _number("temperature", "temperature", 1, 0.1, 2, 0.05),
        _number("seed", "seed", 0, 0, 2**31),
    ]

    def work(panel: Panel, values: dict, _) -> None:
        settings = values | {"length": values["length"] or None, "progress": False}

        def write(hooks: list) -> generation.Generation:
            return generation.generate(lm, hooks=hooks, **settings)

        name = f"seed {values['seed']}, {values['steps']} steps"
        panel.show(name, write)

    return Panel(lm, fields, "Write", work)


def guidance_panel(
    lm: SimplexDenoiser,
    rewards: Mapping[str, RewardModel],
    prompt: str,
    steps: int = 50,
    scale: float = 10,
    autoregressive: PreTrainedModel | None = None,
) -> Panel:
    """An instruction answered twice from the same noise: unguided, and pulled towards a reward.

    Two more answers are listed beside them: the best of several unguided ones that together cost as much as the guided
    one, and an autoregressive model's.

    Args:
        lm: The denoiser.
        rewards: Reward models by name.
        prompt: The user's message.
        steps: Of diffusion.
        scale: η that the form begins with.
        autoregressive: A model of transformers with the denoiser's tokens, such as its parent; by default tinytown-ar
            beside a denoiser that has its tokens, else none.
    """
    _check(lm, prompt, steps)
    if not isinstance(rewards, dict) or not rewards:
        raise TypeError(f"rewards is {type(rewards).__name__}; give a dict of one or more reward models by name.")
    for reward in rewards.values():
        RewardGuidance(reward, scale).check(lm)
    fields = [
        _prompt(prompt),
        _choice("reward", "reward model", [(str(name), name) for name in rewards]),
        _number("scale", "scale η", scale, 0, 1e6, 0.25),
        _number("inner_steps", "inner steps", 1, 1, 5),
        _number("start", "guided from", 0, 0, 1, 0.05),
        _number("end", "to", 1, 0, 1, 0.05),
        _number("steps", "steps", steps, 1, max(200, steps)),
        _number("seed", "seed", 0, 0, 2**31),
    ]

    def work(panel: Panel, values: dict, _) -> None:
        if values["reward"] not in rewards:
            raise InputError(f"The reward model is {values['reward']!r}; choose one of {', '.join(rewards)}.")
        model = rewards[values["reward"]]
        guidance = RewardGuidance(
            model,
            values["scale"],
            values["inner_steps"],
            start=values["start"],
            end=values["end"],
        )
        chat = [{"role": "user", "content": values["prompt"]}]
        settings = {name: values[name] for name in SETTINGS}

        def write(hooks: list) -> generation.Generation:
            return generation.generate(lm, chat, hooks=hooks, progress=False, **settings)

        first = len(panel.futures)
        unguided = panel.show("unguided", write, [RewardGuidance(model, 0)])
        settings["seed"] = unguided.seed  # an empty field means any, but the same for both
        if panel.stopped:
            return
        name = f"guided, η = {values['scale']:g}"
        guided = panel.show(name, write, [guidance], beside=first)
        if panel.stopped:
            return
        passes = guided_passes(guidance, values["steps"])
        voices = [
            single_voice(name, model, guided, passes),
            single_voice("unguided", model, unguided, values["steps"]),
        ]
        parent = autoregressive or bundled_parent(lm)
        if parent is not None:
            voices.append(autoregressive_voice(parent, lm, chat, model))
        panel.add_voices(first + 1, voices)
        number = number_at_equal_cost(passes, values["steps"])
        panel.say(f"Writing {number} answers, to choose the best …", busy=True)
        seeds = range(unguided.seed + 1, unguided.seed + number)
        settings["seed"] = seeds
        others = generation.generate(lm, [chat] * len(seeds), hooks=panel.halt, progress=False, **settings)
        if not panel.stopped:
            voices.append(best_voice(model, [unguided, *others], values["steps"]))
            panel.add_voices(first + 1, voices)

    return Panel(lm, fields, "Answer", work)


# What can be done at the held step beside writing another word, which the explorer itself offers.
ACTIONS = {
    "branch": "another seed from this step on",
    "replace": "another word at this step alone",
    "noise": "noise the final text and begin again at this step",
    "rewrite": "sample the held word again, in the final text",
}


def intervention_panel(lm: SimplexDenoiser, written: Run, hooks: Hooks = ()) -> Panel:
    """Other futures for a `Generation`: hold a word at a step, exchange it, or do what the form says.

    Args:
        lm: The denoiser that wrote it.
        written: The run.
        hooks: Those that it was made with, such as its guidance.
    """
    _check(lm)
    run = as_trajectory(written)
    seed = run.settings.get("seed", 0) + 1
    action = _choice("action", "at the step shown", [(says, name) for name, says in ACTIONS.items()])
    word = {"name": "word", "label": "word", "kind": "text", "value": "", "for": ["replace"]}
    new_seed = _number("seed", "seed", seed, 0, 2**31)
    new_seed["for"] = ["branch", "noise", "rewrite"]
    fields = [action, word, new_seed]

    def work(panel: Panel, values: dict, held: dict) -> None:
        future = panel.futures[held["run"]]
        name, added, settings = _intervention(panel, future, values, held)

        def write(hooks: list) -> generation.Generation:
            return generation.replay(lm, future.trajectory, hooks, progress=False, **settings)

        panel.show(name, write, [*future.hooks, *added], beside=held["run"])

    return Panel(lm, fields, "Write this future", work, run, hooks)


def _intervention(panel: Panel, future: Future, values: dict, held: dict) -> tuple[str, list, dict]:
    """Name of the new run, hooks to add, and what else `replay` is given."""
    run = future.trajectory
    step = held["step"]
    position = held["position"]
    seed = values["seed"]
    action = values["action"]
    if action == "branch":
        return f"seed {seed} from step {step + 1}", [Branch(step, seed)], {}
    if action == "noise":
        if step < 1:
            raise InputError("Step 1 reads pure noise; choose a later step to begin again from.")
        return f"again from step {step + 1}", [], {"start": step, "seed": seed}
    if position is None:
        raise InputError("No word is held; click one.")
    if action == "replace":
        word = values["word"]
        tokens = panel.token_ids(run, position, word)
        if len(tokens) > 1:
            raise InputError(f"{word!r} is {len(tokens)} tokens, not one; type a shorter word.")
        pin = Pin({position: tokens[0]}, start=step, count=1)
        return f"{word.strip()} at step {step + 1}", [pin], {}
    first, end = next((first, end) for first, end in run.words() if first <= position < end)
    mask = torch.zeros_like(run.span_mask)
    mask[first:end] = run.span_mask[first:end]
    return "sampled again", [], {"span_mask": mask, "seed": seed}


NOISE_STYLE = """<style>
.t2-noise { font: 13px/1.5 system-ui, sans-serif; max-width: 860px; min-height: 268px;
  color: var(--jp-content-font-color1, #16181d) }
.t2-noise .columns { display: grid; gap: 8px 28px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)) }
.t2-noise .bar { display: grid; grid-template-columns: 7em 1fr 3.5em; gap: 8px; align-items: center; height: 20px }
.t2-noise .bar > :first-child { white-space: pre; overflow: hidden; text-overflow: ellipsis; unicode-bidi: isolate }
.t2-noise .bar > :last-child { text-align: right; font-variant-numeric: tabular-nums }
.t2-noise .bar i { height: 9px; background: currentColor; border-radius: 2px; opacity: .55 }
.t2-noise .bar.true i { background: #00897f; opacity: 1 }
.t2-noise .bar.true > :first-child { font-weight: 600 }
.t2-noise .line { font: 16px/1.6 Georgia, serif; white-space: pre-wrap; overflow-wrap: anywhere;
  height: 3.2em; overflow: auto }
</style>"""
BARS = 6


STORY = (
    "Once there was a girl named Anna. Anna had a red kite. Anna met Ben by the well. Anna gave the red kite to Ben."
)


def noise_panel(lm: SimplexDenoiser, sentence: str = STORY) -> widgets.VBox:
    """A text under noise: one position's noisy simplex as bars, beside what the model predicts there.

    It opens at the position whose true token gains most by being read together with all others.
    """
    _check(lm, sentence)
    validation.check_simplex(lm)
    controls = {
        "sentence": widgets.Text(sentence, description="sentence", layout=widgets.Layout(width="100%")),
        "position": widgets.Dropdown(description="position"),
        "time": widgets.FloatSlider(0.35, min=0, max=0.99, step=0.01, description="time t/T"),
        "k": widgets.FloatSlider(5, min=0.5, max=10, step=0.5, description="k"),
        "schedule": widgets.Dropdown(options=[*SCHEDULES], description="schedule"),
        "seed": widgets.IntText(0, description="seed"),
    }
    picture = widgets.HTML()

    def show(_=None):
        values = {name: control.value for name, control in controls.items()}
        try:
            shown = _noised(lm, **values)
        except (ValueError, TypeError) as problem:  # in place of the old picture, as high
            shown = f'<p role="alert">{html.escape(str(problem))}</p>'
        picture.value = f'{NOISE_STYLE}<div class="t2-noise">{shown}</div>'

    def name_positions(_=None):
        try:
            ids = _encoded(lm, controls["sentence"].value)
        except ValueError:  # which `show` is about to say
            ids = []
        dropdown = controls["position"]
        dropdown.unobserve(show, "value")  # one picture per sentence, not one per change
        options = [(f"{i}: {lm.tokenizer.decode(ids[i])!r}", i) for i in range(1, len(ids))]
        before = dropdown.value
        dropdown.options = options
        if before in range(1, len(ids)):
            dropdown.value = before
        elif options:
            with contextlib.suppress(InputError):  # which `show` is about to say
                values = {name: control.value for name, control in controls.items()}
                dropdown.value = _telling_position(lm, **values | {"position": 1})
        dropdown.observe(show, "value")
        show()

    for name, control in controls.items():
        control.style.description_width = "initial"
        control.observe(name_positions if name == "sentence" else show, "value")
    name_positions()
    rows = widgets.Box([*controls.values()], layout=widgets.Layout(flex_flow="row wrap"))
    box = widgets.VBox([rows, picture], layout=widgets.Layout(max_width="75em"))
    box.controls = controls
    box.picture = picture
    return box


def _encoded(lm: SimplexDenoiser, sentence: str) -> list[int]:
    generation.check_texts("The sentence", sentence)
    return [lm.tokenizer.bos_token_id, *encode(lm.tokenizer, sentence)]


@dataclass
class _Pages:
    """A text's ids (1, L), the logits of its noisy page and the model's (1, L, V), and ᾱ."""

    ids: torch.Tensor
    noisy: torch.Tensor
    predicted: torch.Tensor
    signal: float


def _pages(
    lm: SimplexDenoiser, sentence: str, position: int, time: float, k: float, schedule: str, seed: int
) -> _Pages:
    ids = torch.tensor([_encoded(lm, sentence)])  # (B, L)
    validation.check_int("position", position, 1, ids.shape[1] - 1)
    if not (math.isfinite(k) and math.isfinite(time)):
        raise InputError(f"k is {k} and t/T is {time}; give finite numbers.")
    context = lm.config.max_position_embeddings
    if ids.shape[1] > context:
        raise InputError(f"The sentence is {ids.shape[1]} tokens long; this model has a context of {context}.")
    span_mask = torch.arange(ids.shape[1])[None] > 0
    simplex = textbook.token_simplex(ids, lm.config.vocab_size, k)  # (B, L, V)
    generator = generator_for(seed, 0, "noise lab", torch.device("cpu"))
    noise = torch.randn(simplex.shape, generator=generator)
    t = round(time * TRAINING_TIMESTEPS)
    alphas_bar = alpha_bar(TRAINING_TIMESTEPS, schedule)
    noisy = textbook.add_noise(simplex, noise, alphas_bar[t].float(), k).to(lm.device)
    with torch.no_grad():
        times = torch.full(ids.shape, time)
        predicted = lm.logits_from_simplex(noisy, times, ids.to(lm.device), span_mask.to(lm.device))
    return _Pages(ids, noisy, predicted, float(alphas_bar[t]))


def _telling_position(lm: SimplexDenoiser, **values: Any) -> int:
    """The position whose true token is far likelier to the model than on the noisy page."""
    pages = _pages(lm, **values)
    truth = pages.ids.to(lm.device)[..., None]
    page, model = (logits.softmax(-1).gather(-1, truth)[0, :, 0] for logits in (pages.noisy, pages.predicted))
    gain = (model - page)[1:]  # <s> is given
    return 1 + int(gain.argmax())


def _noised(lm: SimplexDenoiser, position: int, **values: Any) -> str:
    """HTML: what one position of the noisy page holds and what the model makes of it, and both pages whole."""
    pages = _pages(lm, position=position, **values)
    true = int(pages.ids[0, position])
    signal = pages.signal
    columns = [
        _column(lm, "The noisy page", pages.noisy[0], true, position),
        _column(lm, "What the model predicts", pages.predicted[0], true, position),
    ]
    words = f"<p>{signal:.1%} signal (ᾱ = {signal:.3f}), {1 - signal:.1%} noise. Most likely words:</p>"
    return f'{words}<div class="columns">{"".join(columns)}</div>'


def _column(lm: SimplexDenoiser, name: str, logits: torch.Tensor, true: int, position: int) -> str:
    """One page's most likely words, and bars for one of its positions; the true token is marked."""
    p = logits[position].softmax(-1).cpu()
    top = p.topk(min(BARS, len(p)))
    listed = top.indices.tolist()
    if true not in listed:
        listed[-1] = true
    bars = [_bar(lm.tokenizer.decode([token]), float(p[token]), token == true) for token in listed]
    line = html.escape(lm.tokenizer.decode(logits.argmax(-1)[1:]))
    return f'<div><b>{name}</b><div class="line">{line}</div>{"".join(bars)}</div>'


def _bar(text: str, probability: float, is_true: bool) -> str:
    kind = "bar true" if is_true else "bar"
    word = html.escape(text.strip() or "␣")
    bar = f'<i style="width:{100 * probability:.1f}%"></i>'
    return f'<div class="{kind}"><span>{word}</span>{bar}<span>{probability:.1%}</span></div>'


def _check(lm: SimplexDenoiser, text: str = "", steps: int = 1) -> None:
    """Check what a panel begins with; its box of text may begin empty."""
    generation.check_model(lm)
    if not isinstance(text, str):
        raise TypeError(f"The panel's text is {text!r}; give a string.")
    validation.check_int("steps", steps, 1)
