"""tess2lite: learn, watch and experiment with simplex diffusion language models."""

import os
import sys

# Both are read when torch is imported. Without the first, nf4 on a CPU crawls; with the second, a GPU loses less memory
# between rows of different lengths. PYTORCH_CUDA_ALLOC_CONF is the second's older name.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

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
