"""In a notebook a reader's mistake is one sentence and where in their own code it was made."""

from __future__ import annotations

import dis
import sys
import sysconfig
from types import TracebackType

INSTALLED = ("<frozen", *{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def short_mistakes() -> None:
    """IPython shows the reader's own frames alone when this package said what is wrong with what it was given.

    All is shown of any other error; and of these by `%tb`, under `%xmode Verbose`, in `%debug` and outside IPython.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell and not shell.custom_exceptions:  # a handler of the reader's own stays
        shell.set_custom_exc((ValueError, TypeError, OSError, FloatingPointError), _show)


def _show(shell, kind, value, tb, tb_offset=None) -> None:
    steps = [tb]
    while steps[-1].tb_next:
        steps.append(steps[-1].tb_next)
    said = steps[-1].tb_frame.f_code.co_code[steps[-1].tb_lasti] == dis.opmap["RAISE_VARARGS"]  # no slip of ours
    if not (said and _ours(steps[-1])) or shell.InteractiveTB.mode == "Verbose":
        shell.showtraceback((kind, value, tb), tb_offset=tb_offset, running_compiled_code=True)
        return
    short = None
    for step in reversed(steps):
        if not _ours(step) and not step.tb_frame.f_code.co_filename.startswith(INSTALLED):
            short = TracebackType(short, step.tb_frame, step.tb_lasti, step.tb_lineno)
    cause, suppressed, value.__cause__ = value.__cause__, value.__suppress_context__, None
    lines = shell.InteractiveTB.structured_traceback(kind, value, short, tb_offset=0, context=3)
    value.__cause__, value.__suppress_context__ = cause, suppressed
    value._render_traceback_ = lambda: [*lines[:-1], "(%tb shows the frames inside tess2lite, too.)\n", lines[-1]]
    shell.showtraceback((kind, value, tb))
    del value._render_traceback_


def _ours(step: TracebackType) -> bool:
    return step.tb_frame.f_globals.get("__name__", "").startswith("tess2lite")
