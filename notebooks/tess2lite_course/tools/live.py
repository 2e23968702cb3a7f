"""What a notebook shows while a Trainer works."""

from __future__ import annotations

from IPython.display import display
from transformers import Trainer, TrainerCallback

from tess2lite.viz.figures import loss_curves


class LiveCurve(TrainerCallback):
    """Draws a Trainer's losses under the cell while it trains: `LiveCurve(trainer)`, then `trainer.train()`."""

    def __init__(self, trainer: Trainer, loss: str = "diffusion loss (nats per token)"):
        """
        Args:
            trainer: Gets this callback added.
            loss: Label of the axis.
        """
        self.loss = loss
        self.handle = display("The loss appears here.", display_id=True)
        trainer.add_callback(self)

    def on_log(self, args, state, control, **_) -> None:
        """Draws the curves anew."""
        curves = {}
        for name, key in (("training", "loss"), ("held out", "eval_loss")):
            if logged := [(entry["step"], entry[key]) for entry in state.log_history if key in entry]:
                curves[name] = [tuple(zip(*logged, strict=True))]
        if curves:
            self.handle.update(loss_curves(curves, self.loss))
