"""Muon (Jordan et al., 2024) for the matrices inside the layers, AdamW for embeddings, head and norms.

torch's own Muon runs Newton-Schulz one matrix at a time in bfloat16, which CPUs without it emulate: that was 63 % of
a training step. Here matrices of one shape go through it together, in float32 unless the CPU or GPU multiplies
bfloat16 in hardware.
"""

from __future__ import annotations

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients a, b, c of X ← aX + (bA + cA²)X, A = XXᵀ
ITERATIONS = 5
MOMENTUM = 0.95
WEIGHT_DECAY = 0.01
ADAM_BETAS = (0.9, 0.98)
ADAM_EPS = 1e-8
RMS_OF_ADAM = 0.2  # Muon's update is scaled to this rms, about AdamW's, so that both share a learning rate


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
        model: with `model.layers`; their 2-D weights are Muon's, all other weights AdamW's.
        lr: learning rate of both.
    """

    def __init__(self, model: torch.nn.Module, lr: float):
        inside = {id(p) for layer in model.model.layers for p in layer.parameters() if p.ndim == 2}
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if id(p) in inside], "kind": "muon"},
            {"params": [p for p in trained if id(p) not in inside], "kind": "adamw"},
        ]
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update all weights in place from their gradients."""
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._muon_step(group)
            else:
                self._adamw_step(group)

    def _muon_step(self, group: dict) -> None:
        by_shape = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in by_shape.items():
            directions = torch.stack([self._nesterov(parameter) for parameter in parameters])
            dtype = torch.bfloat16 if has_fast_bfloat16(directions.device) else torch.float32
            updates = orthogonalize(directions, dtype).float()
            scale = RMS_OF_ADAM * max(shape) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * WEIGHT_DECAY)
                parameter.add_(update, alpha=-group["lr"] * scale)

    def _nesterov(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        buffer.lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(buffer, MOMENTUM)

    def _adamw_step(self, group: dict) -> None:
        first_beta, second_beta = ADAM_BETAS
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
            state["exp_avg"].lerp_(parameter.grad, 1 - first_beta)
            state["exp_avg_sq"].mul_(second_beta).addcmul_(parameter.grad, parameter.grad, value=1 - second_beta)
            first = state["exp_avg"] / (1 - first_beta ** float(state["step"]))
            second = state["exp_avg_sq"] / (1 - second_beta ** float(state["step"]))
            parameter.mul_(1 - group["lr"] * WEIGHT_DECAY)
            parameter.addcdiv_(first, second.sqrt().add_(ADAM_EPS), value=-group["lr"])
