"""What the AR model that a denoiser started from could teach it, as terms beside the diffusion loss.

Three are tried on SmolLM2 (`smollm2.py`), each at the positions that predict a masked token: "aligned", the hidden
states of all layers point where the AR model's do on the clean text; "distilled", predictions are drawn towards the
AR model's after the true left side; "on-policy", towards the AR model's after what the denoiser itself predicts to
the left, as in OPDLM (arXiv 2606.06712), from a single pass in place of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from tess2lite.chunks import rows_per_chunk
from tess2lite.loading import load
from tess2lite.model import SimplexDenoiser
from tess2lite.pretrained.probes import causal

ALIGNED = "aligned"
DISTILLED = "distilled"
ON_POLICY = "on-policy"
TERMS = (ALIGNED, DISTILLED, ON_POLICY)
ALIGNMENT = 2.0  # nats per token for hidden states at a right angle
DISTILLATION = 0.5  # nats per nat of divergence


@contextmanager
def recorded_hidden_states(lm: SimplexDenoiser) -> Iterator[list[torch.Tensor]]:
    """Yields a list that gets the output (B, L, H) of every layer, and of the backbone's norm, in each pass."""
    states: list[torch.Tensor] = []

    def record(_module: Any, _inputs: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    modules = [*lm.base_model.layers, lm.base_model.norm]
    handles = [module.register_forward_hook(record) for module in modules]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


class Teacher:
    """The frozen AR model, in bfloat16.

    Args:
        model: Its name or folder.
        kind: One of `TERMS`.
    """

    def __init__(self, model: str, kind: str):
        self.lm = load(model).to(torch.bfloat16).eval().requires_grad_(False)
        self.kind = kind

    @torch.no_grad()
    def hidden_states(self, input_ids: torch.Tensor) -> list[torch.Tensor]:
        """Of all layers and the norm, (B, L, H) each, read from left to right.

        Args:
            input_ids: (B, L).
        """
        with causal(self.lm), recorded_hidden_states(self.lm) as states:
            self.lm.hidden_states(self.lm.embed_context(input_ids), None)
        return states

    def term(self, student: SimplexDenoiser, states: list[torch.Tensor], batch: Any) -> torch.Tensor:
        """Summed over the masked positions, in nats, as the loss is.

        Args:
            student: The denoiser.
            states: Its hidden states in all passes of the step; those of the last one are taught.
            batch: With `input_ids` and `span_mask`, (B, L), and `example`, (B,), which seeds draws.

        Returns:
            A scalar.
        """
        predicts = batch.span_mask.roll(-1, dims=1)  # (B, L), the positions left of the masked ones
        layers = len(student.base_model.layers)
        states = states[-(layers + 1) :]
        if self.kind == ALIGNED:
            return ALIGNMENT * self._angles(states, batch.input_ids, predicts)
        return DISTILLATION * self._divergence(student, states[-1][predicts], batch, predicts)

    def _angles(self, states: list[torch.Tensor], ids: torch.Tensor, predicts: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for state, aim in zip(states, self.hidden_states(ids), strict=True):
            cosines = F.cosine_similarity(state[predicts].float(), aim[predicts].float(), dim=1)
            total = total + (1 - cosines).sum()
        return total / len(states)

    def _divergence(
        self, student: SimplexDenoiser, hidden: torch.Tensor, batch: Any, predicts: torch.Tensor
    ) -> torch.Tensor:
        size = rows_per_chunk(student.config.vocab_size, hidden.device)
        parts = [slice(start, start + size) for start in range(0, len(hidden), size)]
        ids = batch.input_ids
        if self.kind == ON_POLICY:
            ids = self._predicted_text(student, hidden.detach(), batch, parts)
        aims = self.hidden_states(ids)[-1][predicts]

        def divergence(rows: slice) -> torch.Tensor:
            taught = student.head(hidden[rows]).log_softmax(1)
            aim = self.lm.head(aims[rows]).log_softmax(1)
            if self.kind == ON_POLICY:
                return F.kl_div(aim, taught, reduction="sum", log_target=True)  # KL(student ‖ teacher)
            return F.kl_div(taught, aim, reduction="sum", log_target=True)  # KL(teacher ‖ student)

        return torch.stack([checkpoint(divergence, rows, use_reentrant=False) for rows in parts]).sum()

    @torch.no_grad()
    def _predicted_text(
        self, student: SimplexDenoiser, hidden: torch.Tensor, batch: Any, parts: list[slice]
    ) -> torch.Tensor:
        """The batch's ids (B, L) with a draw from the denoiser's prediction at each masked position."""
        generator = torch.Generator().manual_seed(int(batch.example[0]))
        drawn = []
        for rows in parts:
            p = student.head(hidden[rows]).softmax(1)
            drawn.append(torch.multinomial(p, 1, generator=generator)[:, 0])
        return batch.input_ids.masked_scatter(batch.span_mask, torch.cat(drawn))
