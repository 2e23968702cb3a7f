"""The Trainer of masked diffusion: `mask_diffusion.masked_loss` in place of the simplex loss."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..mask_diffusion import MASKED, absorbed, mask_token_id, masked_loss
from ..schedule import TRAINING_TIMESTEPS
from .trainer import DiffusionTrainer


class MaskedTrainer(DiffusionTrainer):
    """The masked loss on the same rows, masks and batches as `DiffusionTrainer`'s; t is (timestep + 1)/T.

    `evaluate` reports the weighted loss at each t of the grid, in nats a position: its mean is the bound on the
    negative log-likelihood, and it is finite (0) where nothing happens to be absorbed.
    """

    grid_masking = "all"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.token = mask_token_id(self.model)
        self.model.config.diffusion = MASKED
        for name, parameter in self.model.named_parameters():
            if "timestep_embed" in name:
                parameter.requires_grad_(False)

    def _batch_loss(self, model, inputs, self_condition: bool, seed: int) -> torch.Tensor:
        share = (inputs["t"] + 1) / TRAINING_TIMESTEPS
        gone = absorbed(inputs["span_mask"], share, inputs["example"].tolist(), seed)
        return model(run=lambda lm: masked_loss(lm, inputs["input_ids"], gone, share, self.token))

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and hasattr(self.model, "peft_config"):  # an adapter has no config of the model
            folder = Path(output_dir or self.args.output_dir)
            (folder / "diffusion.json").write_text(json.dumps({"diffusion": MASKED}) + "\n")
