"""Muon and AdamW in one optimizer: against an SVD, against torch's own, and after loading."""

import copy

import torch
from transformers import MistralConfig, MistralForCausalLM

from tess2lite.training import muon
from tess2lite.training.muon import MuonAdamW, orthogonalize


def model():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return MistralForCausalLM(config)


def step(lm, *optimizers):
    ids = torch.arange(12)[None]
    lm(input_ids=ids, labels=ids).loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_orthogonalize_keeps_singular_vectors_and_levels_their_values():
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices, torch.float32)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    in_their_basis = left.mT @ result @ right.mT
    values = in_their_basis.diagonal(dim1=1, dim2=2)
    assert ((values > 0.6) & (values < 1.3)).all()
    assert (in_their_basis - torch.diag_embed(values)).abs().max() < 1e-4


def test_tall_matrices_are_treated_as_wide_ones():
    matrices = torch.randn(2, 24, 40, generator=torch.Generator().manual_seed(0))
    tall = orthogonalize(matrices.mT, torch.float32)
    assert torch.allclose(tall.mT, orthogonalize(matrices, torch.float32), atol=1e-5)


def test_muon_agrees_with_torch_up_to_the_precision_of_its_newton_schulz():
    ours, theirs, before = model(), model(), model()
    inside = [p for name, p in theirs.named_parameters() if name.endswith("proj.weight")]
    step(ours, MuonAdamW(ours, 0.01))
    step(theirs, torch.optim.Muon(inside, lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    for name, parameter in ours.named_parameters():
        if name.endswith("proj.weight"):
            start = before.get_parameter(name)
            moved, theirs_moved = parameter - start, theirs.get_parameter(name) - start
            assert (moved - theirs_moved).norm() < 0.05 * theirs_moved.norm(), name


def test_large_matrices_go_through_it_one_after_the_other(monkeypatch):
    together, apart = model(), model()
    step(together, MuonAdamW(together, 0.01))
    monkeypatch.setattr(muon, "TOGETHER", 1)
    step(apart, MuonAdamW(apart, 0.01))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(together.parameters(), apart.parameters(), strict=True))


def test_everything_else_is_trained_by_adamw():
    ours, theirs = model(), model()
    optimizer = MuonAdamW(ours, 0.01)
    outside = [p for name, p in theirs.named_parameters() if not name.endswith("proj.weight")]
    adamw = torch.optim.AdamW(outside, lr=0.01, weight_decay=0.01, betas=(0.9, 0.98))
    step(ours, optimizer)
    step(theirs, adamw)
    for name, parameter in ours.named_parameters():
        if not name.endswith("proj.weight"):
            assert torch.allclose(parameter, theirs.get_parameter(name), atol=1e-6), name


def test_resume_from_a_checkpoint_is_exact_and_follows_the_schedule():
    first = model()
    optimizer = MuonAdamW(first, 0.01)
    step(first, optimizer)
    second = copy.deepcopy(first)
    again = MuonAdamW(second, 0.01)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for lm, each in ((first, optimizer), (second, again)):
        schedule = torch.optim.lr_scheduler.LambdaLR(each, lambda step: 0.5 if step < 2 else 0.0)
        step(lm, each)
        schedule.step()
    assert same(first, second)
    for group in again.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(second)
    step(second, again)
    assert same(second, before)
