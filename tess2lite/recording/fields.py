"""The fields of a trajectory, from the steps that a hook kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .strings import context_strings_of, decode_from, token_strings_of

PREDICTION = ("tokens", "top_ids", "top_p", "entropy")


def recorded_fields(steps: Sequence[Mapping[str, torch.Tensor]], row: int, span_mask: torch.Tensor) -> dict[str, Any]:
    """One sequence of a batch, on the CPU: its predictions, and what hooks recorded at every step.

    Args:
        steps: Name → tensor (B, …) of each step.
        row: Which sequence of the batch.
        span_mask: (L,), cut to the sequence's real length.
    """
    length = len(span_mask)
    columns = {}
    for name in steps[0]:
        if not all(name in step for step in steps):
            continue
        rows = [step[name][row] for step in steps]
        values = torch.stack(rows).cpu()  # (S, …)
        if values.dim() > 1:
            values = values[:, :length]
        columns[name] = values.float() if values.is_floating_point() else values.int()
    fields: dict[str, Any] = {name: columns.pop(name) for name in PREDICTION}
    fields["records"] = columns
    fields["span_mask"] = span_mask
    return fields


def ids_of(fields: Mapping[str, Any]) -> torch.Tensor:
    """All ids that occur in a trajectory's fields, flat; records of whole numbers are ids."""
    records = fields["records"].values()
    ids = [fields["tokens"], fields["top_ids"]]
    ids += [values for values in records if not values.is_floating_point()]
    return torch.cat([values.flatten() for values in ids])


def decode_strings(fields: Mapping[str, Any], decode: Callable[..., str], shown_from: int) -> dict[str, Any]:
    """The strings of a trajectory.

    Args:
        fields: From `recorded_fields`.
        decode: Ids → text.
        shown_from: Position that texts begin at.
    """
    rows = fields["tokens"].tolist()
    ids = ids_of(fields).unique().tolist()
    is_generated = fields["span_mask"].tolist()
    return {
        "texts": [decode_from(row, shown_from, decode) for row in rows],
        "token_strings": token_strings_of(ids, decode),
        "context_strings": context_strings_of(rows[0], is_generated, decode),
    }
