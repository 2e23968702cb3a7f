"""Reward guidance against the official numbers, finite differences and what it is for."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import GOLDEN
from parity import close

import tess2lite as t2
from tess2lite import guidance
from tess2lite_course.tools.pitfalls import AccumulatingGuidance


@pytest.fixture(scope="module")
def reward_model():
    return t2.load_reward(GOLDEN / "reward")


class Held:
    """A step with given logits, as a hook sees it: the last of ten."""

    def __init__(self, golden, logits):
        self.input_ids, self.span_mask, self.attention_mask = golden["input_ids"], golden["span_mask"], None
        self.masked_logits, self.records = logits[self.span_mask], {}
        self.index, self.steps = 9, 10
        self.masked_idx = self.span_mask.flatten().nonzero()[:, 0]

    def logit_blocks(self):
        half = slice(0, 7), slice(7, len(self.masked_logits))
        return [(rows, self.masked_logits[rows].clone()) for rows in half]

    def edit_logits(self, edit):
        self.masked_logits = torch.cat([edit(logits, rows) for rows, logits in self.logit_blocks()])


@pytest.mark.parametrize("scale", [0.25, 2.0])
def test_guided_logits_and_rewards_are_the_official_ones(golden, reward_model, scale):
    """Five ascents, rewards read before each."""
    step, rewards = Held(golden, golden["logits_selfcond"]), []
    for _ in range(5):
        t2.RewardGuidance(reward_model, scale)(step)
        rewards.append(step.records["reward"])
    close(torch.stack(rewards), golden[f"guided_rewards_eta{scale}"])
    close(step.masked_logits, golden[f"guided_logits_eta{scale}"][golden["span_mask"]])
    at_once = Held(golden, golden["logits_selfcond"])
    t2.RewardGuidance(reward_model, scale, inner_steps=5)(at_once)
    close(at_once.masked_logits, step.masked_logits, 1e-5)
    close(at_once.records["reward"], rewards[0], 1e-6)


@pytest.mark.parametrize("scale", [0.25, 2.0])
def test_the_museum_piece_piles_up_as_the_official_loop_does(golden, reward_model, scale):
    step = Held(golden, golden["logits_selfcond"])
    AccumulatingGuidance(reward_model, scale, inner_steps=5)(step)
    close(step.masked_logits, golden[f"guided_logits_accumulated_eta{scale}"][golden["span_mask"]])
    once, right = (Held(golden, golden["logits_selfcond"]) for _ in range(2))
    AccumulatingGuidance(reward_model, scale)(once)
    t2.RewardGuidance(reward_model, scale)(right)
    assert torch.equal(once.masked_logits, right.masked_logits)  # with one step there is nothing to pile up


def reward_of(model, golden, logits):
    """The reward by its definition, a scalar: everything whole, no chunks, no checkpoints."""
    matrix = model.get_input_embeddings().weight
    embeddings = matrix[golden["input_ids"]]
    soft = logits.softmax(-1) @ matrix
    mixed = torch.where(golden["span_mask"][..., None], soft, embeddings)
    return model.score(model.model(inputs_embeds=mixed).last_hidden_state[:, -1]).sum()


def test_one_ascent_by_finite_differences(golden):
    model = t2.load_reward(GOLDEN / "reward", dtype="float64")
    logits = golden["logits_selfcond"].double()
    step = Held(golden, logits)
    t2.RewardGuidance(model, 1.0)(step)
    gradient = torch.zeros_like(logits)
    gradient[golden["span_mask"]] = step.masked_logits - logits[golden["span_mask"]]
    for row, position, token in ((0, 20, 5), (1, int(golden["span_mask"][1].nonzero()[0]), 60), (2, 9, 11)):
        change = torch.zeros_like(logits)
        change[row, position, token] = 1e-2
        with torch.no_grad():
            above, below = (reward_of(model, golden, logits + sign * change) for sign in (1, -1))
        wanted = (above - below).item() / 2e-2  # a wide step: the norms inside compute in float32
        assert golden["span_mask"][row, position]
        assert gradient[row, position, token].item() == pytest.approx(wanted, rel=2e-3, abs=1e-7)


def test_an_ascent_raises_the_predicted_reward_of_every_text(golden, reward_model):
    step, guide = Held(golden, golden["logits_selfcond"]), t2.RewardGuidance(reward_model, 0.25)
    guide(step)
    before = step.records["reward"]
    guide(step)
    assert (step.records["reward"] > before).all()


def run(lm, golden, *hooks, **settings):
    batch = {"input_ids": golden["input_ids"], "span_mask": golden["span_mask"]}
    return [*t2.denoise(lm, batch, **({"steps": 10, "top_p": None} | settings), hooks=hooks)]


def test_guidance_is_part_of_the_run(golden, golden_lm, reward_model):
    guided, plain = run(golden_lm, golden, t2.RewardGuidance(reward_model, 5.0))[-1], run(golden_lm, golden)[-1]
    assert not torch.equal(guided.tokens, plain.tokens) and guided.records["reward"].shape == (3,)
    assert torch.equal(guided.tokens[~golden["span_mask"]], golden["input_ids"][~golden["span_mask"]])


def test_scale_zero_reads_the_reward_and_changes_nothing(golden, golden_lm, reward_model):
    plain = run(golden_lm, golden, top_p=0.9)
    read = run(golden_lm, golden, t2.RewardGuidance(reward_model, 0), top_p=0.9)
    for one, other in zip(plain, read, strict=True):
        assert torch.equal(one.logits, other.logits) and torch.equal(one.tokens, other.tokens)
        assert not one.records and other.records["reward"].shape == (3,)
        assert not other.records["logprob_gain"].any()
        assert torch.equal(other.records["argmax_before_guidance"], other.argmax)


@pytest.mark.parametrize(("start", "end", "guided"), [(0, 1, range(10)), (0.5, 1, range(5, 10)), (0, 0.3, range(3))])
def test_the_guided_part_of_the_run(golden, golden_lm, reward_model, start, end, guided):
    steps = run(golden_lm, golden, t2.RewardGuidance(reward_model, 5.0, start=start, end=end))
    assert [step.index for step in steps if step.records["logprob_gain"].any()] == [*guided]
    assert all("reward" in step.records for step in steps)
    plain = run(golden_lm, golden)
    same = [torch.equal(a.logits, b.logits) for a, b in zip(steps, plain, strict=True)]
    assert same[: guided[0]] == [True] * guided[0] and not same[guided[0]]


def test_what_was_pushed(golden, golden_lm, reward_model):
    """By the definition: log-probabilities of the likeliest token before and after, from the whole logits."""
    plain = run(golden_lm, golden, steps=1)[0]
    guided = run(golden_lm, golden, t2.RewardGuidance(reward_model, 50.0), steps=1)[0]
    before, after = plain.logits.log_softmax(-1), guided.logits.log_softmax(-1)
    best = after.argmax(-1, keepdim=True)
    mask = golden["span_mask"]
    close(guided.records["logprob_gain"][mask], (after - before).gather(-1, best)[..., 0][mask], 1e-5)
    assert torch.equal(guided.records["argmax_before_guidance"], torch.where(mask, plain.argmax, golden["input_ids"]))
    assert (guided.records["argmax_before_guidance"] != guided.argmax).any() and (
        guided.records["logprob_gain"][~mask] == 0
    ).all()


def test_rewards_add_up_by_their_weights(golden, golden_lm, reward_model):
    def gained(model, **more):
        step = Held(golden, golden["logits_selfcond"])
        t2.RewardGuidance(model, 1.0, **more)(step)
        return step.masked_logits - golden["logits_selfcond"][golden["span_mask"]], step.records["reward"]

    other = t2.load_reward(GOLDEN / "reward")
    with torch.no_grad():
        other.score.weight.copy_(other.score.weight.flip(1))
    (one, first), (two, second) = gained(reward_model), gained(other)
    both = gained([reward_model, other], weights=[2, -0.5])
    close(both[0], 2 * one - 0.5 * two, 1e-5)
    close(both[1], 2 * first - 0.5 * second, 1e-5)


def test_best_of_n_is_by_the_same_reward(tiny, tmp_path):
    lm = tiny()
    judge = small_judge(lm)
    written = t2.generate(lm, ["A cat."] * 4, steps=3, seed=range(4), length=12, progress=False)
    best, rewards = t2.best_of(judge, written)
    by_hand = []
    for out in written:
        with torch.no_grad():
            hidden = judge.model(input_ids=torch.tensor([out.token_ids])).last_hidden_state
        by_hand.append(judge.score(hidden[0, -1])[0].item())
    close(rewards, torch.tensor(by_hand), 1e-5)
    assert best == max(range(4), key=by_hand.__getitem__)
    with pytest.raises(ValueError, match="generations holds no texts"):
        t2.best_of(judge, [])


def small_judge(lm, score_position="last"):
    """A random reward model with a denoiser's own tokens."""
    from transformers import MistralConfig

    from tess2lite.pretrained.shared_base import freeze_
    from tess2lite.reward import MistralRewardModel

    torch.manual_seed(1)
    config = MistralConfig(**(lm.config.to_diff_dict() | {"num_labels": 1, "is_causal": True}))
    judge = MistralRewardModel(config)
    judge.tokenizer, judge.config.score_position = lm.tokenizer, score_position
    return freeze_(judge)


def test_score_position_eos_hides_what_follows(tiny):
    lm = tiny()
    last, eos = small_judge(lm), small_judge(lm, "eos")
    ids = torch.tensor([[1, 9, 8, 2, 3, 3], [1, 9, 8, 7, 6, 5]])
    close(eos.score_ids(ids)[:1], last.score_ids(ids[:1, :4]), 1e-5)
    close(eos.score_ids(ids)[1:], last.score_ids(ids[1:]), 1e-6)

    def rewards(judge):
        run = t2.denoise(
            lm,
            {"input_ids": ids, "span_mask": torch.arange(6)[None].expand(2, 6) > 1},
            steps=1,
            hooks=[ends_at_2, t2.RewardGuidance(judge, 0)],
        )
        return [*run][-1].records["reward"]

    def ends_at_2(step):
        logits = step.logits.clone()
        logits[:, 2, 2] = 1e4
        step.logits = logits

    assert not torch.allclose(rewards(last), rewards(eos))


@pytest.mark.parametrize(("eos", "end"), [(None, 4), (2, 4), ([2, 9], 2), ([9], 2)])
def test_a_judge_reads_to_the_first_of_all_ends(tiny, eos, end):
    """The tokenizer's EOS, 2, is always one; the configuration names none, one or several."""
    judge = small_judge(tiny(), "eos")
    judge.config.eos_token_id = eos
    ids = torch.tensor([[1, 9, 8, 2, 3, 3]])
    read = small_judge(tiny()).score_ids(ids[:, :end])
    close(judge.score_ids(ids), read, 1e-5)
    best, rewards = t2.best_of(judge, [SimpleNamespace(token_ids=ids[0].tolist())])
    assert best == 0
    close(rewards, read, 1e-5)


def test_a_judge_with_the_denoisers_rows_is_read_without_a_copy(tiny):
    """E of Mistral-7B has 262 MB."""
    matrix = small_judge(tiny()).embedding_rows()
    assert guidance._with_rows(matrix, len(matrix)).data_ptr() == matrix.data_ptr()
    assert guidance._with_rows(matrix, len(matrix) + 3)[-3:].abs().sum() == 0


def test_filler_changes_no_reward(golden, reward_model):
    embeddings = reward_model.get_input_embeddings()(golden["input_ids"][:1])
    alone = reward_model.score_embeddings(embeddings, None)
    for left, right in ((3, 0), (0, 2)):
        padded = torch.nn.functional.pad(embeddings, (0, 0, left, right))
        mask = torch.nn.functional.pad(torch.ones(1, embeddings.shape[1], dtype=torch.long), (left, right))
        close(reward_model.score_embeddings(padded, mask), alone, 1e-5)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"scale": -1}, "scale is -1; give a number from 0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 1e30}, r"scale is 1e\+30"),
        ({"scale": "much"}, "scale is 'much'"),
        ({"start": 2}, "start is 2; give a number from 0 to 1"),
        ({"start": 0.5, "end": 0.2}, "end is 0.2; give a number from 0.5"),
        ({"weights": [1, 2]}, "1 reward models and 2 weights"),
        ({"weights": [float("inf")]}, "weight is inf"),
    ],
)
def test_settings_that_make_no_sense(reward_model, mistake, sentence):
    with pytest.raises(ValueError, match=sentence):
        t2.RewardGuidance(reward_model, **mistake)


def test_the_largest_scale_still_gives_a_text(golden, golden_lm, reward_model):
    last = run(golden_lm, golden, t2.RewardGuidance(reward_model, 1e6, inner_steps=3), top_p=0.99)[-1]
    assert torch.isfinite(last.confidence).all() and (last.tokens < 96).all()


@pytest.mark.parametrize("rows", [-6, 58, 250])
def test_a_judge_whose_vocabulary_is_padded_otherwise_guides_alike(tiny, rows):
    """Spare rows change neither reward nor text (-6: the denoiser is the one that has them)."""
    lm = tiny(vocab_size=332)
    judge = small_judge(lm)
    weight = judge.get_input_embeddings().weight
    with torch.no_grad():
        weight[326:] = 0
    options = {"steps": 4, "length": 12, "progress": False}
    same = t2.generate(lm, "A cat.", hooks=[t2.RewardGuidance(judge, 20.0)], **options)
    judge.resize_token_embeddings(332 + rows, mean_resizing=False)
    with torch.no_grad():
        judge.get_input_embeddings().weight[332:] = 9.0
    padded = t2.generate(lm, "A cat.", hooks=[t2.RewardGuidance(judge, 20.0)], **options)
    assert torch.equal(padded.trajectory.tokens, same.trajectory.tokens)
    assert torch.allclose(padded.trajectory.records["reward"], same.trajectory.records["reward"])
    unguided = t2.generate(lm, "A cat.", **options)
    assert not torch.equal(padded.trajectory.tokens, unguided.trajectory.tokens)


def test_a_judge_with_tokens_of_its_own_guides_what_it_shares(tiny):
    lm = tiny()
    judge = small_judge(lm)
    judge.tokenizer = copy.deepcopy(lm.tokenizer)
    judge.tokenizer.add_tokens(["<score>"])
    judge.resize_token_embeddings(len(judge.tokenizer), mean_resizing=False)
    t2.RewardGuidance(judge).check(lm)
    judge.tokenizer = None
    with pytest.raises(ValueError, match="reads 327 tokens, the denoiser writes 326, and no tokenizer says"):
        t2.RewardGuidance(judge).check(lm)
    lm.tokenizer.add_tokens(["<mood>"])
    judge.tokenizer = tiny().tokenizer
    with pytest.raises(ValueError, match="does not have '<mood>' as token 326"):
        t2.RewardGuidance(judge).check(lm)


def test_a_judge_of_other_tokens_is_refused_before_the_first_step(tiny, reward_model):
    batch = {"input_ids": torch.arange(1, 9)[None], "span_mask": torch.arange(8)[None] > 2}
    with pytest.raises(ValueError, match="reads 96 tokens, the denoiser writes 326"):
        t2.denoise(tiny(), batch, steps=1, hooks=[t2.RewardGuidance(reward_model)])
    lm = tiny()
    judge = small_judge(lm)
    judge.tokenizer = type("Other", (), {"get_vocab": lambda self: {"a": 0}})()
    with pytest.raises(ValueError, match="does not have '.*' as token 0, as the denoiser's does"):
        t2.generate(lm, "A cat.", steps=1, hooks=[t2.RewardGuidance(judge)])
    with pytest.raises(ValueError, match="is a MistralForDiffusionLM; give one from tess2lite.load_reward"):
        t2.RewardGuidance(lm)
