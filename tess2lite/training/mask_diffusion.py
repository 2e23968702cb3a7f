"""The Trainer of masked diffusion: `mask_diffusion.masked_loss` in place of the simplex loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..mask_diffusion import MASKED, masked_loss, sample_mask
from ..pretrained.tokenizers import mask_token_id
from ..schedule import TRAINING_TIMESTEPS
from .trainer import GRID_SEED, Batch, GridTrainer, save_diffusion_config


class MaskedTrainer(GridTrainer):
    """The masked loss on the same rows, masks and batches as `DiffusionTrainer`'s; t is (timestep + 1)/T.

    `evaluate` reports the weighted loss at each t of the grid, in nats per position: its mean is the bound on the
    negative log-likelihood, and it is finite (0) where nothing happens to be masked.
    """

    grid_masking = "all"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.token = mask_token_id(self.model)
        self.model.config.diffusion = MASKED
        for name, parameter in self.model.named_parameters():
            if "timestep_embed" in name:
                parameter.requires_grad_(False)

    def _batch_loss(self, model: torch.nn.Module, inputs: Batch, seed: int) -> torch.Tensor:
        ratio = (inputs["t"] + 1) / TRAINING_TIMESTEPS  # (B,)
        is_masked = sample_mask(inputs["span_mask"], ratio, inputs["example"].tolist(), seed)
        loss = partial(masked_loss, token=self.token)
        return model(input_ids=inputs["input_ids"], span_mask=is_masked, t=ratio, loss=loss)

    def _evaluation_loss(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        return self._batch_loss(model, inputs, GRID_SEED)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and hasattr(self.model, "peft_config"):  # an adapter has no config of the model
            save_diffusion_config(output_dir or self.args.output_dir, diffusion=MASKED)
