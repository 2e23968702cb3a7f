"""How dense the package is: tokens of code per line of code, and the size of the front room.

`python tests/density.py` prints a row for each module. Comments, docstrings and line ends are not counted; an f-string
counts as one token under every Python version.
"""

import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tess2lite"
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
FSTRING_START = getattr(tokenize, "FSTRING_START", None)  # Python 3.12 takes f-strings apart
FSTRING_END = getattr(tokenize, "FSTRING_END", None)
MATHEMATICS = {"textbook.py", "simplex.py", "nucleus.py"}
MAX_MEAN = 10
MAX_MODULE = 12
MAX_MATHEMATICS = 14
MAX_FRONT_ROOM = 20_000


def code_tokens(text: str) -> list[int]:
    """Returns the line number of every token of code in a module's text."""
    lines = []
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == FSTRING_END:
            depth -= 1
            continue
        inside = depth > 0
        if token.type == FSTRING_START:
            depth += 1
        is_docstring = token.type == tokenize.STRING and token.string.startswith(('"""', "'''"))
        if inside or is_docstring or token.type in LAYOUT:
            continue
        lines.append(token.start[0])
    return lines


def densities(package: Path = PACKAGE) -> dict[str, tuple[int, int]]:
    """Returns tokens and lines of code by module path, relative to the package."""
    counts = {}
    for path in sorted(package.rglob("*.py")):
        lines = code_tokens(path.read_text())
        if lines:
            counts[path.relative_to(package).as_posix()] = (len(lines), len(set(lines)))
    return counts


def mean(counts: dict[str, tuple[int, int]]) -> float:
    """Returns tokens per line over all modules together."""
    return sum(tokens for tokens, _ in counts.values()) / sum(lines for _, lines in counts.values())


def front_room(counts: dict[str, tuple[int, int]]) -> int:
    """Returns the tokens of the modules at the top level, which hold the method."""
    return sum(tokens for name, (tokens, _) in counts.items() if "/" not in name)


def too_dense(counts: dict[str, tuple[int, int]]) -> list[str]:
    """Returns a sentence for each module above its limit; modules of a few lines are left out."""
    found = []
    for name, (tokens, lines) in counts.items():
        limit = MAX_MATHEMATICS if name in MATHEMATICS else MAX_MODULE
        if lines > 10 and tokens / lines > limit:
            found.append(f"{name} has {tokens / lines:.1f} tokens per line, more than {limit}")
    return found


if __name__ == "__main__":
    counts = densities()
    for name, (tokens, lines) in counts.items():
        print(f"{name:36} {tokens:6,} tokens {lines:5,} lines {tokens / lines:5.1f} per line")
    print(f"mean of the package: {mean(counts):.2f} tokens per line (at most {MAX_MEAN})")
    print(f"front room: {front_room(counts):,} tokens (at most {MAX_FRONT_ROOM:,})")
    print("\n".join(too_dense(counts)))
