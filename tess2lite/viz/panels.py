"""Panels: the explorer with controls above it, to write runs, guide them and interfere; and a sentence under noise.

Each panel of runs is an `Explorer` whose form asks for new ones; its `runs` are their trajectories, `result` the last
Generation. A mistake is shown as its sentence in place of the pictures.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable

import ipywidgets as widgets
import torch

from .. import generation, textbook, validation
from ..chunks import generator_for
from ..guidance import RewardGuidance
from ..hooks import Branch, Pin
from ..schedule import SCHEDULES, TRAINING_TIMESTEPS, alpha_bar
from ..tokens import encode
from ..validation import InputError
from .explorer import as_trajectory
from .widget import Explorer

SETTINGS = ("steps", "seed")


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

    def __init__(self, lm, fields: list[dict], says: str, work: Callable, run=None, hooks=()):
        super().__init__(lm, run, hooks, fields=fields, says=says)
        self.work = work
        self.result: generation.Generation | None = None

    def go(self, values: dict | None = None, run: int = 0, step: int = 0, position: int | None = None) -> None:
        """Press the button: the form's values, some of them replaced, and what is held. Returns when it is done."""
        values = {field["name"]: field["value"] for field in self.fields} | (values or {})
        self._answer(self, {"type": "go", "values": values, "run": run, "step": step, "position": position}, None)
        self.thread.join()

    def _write(self, message: dict) -> None:
        self.result = None
        self.say("Writing …", busy=True)
        held = {name: message.get(name) for name in ("run", "step", "position")}
        self.work(self, message["values"], held)

    def show(self, name: str, work: Callable, hooks=(), beside: int | None = None) -> generation.Generation:
        """Write one run in view of the reader."""
        self.result = self.stream(name, work, hooks, beside)
        return self.result


def _number(name: str, label: str, value: float, least: float, most: float, step: float = 1) -> dict:
    return {"name": name, "label": label, "kind": "number", "value": value, "min": least, "max": most, "step": step}


def _prompt(text: str) -> dict:
    return {"name": "prompt", "label": "prompt", "kind": "area", "value": text}


def run_panel(lm, prompt: str, steps: int = 50) -> Panel:
    """A prompt and all settings of `generate`; the text streams in, and any of its words can be exchanged."""
    _check(lm, prompt, steps)
    room = min(lm.config.max_position_embeddings - 1, 256)
    fields = [
        _prompt(prompt),
        _number("steps", "steps", steps, 1, max(200, steps)),
        _number("length", "length (0: all)", 0, 0, room),
        _number("top_p", "top-p", 0.99, 0.01, 1, 0.01),
        _number("temperature", "temperature", 1, 0.1, 2, 0.05),
        _number("seed", "seed", 0, 0, 2**31),
    ]

    def work(panel: Panel, values: dict, _) -> None:
        settings = values | {"length": values["length"] or None, "progress": False}
        name = f"seed {values['seed']}, {values['steps']} steps"
        panel.show(name, lambda hooks: generation.generate(lm, hooks=hooks, **settings))

    return Panel(lm, fields, "Write", work)


def guidance_panel(lm, rewards: dict, prompt: str, steps: int = 50, scale: float = 10) -> Panel:
    """An instruction answered twice from the same noise: unguided, and pulled towards a reward.

    Args:
        lm: The denoiser.
        rewards: Reward models by name.
        prompt: The user's message.
        steps: Of diffusion.
        scale: η that the form begins with.
    """
    _check(lm, prompt, steps)
    if not isinstance(rewards, dict) or not rewards:
        raise TypeError(f"rewards is {type(rewards).__name__}; give a dict of one or more reward models by name.")
    for reward in rewards.values():
        RewardGuidance(reward, scale).check(lm)
    names = [[str(name), name] for name in rewards]
    fields = [
        _prompt(prompt),
        {"name": "reward", "label": "reward model", "kind": "choice", "value": names[0][1], "choices": names},
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
        share = {"start": values["start"], "end": values["end"]}
        pulled = RewardGuidance(model, values["scale"], values["inner_steps"], **share)
        asked = [{"role": "user", "content": values["prompt"]}]
        settings = {name: values[name] for name in SETTINGS} | {"progress": False}

        def write(hooks):
            return generation.generate(lm, asked, hooks=hooks, **settings)

        first = len(panel.futures)
        panel.show("unguided", write, [RewardGuidance(model, 0)])
        if not panel.stopped:
            panel.show(f"guided, η = {values['scale']:g}", write, [pulled], beside=first)
            panel.send({"type": "view", "view": "curves"})

    return Panel(lm, fields, "Answer twice", work)


# What can be done at the held step beside writing another word, which the explorer itself offers.
ACTIONS = {
    "branch": "another seed from this step on",
    "replace": "another word at this step alone",
    "noise": "noise the final text and begin again at this step",
    "rewrite": "write the held word anew, in the final text",
}


def intervention_panel(lm, written, hooks=()) -> Panel:
    """Other futures for a `Generation`: hold a word at a step, exchange it, or do what the form says.

    Args:
        lm: The denoiser that wrote it.
        written: The run.
        hooks: Those that it was made with, such as its guidance.
    """
    _check(lm)
    run = as_trajectory(written)
    seed = run.settings.get("seed", 0) + 1
    choices = [[says, name] for name, says in ACTIONS.items()]
    fields = [
        {"name": "action", "label": "at the step shown", "kind": "choice", "value": "branch", "choices": choices},
        {"name": "word", "label": "word", "kind": "text", "value": "", "for": ["replace"]},
        _number("seed", "seed", seed, 0, 2**31) | {"for": ["branch", "noise", "rewrite"]},
    ]

    def work(panel: Panel, values: dict, held: dict) -> None:
        future = panel.futures[held["run"]]
        name, hooks, more = _intervention(panel, future, values, held)
        kept = [*future.hooks, *hooks]
        writing = lambda hooks: generation.replay(lm, future.trajectory, hooks, progress=False, **more)  # noqa: E731
        panel.show(name, writing, kept, beside=held["run"])

    return Panel(lm, fields, "Write this future", work, run, hooks)


def _intervention(panel: Panel, future, values: dict, held: dict) -> tuple[str, list, dict]:
    """Name of the new run, hooks to add, and what else `replay` is given."""
    run, step, position, seed = future.trajectory, held["step"], held["position"], values["seed"]
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
        tokens = panel.token_ids(run, position, values["word"])
        if len(tokens) > 1:
            raise InputError(f"{values['word']!r} is {len(tokens)} tokens, not one; type a shorter word.")
        return f"{values['word'].strip()} at step {step + 1}", [Pin({position: tokens[0]}, start=step, count=1)], {}
    first, end = next(word for word in run.words() if word[0] <= position < word[1])
    mask = torch.zeros_like(run.span_mask)
    mask[first:end] = run.span_mask[first:end]
    return "written anew", [], {"span_mask": mask, "seed": seed}


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


def noise_panel(lm, sentence: str = "Anna gave the red kite to Ben.") -> widgets.VBox:
    """A sentence under noise: one position's noisy simplex as bars, beside what the model believes there."""
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
        controls["position"].unobserve(show, "value")  # one picture a sentence, not one a change
        _choices(controls["position"], [(f"{i}: {lm.tokenizer.decode(ids[i])!r}", i) for i in range(1, len(ids))])
        controls["position"].observe(show, "value")
        show()

    for name, control in controls.items():
        control.style.description_width = "initial"
        control.observe(name_positions if name == "sentence" else show, "value")
    name_positions()
    rows = widgets.Box([*controls.values()], layout=widgets.Layout(flex_flow="row wrap"))
    box = widgets.VBox([rows, picture], layout=widgets.Layout(max_width="75em"))
    box.controls, box.picture = controls, picture
    return box


def _encoded(lm, sentence: str) -> list[int]:
    generation.check_texts("The sentence", sentence)
    return [lm.tokenizer.bos_token_id, *encode(lm.tokenizer, sentence)]


def _noised(lm, sentence, position, time, k, schedule, seed) -> str:
    """HTML: what one position of the noisy page holds and what the model makes of it, and both pages whole."""
    ids = torch.tensor([_encoded(lm, sentence)])  # (B, L)
    validation.check_int("position", position, 1, ids.shape[1] - 1)
    if not (math.isfinite(k) and math.isfinite(time)):
        raise InputError(f"k is {k} and t/T is {time}; give finite numbers.")
    context = lm.config.max_position_embeddings
    if ids.shape[1] > context:
        raise InputError(f"The sentence is {ids.shape[1]} tokens long; this model has a context of {context}.")
    span_mask = torch.arange(ids.shape[1])[None] > 0
    simplex = textbook.token_simplex(ids, lm.config.vocab_size, k)  # (B, L, V)
    noise = torch.randn(simplex.shape, generator=generator_for(seed, 0, "noise lab", torch.device("cpu")))
    level = alpha_bar(TRAINING_TIMESTEPS, schedule)[round(time * TRAINING_TIMESTEPS)]
    noisy = textbook.add_noise(simplex, noise, level.float(), k).to(lm.device)
    with torch.no_grad():
        belief = lm.logits_from_simplex(noisy, torch.full(ids.shape, time), ids.to(lm.device), span_mask.to(lm.device))
    pages = {"The noisy page": noisy, "What the model believes": belief}
    columns = [_column(lm, name, logits[0], int(ids[0, position]), position) for name, logits in pages.items()]
    words = f"<p>{float(level):.1%} signal (ᾱ = {level:.3f}), {1 - float(level):.1%} noise. Likeliest words:</p>"
    return f'{words}<div class="columns">{"".join(columns)}</div>'


def _column(lm, name: str, logits: torch.Tensor, true: int, position: int) -> str:
    """One page's likeliest words, and bars for one of its positions; the true token is marked."""
    p = logits[position].softmax(-1).cpu()
    listed = p.topk(min(BARS, len(p))).indices.tolist()
    if true not in listed:
        listed[-1] = true
    bars = []
    for token in listed:
        kind = "bar true" if token == true else "bar"
        word = html.escape(lm.tokenizer.decode([token]).strip() or "␣")
        width = f'<i style="width:{100 * float(p[token]):.1f}%"></i>'
        bars.append(f'<div class="{kind}"><span>{word}</span>{width}<span>{float(p[token]):.1%}</span></div>')
    line = html.escape(lm.tokenizer.decode(logits.argmax(-1)[1:]))
    return f'<div><b>{name}</b><div class="line">{line}</div>{"".join(bars)}</div>'


def _choices(dropdown, options) -> None:
    """Other choices, what was chosen kept where it can be."""
    kept = dropdown.value
    dropdown.options = options
    if options:
        dropdown.value = kept if kept in [value for _, value in options] else options[0][1]


def _check(lm, text: str = "", steps: int = 1) -> None:
    """What a panel begins with; its box of text may begin empty."""
    generation.check_model(lm)
    if not isinstance(text, str):
        raise TypeError(f"The panel's text is {text!r}; give a string.")
    validation.check_int("steps", steps, 1)
