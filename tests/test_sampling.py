"""What denoise promises its callers: hooks, seeds, edits, and a sentence for each mistake."""

import pytest
import torch

import tess2lite as t2
from tess2lite import textbook
from tess2lite.hooks import Pin
from tess2lite.loss import diffusion_loss, seeded_noise
from tess2lite.schedule import alpha_bar_at
from tess2lite.times.informative import informative_times


def batch(length=12, first=3, rows=1):
    ids = torch.arange(1, length + 1).expand(rows, length).clone()
    return {"input_ids": ids, "span_mask": (torch.arange(length) >= first).expand(rows, length).clone()}


def last(lm, given=None, **settings):
    *_, step = t2.denoise(lm, given or batch(), **({"steps": 6} | settings))
    return step.tokens


def test_one_step_is_valid(tiny):
    steps = list(t2.denoise(tiny(), batch(), steps=1))
    assert len(steps) == 1 and steps[0].t == 0 and steps[0].alpha_bar == 0.0


def test_same_seed_same_text_other_seed_other_text(tiny):
    lm = tiny()
    assert torch.equal(last(lm, seed=3), last(lm, seed=3))
    assert not torch.equal(last(lm, seed=3), last(lm, seed=4))
    both = last(lm, batch(rows=2), seed=[3, 4])
    assert torch.equal(both[:1], last(lm, seed=3)) and torch.equal(both[1:], last(lm, seed=4))


@pytest.mark.parametrize("change", [{"steps": 7}, {"top_p": 0.2}, {"top_p": None}, {"temperature": 3.0}, {"seed": 1}])
def test_every_setting_changes_the_run(tiny, change):
    lm = tiny()
    assert not torch.equal(last(lm), last(lm, **change))


def test_a_low_temperature_or_top_p_is_argmax(tiny):
    lm = tiny()
    for settings in ({"temperature": 1e-4}, {"top_p": 1e-6}):
        assert torch.equal(last(lm, **settings), last(lm, top_p=None))


def test_what_a_step_says_of_its_prediction(tiny):
    lm = tiny()
    for step in t2.denoise(lm, batch(), steps=3):
        p = step.logits.softmax(-1)
        mask = step.span_mask
        assert torch.allclose(step.confidence[mask], p.max(-1).values[mask], atol=1e-6)
        entropy = torch.distributions.Categorical(probs=p).entropy()
        assert torch.allclose(step.entropy[mask], entropy[mask], atol=1e-4)
        assert torch.equal(step.argmax[mask], p.argmax(-1)[mask])
        assert torch.equal(step.tokens[~mask], batch()["input_ids"][~mask])
        assert (step.confidence[~mask] == 1).all() and (step.entropy[~mask] == 0).all()
        assert torch.allclose(step.logits[mask], step.masked_logits, atol=1e-5)


def test_a_pinned_token_survives_and_is_what_the_run_goes_on_from(tiny):
    """The edited run equals a textbook run whose projection is edited in the same way."""
    lm, given, torch_noise = tiny(), batch(), torch.randn(8, 1, 12, 326)

    def pin(step):
        step.tokens = step.tokens.index_fill(1, torch.tensor([5]), 99)

    run = t2.denoise(lm, given, steps=6, top_p=None, hooks=[pin], noise=lambda i, shape: torch_noise[i])
    ours = [(step.logits, step.tokens) for step in run]
    project = textbook.project

    def pinned(*arguments):
        return project(*arguments).index_fill(1, torch.tensor([5]), 99)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(textbook, "project", pinned)
        noise = lambda i, shape: torch_noise[i]  # noqa: E731
        schedule = t2.schedule.alpha_bar(6)
        theirs = list(textbook.sample(lm, given["input_ids"], given["span_mask"], schedule, noise))
    for (logits, tokens), (their_logits, their_tokens) in zip(ours, theirs, strict=True):
        assert torch.allclose(logits, their_logits, atol=1e-4)
        assert torch.equal(tokens, their_tokens) and tokens[0, 5] == 99


def test_replaced_logits_are_projected_and_self_conditioned_on(tiny):
    """A hook that replaces logits by themselves changes nothing; one that favours a token writes it."""
    lm = tiny()

    def same(step):
        step.logits = step.logits

    def favour(step):
        step.masked_logits = step.masked_logits.index_fill(1, torch.tensor([77]), 50.0)

    assert torch.equal(last(lm, hooks=[same]), last(lm))
    assert (last(lm, hooks=[favour])[0, 3:] == 77).all()
    seen = []
    list(t2.denoise(lm, batch(), steps=2, hooks=[favour, lambda step: seen.append(step.logits[0, 5, 77].item())]))
    assert seen == [50.0, 50.0]


def test_edits_in_the_loop_body_count_too(tiny):
    for step in t2.denoise(tiny(), batch(), steps=4):
        step.tokens = torch.full((1, 12), 50)
        final = step.tokens
    assert final[0, 3:].eq(50).all() and final[0, :3].tolist() == [1, 2, 3]


def test_a_hook_can_stop_the_run(tiny):
    def stop(step):
        step.stop = step.index == 2

    assert len(list(t2.denoise(tiny(), batch(), steps=9, hooks=[stop]))) == 3


def test_an_interrupt_leaves_the_model_as_it_was(tiny):
    lm = tiny()
    before = last(lm)

    def interrupt(step):
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        last(lm, hooks=[interrupt])
    assert torch.equal(last(lm), before) and torch.is_grad_enabled()


def test_what_stands_under_the_mask_is_not_read(tiny):
    lm, other = tiny(), batch()
    other["input_ids"][other["span_mask"]] = -100
    assert torch.equal(last(lm, other), last(lm))


def without(**changes):
    return batch() | changes


MISTAKES = [
    ({"steps": 0}, "steps is 0"),
    ({"steps": -3}, "steps is -3"),
    ({"steps": 2.5}, "steps is 2.5"),
    ({"steps": torch.tensor(2.5)}, r"steps is tensor\(2.5000\); give a whole number of 1 or more"),
    ({"steps": torch.tensor([2, 3])}, r"steps is tensor\(\[2, 3\]\); give a whole number"),
    ({"top_p": 0}, "top_p is 0"),
    ({"top_p": 2}, "top_p is 2"),
    ({"temperature": 0}, "temperature is 0"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"seed": [1, 2]}, "one for each of the 1 sequences"),
    ({"seed": "x"}, "seed is 'x'; give one whole number"),
    ({"seed": [1.5]}, r"seed is \[1.5\]; give one whole number"),
    ({"seed": torch.tensor(1)}, r"seed is tensor\(1\); give one whole number"),
    ({"top_p": "0.9"}, "top_p is '0.9'"),
    ({"top_p": True}, "top_p is True"),
    ({"temperature": None}, "temperature is None"),
    ({"temperature": 0.5, "top_p": None}, "temperature is 0.5, but top_p=None"),
    ({"batch": without(input_ids=batch()["input_ids"].float())}, "Token ids are torch.float32"),
    ({"batch": without(input_ids=[1, 2, 3])}, "no 'input_ids' of shape"),
    ({"batch": {"input_ids": torch.zeros(0, 12).long(), "span_mask": torch.zeros(0, 12).bool()}}, "no 'input_ids'"),
    (
        {"batch": without(attention_mask=torch.arange(12)[None] != 6, span_mask=torch.arange(12)[None] > 6)},
        "filler inside a text",
    ),
    ({"hooks": [3]}, "hooks holds 3; give functions"),
    ({"batch": {"input_ids": batch()["input_ids"]}}, "has no 'span_mask'"),
    ({"batch": without(span_mask=torch.ones(1, 5).bool())}, r"span_mask has shape \(1, 5\)"),
    ({"batch": without(span_mask=torch.zeros(1, 12).bool())}, "nothing to denoise"),
    ({"batch": without(span_mask=torch.ones(1, 12).bool())}, "row's first token"),
    ({"batch": without(span_mask=torch.ones(1, 12))}, "give a bool tensor"),
    ({"batch": without(attention_mask=torch.zeros(1, 12))}, "marks filler"),
    ({"batch": without(input_ids=torch.full((1, 12), 999))}, "vocabulary of 326"),
    ({"batch": batch(length=80)}, "80 tokens long; this model's context is 64"),
]


@pytest.mark.parametrize(("mistake", "sentence"), MISTAKES)
def test_mistakes_get_a_sentence_before_the_first_step(tiny, mistake, sentence):
    arguments = {"batch": batch()} | mistake
    with pytest.raises((ValueError, TypeError), match=sentence):
        t2.denoise(tiny(), **arguments)


def test_a_banned_token_is_never_written_and_entropy_stays_a_number(tiny):
    def ban(step):
        step.masked_logits = step.masked_logits.index_fill(1, torch.arange(100), -torch.inf)

    for step in t2.denoise(tiny(), batch(), steps=4, top_p=1.0, hooks=[ban]):
        p = step.masked_logits.softmax(1)
        assert torch.allclose(step.entropy[step.span_mask], torch.special.entr(p).sum(1), atol=1e-4)
        assert (step.tokens[step.span_mask] >= 100).all()


def test_numbers_that_break_down_are_said_to(tiny):
    lm = tiny()
    assert torch.equal(last(lm, temperature=1e-30), last(lm, top_p=None))
    lm.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="Step 0 produced NaN or inf logits"):
        last(lm)


def test_int32_ids_and_a_single_hook_will_do(tiny):
    lm, seen = tiny(), []
    given = batch()
    given["input_ids"] = given["input_ids"].int()
    assert torch.equal(last(lm, given, hooks=seen.append), last(lm)) and len(seen) == 6


def test_any_falling_times_are_the_textbook_at_these_times(tiny):
    """Logits of each step, from a naive loop that noises at ᾱ(t) and tells the model t."""
    lm, given = tiny(), batch()
    times = [0.9, 0.5, 0.45, 0.1]
    noise = torch.randn(5, *given["input_ids"].shape, lm.config.vocab_size)
    run = t2.denoise(lm, given, top_p=None, timestep_spacing=times, noise=lambda i, shape: noise[i])
    simplex, previous = 5.0 * noise[-1], None
    ids, mask = given["input_ids"], given["span_mask"]
    for i, step in enumerate(run):
        t = torch.full(ids.shape, times[i], dtype=torch.float64)
        with torch.no_grad():
            previous = lm.logits_from_simplex(simplex, t, ids, mask, previous)
        assert torch.allclose(step.logits, previous, atol=1e-4) and step.t == times[i]
        tokens = torch.where(mask, previous.argmax(-1), ids)
        if i + 1 < len(times):
            level = alpha_bar_at(torch.tensor(times[i + 1]))
            simplex = textbook.add_noise(textbook.token_simplex(tokens, lm.config.vocab_size), noise[i], level)
    assert i == 3


def test_a_models_own_spacing_is_used_and_can_be_overruled(tiny):
    lm = tiny()
    lm.config.loss_curve = {"t": [0.2, 0.4, 0.6], "loss": [0.1, 2.0, 4.0]}
    lm.config.timestep_spacing = "informative"
    informative = informative_times(lm.config.loss_curve, 5, 1 - 1 / 5000).tolist()
    assert [step.t for step in t2.denoise(lm, batch(), steps=5)] == informative
    uniform = [step.t for step in t2.denoise(lm, batch(), steps=5, timestep_spacing="uniform")]
    assert uniform == [0.8, 0.6, 0.4, 0.2, 0.0]


def test_the_end_is_the_argmax_of_the_last_logits_or_its_draw(tiny):
    lm, mask = tiny(), batch()["span_mask"]
    *_, argmax = t2.denoise(lm, batch(), steps=4, top_p=1.0)
    *_, sample = t2.denoise(lm, batch(), steps=4, top_p=1.0, final="sample")
    assert torch.equal(argmax.tokens[mask], argmax.logits.argmax(-1)[mask])
    assert torch.equal(argmax.logits, sample.logits) and not torch.equal(argmax.tokens, sample.tokens)
    with pytest.raises(ValueError, match="final is 'both'; choose one of argmax, sample"):
        t2.denoise(lm, batch(), final="both")


def test_a_stopped_run_ends_with_the_argmax_too_and_keeps_its_pins(tiny):
    def stop(step):
        step.stop = step.index == 1

    *_, step = t2.denoise(tiny(), batch(), steps=4, top_p=1.0, hooks=[Pin({5: 77}), stop])
    expected = step.argmax
    expected[0, 5] = 77
    assert torch.equal(step.tokens, expected)


def edit_in_place(step):
    step.tokens[0, 5] = 7


def edit_logits_in_place(step):
    step.masked_logits[:, 7] = 5.0


def forget_late(step):
    step.entropy  # noqa: B018
    step.self_condition = False


def assign_a_typing_mistake(step):
    step.token = step.tokens


def assign_what_is_read_only(step):
    step.alpha_bar = 0.5


@pytest.mark.parametrize(
    ("hook", "sentence"),
    [
        (edit_in_place, "changed in place, which has no effect"),
        (edit_logits_in_place, "changed in place, which has no effect"),
        (forget_late, "self_condition was assigned after the prediction"),
        (assign_a_typing_mistake, "step.token cannot be assigned; assign tokens"),
        (assign_what_is_read_only, "step.alpha_bar cannot be assigned"),
    ],
)
def test_assignments_without_effect_raise(tiny, hook, sentence):
    with pytest.raises(t2.InputError, match=sentence):
        list(t2.denoise(tiny(), batch(), steps=2, hooks=[hook]))


def test_a_step_that_is_over_cannot_be_changed(tiny):
    first, _ = t2.denoise(tiny(), batch(), steps=2)
    with pytest.raises(t2.InputError, match="changed after step 0 had ended"):
        first.tokens = first.tokens


def test_the_optional_parts_of_a_hook_are_checked_and_others_ignored(tiny):
    class Hook:
        def __call__(self, step):
            """Reads nothing."""

    hook = Hook()
    hook.k = "its own affair"
    list(t2.denoise(tiny(), batch(), steps=1, hooks=[hook]))
    hook.top_k = 0
    with pytest.raises(t2.InputError, match="top_k of the hook .* is 0"):
        t2.denoise(tiny(), batch(), steps=1, hooks=[hook])
    hook.top_k, hook.check = 3, True
    with pytest.raises(t2.InputError, match="has a `check` that cannot be called"):
        t2.denoise(tiny(), batch(), steps=1, hooks=[hook])


def test_calling_the_model_is_the_diffusion_pass(tiny):
    lm, ids, mask = tiny(), batch()["input_ids"], batch()["span_mask"]
    t = torch.tensor([2500])
    noise, blocks = seeded_noise(3, [0], mask, lm.config.vocab_size)
    assert torch.equal(lm(ids, mask, t, seed=3), diffusion_loss(lm, ids, mask, t, noise, blocks, False))
    with pytest.raises(t2.InputError, match="the diffusion pass: give input_ids, span_mask and t"):
        lm(input_ids=ids)
    with pytest.raises(t2.InputError, match="lm.generate is autoregressive"):
        lm.generate(ids)
