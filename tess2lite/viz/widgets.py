"""Controls that need the kernel, in ipywidgets."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets
from IPython.display import display
from transformers import TrainerCallback

from .figures import loss_curves


def prompt_panel(run: Callable, prompt: str, steps: int = 50, seed: int = 0) -> widgets.VBox:
    """A prompt box, steps and seed, and a button; what `run(prompt, steps=…, seed=…)` returns is shown under it.

    A mistake is shown as its sentence, without a traceback.
    """
    wide = widgets.Layout(width="100%")
    box = widgets.Textarea(prompt, description="prompt", layout=wide, rows=2)
    step_slider = widgets.IntSlider(steps, 1, 200, description="steps")
    seed_box = widgets.IntText(seed, description="seed", layout=widgets.Layout(width="12em"))
    button = widgets.Button(description="Write", button_style="primary", icon="play")
    shown = widgets.Output()

    def write(_):
        button.disabled = True
        shown.clear_output(wait=True)
        with shown:
            try:
                display(run(box.value, steps=step_slider.value, seed=seed_box.value))
            except (ValueError, TypeError) as problem:
                print(problem)
            finally:
                button.disabled = False

    button.on_click(write)
    controls = widgets.HBox([step_slider, seed_box, button])
    return widgets.VBox([box, controls, shown], layout=widgets.Layout(max_width="60em"))


class LiveCurve(TrainerCallback):
    """Draws a Trainer's loss under the cell while it trains: `LiveCurve(trainer)`, then `trainer.train()`."""

    def __init__(self, trainer):
        self.handle = display("The loss appears here.", display_id=True)
        trainer.add_callback(self)

    def on_log(self, args, state, control, **_):
        logged = [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry]
        if logged:
            self.handle.update(loss_curves({"training": [tuple(zip(*logged, strict=True))]}))
