"""Figures show the trajectory's own numbers; every control of the panel changes the run."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_html import HOSTILE, trajectory

from tess2lite.viz.figures import film_strip, loss_curves, trajectory_map
from tess2lite.viz.widgets import LiveCurve, prompt_panel


def test_film_strip_shows_first_and_last_step():
    figure = film_strip(trajectory(["soup", "half", "done $x$", *HOSTILE]), frames=3)
    drawn = " ".join(text.get_text() for axis in figure.axes for text in axis.texts)
    assert len(figure.axes) == 3 and "soup" in drawn and "step 8 of 8" in drawn
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


@pytest.fixture
def panel():
    calls = []
    box = prompt_panel(lambda prompt, **settings: calls.append((prompt, settings)) or "shown", "a", steps=5, seed=1)
    textarea, controls, output = box.children
    steps, seed, button = controls.children
    return {"prompt": textarea, "steps": steps, "seed": seed, "button": button, "output": output, "calls": calls}


def test_every_control_of_the_panel_reaches_the_run(panel):
    panel["button"].click()
    for name, value in (("prompt", "b"), ("steps", 9), ("seed", 4)):
        panel[name].value = value
        panel["button"].click()
    assert panel["calls"] == [
        ("a", {"steps": 5, "seed": 1}), ("b", {"steps": 5, "seed": 1}),
        ("b", {"steps": 9, "seed": 1}), ("b", {"steps": 9, "seed": 4}),
    ]  # fmt: skip
    assert not panel["button"].disabled


def test_a_mistake_in_the_panel_is_a_sentence(capsys):
    def run(prompt, **settings):
        raise ValueError("prompt is empty; give at least one word to start from.")

    prompt_panel(run, "").children[1].children[2].click()
    assert "prompt is empty; give at least one word to start from.\n" in capsys.readouterr().out


def test_loss_curves_show_every_seed_and_their_mean():
    axis = loss_curves({"one": [([1, 2], [4.0, 2.0]), ([1, 2], [2.0, 1.0])], "alone": [([1], [3.0])]}).axes[0]
    drawn = [line.get_ydata().tolist() for line in axis.lines]
    assert drawn == [[3.0, 1.5], [4.0, 2.0], [2.0, 1.0], [3.0]]


def test_the_live_curve_follows_the_trainer(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=shown.append)
    monkeypatch.setattr("tess2lite.viz.widgets.display", lambda *args, **more: handle)
    callbacks = []
    live = LiveCurve(SimpleNamespace(add_callback=callbacks.append))
    state = SimpleNamespace(log_history=[{"step": 5, "loss": 2.0}, {"step": 5, "eval_loss": 9.0}])
    callbacks[0].on_log(None, state, None, logs={})
    state.log_history.append({"step": 10, "loss": 1.0})
    live.on_log(None, state, None)
    assert [figure.axes[0].lines[0].get_xydata().tolist() for figure in shown] == [[[5, 2]], [[5, 2], [10, 1]]]
