"""Training for masked diffusion: LLaDA's loss in place of the simplex loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ..chunks import generator_for, rows_per_chunk
from ..loss import cross_entropy
from ..mask_diffusion import MASKED
from ..model import SimplexDenoiser
from ..pretrained.tokenizers import mask_token_id
from ..schedule import TRAINING_TIMESTEPS
from .trainer import GRID_SEED, Batch, GridTrainer, save_diffusion_config


def sample_mask(span_mask: torch.Tensor, mask_ratio: torch.Tensor, examples: list[int], seed: int) -> torch.Tensor:
    """Sample which positions are masked: each one under the span mask by itself, with its row's probability.

    Args:
        span_mask: (B, L) bool, True where a position can be masked.
        mask_ratio: (B,), in (0, 1].
        examples: The number of each row; the result is a function of (seed, example).
        seed: Of the draw.

    Returns:
        (B, L) bool.
    """
    cpu = torch.device("cpu")
    length = span_mask.shape[1]
    uniform = []
    for example in examples:
        generator = generator_for(seed, example, "absorbed", cpu)
        uniform.append(torch.rand(length, generator=generator))
    u = torch.stack(uniform).to(mask_ratio.device)  # (B, L)
    return span_mask & (u < mask_ratio[:, None])


def masked_loss(
    lm: SimplexDenoiser,
    input_ids: torch.Tensor,
    is_masked: torch.Tensor,
    mask_ratio: torch.Tensor,
    token: int,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Σ 1/t · −log p(w) over the masked positions (LLaDA, equation 3).

    Divided by the number of positions that could be masked in all rows together it is LLaDA's algorithm 1.

    Args:
        lm: The denoiser.
        input_ids: (B, L), the true tokens.
        is_masked: (B, L) bool.
        mask_ratio: (B,), t of the paper.
        token: Id of the mask token.
        attention_mask: (B, L), 0 on filler; None where there is none.
    """
    matrix = lm.embedding_matrix()
    ids = input_ids.masked_fill(is_masked, token)
    hidden = lm.hidden_states(F.embedding(ids, matrix), attention_mask)
    left_neighbours = hidden[:, :-1][is_masked[:, 1:]]  # (N, H)
    row = is_masked.nonzero()[:, 0]
    weights = (1 / mask_ratio)[row]  # (N,)
    size = rows_per_chunk(len(matrix), matrix.device)
    return cross_entropy(lm.head, left_neighbours, input_ids[is_masked], size, weights)


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
