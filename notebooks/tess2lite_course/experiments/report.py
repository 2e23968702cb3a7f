"""All fourteen findings on one page: `python -m tess2lite_course.experiments.report` prints what the README shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

# row → what the paper says, and its figure
PAPER = {
    1: ("AR initialisation beats random", "perplexity 24.3 (Mistral) against 54.4 (random) after 35k steps"),
    2: ("The base model's pretraining decides", "Llama 2 3619, Llama 3 880, RoBERTa 20.2, Mistral 24.3"),
    3: ("Bidirectional attention, label shift and UL2 each matter", "part of the method"),
    4: ("Self-conditioning helps", "inherited from TESS"),
    5: ("Longer adaptation and longer context help", "context 512: 24.3, 2048: 12.2; 200k steps: 11.3"),
    6: ("Instruction tuning makes the generalist", "Table 3"),
    7: ("Guidance first helps, then hurts", "AlpacaEval 63.1 → 66.1 at η = 0.25, then gibberish"),
    8: ("Guidance works across reward models", "+3 to 4 points"),
    9: ("More diffusion steps help, up to a point", "GSM8k rises from 50 to 500 steps"),
    10: ("With enough in-domain data diffusion beats AR", "GSM8k 66.6 against 51.2"),
    11: ("Reasoning lags AR without it", "BBH 10.8 against 43.3"),
    12: ("Long texts come faster than from AR", "100 steps 77 s, AR 2048 tokens 480 s a batch"),
    13: (
        "Simplex diffusion beats masked discrete diffusion",
        "AlpacaEval 63.1 against 0.2; TriviaQA 49.3 against 19.7",
    ),
    14: ("Question answering comes close to AR", "SQuAD 85.4 against 86.0; TriviaQA 53.8 against 50.4"),
}
SHARES = ("valid", "reading", "knowledge", "arithmetic", "sorting", "counting", "tracking", "boolean")


@dataclass(frozen=True)
class Row:
    """One finding of the paper, and what became of it here: a line and a verdict for each comparison."""

    number: int
    finding: str
    paper: str
    here: list[str]
    verdicts: list[str]
    command: str


def rows(folder: Path) -> list[Row]:
    """All fourteen, from the results in a folder; a row without any says so."""
    compared = {}
    for path in sorted(folder.glob("*.json")):
        finding = json.loads(path.read_text())
        for said in finding.get("verdicts", []):
            compared.setdefault(said.get("row"), []).append((said, len(finding["seeds"])))
    found = []
    for number, (finding, paper) in PAPER.items():
        here = [line(said, seeds) for said, seeds in compared.get(number, [])] or ["not measured"]
        verdicts = [said["verdict"] for said, _ in compared.get(number, [])]
        found.append(Row(number, finding, paper, here, verdicts, f"make findings ROW={number}"))
    return found


def line(said: dict, seeds: int) -> str:
    """`what: verdict; a ± b against c ± d, metric, seeds`."""
    share = said["metric"].startswith(SHARES)
    numbers = [(f"{100 * mean:.0f} ± {100 * half:.0f} %" if share else f"{_short(mean)} ± {_short(half)}")
               for mean, half in said["sides"]]  # fmt: skip
    return f"{said['what']}: **{said['verdict']}** ({said['metric']} {' against '.join(numbers)}, {seeds} seeds)"


def _short(number: float) -> str:
    return f"{number:.2f}" if abs(number) < 100 else f"{number:,.0f}"


def markdown(found: list[Row]) -> str:
    """The table as the README has it."""
    lines = ["| | the paper's finding | here | the paper | again with |", "| --- | --- | --- | --- | --- |"]
    for row in found:
        here = "<br>".join(row.here)
        lines.append(f"| {row.number} | {row.finding} | {here} | {row.paper} | `{row.command}` |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(rows(Path("assets/findings"))))
