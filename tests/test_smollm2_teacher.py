"""What the AR parent teaches, against plain recomputation on a tiny model."""

from types import SimpleNamespace

import pytest
import torch
from conftest import save_mistral

import tess2lite as t2
from tess2lite.pretrained.probes import causal
from tess2lite_course.experiments import smollm2
from tess2lite_course.experiments.smollm2 import Plan
from tess2lite_course.experiments.smollm2_teacher import (
    ALIGNED,
    ALIGNMENT,
    DISTILLATION,
    DISTILLED,
    ON_POLICY,
    TERMS,
    Teacher,
    recorded_hidden_states,
)

IDS = torch.tensor([[1, 5, 9, 7, 6, 8]])
MASK = torch.tensor([[False, False, True, True, False, True]])
BATCH = SimpleNamespace(input_ids=IDS, span_mask=MASK, example=torch.tensor([3]))


@pytest.fixture
def folder(mistral_like_tokenizer, tmp_path):
    save_mistral(tmp_path / "ar", mistral_like_tokenizer, tie_word_embeddings=True)
    return str(tmp_path / "ar")


def causal_log_p(lm, ids):
    """Log-probabilities of what follows each position, (L, V)."""
    with causal(lm), torch.no_grad():
        return lm.head(lm.hidden_states(lm.embed_context(ids), None))[0].log_softmax(1)


def taught(lm):
    """A denoiser's states on the whole text, read both ways."""
    with recorded_hidden_states(lm) as states:
        last = lm.hidden_states(lm.embed_context(IDS), None)
    assert len(states) == len(lm.model.layers) + 1 and torch.equal(states[-1], last)
    return states


def test_alignment_is_the_mean_angle_of_all_layers_and_zero_for_the_teacher_itself(folder):
    teacher = Teacher(folder, ALIGNED)
    own = teacher.hidden_states(IDS)
    assert float(teacher.term(teacher.lm, own, BATCH)) == pytest.approx(0, abs=1e-3)
    states = taught(t2.load(folder).to(torch.bfloat16))
    angles = []
    for state, aim in zip(states, own, strict=True):
        for place in (1, 2, 4):  # left of the masked ones
            a, b = state[0, place].float(), aim[0, place].float()
            angles.append(1 - float(a @ b / a.norm() / b.norm()))
    expected = ALIGNMENT * 3 * sum(angles) / len(angles)
    assert float(teacher.term(teacher.lm, states, BATCH)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", [DISTILLED, ON_POLICY])
def test_divergence_is_from_the_teacher_after_the_left_side(folder, kind):
    """A denoiser that is sure of token 9 writes it into its own left side."""
    teacher = Teacher(folder, kind)
    student = t2.load(folder)
    states = taught(student)
    said = torch.zeros(student.config.vocab_size)
    said[9] = 50.0
    student.head = lambda hidden: said.expand(len(hidden), -1).clone()
    ids = torch.tensor([[1, 5, 9, 9, 6, 9]]) if kind == ON_POLICY else IDS
    aim = causal_log_p(teacher.lm, ids)[[1, 2, 4]].double()
    own = said.log_softmax(0).double()
    if kind == ON_POLICY:
        expected = (own.exp() * (own - aim)).sum()
    else:
        expected = (aim.exp() * (aim - own)).sum()
    assert float(teacher.term(student, states, BATCH)) == pytest.approx(DISTILLATION * float(expected), rel=1e-4)


@pytest.mark.parametrize("change", ["AdamW", "all timesteps", *TERMS])
def test_each_change_changes_the_weights(folder, tmp_path, monkeypatch, change):
    changes = {"LENGTH": 16, "BATCH": 4, "STORIES": 8}
    for name, value in changes.items():
        monkeypatch.setattr(smollm2, name, value)
    plans = [Plan(0, "AR weights", 2), Plan(0, "AR weights", 2, change)]
    for plan in plans:
        smollm2.train(plan, folder, tmp_path / "runs")
    plain, changed = (t2.load(str(tmp_path / "runs" / plan.name)) for plan in plans)
    pairs = zip(plain.model.layers.parameters(), changed.model.layers.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_all_timesteps_come_from_the_first_step_on():
    rows = torch.arange(200)[:, None].expand(-1, smollm2.LENGTH)
    plan = Plan(0, "AR weights", 24, "all timesteps")
    batches = [smollm2.make_batch(plan, step, rows) for step in range(8)]
    assert all(batch.t.max() > 4_000 for batch in batches)
    assert any(batch.self_condition for batch in batches) and not all(batch.self_condition for batch in batches)
