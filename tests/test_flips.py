"""A flip's cause by brute force, and the run with it put back."""

import json

import pytest
import torch

import tess2lite as t2
from tess2lite.insides import flips
from tess2lite.insides.flips import explain_flip, put_back
from tess2lite.insides.inputs import step_inputs
from tess2lite.validation import InputError


@pytest.fixture
def run(tiny):
    """A run that changes its mind often; its inputs; and all its flips as (step, position)."""
    lm = tiny()
    trajectory = t2.infill(lm, "the cat ______ on the mat", steps=6, seed=2, progress=False).trajectory
    changed = (trajectory.argmax[1:] != trajectory.argmax[:-1]).nonzero() + torch.tensor([1, 0])
    return lm, trajectory, step_inputs(lm, trajectory), changed.tolist()


@torch.no_grad()
def first_choice(lm, read, position):
    return lm.lm_head(lm.model(inputs_embeds=read[None]).last_hidden_state[0, position - 1])


@torch.no_grad()
def test_causes_by_brute_force(run):
    lm, trajectory, inputs, changed = run
    undone = 0
    for step, position in changed:
        flip = explain_flip(lm, trajectory, step, position, inputs=inputs)
        assert (flip.before, flip.after) == tuple(trajectory.argmax[step - 1 : step + 1, position].tolist())
        read, leads = inputs[step].clone(), []
        for i in range(len(read)):
            other = read.clone()
            other[i] = inputs[step - 1, i]
            logits = first_choice(lm, other, position)
            rivals = [value for token, value in enumerate(logits.tolist()) if token != flip.before]
            leads.append(float(logits[flip.before]) - max(rivals))
        assert leads[flip.causes[0]] == pytest.approx(max(leads), abs=1e-4)
        read[flip.causes] = inputs[step - 1, flip.causes]
        assert flip.undone == (int(first_choice(lm, read, position).argmax()) == flip.before)
        assert 1 <= len(set(flip.causes)) == len(flip.causes) <= 3
        undone += flip.undone
    assert len(changed) > 5 and undone > 0


def test_put_back_is_a_run_that_differs_from_that_step_on(run):
    lm, trajectory, inputs, changed = run
    for step, position in changed[:6]:
        flip = explain_flip(lm, trajectory, step, position, inputs=inputs)
        again = put_back(lm, trajectory, flip, inputs=inputs).trajectory
        assert len(again) == len(trajectory) and torch.equal(again.top_p[:step], trajectory.top_p[:step])
        assert not torch.equal(again.top_p[step], trajectory.top_p[step])
        assert (int(again.argmax[step, position]) == flip.before) == flip.undone
        assert len(put_back(lm, trajectory, flip, stop=step + 1).trajectory) == step + 1
    assert not [module for module in lm.modules() if module._forward_pre_hooks]


def test_all_positions_put_back_always_undo_a_flip(run, monkeypatch):
    lm, trajectory, inputs, changed = run
    monkeypatch.setattr(flips, "MOST", 99)
    assert all(explain_flip(lm, trajectory, *flip, inputs=inputs).undone for flip in changed)


def test_json_and_replay_without_given_inputs(run):
    lm, trajectory, inputs, changed = run
    flip = explain_flip(lm, trajectory, *changed[0])
    assert flip == explain_flip(lm, trajectory, *changed[0], inputs=inputs)
    assert json.loads(json.dumps(flip.as_dict()))["causes"] == flip.causes


def test_where_nothing_flipped_is_said(run):
    lm, trajectory, _, changed = run
    still = next(
        (step, position)
        for step in range(1, 6)
        for position in trajectory.span_mask.nonzero()[:, 0].tolist()
        if [step, position] not in changed
    )
    with pytest.raises(InputError, match="did not change at step"):
        explain_flip(lm, trajectory, *still)
    with pytest.raises(ValueError, match="step is 0; give a whole number from 1"):
        explain_flip(lm, trajectory, 0, still[1])
