import math

import pytest
import torch

from tess2lite import schedule, span_masks


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
