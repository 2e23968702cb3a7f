"""What a backbone reads at each step of a run, and what it predicts from that.

Everything in this folder works on `inputs` (B, L, H), the embeddings that a backbone reads, so that a denoiser at one
step of its run (`step_inputs`) and its autoregressive parent (`text_inputs`) are looked at by the same functions. Both
predict position i at position i − 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from transformers import PreTrainedModel

from .. import validation
from ..generation import replay
from ..layers.decoders import scale_logits
from ..model import SimplexDenoiser
from ..trajectory import Trajectory
from ..validation import InputError

PASS = 2**22  # numbers in the inputs of one pass: more sequences per pass cost memory


def step_inputs(
    lm: SimplexDenoiser,
    trajectory: Trajectory,
    hooks: Iterable[Callable] = (),
    stop: int | None = None,
) -> torch.Tensor:
    """What the backbone reads at each step of a recorded run: the run is replayed and listened to.

    Args:
        lm: the denoiser that made the run.
        trajectory: of `generate` or `infill`; it begins at step 0.
        hooks: the ones the run was made with.
        stop: the first step that is not needed any more; None for the whole run.

    Returns:
        (S, L, H), known tokens' embeddings, and outside them soft embeddings with the timestep.

    Raises:
        InputError: if the replay departs from the recorded tokens.
    """
    validation.check_simplex(lm)
    stop = len(trajectory) if stop is None else validation.check_int("stop", stop, 1, len(trajectory))
    inputs, tokens = listen(lm, trajectory, hooks, stop)
    departed = (tokens != trajectory.tokens[:stop]).any(1)
    if departed.any():
        step = int(departed.nonzero()[0, 0])
        raise InputError(f"The replay departs from the recorded run at step {step}; give the hooks it was made with.")
    return inputs


def listen(
    lm: SimplexDenoiser,
    trajectory: Trajectory,
    hooks: Iterable[Callable],
    stop: int,
    seed: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replays a run up to a step, under another seed or with other hooks if wanted.

    Returns:
        What the backbone read, (S, L, H), and the tokens of each step, (S, L).
    """
    inputs = []

    def keep(_, args, kwargs):
        inputs.append(kwargs["inputs_embeds"][0].detach())

    def halt(step):
        step.stop |= step.index >= stop  # one more than needed: a run's last step takes its tokens in another way

    handle = lm.base_model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        again = replay(lm, trajectory, [*validation.as_hooks(hooks), halt], seed, progress=False)
    finally:
        handle.remove()
    return torch.stack(inputs[:stop]), again.trajectory.tokens[:stop]


@torch.no_grad()
def text_inputs(lm: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Plain embeddings of whole texts: what an autoregressive model reads. ids: (B, L). Returns (B, L, H)."""
    return lm.get_input_embeddings()(ids.to(lm.device))


def predict(lm: PreTrainedModel, inputs: torch.Tensor, position: int) -> torch.Tensor:
    """Logits of the token at one position, read at its left neighbour.

    Args:
        lm: a denoiser or an autoregressive model.
        inputs: (B, L, H) embeddings without filler.
        position: 1 or more.

    Returns:
        (B, V), in float32 at least.
    """
    position = validation.check_int("position", position, 1, inputs.shape[1] - 1)
    hidden = lm.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    return to_logits(lm, hidden[:, position - 1])


def predict_in_batches(lm: PreTrainedModel, inputs: Iterable[torch.Tensor], position: int) -> torch.Tensor:
    """`predict` for any number of inputs (L, H), made one by one, in passes of bounded size. Returns (N, V)."""
    logits, batch = [], []
    for row in inputs:
        batch.append(row)
        if (len(batch) + 1) * row.numel() > PASS:
            logits.append(predict(lm, torch.stack(batch), position))
            batch = []
    if batch:
        logits.append(predict(lm, torch.stack(batch), position))
    return torch.cat(logits)


def to_logits(lm: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """The head: (…, H) → (…, V), in float32 at least, with the family's scale and softcap."""
    layer = lm.get_output_embeddings()
    logits = layer(hidden.to(layer.weight.dtype))
    return scale_logits(logits.to(torch.promote_types(torch.float32, logits.dtype)), lm.config)
