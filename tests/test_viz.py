"""Figures show the trajectory's own numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from test_explorer import HOSTILE, trajectory

from tess2lite.schedule import alpha_bar
from tess2lite.viz.export import film_strip
from tess2lite.viz.figures import (
    bands,
    commit_order,
    loss_curves,
    recovery,
    schedules,
    steps_against_quality,
    time_against_length,
    token_bars,
    trajectory_map,
)
from tess2lite_course.tools.live import LiveCurve


def test_film_strip_shows_first_and_last_step():
    figure = film_strip(trajectory(["soup", "half", "done $x$", *HOSTILE]), frames=3)
    drawn = " ".join(text.get_text() for axis in figure.axes for text in axis.texts)
    assert len(figure.axes) == 3 and "soup" in drawn and "step 9 of 9" in drawn
    figure.canvas.draw()


def test_map_shows_confidence_of_written_positions_and_flips():
    record = trajectory(["a", "b", "c"])
    record.tokens[:, 2] = 0
    record.tokens[2:, 1] = 9
    record.top_p = record.top_p.clone()
    record.top_p[1, 2, 0] = 0.25
    axis = trajectory_map(record).axes[0]
    assert np.allclose(axis.images[0].get_array(), record.confidence[:, 1:].T)
    assert axis.lines[0].get_xydata().tolist() == [[3, 0]]  # step 3 of 3


def test_commit_order_and_bands_draw_the_trajectorys_measures():
    record = trajectory(["a", "b", "c", "d"])  # position 2 flips at every step
    record.entropy = torch.tensor([[9.0], [3.0], [2.0], [1.0]]) * torch.tensor([1.0, 1.0, 2.0, 3.0])
    points = commit_order(record).axes[0].collections[0]
    assert points.get_offsets().tolist() == [[1, 1], [2, 4], [3, 1]] and points.get_array().tolist() == [0, 3, 0]
    entropy, confidence = bands(record).axes[:2]
    assert entropy.lines[0].get_xydata().tolist() == [[1, 18], [2, 6], [3, 4], [4, 2]]
    assert np.allclose(confidence.lines[0].get_ydata(), 0.5)


def test_schedules_and_recovery_start_clean_and_end_in_noise():
    for line in schedules().axes[0].lines:
        assert line.get_ydata()[0] > 0.98 and line.get_ydata()[-1] < 0.02
    small, middle, large = (line.get_ydata() for line in recovery().axes[0].lines)
    assert small[0] == pytest.approx(1) and np.isclose(small[-1], 1 / 100, atol=0.02) and (small >= large).all()
    # half of the signal, V = 1,024, counted
    noisy = torch.randn(20_000, 1_024, generator=torch.Generator().manual_seed(0))
    noisy[:, 0] += 2 * (0.5 / 0.5) ** 0.5
    axis = recovery((1_024,)).axes[0].lines[0]
    left = alpha_bar(5000)[(torch.tensor(axis.get_xdata()) * 5000).long()].numpy()
    at = np.interp(0.5, left[::-1], axis.get_ydata()[::-1])
    assert at == pytest.approx((noisy.argmax(1) == 0).float().mean().item(), abs=0.02)


def test_token_bars_show_the_likeliest_and_mark_the_true_one():
    figure = token_bars({"one": torch.tensor([0.1, 0.7, 0.2]), "two": torch.tensor([0.5, 0.2, 0.3])}, 2, str, count=2)
    bars = [[(bar.get_width(), bar.get_hatch()) for bar in axis.patches] for axis in figure.axes]
    assert np.allclose([[width for width, _ in row] for row in bars], [[0.7, 0.2], [0.5, 0.3]])
    assert [[hatch for _, hatch in row] for row in bars] == [["", "//"], ["", "//"]]
    assert "20.0% on the token" in figure.axes[0].get_title()


def test_loss_curves_show_every_seed_and_their_mean():
    axis = loss_curves({"one": [([1, 2], [4.0, 2.0]), ([1, 2], [2.0, 1.0])], "alone": [([1], [3.0])]}).axes[0]
    drawn = [line.get_ydata().tolist() for line in axis.lines]
    assert drawn == [[3.0, 1.5], [4.0, 2.0], [2.0, 1.0], [3.0]]


def test_steps_against_quality_draws_both_axes():
    arms = {
        "5 steps": {"valid": [0.1, 0.05, 0.2], "CPU seconds per text": [1.0, None, None], "steps": [5, 5, 5]},
        "50 steps": {"valid": [0.4, None, None], "CPU seconds per text": [9.0, None, None], "steps": [50, 50, 50]},
        "50 steps, x": {"valid": [0.3, None, None], "CPU seconds per text": [9.0, None, None], "steps": [25, 25, 25]},
    }
    quality, clock = steps_against_quality(arms, "valid").axes
    points = [container[0].get_xydata().tolist() for container in quality.containers]
    assert points == [[[5, 0.1], [50, 0.4]], [[50, 0.3]]]
    whiskers = quality.containers[0][2][0].get_segments()[0]  # from low to high
    assert [list(end) for end in whiskers] == [[5, pytest.approx(0.05)], [5, pytest.approx(0.2)]]
    assert [line.get_xydata().tolist() for line in clock.lines] == [[[5, 1.0], [50, 9.0]], [[50, 4.5]]]
    assert [text.get_text() for text in quality.get_legend().get_texts()] == ["self-conditioned", "x"]


def test_time_against_length_draws_each_arm():
    arms = {"AR": {"seconds for 8": [1.0, 0.9, 1.1], "seconds for 64": [8.0, None, None], "steps": [3, 3, 3]}}
    (axis,) = time_against_length(arms).axes
    assert axis.containers[0][0].get_xydata().tolist() == [[8, 1.0], [64, 8.0]]


def test_the_live_curve_follows_the_trainer(monkeypatch):
    shown = []
    progress = []
    handles = [SimpleNamespace(update=updates.append) for updates in (progress, shown)]
    monkeypatch.setattr("tess2lite_course.tools.live.display", lambda *args, **more: handles.pop(0))
    callbacks = []
    removed = []
    live = LiveCurve(SimpleNamespace(add_callback=callbacks.append, remove_callback=removed.append))
    assert [callback.__name__ for callback in removed] == ["NotebookProgressCallback"]  # a table of ten columns
    live.on_step_end(None, SimpleNamespace(global_step=3, max_steps=80), None)
    assert progress == ["step 3 of 80"]
    state = SimpleNamespace(log_history=[{"step": 5, "loss": 2.0}, {"step": 5, "eval_loss": 9.0}])
    callbacks[0].on_log(None, state, None, logs={})
    state.log_history.append({"step": 10, "loss": 1.0})
    live.on_log(None, state, None)
    drawn = [[line.get_xydata().tolist() for line in figure.axes[0].lines] for figure in shown]
    assert drawn == [[[[5, 2]], [[5, 9]]], [[[5, 2], [10, 1]], [[5, 9]]]]


def luminance(color) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#15171b"])
@pytest.mark.parametrize("draw", [schedules, recovery, lambda: trajectory_map(trajectory(["a", "b", "c"]))])
def test_figures_can_be_read_on_a_light_and_on_a_dark_page(draw, page):
    figure = draw()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert np.asarray(canvas.buffer_rgba())[0, 0, 3] == 0  # the page shows through
    ticks = [tick.tick1line for axis in figure.axes for tick in axis.xaxis.get_major_ticks()]
    spines = [spine for axis in figure.axes for spine in axis.spines.values()]
    colors = [text.get_color() for text in figure.findobj(Text)] + [line.get_color() for line in ticks]
    for color in [*colors, *(spine.get_edgecolor() for spine in spines)]:
        dark, light = sorted([luminance(color), luminance(page)])
        assert (light + 0.05) / (dark + 0.05) >= 4
