import math

import pytest
import torch

from tess2lite import schedule, span_masks
from tess2lite.times.informative import informative_times


def test_alpha_bar_by_hand():
    u = 3 / 10
    by_hand = (math.cos((u + 1e-4) / 1.0001 * math.pi / 2) / math.cos(1e-4 / 1.0001 * math.pi / 2)) ** 2
    assert schedule.alpha_bar(10)[3].item() == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("name", schedule.SCHEDULES)
def test_schedules_fall_from_one(name):
    curve = schedule.alpha_bar(500, name)
    assert curve[0] == 1 and (curve.diff() < 0).all() and curve[-1] < 0.02


def test_schedules_differ():
    curves = [schedule.alpha_bar(100, name)[50].item() for name in schedule.SCHEDULES]
    assert len(set(curves)) == len(curves)


@pytest.mark.parametrize(("arguments", "sentence"), [((0,), "timesteps is 0"), ((5, "cosin"), "choose one of imp")])
def test_bad_schedule(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        schedule.alpha_bar(*arguments)


def test_ul2_is_a_third_each():
    """By what tells them apart in a text of 400: 60 masked, 200 masked, or one block to the end."""
    generator, counts = torch.Generator().manual_seed(0), {"short": 0, "long": 0, "prefix": 0}
    for _ in range(1500):
        mask = span_masks.ul2(400, generator)
        first = int(mask.nonzero()[0])
        if mask[first:].all() and int(mask.sum()) not in (60, 200):
            counts["prefix"] += 1
        else:
            counts["short" if mask.sum() == 60 else "long"] += 1
        assert not mask[0]
    assert all(abs(count - 500) < 75 for count in counts.values()), counts


@pytest.mark.parametrize("length", [2, 3, 4, 5, 7])
def test_short_texts_have_masks_too(length):
    generator = torch.Generator().manual_seed(0)
    for ratio, span in ((0.15, 8), (0.5, 3), (0.9, 1)):
        mask = span_masks.span_infilling(length, ratio, span, generator)
        assert mask.any() and not mask[0]


def test_masks_too_short_or_senseless():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="length is 1"):
        span_masks.span_infilling(1, 0.5, 3, generator)
    with pytest.raises(ValueError, match="length is 2"):
        span_masks.prefix(2, generator)
    with pytest.raises(ValueError, match="ratio is 1.5"):
        span_masks.span_infilling(10, 1.5, 3, generator)


@pytest.mark.parametrize(("length", "last"), [(7, 3), (8, 3), (9, 4), (24, 11), (25, 12)])
def test_prefix_masks_begin_where_the_official_ones_do_at_odd_lengths_too(length, last):
    generator = torch.Generator().manual_seed(0)
    firsts = {int(span_masks.prefix(length, generator).nonzero()[0]) for _ in range(600)}
    assert firsts == set(range(2, last + 1))


CURVE = {"t": [0.1, 0.3, 0.4, 0.5, 0.9], "loss": [0.0, 0.5, 2.0, 4.0, 4.5]}


def naive_informative(curve, steps):
    """Walks a fine grid from clean to noise and drops a time wherever the next equal share of change is full."""
    grid, at = 500_000, [0.0, *curve["t"], 1 - 1 / 5000]
    losses = [curve["loss"][0], *curve["loss"], curve["loss"][-1]]
    shares = [0.0]
    for i in range(1, grid + 1):
        u = at[-1] * i / grid
        k = next(k for k in range(1, len(at)) if u <= at[k] + 1e-15)
        slope = (losses[k] - losses[k - 1]) / (at[k] - at[k - 1])
        shares.append(shares[-1] + (0.9 * slope / losses[-1] + 0.1 / at[-1]) * at[-1] / grid)
    times, i = [], 0
    for j in range(steps):
        while i < grid and shares[i] < j / (steps - 1) - 1e-9:
            i += 1
        times.append(at[-1] * i / grid)
    return times[::-1]


def test_informative_timesteps_are_as_dense_as_the_loss_changes():
    ours = informative_times(CURVE, 9, 1 - 1 / 5000)
    assert ours.tolist() == pytest.approx(naive_informative(CURVE, 9), abs=1e-4)
    assert (ours.diff() < 0).all() and ours[0] == 1 - 1 / 5000 and ours[-1] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((5, "informative"), "this model has no loss curve"),
        ((5, "even"), "choose uniform or informative"),
        ((3, [0.9, 0.5]), "steps is 3, but timestep_spacing lists 2"),
        ((None, [0.5, 0.9]), "does not fall from step to step"),
        ((None, [1.0, 0.5]), "does not fall from step to step"),
        ((None, ["x"]), "list falling times"),
    ],
)
def test_times_that_cannot_be_sampled_get_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        schedule.sampling_times(*arguments)
