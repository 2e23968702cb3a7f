"""A top-p draw without a sort: rejection sampling from the nucleus of each row."""

import math

import torch

MAX_REJECTIONS = 8  # nucleus draws before a row is sorted instead


def sample_categorical(probabilities: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """One id per row from its distribution, by inversion in two levels: first a block of ids, then an id in it.

    Args:
        probabilities: (R, V), any positive scale.
        u: (R,) uniform in [0, 1).

    Returns:
        Ids (R,).
    """
    vocabulary = probabilities.shape[1]
    last_id = vocabulary - 1
    bits = math.log2(max(2, vocabulary))
    width = 2 ** math.ceil(bits / 2)
    full = vocabulary // width * width
    blocks = probabilities[:, :full].unflatten(1, (-1, width))  # (R, V // width, width)
    tail = probabilities[:, full:].sum(-1, keepdim=True)
    masses = torch.cat([blocks.sum(-1), tail], 1)  # (R, V // width + 1)
    cumulative = masses.double().cumsum(1)
    goal = u.double() * cumulative[:, -1]
    block = torch.searchsorted(cumulative, goal[:, None], right=True)  # (R, 1)
    block = block.clamp(max=cumulative.shape[1] - 1)
    previous = (block - 1).clamp(min=0)
    mass_before = cumulative.gather(1, previous)
    mass_before = torch.where(block > 0, mass_before, 0.0)
    ids = block * width + torch.arange(width, device=u.device)  # (R, width)
    p = probabilities.gather(1, ids.clamp(max=last_id))
    p = p.double() * (ids <= last_id)
    cumulative = p.cumsum(1)
    # Never past the last id with any mass, whatever rounding did to the goal.
    most = cumulative[:, -1:] * (1 - 1e-12)
    goal = torch.minimum(goal[:, None] - mass_before, most)
    place = torch.searchsorted(cumulative, goal, right=True)
    ids = ids.gather(1, place.clamp(max=width - 1))
    return ids[:, 0].clamp(max=last_id)  # also where p is NaN


def _mass_before(p: torch.Tensor, token_p: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Σ of the probabilities that rank before each row's id; ties rank by token id. (R,)."""
    all_ids = torch.arange(p.shape[1], device=p.device)
    wins_tie = (p == token_p) & (all_ids < ids[:, None])
    ranks_before = (p > token_p) | wins_tie
    return torch.where(ranks_before, p, 0).sum(1)


def _in_nucleus(p: torch.Tensor, ids: torch.Tensor, top_p: float) -> torch.Tensor:
    """Whether each sampled id is in its row's top-p set: the mass ranked before it is below top_p."""
    token_p = p.gather(1, ids[:, None])  # (R, 1)
    if p.device.type == "cuda":  # finding the uncertain rows would synchronise the GPU
        return _mass_before(p, token_p, ids) < top_p
    # If the token plus everything ranked below it exceeds 1 − top_p (checked on a prefix of the row), it is inside.
    ratio = min(1, 8 * (1 - top_p))
    length = math.ceil(ratio * p.shape[1])
    prefix = p[:, :length]
    mass_below = torch.where(prefix < token_p, prefix, 0).sum(1)
    is_inside = token_p[:, 0] + mass_below > 1 - top_p + 1e-4
    unsure = (~is_inside).nonzero()[:, 0]
    if len(unsure):
        mass_before = _mass_before(p[unsure], token_p[unsure], ids[unsure])
        is_inside[unsure] = mass_before < top_p
    return is_inside


def _sorted_draw(p: torch.Tensor, top_p: float, u: torch.Tensor) -> torch.Tensor:
    """The textbook nucleus draw, for the few rows whose draws were all rejected."""
    ranked, ids = p.sort(dim=1, descending=True, stable=True)
    mass_before = ranked.cumsum(1) - ranked
    ranked = torch.where(mass_before < top_p, ranked, 0)
    place = sample_categorical(ranked, u)
    return ids.gather(1, place[:, None])[:, 0]


def sample_nucleus(p: torch.Tensor, top_p: float, u: torch.Tensor) -> torch.Tensor:
    """Sample from the top-p set of each row without sorting it.

    Sample w ~ p and accept it when it belongs to the nucleus, else sample again: what is accepted has exactly the
    renormalised distribution. Synchronises a GPU once.

    Args:
        p: (R, V), rows sum to 1.
        u: (MAX_REJECTIONS + 1, R) uniform in [0, 1).

    Returns:
        Ids (R,).
    """
    ids = sample_categorical(p, u[0])
    if top_p >= 1:
        return ids
    is_inside = _in_nucleus(p, ids, top_p)
    rejected = (~is_inside).nonzero()[:, 0]
    if len(rejected):
        ids[rejected] = _redraw(p[rejected], top_p, u[1:, rejected])
    return ids


def _redraw(p: torch.Tensor, top_p: float, u: torch.Tensor) -> torch.Tensor:
    """The first accepted of further draws in each row, or a sorted draw. u: (MAX_REJECTIONS, R)."""
    ids = torch.zeros_like(u[0], dtype=torch.long)
    accepted = torch.zeros_like(u[0], dtype=torch.bool)
    for attempt in u[:-1]:
        sampled = sample_categorical(p, attempt)
        ids = torch.where(accepted, ids, sampled)
        accepted = accepted | _in_nucleus(p, ids, top_p)
        if p.device.type == "cpu" and accepted.all():
            return ids
    return torch.where(accepted, ids, _sorted_draw(p, top_p, u[-1]))
