"""Reward guidance: gradient ascent on the logits while the text is written (section on reward guidance of TESS 2)."""

from __future__ import annotations

import torch

from .reward import reward_of_embeddings


class RewardGuidance:
    """A hook: Ŝ ← Ŝ + scale·∇_Ŝ R(softmax(Ŝ)·E_R), inside the mask, before Ŝ is projected to tokens.

    reward_model: from `tess2lite.load_reward`. scale: η of the paper; 0.25 was its best. inner_steps: ascents in
    one diffusion step, each from a fresh gradient; the paper takes one.
    """

    def __init__(self, reward_model, scale: float = 0.25, inner_steps: int = 1):
        if inner_steps < 1:
            raise ValueError(f"inner_steps is {inner_steps}; give 1 or more.")
        self.reward_model, self.scale, self.inner_steps = reward_model, scale, inner_steps
        self.embedding = reward_model.get_input_embeddings().weight.detach()  # E_R, (V, H_R)

    def __call__(self, step) -> None:
        logits = step.masked_logits
        if logits.shape[1] != len(self.embedding):
            raise ValueError(
                f"The reward model reads {len(self.embedding)} tokens, the denoiser writes {logits.shape[1]}; "
                "guidance needs a reward model with the denoiser's own tokenizer."
            )
        for inner in range(self.inner_steps):
            rewards, gradient = self._gradient(step, logits)
            if inner == 0:
                step.reward = rewards
            logits = logits + self.scale * gradient
        step.masked_logits = logits

    @torch.enable_grad()
    def _gradient(self, step, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards (B,) of the prediction as it is, and their gradient by the logits (N, V)."""
        logits = logits.detach().requires_grad_()
        soft = logits.softmax(1).to(self.embedding.dtype) @ self.embedding  # (N, H_R)
        embeddings = self.embedding[step.input_ids].masked_scatter(step.span_mask[..., None], soft)
        rewards = reward_of_embeddings(self.reward_model, embeddings, step.attention_mask)
        (gradient,) = torch.autograd.grad(rewards.sum(), logits)
        return rewards.detach(), gradient
