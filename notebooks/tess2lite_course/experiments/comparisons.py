"""What may be said of a claim: one record for each comparison, whichever experiment it comes from."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from tess2lite.evaluation.intervals import compare, mean_interval

SHARES = (-1.0, 1.0)  # bounds of a difference of shares


def judge(
    claim: dict,
    better: Sequence[float],
    than: Sequence[float],
    questions: Sequence[Hashable] | None = None,
    seeds: Sequence[Hashable] | None = None,
    fewer_is_better: bool = False,
) -> dict:
    """Judges a claim by paired scores.

    Args:
        claim: Facts that are kept in the record, such as row, what and metric. `margin`, where it has one, is the loss
            that a claim of "no less" allows.
        better: Scores of the side that is claimed to be better, in the order of `than`.
        than: Scores of the other side, for the same questions and seeds.
        questions: As in `tess2lite.evaluation.intervals.compare`.
        seeds: Training seeds, as there.
        fewer_is_better: Whether small scores are good ones.

    Returns:
        The claim with sides and gain as [mean, low, high] (null where unknown), p_value, smallest_effect, verdict,
        is_share (whether scores lie between 0 and 1), and how many questions and training seeds it rests on.
    """
    sign = -1 if fewer_is_better else 1
    gains = [sign * (mine - other) for mine, other in zip(better, than, strict=True)]
    is_share = questions is not None and all(0 <= score <= 1 for score in [*better, *than])
    bounds = SHARES if is_share else None
    comparison = compare(gains, questions, seeds, bounds, claim.get("margin", 0.0))
    of_side = (0.0, 1.0) if is_share else None
    sides = [mean_interval(scores, questions, seeds, of_side) for scores in (better, than)]
    return claim | {
        "sides": [_rounded(side) for side in sides],
        "gain": _rounded(comparison.gain),
        "p_value": round(comparison.p_value, 5),
        "smallest_effect": _rounded([comparison.smallest_effect])[0],
        "verdict": comparison.verdict,
        "is_share": is_share,
        "questions": len(set(questions)) if questions is not None else None,
        "training_seeds": len(set(seeds)) if seeds is not None else None,
    }


def _rounded(numbers) -> list[float | None]:
    """Numbers as JSON has them; what is infinite is unknown."""
    return [round(number, 4) if math.isfinite(number) else None for number in numbers]
