"""One notebook, three sizes: TESS2LITE_PROFILE is smoke (tests), cpu (the default) or gpu."""

import os

from tess2lite.validation import InputError


def pick(smoke, cpu, gpu):
    """Returns the value for the current profile: `steps = pick(smoke=5, cpu=50, gpu=100)`.

    Raises:
        InputError: If the environment variable names no profile.
    """
    choices = {"smoke": smoke, "cpu": cpu, "gpu": gpu}
    name = os.environ.get("TESS2LITE_PROFILE", "cpu")
    if name not in choices:
        raise InputError(f"TESS2LITE_PROFILE is {name!r}; set it to one of {', '.join(choices)}, or leave it out.")
    return choices[name]
