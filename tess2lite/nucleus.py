"""A top-p draw without a sort: rejection sampling from the nucleus of each row."""

from __future__ import annotations

import math

import torch

MAX_REJECTIONS = 8  # nucleus draws before a row is sorted instead


def sample_categorical(probabilities: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """One id a row from its distribution, by inversion in two levels: first a block, then an id in it.

    probabilities: (R, V), any positive scale. u: (R,) uniform in [0, 1). Returns ids (R,).
    """
    vocabulary = probabilities.shape[1]
    width = 2 ** math.ceil(math.log2(max(2, vocabulary)) / 2)
    whole = vocabulary // width * width
    blocks = probabilities[:, :whole].unflatten(1, (-1, width)).sum(-1)  # (R, V // width)
    tail = probabilities[:, whole:].sum(-1, keepdim=True)
    mass = torch.cat([blocks, tail], 1).double().cumsum(1)  # (R, V // width + 1)
    goal = u.double() * mass[:, -1]
    block = torch.searchsorted(mass, goal[:, None], right=True)[:, 0].clamp(max=mass.shape[1] - 1)
    before = torch.where(block > 0, mass.gather(1, (block[:, None] - 1).clamp(min=0))[:, 0], 0.0)
    ids = block[:, None] * width + torch.arange(width, device=u.device)  # (R, width)
    inside = probabilities.gather(1, ids.clamp(max=vocabulary - 1)).double() * (ids < vocabulary)
    within = inside.cumsum(1)
    # never past the last id with any mass, whatever rounding did to the goal
    goal = torch.minimum(goal - before, within[:, -1] * (1 - 1e-12))
    place = torch.searchsorted(within, goal[:, None], right=True)[:, 0].clamp(max=width - 1)
    return ids.gather(1, place[:, None])[:, 0].clamp(max=vocabulary - 1)  # where p is no number, too


def _in_nucleus(p: torch.Tensor, ids: torch.Tensor, top_p: float) -> torch.Tensor:
    """Whether each drawn id is in its row's top-p set: the mass ranked before it is below top_p."""
    chosen = p.gather(1, ids[:, None])  # (R, 1)
    # Where it and what ranks after it, counted in a part of the row, have more than 1 − top_p, all is said.
    some = p[:, : math.ceil(min(1, 8 * (1 - top_p)) * p.shape[1])]
    inside = chosen[:, 0] + torch.where(some < chosen, some, 0).sum(1) > 1 - top_p + 1e-4
    unsure = (~inside).nonzero()[:, 0]  # few; count exactly what ranks before it, ties by token id
    if len(unsure):
        q, c, i = p[unsure], chosen[unsure], ids[unsure, None]
        tied_before = (q == c) & (torch.arange(p.shape[1], device=p.device) < i)
        inside[unsure] = torch.where((q > c) | tied_before, q, 0).sum(1) < top_p
    return inside


def _sorted_draw(p: torch.Tensor, top_p: float, u: torch.Tensor) -> torch.Tensor:
    """The textbook nucleus draw, for the few rows that no try has settled."""
    ranked, ids = p.sort(dim=1, descending=True, stable=True)
    ranked = torch.where(ranked.cumsum(1) - ranked < top_p, ranked, 0)
    return ids.gather(1, sample_categorical(ranked, u)[:, None])[:, 0]


def sample_nucleus(p: torch.Tensor, top_p: float, u: torch.Tensor) -> torch.Tensor:
    """Draw from the top-p set of each row without sorting it (identity 6 of the design).

    Draw w ~ p and keep it when it belongs to the nucleus, else draw again: what is kept has exactly the
    renormalised distribution.

    p: (R, V), rows sum to 1. u: (MAX_REJECTIONS + 1, R) uniform. Returns ids (R,).
    """
    ids = sample_categorical(p, u[0])
    if top_p >= 1:
        return ids
    open_rows = (~_in_nucleus(p, ids, top_p)).nonzero()[:, 0]
    for attempt in range(1, MAX_REJECTIONS):
        if not len(open_rows):
            return ids
        again = sample_categorical(p[open_rows], u[attempt, open_rows])
        ids[open_rows] = again
        open_rows = open_rows[~_in_nucleus(p[open_rows], again, top_p)]
    if len(open_rows):
        ids[open_rows] = _sorted_draw(p[open_rows], top_p, u[MAX_REJECTIONS, open_rows])
    return ids
