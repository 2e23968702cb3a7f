"""Panels of controls that need the kernel, in ipywidgets: the noise lab, a run, guidance, interventions in a run.

Each returns a box whose `controls` names its widgets; after a run its `result` is the Generation. A mistake is shown
as its sentence, without a traceback.
"""

from __future__ import annotations

import base64
import html
import io
import math
import threading

import ipywidgets as widgets
import torch
from IPython.display import HTML

from .. import generation, textbook, validation
from ..chunks import generator_for
from ..guidance import RewardGuidance
from ..hooks import Branch, Pin
from ..schedule import SCHEDULES, TRAINING_TIMESTEPS, alpha_bar
from ..tokens import encode
from .explorer import as_trajectory, comparison
from .figures import reward_curves, token_bars

WIDE = widgets.Layout(width="100%")


def noise_panel(lm, sentence: str = "Anna gave the red kite to Ben.") -> widgets.VBox:
    """A sentence under noise: one position's noisy simplex as bars, beside what the model believes there."""
    _check(lm, sentence)
    validation.check_simplex(lm)
    controls = {
        "sentence": widgets.Text(sentence, description="sentence", layout=WIDE, continuous_update=False),
        "position": widgets.Dropdown(description="position"),
        "time": widgets.FloatSlider(0.35, min=0, max=0.99, step=0.01, description="time t/T", continuous_update=False),
        "k": widgets.FloatSlider(5, min=0.5, max=10, step=0.5, description="k", continuous_update=False),
        "schedule": widgets.Dropdown(options=[*SCHEDULES], description="schedule"),
        "seed": widgets.IntText(0, description="seed"),
    }
    image, text = widgets.Image(format="png", layout=widgets.Layout(max_width="100%")), widgets.HTML()

    def show(_=None):
        values = {name: control.value for name, control in controls.items()}
        try:
            image.value, text.value = _noised(lm, **values)
        except (ValueError, TypeError) as problem:
            text.value = _sentence(problem)

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
        control.observe(name_positions if name == "sentence" else show, "value")
    name_positions()
    return _panel(controls, image, text)


def _encoded(lm, sentence: str) -> list[int]:
    generation.check_texts("The sentence", sentence)
    return [lm.tokenizer.bos_token_id, *encode(lm.tokenizer, sentence)]


def _noised(lm, sentence, position, time, k, schedule, seed) -> tuple[bytes, str]:
    """Bars as PNG, and as HTML what is read position by position and what the model makes of it."""
    ids = torch.tensor([_encoded(lm, sentence)])  # (B, L)
    validation.check_int("position", position, 1, ids.shape[1] - 1)
    if not (math.isfinite(k) and math.isfinite(time)):
        raise ValueError(f"k is {k} and t/T is {time}; give finite numbers.")
    context = lm.config.max_position_embeddings
    if ids.shape[1] > context:
        raise ValueError(f"The sentence is {ids.shape[1]} tokens long; this model has a context of {context}.")
    writable = torch.arange(ids.shape[1])[None] > 0
    simplex = textbook.token_simplex(ids, lm.config.vocab_size, k)  # (B, L, V)
    noise = torch.randn(simplex.shape, generator=generator_for(seed, 0, "noise lab", torch.device("cpu")))
    level = alpha_bar(TRAINING_TIMESTEPS, schedule)[round(time * TRAINING_TIMESTEPS)]
    noisy = textbook.add_noise(simplex, noise, level.float(), k).to(lm.device)
    with torch.no_grad():
        belief = lm.logits_from_simplex(noisy, torch.full(ids.shape, time), ids.to(lm.device), writable.to(lm.device))
    lines = {"noisy simplex": noisy, "the model": belief}
    figure = token_bars(
        {name: logits[0, position].softmax(-1).cpu() for name, logits in lines.items()},
        int(ids[0, position]), lm.tokenizer.decode,
    )  # fmt: skip
    png = io.BytesIO()
    figure.savefig(png, dpi=90)
    read = [(name, lm.tokenizer.decode(logits.argmax(-1)[writable])) for name, logits in lines.items()]
    text = "".join(f"<tr><td>{name}&emsp;</td><td>{html.escape(line)}</td></tr>" for name, line in read)
    return png.getvalue(), f"signal left ᾱ = {level:.3f}; likeliest tokens:<table>{text}</table>"


def run_panel(lm, prompt: str, steps: int = 50) -> widgets.VBox:
    """A prompt and all settings of `generate`; the steps stream while it runs, and its explorer follows."""
    _check(lm, prompt, steps)
    room = min(lm.config.max_position_embeddings - 1, 256)
    controls = {
        "prompt": widgets.Textarea(prompt, description="prompt", layout=WIDE, rows=2),
        "steps": widgets.IntSlider(steps, 1, max(200, steps), description="steps"),
        "length": widgets.IntSlider(0, 0, room, description="length", tooltip="0: all the room there is"),
        "top_p": widgets.FloatSlider(0.99, min=0.01, max=1, step=0.01, description="top-p"),
        "temperature": widgets.FloatSlider(1, min=0.1, max=2, step=0.05, description="temperature"),
        "seed": widgets.IntText(0, description="seed"),
    }

    def work(watch):
        chosen = {name: control.value for name, control in controls.items()}
        chosen["length"] = chosen["length"] or None
        out = generation.generate(lm, **chosen, hooks=[watch], progress=False)
        return out, out._repr_html_()

    return _running(lm, controls, "Run", work)


def guidance_panel(lm, rewards: dict, prompt: str, steps: int = 50) -> widgets.VBox:
    """An instruction answered twice from the same noise: unguided, and pulled towards a reward.

    rewards: name → model.
    """
    _check(lm, prompt, steps)
    if not isinstance(rewards, dict) or not rewards:
        raise TypeError(f"rewards is {type(rewards).__name__}; give a dict of one or more reward models by name.")
    for reward in rewards.values():
        RewardGuidance(reward).check(lm)
    controls = {
        "prompt": widgets.Textarea(prompt, description="prompt", layout=WIDE, rows=2),
        "reward": widgets.Dropdown(options=[*rewards], description="reward model"),
        "scale": widgets.FloatLogSlider(30, min=-1, max=4, step=0.25, description="scale η", readout_format=".3g"),
        "inner_steps": widgets.IntSlider(1, 1, 5, description="inner steps"),
        "part": widgets.FloatRangeSlider(value=(0, 1), min=0, max=1, step=0.05, description="guided part"),
        "steps": widgets.IntSlider(steps, 1, max(200, steps), description="steps"),
        "seed": widgets.IntText(0, description="seed"),
    }

    def work(watch):
        chosen = {name: control.value for name, control in controls.items()}
        start, end = chosen["part"]
        if chosen["reward"] not in rewards:
            raise ValueError(f"The reward model is {chosen['reward']!r}; choose one of {', '.join(rewards)}.")
        model, asked = rewards[chosen["reward"]], [{"role": "user", "content": chosen["prompt"]}]
        pulled = RewardGuidance(model, chosen["scale"], chosen["inner_steps"], start=start, end=end)
        guides = {"unguided": RewardGuidance(model, 0), "guided": pulled}
        runs = {
            name: generation.generate(
                lm, asked, chosen["steps"], seed=chosen["seed"], hooks=[guide, watch], progress=False
            )
            for name, guide in guides.items()
        }  # fmt: skip
        curves = _png(reward_curves({name: run.trajectory for name, run in runs.items()}), "Predicted reward by step")
        return runs["guided"], comparison(runs) + curves

    return _running(lm, controls, "Run", work)


def _png(figure, says: str) -> str:
    """A figure as an HTML image."""
    png = io.BytesIO()
    figure.savefig(png, dpi=90)
    return f'<img alt="{says}" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'


# What can be done to a run, and the controls that it reads beside the step.
ACTIONS = {
    "pin": ("pin the token from this step on", {"position", "token"}),
    "replace": ("replace the token at this step alone", {"position", "token"}),
    "noise": ("noise the final text and begin again at this step", {"seed"}),
    "branch": ("branch: another seed from this step on", {"seed"}),
    "rewrite": ("blank the chosen words and write them anew", {"seed", "words"}),
}


def intervention_panel(lm, written, hooks=()) -> widgets.VBox:
    """Another future for a `Generation`: stop at a step, change something, and see both runs side by side.

    hooks: those that it was made with, such as its guidance.
    """
    _check(lm)
    run, hooks = as_trajectory(written), validation.as_hooks(hooks)
    words = [
        "".join(run.token_strings[i] for i in run.tokens[-1, first:end].tolist()).strip() for first, end in run.words()
    ]
    choices = [
        (word, place) for word, place in zip(words, run.words(), strict=True) if run.span_mask[slice(*place)].all()
    ]
    controls = {
        "step": widgets.IntSlider(max(1, len(run) // 2), 1, len(run), description="step"),
        "position": widgets.Dropdown(description="position"),
        "action": widgets.Dropdown(options=[(says, name) for name, (says, _) in ACTIONS.items()], description="then"),
        "token": widgets.Text(" kite", description="token"),
        "seed": widgets.IntText(run.settings.get("seed", 0) + 1, description="seed"),
        "words": widgets.SelectMultiple(options=choices, description="words"),
    }
    paused = widgets.HTML()

    def pause(_=None):
        step, places = controls["step"].value - 1, run.span_mask.nonzero()[:, 0].tolist()
        _choices(controls["position"], [(f"{i}: {run.token_strings[int(run.tokens[step, i])]!r}", i) for i in places])
        show()

    def show(_=None):
        if controls["position"].value is not None:  # as it is while its choices change
            paused.value = _at(run, controls["step"].value - 1, controls["position"].value)

    def work(watch):
        chosen = {name: control.value for name, control in controls.items()}
        other = _changed(lm, run, [*hooks, watch], **chosen)
        return other, comparison({"as it was": run, ACTIONS[chosen["action"]][0]: other})

    def grey_out(_=None):
        used = ACTIONS[controls["action"].value][1]
        for name in ("token", "seed", "words"):
            controls[name].disabled = name not in used

    controls["step"].observe(pause, "value")
    controls["position"].observe(show, "value")
    controls["action"].observe(grey_out, "value")
    pause()
    grey_out()
    return _running(lm, controls, "Go on from here", work, paused)


def _choices(dropdown, options) -> None:
    """Other choices, what was chosen kept where it can be."""
    kept = dropdown.value
    dropdown.options = options
    if options:
        dropdown.value = kept if kept in [value for _, value in options] else options[0][1]


def _at(run, step: int, position: int) -> str:
    """The text at a step, and what was likely at a position, as HTML."""
    likely = zip(run.top_ids[step, position].tolist(), run.top_p[step, position].tolist(), strict=True)
    listed = html.escape(", ".join(f"{run.token_strings[i]!r} {p:.0%}" for i, p in likely))
    return f"<p>step {step + 1}: {html.escape(run.texts[step])}</p><p>position {position} is likely {listed}</p>"


def _changed(lm, run, hooks, step, position, action, token, seed, words):
    """The run once more with one action taken; step counts from 1."""
    more = {}
    if action in ("pin", "replace"):
        count = 1 if action == "replace" else None
        hooks = [Pin({position: _token_id(lm, token)}, start=step - 1, count=count), *hooks]
    elif action == "branch":
        hooks = [Branch(step - 1, seed), *hooks]
    elif action == "noise":
        more = {"start": validation.check_int("step", step, 2) - 1, "seed": seed}
    else:
        mask = torch.zeros_like(run.span_mask)
        for first, end in words:
            mask[first:end] = True
        if not words:
            raise ValueError("No word is chosen; choose one or more of the list, with Ctrl for several.")
        more = {"span_mask": mask, "seed": seed}
    return generation.replay(lm, run, hooks, progress=False, **more)


def _token_id(lm, text: str) -> int:
    """The one token of a text; a word may be given without the space that it begins with."""
    if not text.strip():
        raise ValueError("token is empty; give one word.")
    generation.check_texts("token", text)
    if text in lm.tokenizer.all_special_tokens:
        return lm.tokenizer.convert_tokens_to_ids(text)
    spellings = [encode(lm.tokenizer, spelling) for spelling in (text, " " + text)]
    single = [ids[0] for ids in spellings if len(ids) == 1]
    if not single:
        raise ValueError(f"{text!r} is {len(spellings[0])} tokens, not one; give a shorter word.")
    return single[0]


def _running(lm, controls, says: str, work, *above) -> widgets.VBox:
    """A panel whose work runs in a thread, so that the kernel stays free for the Stop button."""
    go = widgets.Button(description=says, button_style="primary")
    stop = widgets.Button(description="Stop", disabled=True)
    live, shown, stopped = widgets.HTML(), widgets.Output(), threading.Event()

    def watch(step):
        step.stop |= stopped.is_set()
        text = lm.tokenizer.decode(step.tokens[0][step.span_mask[0]])
        live.value = f"step {step.index + 1} of {step.index + step.t + 1}<p>{html.escape(text)}</p>"

    def run():
        try:
            panel.result, page = work(watch)
            live.value = ""
            shown.append_display_data(HTML(page))
        except Exception as problem:  # in a thread nothing else would show it
            live.value = _sentence(problem)
        finally:
            go.disabled, stop.disabled = False, True

    def start(_):
        if panel.thread and panel.thread.is_alive():  # a second click, faster than the button greys out
            return
        panel.result, shown.outputs = None, ()
        go.disabled, stop.disabled = True, False
        stopped.clear()
        panel.thread = threading.Thread(target=run, daemon=True)
        panel.thread.start()

    go.on_click(start)
    stop.on_click(lambda _: stopped.set())
    panel = _panel(controls | {"go": go, "stop": stop}, *above, live, shown)
    panel.thread = panel.result = None
    return panel


def _check(lm, text: str = "", steps: int = 1) -> None:
    """What a panel begins with; its box of text may begin empty."""
    generation.check_model(lm)
    if not isinstance(text, str):
        raise TypeError(f"The panel's text is {text!r}; give a string.")
    validation.check_int("steps", steps, 1)


def _panel(controls: dict, *shown) -> widgets.VBox:
    for control in controls.values():
        if not isinstance(control, widgets.Button):
            control.style.description_width = "initial"
    rows = widgets.Box([*controls.values()], layout=widgets.Layout(flex_flow="row wrap"))
    box = widgets.VBox([rows, *shown], layout=widgets.Layout(max_width="75em"))
    box.controls = controls
    return box


def _sentence(problem: Exception) -> str:
    return f'<p role="alert">{html.escape(str(problem) or type(problem).__name__)}</p>'
