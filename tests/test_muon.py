"""One optimizer that is two of torch's, step by step and after loading."""

import copy

import torch
from transformers import MistralConfig, MistralForCausalLM

from tess2lite_course.experiments.muon import MuonAdamW


def model():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    return MistralForCausalLM(config)


def step(lm, *optimizers):
    ids = torch.arange(12)[None]
    lm(input_ids=ids, labels=ids).loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_matrices_of_layers_by_muon_everything_else_by_adamw():
    ours, theirs = model(), model()
    inside = [p for name, p in theirs.named_parameters() if name.endswith("proj.weight")]
    outside = [p for name, p in theirs.named_parameters() if not name.endswith("proj.weight")]
    pair = (
        torch.optim.Muon(inside, lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outside, lr=0.01, weight_decay=0.01, betas=(0.9, 0.98)),
    )
    optimizer = MuonAdamW(ours, 0.01)
    for _ in range(3):
        step(ours, optimizer)
        step(theirs, *pair)
    assert same(ours, theirs) and not same(ours, model())


def test_it_goes_on_from_a_checkpoint_and_follows_a_schedule():
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
