"""The settings that a trajectory keeps, and whether a run can be repeated from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..validation import InputError
from .strings import token_strings_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from ..generation import SamplingParams
    from ..hooks import Hook
    from ..trajectory import Trajectory

OF_RUN = ("prompt", "from_start", "start", "hooks", "model")


def resolved_settings(params: SamplingParams, config: PreTrainedConfig) -> dict[str, Any]:
    """Sampling parameters as a trajectory keeps them: nothing left to defaults, numbers as JSON has them."""
    spacing = params.timestep_spacing
    if spacing is None:
        spacing = getattr(config, "timestep_spacing", "uniform")
    if not isinstance(spacing, str):
        spacing = [float(time) for time in spacing]
    steps = 100 if isinstance(spacing, str) else len(spacing)
    return {
        "steps": steps if params.steps is None else int(params.steps),
        "top_p": None if params.top_p is None else float(params.top_p),
        "temperature": float(params.temperature),
        "timestep_spacing": spacing,
        "final": params.final,
    }


def check_complete(settings: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise InputError unless a trajectory's settings name all that a replay needs."""
    missing = {*OF_RUN, *names} - settings.keys()
    if missing:
        lost = ", ".join(sorted(missing))
        raise InputError(f"This trajectory does not say its {lost}; replay one of generate or infill.")


def check_replay(
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase,
    hooks: Iterable[Hook],
    start: int,
) -> None:
    """Raise InputError unless a run can be repeated with this tokenizer and these hooks, from this step."""
    settings = trajectory.settings
    strings = token_strings_of(trajectory.token_strings, tokenizer.decode)
    if strings != trajectory.token_strings:
        raise InputError(f"This trajectory was written with another tokenizer; load its model, '{settings['model']}'.")
    if settings["start"] and not start:
        raise InputError(f"This run began at step {settings['start']} with the text of another; replay that one.")
    absent = set(settings["hooks"]) - {type(hook).__name__ for hook in hooks}
    if absent:
        raise InputError(f"This run was made with {', '.join(sorted(absent))}; give these hooks again.")
