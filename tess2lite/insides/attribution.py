"""Why this token: how much one prediction owes to each position, in nats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch

from .. import validation
from ..model import SimplexDenoiser
from ..schedule import sampling_times
from ..trajectory import Trajectory
from ..validation import InputError
from .inputs import listen, predict, predict_in_batches, step_inputs

METHODS = ("occlusion", "noise", "gradient")
DRAWS = 4  # of other noise


@dataclass
class Attribution:
    """What the prediction at (step, position) depends on.

    Attributes:
        step: index of the step, from 0.
        position: whose prediction it is.
        token: the id whose log-probability is explained.
        method: how the weights were found.
        logprob: of the token, in nats.
        weights: (L,) nats that each position adds to it; below 0 where it speaks against the token.
    """

    step: int
    position: int
    token: int
    method: str
    logprob: float
    weights: torch.Tensor = field(repr=False)

    def top(self, k: int = 3) -> list[int]:
        """The k other positions that speak most for the token, falling."""
        order = self.weights.argsort(descending=True).tolist()
        return [i for i in order if i != self.position][:k]

    def as_dict(self) -> dict:
        """For JSON: step, position, weights and their unit."""
        weights = [round(weight, 4) for weight in self.weights.tolist()]
        return {"step": self.step, "position": self.position, "weights": weights, "unit": "nats"}


def attribute(
    lm: SimplexDenoiser,
    trajectory: Trajectory,
    step: int,
    position: int,
    method: str = "occlusion",
    token: int | None = None,
    hooks: Iterable[Callable] = (),
    inputs: torch.Tensor | None = None,
) -> Attribution:
    """What the prediction at one step and position depends on: the run is replayed up to there and asked.

    The prediction is the model's own, before hooks edit it, at temperature 1.

    Args:
        lm: the denoiser that made the run.
        trajectory: of `generate` or `infill`; it begins at step 0.
        step: index of the step, from 0.
        position: a generated position.
        method: "occlusion": each position in turn is read as if nothing were known of it; exact,
            one sequence per position. "gradient": the same to first order, one pass forward and back. "noise": each
            position reads the same token and earlier prediction under other noise, the mean over `DRAWS` draws.
        token: id to explain; by default the one that was drawn.
        hooks: the ones the run was made with.
        inputs: (S, L, H) from `step_inputs` for this run, to save the replay.

    Returns:
        An `Attribution`; weight j is log p(token) − log p(token with position j changed).

    Raises:
        InputError: for a step, position, method or token that does not exist, or a run of another model.
    """
    validation.check_simplex(lm)
    if method not in METHODS:
        raise InputError(f"method is {method!r}; give one of {', '.join(METHODS)}.")
    step = validation.check_int("step", step, 0, len(trajectory) - 1)
    position = check_position(trajectory, position)
    token = int(trajectory.tokens[step, position]) if token is None else token
    token = validation.check_int("token", token, 0, lm.config.vocab_size - 1)
    if inputs is None:
        inputs = step_inputs(lm, trajectory, hooks, step + 1)
    read = inputs[step]  # (L, H)
    if method == "noise":
        others = [_other_noise(lm, trajectory, step, hooks, draw) for draw in range(DRAWS)]
    else:
        others = [nothing_known(lm, trajectory, step)]
    weigh = _gradient if method == "gradient" else _occlude
    weights = [weigh(lm, read, other, position, token) for other in others]
    with torch.no_grad():
        logprob = _logprobs(predict(lm, read[None], position), token)
    return Attribution(step, position, token, method, float(logprob), torch.stack(weights).mean(0).float().cpu())


def check_position(trajectory: Trajectory, position: int) -> int:
    """A position that the run generated. Raises InputError for any other."""
    position = validation.check_int("position", position, 0, len(trajectory.span_mask) - 1)
    if not trajectory.span_mask[position]:
        raise InputError(f"Position {position} was given, not generated; choose one inside the span mask.")
    return position


@torch.no_grad()
def nothing_known(lm: SimplexDenoiser, trajectory: Trajectory, step: int) -> torch.Tensor:
    """(H,) what stands for a position of which nothing is known: a uniform prediction's embedding, and the timestep."""
    settings = trajectory.settings
    times = sampling_times(settings["steps"], settings["timestep_spacing"], getattr(lm.config, "loss_curve", None))
    time = times[step].to(lm.device)
    mean = lm.embedding_matrix().mean(0)
    return mean + lm.embed_time(time).to(mean.dtype)


def _logprobs(logits: torch.Tensor, token: int) -> torch.Tensor:
    return logits.log_softmax(-1)[:, token]


@torch.no_grad()
def _occlude(lm, read: torch.Tensor, other: torch.Tensor, position: int, token: int) -> torch.Tensor:
    """read: (L, H). other: what to read in its place, (H,) or (L, H). Returns (L,) nats."""
    other = other.to(read.dtype).expand_as(read)

    def variants() -> Iterator[torch.Tensor]:
        yield read
        for i in range(len(read)):
            changed = read.clone()
            changed[i] = other[i]
            yield changed

    logprobs = _logprobs(predict_in_batches(lm, variants(), position), token)
    return logprobs[0] - logprobs[1:]


@torch.enable_grad()
def _gradient(lm, read: torch.Tensor, other: torch.Tensor, position: int, token: int) -> torch.Tensor:
    """The gradient of the log-probability times the change it would undo. Returns (L,) nats."""
    leaf = read.detach().clone().requires_grad_()
    logprob = _logprobs(predict(lm, leaf[None], position), token)
    (slope,) = torch.autograd.grad(logprob.sum(), leaf)
    return (slope * (read - other)).sum(-1).detach()


def _other_noise(lm, trajectory: Trajectory, step: int, hooks, draw: int) -> torch.Tensor:
    """What the step would read with other noise alone: tokens and earlier predictions are the run's. (L, H)."""
    seed = (trajectory.settings["seed"] + 1 + draw) % 2**31
    if step == 0:
        return listen(lm, trajectory, hooks, 1, seed)[0][0]

    def redraw(sampler):
        if sampler.index == step - 1:
            tokens = sampler.tokens
            sampler.reseed(seed)
            sampler.tokens = tokens

    return listen(lm, trajectory, [*validation.as_hooks(hooks), redraw], step + 1)[0][step]
