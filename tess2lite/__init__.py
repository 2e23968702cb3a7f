"""tess2lite: learn, watch and experiment with simplex diffusion language models."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: without it nf4 on a CPU crawls

from .evaluation.best_of import best_of  # noqa: E402
from .generation import Chat, Generation, Interrupted, SamplingParams, generate, infill, replay  # noqa: E402
from .guidance import RewardGuidance  # noqa: E402
from .insides.attribution import attribute  # noqa: E402
from .loading import load  # noqa: E402
from .pretrained.reward_models import load_reward  # noqa: E402
from .pretrained.sources import bundled  # noqa: E402
from .sampling import Step, denoise  # noqa: E402
from .trajectory import Trajectory  # noqa: E402
from .validation import InputError  # noqa: E402

__all__ = [
    "Chat",
    "Generation",
    "InputError",
    "Interrupted",
    "RewardGuidance",
    "SamplingParams",
    "Step",
    "Trajectory",
    "attribute",
    "best_of",
    "bundled",
    "denoise",
    "generate",
    "infill",
    "load",
    "load_reward",
    "replay",
]
