"""Muon (Jordan et al., 2024) for the matrices inside the layers, AdamW for embeddings, head and norms.

torch's own Muon runs Newton-Schulz one matrix at a time in bfloat16, which CPUs without it emulate: that was 63 % of
a training step. Here matrices of one shape go through it together, in float32 unless the CPU or GPU multiplies
bfloat16 in hardware.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients a, b, c of X ← aX + (bA + cA²)X, A = XXᵀ
ITERATIONS = 5
MOMENTUM = 0.95
WEIGHT_DECAY = 0.01
ADAM_BETAS = (0.9, 0.98)
ADAM_EPS = 1e-8
RMS_OF_ADAM = 0.2  # Muon's update is scaled to this rms, about AdamW's, so that both share a learning rate
SHARE_OF_OTHERS = 0.25  # AdamW's learning rate beside Muon's, in recipes: what SmolLM2 was measured with
TOGETHER = 2**26  # elements that go through Newton-Schulz at once, a quarter of a gigabyte in float32


@cache
def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones: on GPUs, and on CPUs with AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrices.

    Args:
        matrices: (N, R, C), all of one shape.
        dtype: of the products.

    Returns:
        (N, R, C) in `dtype`, singular values near 1.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer over all weights of a model, so that schedules and checkpoints see one.

    Args:
        model: The matrices of its backbone's linear layers are Muon's, all other weights AdamW's.
        lr: Muon's learning rate.
        share_of_others: AdamW's, as a share of it.
        weight_decay: Of both, per step and unit of learning rate.
    """

    def __init__(
        self,
        model: Any,
        lr: float,
        share_of_others: float = 1.0,
        weight_decay: float = WEIGHT_DECAY,
    ):
        linear = [module for module in model.base_model.modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
        inside = {id(module.weight) for module in linear}
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if id(p) in inside]
        others = [p for p in trained if id(p) not in inside]
        groups = [
            {"params": matrices, "kind": "muon", "lr": lr},
            {"params": others, "kind": "adamw", "lr": lr * share_of_others},
        ]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all weights in place from their gradients."""
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._muon_step(group)
            else:
                self._adamw_step(group)

    def _muon_step(self, group: dict) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        by_shape: dict[torch.Size, list[int]] = {}
        for number, parameter in enumerate(parameters):
            by_shape.setdefault(parameter.shape, []).append(number)
        directions = self._nesterov(parameters)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for shape, alike in by_shape.items():
            scale = RMS_OF_ADAM * max(shape) ** 0.5
            size = max(1, TOGETHER // shape.numel())
            for start in range(0, len(alike), size):
                numbers = alike[start : start + size]
                stacked = torch.stack([directions[number] for number in numbers])
                dtype = torch.bfloat16 if has_fast_bfloat16(stacked.device) else torch.float32
                updates = orthogonalize(stacked, dtype).float()
                torch._foreach_add_([parameters[i] for i in numbers], updates.unbind(), alpha=-group["lr"] * scale)

    def _nesterov(self, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        buffers = [self._state_of(parameter, "momentum_buffer") for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - MOMENTUM)
        return list(torch._foreach_lerp(gradients, buffers, MOMENTUM))

    def _adamw_step(self, group: dict) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        first_beta, second_beta = ADAM_BETAS
        counts = [self.state[parameter].setdefault("step", torch.zeros(())) for parameter in parameters]
        torch._foreach_add_(counts, 1)
        steps = float(counts[0])  # as many for all
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means = [self._state_of(parameter, "exp_avg") for parameter in parameters]
        squares = [self._state_of(parameter, "exp_avg_sq") for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - first_beta)
        torch._foreach_mul_(squares, second_beta)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second_beta)
        scales = torch._foreach_div(squares, 1 - second_beta**steps)
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, ADAM_EPS)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, means, scales, value=-group["lr"] / (1 - first_beta**steps))

    def _state_of(self, parameter: torch.Tensor, name: str) -> torch.Tensor:
        """A running mean of one parameter, zero at first."""
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        return state[name]


def muon_factory() -> type[MuonAdamW]:
    """What transformers' Trainer calls to make an optimizer that has to see the whole model."""
    return MuonAdamW
