"""Why a first choice changed: which positions made it flip, and the run with what they said put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import torch

from .. import validation
from ..generation import Generation, replay
from ..model import SimplexDenoiser
from ..trajectory import Trajectory
from ..validation import InputError
from .attribution import check_position
from .inputs import predict, predict_in_batches, step_inputs

MOST = 3  # positions that a cause names


@dataclass
class Flip:
    """A change of the model's first choice, and its cause.

    Attributes:
        step: index of the first step that prefers the new token.
        position: where.
        before: the id that was the first choice one step earlier.
        after: the id that is it now.
        causes: up to `MOST` positions, the strongest first, that read something else than one step earlier: another
            drawn token, other noise, another earlier prediction.
        undone: whether the first choice is `before` again once these positions read what they read one step earlier.
    """

    step: int
    position: int
    before: int
    after: int
    causes: list[int]
    undone: bool

    def as_dict(self) -> dict:
        """For JSON."""
        return dict(vars(self))


@torch.no_grad()
def explain_flip(
    lm: SimplexDenoiser,
    trajectory: Trajectory,
    step: int,
    position: int,
    hooks: Iterable[Callable] = (),
    inputs: torch.Tensor | None = None,
) -> Flip:
    """Names the positions that made the first choice change between step − 1 and step.

    One position after another is put back to what it read at step − 1, each time the one that helps the old token most
    against its best rival, until that token is the first choice again or `MOST` positions are named.

    Args:
        lm: the denoiser that made the run.
        trajectory: of `generate` or `infill`; it begins at step 0.
        step: index of the step, 1 or more.
        position: a generated position.
        hooks: the ones the run was made with.
        inputs: (S, L, H) from `step_inputs` for this run, to save the replay.

    Raises:
        InputError: where the first choice did not change.
    """
    step = validation.check_int("step", step, 1, len(trajectory) - 1)
    position = check_position(trajectory, position)
    if inputs is None:
        inputs = step_inputs(lm, trajectory, hooks, step + 1)
    before, after = predict(lm, inputs[step - 1 : step + 1], position).argmax(-1).tolist()
    if before == after:
        raise InputError(f"At position {position} the first choice did not change at step {step}; choose a flip.")
    earlier, read = inputs[step - 1], inputs[step]
    causes: list[int] = []
    undone = False
    while not undone and len(causes) < min(MOST, len(read)):
        others = [i for i in range(len(read)) if i not in causes]
        logits = predict_in_batches(lm, _each_put_back(read, earlier, others), position)
        lead = _lead(logits, before)
        best = int(lead.argmax())
        causes.append(others[best])
        read = next(_each_put_back(read, earlier, causes[-1:]))
        undone = bool(lead[best] > 0)
    return Flip(step, position, before, after, causes, undone)


def put_back(
    lm: SimplexDenoiser,
    trajectory: Trajectory,
    flip: Flip,
    hooks: Iterable[Callable] = (),
    inputs: torch.Tensor | None = None,
    stop: int | None = None,
) -> Generation:
    """The run again, in which at the step of the flip its causes read what they had read one step earlier.

    The steps before it stay bit-identical; what follows continues from the edited step.

    Args:
        lm: the denoiser that made the run.
        trajectory: the run of the flip.
        flip: from `explain_flip`.
        hooks: the ones the run was made with.
        inputs: (S, L, H) from `step_inputs` for this run, to save a replay.
        stop: the first step that is not needed any more; None for the whole run.
    """
    hooks = validation.as_hooks(hooks)
    if inputs is None:
        inputs = step_inputs(lm, trajectory, hooks, flip.step)
    earlier = inputs[flip.step - 1]
    passes = count()

    def edit(_, args, kwargs):
        if next(passes) != flip.step:
            return None
        read = kwargs["inputs_embeds"].clone()
        read[:, flip.causes] = earlier[flip.causes]
        return args, kwargs | {"inputs_embeds": read}

    def halt(step):
        step.stop |= stop is not None and step.index + 1 >= stop

    handle = lm.base_model.register_forward_pre_hook(edit, with_kwargs=True)
    try:
        return replay(lm, trajectory, [*hooks, halt], progress=False)
    finally:
        handle.remove()


def _each_put_back(read: torch.Tensor, earlier: torch.Tensor, positions: list[int]) -> Iterator[torch.Tensor]:
    for i in positions:
        changed = read.clone()
        changed[i] = earlier[i]
        yield changed


def _lead(logits: torch.Tensor, token: int) -> torch.Tensor:
    """(N,) nats between a token and its best rival."""
    rivals = logits.clone()
    rivals[:, token] = -torch.inf
    return logits[:, token] - rivals.amax(-1)
