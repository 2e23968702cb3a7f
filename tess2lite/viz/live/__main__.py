"""`python -m tess2lite.viz.live page.html model=tinytown-base`: the live page as a file."""

import sys

from ...validation import InputError
from .page import main

try:
    main(sys.argv[1:])
except InputError as problem:
    sys.exit(str(problem))
