"""One notebook, three sizes: TESS2LITE_PROFILE is smoke (tests), cpu (the default) or gpu."""

import os


def pick(smoke, cpu, gpu):
    """The value for the profile at hand: `steps = pick(smoke=5, cpu=50, gpu=100)`."""
    choices = {"smoke": smoke, "cpu": cpu, "gpu": gpu}
    name = os.environ.get("TESS2LITE_PROFILE", "cpu")
    if name not in choices:
        raise ValueError(f"TESS2LITE_PROFILE is {name!r}; set it to one of {', '.join(choices)}, or not at all.")
    return choices[name]
