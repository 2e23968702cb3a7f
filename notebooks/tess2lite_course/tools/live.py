"""What a notebook shows while a Trainer works."""

from __future__ import annotations

from IPython.display import display
from transformers import Trainer, TrainerCallback
from transformers.utils.notebook import NotebookProgressCallback

from tess2lite.viz.figures import loss_curves


class LiveCurve(TrainerCallback):
    """Draws a Trainer's losses under the cell while it trains: `LiveCurve(trainer)`, then `trainer.train()`.

    It takes the place of the Trainer's own table.
    """

    def __init__(self, trainer: Trainer, loss: str = "diffusion loss (nats per token)"):
        """
        Args:
            trainer: Gets this callback added, and its table removed.
            loss: Label of the axis.
        """
        self.loss = loss
        self.progress = display("", display_id=True)
        self.handle = display("The loss appears here.", display_id=True)
        trainer.remove_callback(NotebookProgressCallback)
        trainer.add_callback(self)

    def on_step_end(self, args, state, control, **_) -> None:
        """Says how far the run is."""
        self.progress.update(f"step {state.global_step} of {state.max_steps}")

    def on_log(self, args, state, control, **_) -> None:
        """Draws the curves anew."""
        curves = {}
        for name, key in (("training", "loss"), ("held out", "eval_loss")):
            if logged := [(entry["step"], entry[key]) for entry in state.log_history if key in entry]:
                curves[name] = [tuple(zip(*logged, strict=True))]
        if curves:
            self.handle.update(loss_curves(curves, self.loss))
