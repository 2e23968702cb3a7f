"""Interventions change the run as they say, and nothing else of it."""

import pytest
import torch

import tess2lite as t2
from tess2lite import textbook
from tess2lite.hooks import Branch, Halt, NoSelfConditioning, Pin, Recorder
from tess2lite.schedule import alpha_bar

STEPS = 8


@pytest.fixture(scope="module")
def lm():
    return t2.load("tinytown-base")


@pytest.fixture
def batch(lm):
    ids = [lm.tokenizer.bos_token_id, *lm.tokenizer("Tom had a drum.")["input_ids"]]
    known = len(ids)
    ids = torch.tensor([ids + [0] * 12])  # (B, L)
    return {"input_ids": ids, "span_mask": torch.arange(ids.shape[1])[None] >= known}


def run(lm, batch, *hooks, seed=0, **settings):
    return [(step.tokens, step.confidence) for step in t2.denoise(lm, batch, STEPS, seed=seed, hooks=hooks, **settings)]


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_pinned_token_survives_and_is_written_around(lm, batch):
    kite = lm.tokenizer(" kite")["input_ids"][-1]
    place = batch["input_ids"].shape[1] - 6
    free, pinned = run(lm, batch), run(lm, batch, Pin({place: kite}))
    assert all(tokens[0, place] == kite for tokens, _ in pinned)
    other = [i for i in range(batch["input_ids"].shape[1]) if i != place]
    assert same(
        free[0][:1], [torch.where(pinned[0][0] == kite, free[0][0], pinned[0][0])]
    )  # the first reads no pin yet
    assert not torch.equal(free[-1][1][:, other], pinned[-1][1][:, other])
    late = run(lm, batch, Pin({place: kite}, start=4))
    assert all(same(a, b) for a, b in zip(free[:4], late[:4], strict=True)) and late[4][0][0, place] == kite


@pytest.mark.parametrize("position", [0, 99])
def test_only_written_positions_are_pinned(lm, batch, position):
    with pytest.raises(ValueError, match="is not written by this run"):
        run(lm, batch, Pin({position: 5}))


def test_a_branch_shares_the_past_and_parts_at_its_step(lm, batch):
    own, other = run(lm, batch), run(lm, batch, Branch(5, seed=9))
    assert all(same(a, b) for a, b in zip(own[:5], other[:5], strict=True))
    assert torch.equal(own[5][1], other[5][1])  # the same prediction, drawn from otherwise
    assert not torch.equal(own[-1][1], other[-1][1])
    assert all(same(a, b) for a, b in zip(own, run(lm, batch, Branch(5, seed=0)), strict=True))
    from_start = run(lm, batch, Branch(0, seed=9))
    assert torch.equal(from_start[0][1], own[0][1]) and not torch.equal(from_start[1][1], own[1][1])


def test_a_branch_outside_the_run_is_a_mistake(lm, batch):
    with pytest.raises(ValueError, match="step is 8; this run has steps 0 to 7"):
        run(lm, batch, Branch(8, seed=1))


def settle(step):
    """From step 3 on the model is of one mind; before, it changes it every time."""
    logits = torch.zeros_like(step.masked_logits)
    logits[:, 7 if step.index >= 3 else 10 + step.index] = 20.0 if step.index >= 3 else 2.0
    step.masked_logits = logits


def test_forgetting_is_the_textbook_pass_without_a_previous_prediction(lm, batch):
    """The second step reads the noisy simplex of the first one's tokens, and nothing of its logits."""
    noise = {i: torch.randn(1, batch["input_ids"].shape[1], lm.config.vocab_size) for i in (-1, 0, 1)}
    replayed = {"top_p": None, "noise": lambda i, _: noise[i], "timestep_spacing": "uniform"}
    first, second, _ = [
        (s.logits, s.tokens) for s in t2.denoise(lm, batch, 3, hooks=[NoSelfConditioning()], **replayed)
    ]
    level = alpha_bar(3)[1].float()
    simplex = textbook.add_noise(textbook.token_simplex(first[1], lm.config.vocab_size), noise[0], level)
    mask = batch["span_mask"]
    read = (simplex, torch.full(mask.shape, 1 / 3), first[1], mask)
    with torch.no_grad():
        forgotten, conditioned = lm.logits_from_simplex(*read), lm.logits_from_simplex(*read, first[0])
    assert torch.allclose(second[0][mask], forgotten[mask], atol=1e-4)
    assert not torch.allclose(second[0][mask], conditioned[mask], atol=1e-2)


def test_halting_waits_for_a_sure_prediction_that_stays(lm, batch):
    halt = Halt(patience=4, entropy=0.3)
    assert len(run(lm, batch, settle, halt)) == 3 + 1 + 4  # the first of one mind, and four more
    assert len(list(t2.denoise(lm, batch, 20, hooks=[settle, halt]))) == 8  # one hook, run after run
    assert len(list(t2.denoise(lm, batch, 20, hooks=[settle, Halt(patience=2)]))) == 6
    assert len(list(t2.denoise(lm, batch, 20, hooks=[settle, Halt(patience=4, entropy=1e-6)]))) == 20  # never that sure


def test_a_run_from_the_middle_reads_the_tokens_noised_as_the_textbook_does(lm, batch):
    generator = torch.Generator().manual_seed(3)
    noise = {i: torch.randn(*batch["input_ids"].shape, lm.config.vocab_size, generator=generator) for i in range(-1, 8)}
    tokens = torch.where(batch["span_mask"], torch.randint(4, 900, batch["input_ids"].shape), batch["input_ids"])
    chosen = {"noise": lambda i, _: noise[i], "timestep_spacing": "uniform"}
    steps = list(t2.denoise(lm, batch | {"input_ids": tokens}, STEPS, start=5, **chosen))
    assert [step.index for step in steps] == [5, 6, 7]
    level = alpha_bar(STEPS)[2]  # t of step 5
    simplex = textbook.add_noise(textbook.token_simplex(tokens, lm.config.vocab_size), noise[4], level.float())
    t = torch.full(tokens.shape, 2 / STEPS)
    with torch.no_grad():
        expected = lm.logits_from_simplex(simplex, t, tokens, batch["span_mask"])
    mask = batch["span_mask"]
    assert torch.allclose(steps[0].logits[mask], expected[mask], atol=1e-4)
    with pytest.raises(ValueError, match="start is 8; give a whole number from 0 to 7"):
        t2.denoise(lm, batch, STEPS, start=8)


def test_hooks_that_read_before_the_recorder_cost_no_second_projection(lm, batch, monkeypatch):
    calls = []
    predict = t2.Step._predict
    monkeypatch.setattr(t2.Step, "_predict", lambda self, *more: calls.append(0) or predict(self, *more))
    seen = []
    run(lm, batch, lambda step: seen.append((step.argmax, step.confidence)), Recorder(top_k=5))
    assert len(calls) == STEPS
    recorder = Recorder(top_k=5)
    run(lm, batch, recorder)
    for (argmax, confidence), kept in zip(seen, recorder.steps, strict=True):
        assert torch.equal(argmax, kept["top_ids"][..., 0]) and torch.equal(confidence, kept["top_p"][..., 0])


def test_what_follows_the_end_does_not_keep_a_run_going(lm, batch):
    def restless_after_the_end(step):
        logits = torch.zeros_like(step.masked_logits)  # (12, V)
        logits[:, 7] = 20.0
        logits[4] = logits[5:] = 0
        logits[4, lm.config.eos_token_id] = 20.0
        logits[5:, 10 + step.index] = 2.0
        step.masked_logits = logits

    texts = []
    ended = run(lm, batch, restless_after_the_end, lambda step: texts.append(step.text_mask), Halt(patience=3))
    assert len(ended) == 1 + 3
    known = int((~batch["span_mask"]).sum())
    assert texts[0].nonzero()[:, 1].tolist() == list(range(known, known + 5))  # the end belongs to the text


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: Pin({-1: 5}), "position is -1"),
        (lambda: Pin({"a": 4}), "position is 'a'"),
        (lambda: Pin({20: 5.7}), "token is 5.7"),
        (lambda: Pin([1, 2]), r"tokens is \[1, 2\]; give a dict"),
        (lambda: Branch(2, "a"), "seed is 'a'"),
        (lambda: Branch(-1, 0), "step is -1"),
        (lambda: Halt(patience=0), "patience is 0"),
        (lambda: Halt(entropy=-1), "entropy is -1"),
        (lambda: Halt(entropy="x"), "entropy is 'x'"),
    ],
)
def test_hooks_refuse_what_they_cannot_use(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_interventions_that_the_run_never_reaches(lm, batch):
    with pytest.raises(ValueError, match="start is 99; this run has steps 0 to 7"):
        run(lm, batch, Pin({12: 5}, start=99))
    with pytest.raises(ValueError, match="step is 2; this run begins at step 4"):
        run(lm, batch, Branch(2, seed=1), start=4)
    branch = Branch(2, seed=1)
    assert same(run(lm, batch, branch)[-1], run(lm, batch, branch)[-1])
