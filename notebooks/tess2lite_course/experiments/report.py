"""All findings on one page: `python -m tess2lite_course.experiments.report` writes assets/findings/README.md."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tess2lite.evaluation.intervals import UNDECIDED, holm
from tess2lite.evaluation.results import write_text

FOLDER = Path("assets/findings")
SIGNIFICANCE = 0.05
OLD_MODELS = "0.1.0"  # also where results do not say

# row → what the paper says, and its figure with the base model it belongs to
PAPER = {
    1: (
        "AR initialisation beats random",
        "perplexity 24.3 from Mistral 7B v0.1 against 54.4 from random weights, after 35k steps",
    ),
    2: (
        "The base model's pretraining decides",
        "perplexity after adaptation: Llama 2 3619, Llama 3 880, RoBERTa 20.2, Mistral 7B v0.1 24.3",
    ),
    3: ("Bidirectional attention, label shift and UL2 each matter", "part of the method, without a figure"),
    4: ("Self-conditioning helps", "inherited from TESS, without a figure"),
    5: (
        "Longer adaptation and longer context help",
        "perplexity from Mistral 7B v0.1: 24.3 with context 512, 12.2 with 2048; 11.3 after 200k steps",
    ),
    6: ("Instruction tuning makes the generalist", "Table 3 as a whole"),
    7: ("Guidance first helps, then hurts", "AlpacaEval of TESS 2 63.1 → 66.1 at η = 0.25, then gibberish"),
    8: ("Guidance works across reward models", "AlpacaEval of TESS 2 +3 to 4 points"),
    9: ("More diffusion steps help, up to a point", "GSM8K of TESS 2 rises from 50 to 500 steps (Figure 3b)"),
    10: (
        "With enough in-domain data diffusion beats AR",
        "GSM8K after tuning on symbolic data: TESS 2 66.6, AR on the same data 51.2",
    ),
    11: (
        "Reasoning lags AR without it",
        "BBH, both from Mistral 7B v0.1: 8.4 against 43.3 (TESS 2 from v0.3: 10.8)",
    ),
    12: (
        "Long texts come faster than from AR",
        "per batch: 100 steps 77 s, Mistral 7B 2,048 tokens 480 s",
    ),
    13: (
        "Simplex diffusion beats masked discrete diffusion",
        "two bases: AlpacaEval 63.1, TriviaQA 49.3 (TESS 2 from Mistral 7B v0.1) against 0.2, 19.7 (DiffuLLaMA from "
        "Llama 2 7B)",
    ),
    14: (
        "Question answering comes close to AR",
        "TriviaQA, both from Mistral 7B v0.1: 49.3 against 50.4 (TESS 2 from v0.3: 53.8); SQuAD 85.4 against 86.0",
    ),
}


@dataclass
class Row:
    """One finding of the paper, and what became of it here.

    Attributes:
        number: Row of the table.
        finding: What the paper claims.
        paper: Its figure, with the base model.
        records: A comparison each, from `comparisons.judge`, with `adjusted_p` of Holm's correction.
    """

    number: int
    finding: str
    paper: str
    records: list[dict] = field(default_factory=list)

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"make findings ROW={self.number}"

    @property
    def verdicts(self) -> list[str]:
        """The verdict of each comparison."""
        return [record["verdict"] for record in self.records]


def rows(folder: Path) -> list[Row]:
    """Returns all fourteen rows from the results in a folder; p-values are adjusted for the whole table."""
    records = []
    for path in sorted(folder.glob("*.json")):
        experiment = json.loads(path.read_text())
        is_old = has_old_models(experiment)
        records += [record | {"is_old": is_old} for record in experiment.get("verdicts", []) if "row" in record]
    adjusted = holm([record["p_value"] for record in records])
    by_number = {number: Row(number, *texts) for number, texts in PAPER.items()}
    for record, p_value in zip(records, adjusted, strict=True):
        by_number[record["row"]].records.append(record | {"adjusted_p": p_value})
    return list(by_number.values())


def has_old_models(experiment: dict) -> bool:
    """Whether a run of an experiment was made with the bundled models of version 0.1."""
    environments = [run.get("environment", {}) for run in experiment.get("runs", [experiment])]
    return any(environment.get("tess2lite", OLD_MODELS) == OLD_MODELS for environment in environments)


def is_kept(record: dict) -> bool:
    """Whether a decided comparison stays decided when the whole table is tested together."""
    return record["verdict"] != UNDECIDED and record["adjusted_p"] < SIGNIFICANCE


def line(record: dict) -> str:
    """Returns "what: **verdict** (metric mean [low to high] against …, questions, training seeds)"."""
    sides = " against ".join(_interval(side, record["is_share"]) for side in record["sides"])
    sample = []
    if record["questions"]:
        sample.append(f"{record['questions']} questions")
    if record["training_seeds"]:
        sample.append(f"{record['training_seeds']} seeds")
    if record.get("is_old"):
        sample.append("models of 0.1")
    return f"{record['what']}: **{record['verdict']}** ({record['metric']} {sides}; {', '.join(sample)})"


def _interval(side: list[float], is_share: bool) -> str:
    scale = 100 if is_share else 1
    unit = " %" if is_share else ""
    mean, low, high = (_short(None if number is None else scale * number, is_share) for number in side)
    return f"{mean}{unit} [{low} to {high}]"


def _short(number: float | None, is_share: bool = False) -> str:
    if number is None:
        return "unknown"
    if is_share:
        return f"{number:.0f}"
    return f"{number:.2f}" if abs(number) < 100 else f"{number:,.0f}"


def markdown(table: list[Row]) -> str:
    """Returns the table."""
    lines = [
        "| | finding | here, with 95 % intervals | kept by Holm | smallest visible gain | the paper | repeat with |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table:
        here = [line(record) for record in row.records] or ["not measured"]
        outcomes = ["yes" if is_kept(record) else "no" for record in row.records]
        smallest = [_short(record["smallest_effect"]) for record in row.records]
        cells = [str(row.number), row.finding, *("<br>".join(cell) for cell in (here, outcomes, smallest))]
        lines.append(f"| {' | '.join(cells)} | {row.paper} | `{row.command}` |")
    return "\n".join(lines)


def counts(table: list[Row]) -> dict[str, int]:
    """Returns how many comparisons have each verdict, and how many decided ones Holm keeps."""
    records = [record for row in table for record in row.records]
    verdicts = [record["verdict"] for record in records]
    return {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)} | {
        "kept by Holm": sum(map(is_kept, records))
    }


def page(folder: Path) -> str:
    """Returns the page as the folder's README has it."""
    table = rows(folder)
    numbers = ", ".join(f"{name} {number}" for name, number in counts(table).items())
    return f"""# The paper in miniature

Each finding of TESS 2 tested on Tinytown. Comparisons: {numbers}.

How to read it. A claim holds when the 95 % interval of its paired gain lies above zero (above minus the margin where
the claim is "no less"). Gains are resampled by question; where several training seeds made several models, their spread
is added. "Kept by Holm" says which decided comparisons stay decided when all are tested together, at 5 % for the whole
table. The smallest visible gain is what an experiment of this size would find in four of five repetitions, in the
metric's unit (1 = all questions): a claim that is too small to tell may be true and smaller than this.

“Models of 0.1” marks results that were measured with the models and recipes of version 0.1, which were weaker.

{markdown(table)}
"""


if __name__ == "__main__":
    write_text(FOLDER / "README.md", page(FOLDER))
    print(f"Wrote {FOLDER / 'README.md'}")
