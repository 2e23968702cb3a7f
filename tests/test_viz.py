"""Figures show the trajectory's own numbers; every control of the panel changes the run."""

import numpy as np
import pytest
from test_html import HOSTILE, trajectory

from tess2lite.viz.figures import film_strip, trajectory_map
from tess2lite.viz.widgets import prompt_panel


def test_film_strip_shows_first_and_last_step():
    figure = film_strip(trajectory(["soup", "half", "done $x$", *HOSTILE]), frames=3)
    drawn = " ".join(text.get_text() for axis in figure.axes for text in axis.texts)
    assert len(figure.axes) == 3 and "soup" in drawn and "step 8 of 8" in drawn
    figure.canvas.draw()


def test_map_shows_confidence_of_written_positions_and_flips():
    record = trajectory(["a", "b", "c"])
    record.tokens[2:, 1] = 9
    record.confidence[1, 2] = 0.25
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
