"""Masked diffusion: the loss against loops and an enumeration, the sampler against counts by hand."""

import math
from functools import partial

import pytest
import torch
from conftest import recipe_fields, save_mistral
from test_guidance import small_judge
from transformers import AutoTokenizer, MistralForCausalLM, TrainingArguments

import tess2lite as t2
from tess2lite import mask_diffusion
from tess2lite.hooks import Branch, Halt, Pin
from tess2lite.loss import cross_entropy
from tess2lite.pretrained.tokenizers import mask_token_id
from tess2lite.training import recipe
from tess2lite.training import run as training_run
from tess2lite.training.data import Rows
from tess2lite.training.mask_diffusion import MaskedTrainer, masked_loss, sample_mask
from tess2lite.training.merge import merge
from tess2lite.training.trainer import DiffusionCollator
from tess2lite.trajectory import Trajectory
from tess2lite.viz.explorer import explorer

UNK = 0


def textbook(lm, ids, is_masked, mask_ratio):
    """Position by position, with transformers' own forward pass and its own logits."""
    total = 0
    for row, away, t in zip(ids, is_masked, mask_ratio, strict=True):
        read = torch.tensor([UNK if a else int(i) for i, a in zip(row, away, strict=True)])
        log_p = MistralForCausalLM.forward(lm, input_ids=read[None]).logits[0].log_softmax(-1)
        for i in range(len(row)):
            if away[i]:
                total += -log_p[i - 1, row[i]] / t
    return total


def some_rows(n=24, length=12):
    rows = torch.randint(4, 300, (n, length), generator=torch.Generator().manual_seed(0))
    rows[:, 0] = 1
    return rows.tolist()


def trainer(lm, folder, steps=2, **settings):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        use_cpu=True,
        report_to=[],
        save_steps=5,
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_steps=1,
        **settings,
    )
    return MaskedTrainer(
        model=lm,
        args=arguments,
        train_dataset=Rows(some_rows(), 1000, 0),
        eval_dataset=Rows(some_rows(12), 12, 1),
        data_collator=DiffusionCollator("all", 42),
    )


def test_the_loss_against_a_loop_over_positions(tiny):
    lm = tiny(dtype=torch.float64)
    ids = torch.tensor(some_rows(3, 8))
    is_masked = torch.rand(3, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    is_masked[:, 0] = False
    mask_ratio = torch.tensor([0.3, 0.5, 1.0])
    assert masked_loss(lm, ids, is_masked, mask_ratio, UNK).item() == pytest.approx(
        textbook(lm, ids, is_masked, mask_ratio).item(), rel=1e-6
    )


def test_the_weighted_loss_is_the_bound(tiny):
    """Its mean over t and masks against the sum over all subsets of three positions, each with ∫ tᵏ⁻¹(1−t)³⁻ᵏ dt."""
    lm = tiny(initializer_range=0.05)
    row, one = torch.tensor([1, 20, 30, 40]), torch.ones(1)
    exact = 0
    with torch.no_grad():
        for bits in range(1, 8):
            is_masked = torch.tensor([False] + [bool(bits >> i & 1) for i in range(3)])
            k = int(is_masked.sum())
            weight = math.factorial(k - 1) * math.factorial(3 - k) / math.factorial(3)
            exact += weight * masked_loss(lm, row[None], is_masked[None], one, UNK).item()
        mask_ratio = (torch.arange(5000) + 1) / 5000
        can = torch.tensor([False, True, True, True]).expand(5000, 4)
        drawn = [sample_mask(can, mask_ratio, range(5000), seed) for seed in range(4)]
        mean = (
            sum(masked_loss(lm, row.expand(5000, 4), is_masked, mask_ratio, UNK).item() for is_masked in drawn) / 20_000
        )
    assert mean == pytest.approx(exact, rel=0.03)


def test_a_model_that_knows_nothing_has_the_bound_of_chance(tiny, tmp_path):
    lm = tiny()
    torch.nn.init.zeros_(lm.lm_head.weight)
    measured = trainer(lm, tmp_path).evaluate()
    assert measured["eval_loss"] == pytest.approx(math.log(lm.config.vocab_size), rel=0.1)


def test_the_mask_is_a_function_of_seed_and_example():
    can = torch.ones(3, 2000, dtype=torch.bool)
    can[:, 0] = False
    mask_ratio = torch.tensor([0.2, 0.7, 1.0])
    is_masked = sample_mask(can, mask_ratio, [5, 6, 7], 0)
    assert torch.equal(is_masked[1:2], sample_mask(can[1:2], mask_ratio[1:2], [6], 0))
    assert not torch.equal(is_masked, sample_mask(can, mask_ratio, [5, 6, 7], 1))
    assert not is_masked[:, 0].any() and is_masked[2, 1:].all()
    assert is_masked.float().mean(1).tolist() == pytest.approx([0.2, 0.7, 1.0], abs=0.04)
    assert (sample_mask(can, mask_ratio / 2, [5, 6, 7], 0) <= is_masked).all()


def test_nothing_masked_is_a_loss_of_zero_with_a_gradient(tiny):
    lm = tiny()
    ids = torch.tensor(some_rows(2))
    loss = masked_loss(lm, ids, torch.zeros_like(ids, dtype=torch.bool), torch.ones(2), UNK)
    loss.backward()
    assert loss == 0 and lm.lm_head.weight.grad.abs().sum() == 0


def test_weights_and_chunks_of_the_cross_entropy(tiny):
    lm = tiny(dtype=torch.float64)
    hidden, targets = torch.randn(7, 32, dtype=torch.float64), torch.arange(7)
    each = torch.stack([cross_entropy(lm.head, hidden[i : i + 1], targets[i : i + 1], 4) for i in range(7)])
    weights = torch.rand(7, dtype=torch.float64)
    assert torch.allclose(cross_entropy(lm.head, hidden, targets, 3, weights), (each * weights).sum())
    assert torch.allclose(cross_entropy(lm.head, hidden, targets, 3), each.sum())


def test_evaluation_by_hand(tiny, tmp_path):
    lm = tiny()
    one = trainer(lm, tmp_path)
    batch = DiffusionCollator("all", 0)([one.eval_dataset[j] for j in range(12)])
    mask_ratio = torch.full((12,), 2751 / 5000)
    is_masked = sample_mask(batch["span_mask"], mask_ratio, list(range(12)), 0)
    with torch.no_grad():
        expected = textbook(lm, batch["input_ids"], is_masked, mask_ratio) / (12 * 11)
    measured = one.evaluate()
    assert measured["eval_loss_at_2750"] == pytest.approx(expected.item(), rel=1e-5)
    assert measured == one.evaluate() and all(math.isfinite(value) for value in measured.values())


def test_it_learns_without_the_timestep(tiny, tmp_path):
    lm = tiny()
    time = lm.timestep_embed.weight.detach().clone()
    run = trainer(lm, tmp_path, 40)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < 0.9 * before
    assert torch.equal(lm.timestep_embed.weight, time)


@pytest.fixture
def own(tmp_path):
    """A tiny AR model and a text; returns a maker of recipe fields."""
    tokenizer = AutoTokenizer.from_pretrained("tests/golden/tokenizer")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    save_mistral(tmp_path / "ar", tokenizer, **small, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    (tmp_path / "own.txt").write_text("The cat sat on the mat. The dog saw a red ball in the barn. " * 100)
    return partial(recipe_fields, tmp_path)


def test_a_run_is_resumed_to_the_bit_and_knows_what_it_is(own, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(f"{name}: {value}" for name, value in own(kind="masked").items()))
    training_run.main([str(path), f"output={tmp_path / 'whole'}"])
    training_run.main([str(path), "steps=5"])
    training_run.main([str(path)])
    resumed, whole = t2.load(own()["output"]), t2.load(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert resumed.config.diffusion == "masked" and resumed.timestep_embed.weight.abs().sum() == 0
    assert t2.generate(resumed, "The cat", steps=3, length=4, progress=False).trajectory.alpha_bar[0] == 0
    training_run.train(recipe.Recipe(**own(model=own()["output"], output=str(tmp_path / "simplex"), steps=3)))
    assert not hasattr(t2.load(tmp_path / "simplex").config, "diffusion")


def test_an_adapter_is_masked_where_its_base_is_not(own, tmp_path):
    training_run.train(recipe.MaskedRecipe(**own(lora_rank=2, steps=3)))
    assert t2.load(own()["output"]).config.diffusion == "masked"
    merge(own()["output"], tmp_path / "merged")
    assert t2.load(tmp_path / "merged").config.diffusion == "masked"
    changes = {"model": str(tmp_path / "merged"), "output": str(tmp_path / "simplex"), "lora_rank": 2, "steps": 3}
    training_run.train(recipe.Recipe(**own(**changes)))
    assert not hasattr(t2.load(tmp_path / "simplex").config, "diffusion")


def test_recipes_that_make_no_sense(own, tiny):
    with pytest.raises(ValueError, match="self_conditioning is 0.5; masked diffusion has none"):
        recipe.MaskedRecipe(**own(self_conditioning=0.5))
    with pytest.raises(ValueError, match="masking is 'some'; choose one of ul2, prefix, response, all"):
        recipe.MaskedRecipe(**own(masking="some"))
    with pytest.raises(ValueError, match="masking is 'all'; choose one of ul2, prefix, response"):
        recipe.Recipe(**own(masking="all"))
    lm = tiny()
    lm.tokenizer.unk_token = None
    with pytest.raises(ValueError, match="no tokenizer with an <unk>"):
        mask_token_id(lm)


def batch_of(positions=6, prompt=3, rows=1):
    ids = torch.arange(prompt + positions).expand(rows, -1) + 10
    return {"input_ids": ids, "span_mask": (torch.arange(prompt + positions) >= prompt).expand(rows, -1)}


@pytest.mark.parametrize(("positions", "steps", "counts"), [(5, 3, [2, 3, 5]), (3, 5, [1, 1, 2, 2, 3]), (4, 1, [4])])
def test_as_many_are_revealed_as_counted_by_hand(tiny, positions, steps, counts):
    shown = [step.tokens for step in mask_diffusion.denoise(tiny(), batch_of(positions), steps)]
    assert [int((tokens != UNK).sum()) - 3 for tokens in shown] == counts
    for before, after in zip(shown, shown[1:], strict=False):
        assert torch.equal(after[before != UNK], before[before != UNK])  # for good


def test_the_surest_come_first(tiny):
    for step in mask_diffusion.denoise(tiny(), batch_of(6), 3, top_p=None):
        hidden = step.entropy[0] > 0
        new = hidden & (step.tokens[0] != UNK)
        assert int(new.sum()) == 2 and torch.equal(step.tokens[0][new], step.argmax[0][new])
        left = hidden & ~new
        assert not left.any() or step.confidence[0][new].min() >= step.confidence[0][left].max()


def test_what_a_step_says(tiny):
    lm = tiny()
    batch = batch_of(6)
    before = batch["input_ids"].masked_fill(batch["span_mask"], UNK)
    for i, step in enumerate(mask_diffusion.denoise(lm, batch, 4)):
        assert (step.index, step.steps, step.alpha_bar) == (i, 4, i / 4)
        ids, p = step.top(3)
        revealed = before != UNK
        assert torch.equal(ids[..., 0][revealed], before[revealed])
        assert (p[revealed] == torch.tensor([1.0, 0, 0])).all() and (step.entropy[revealed] == 0).all()
        read = torch.cat(
            [torch.zeros(1, 1, lm.config.vocab_size), MistralForCausalLM.forward(lm, input_ids=before).logits[:, :-1]],
            1,
        )
        read[..., UNK] = -torch.inf
        q = read.detach().softmax(-1)[~revealed]
        assert torch.allclose(p[~revealed], q.topk(3).values, atol=1e-5)
        assert torch.allclose(step.entropy[~revealed], -q.xlogy(q).sum(-1), atol=1e-4)
        before = step.tokens
    assert (before != UNK).all()


def test_the_unknown_is_never_revealed(tiny):
    def wish(step):
        step.edit_logits(lambda logits, rows: logits.index_fill(1, torch.tensor([UNK]), 1e4))

    *_, last = mask_diffusion.denoise(tiny(), batch_of(6), 3, hooks=[wish])
    assert (last.tokens != UNK).all()


def test_the_same_text_in_any_batch(tiny):
    lm = tiny(dtype=torch.float64)
    lm.config.diffusion = "masked"
    prompts, settings = ["The cat", "A red ball in the barn was", "x"], {"steps": 4, "length": 7, "progress": False}
    together = t2.generate(lm, prompts, seed=[7, 8, 9], **settings)
    alone = [t2.generate(lm, prompt, seed=7 + i, **settings) for i, prompt in enumerate(prompts)]
    assert [out.token_ids for out in together] == [out.token_ids for out in alone]
    assert t2.generate(lm, prompts[0], seed=8, **settings).token_ids != alone[0].token_ids
    assert torch.equal(together[1].trajectory.tokens, alone[1].trajectory.tokens)


def test_hooks_pin_branch_and_halt(tiny):
    lm = tiny()
    *_, last = mask_diffusion.denoise(lm, batch_of(6), 6, hooks=[Pin({4: 77})])
    assert last.tokens[0, 4] == 77
    plain, branched = (
        [step.tokens for step in mask_diffusion.denoise(lm, batch_of(6), 6, hooks=hooks)]
        for hooks in ([], [Branch(3, seed=9)])
    )
    assert torch.equal(plain[2], branched[2]) and not torch.equal(plain[-1], branched[-1])
    steps = list(mask_diffusion.denoise(lm, batch_of(6), 40, top_p=None, hooks=[Halt(patience=1, entropy=100)]))
    assert len(steps) < 40 and (steps[-1].tokens != UNK).all()  # stopped, and nothing left unsaid


def test_the_explorer_and_all_around_it(tiny, tmp_path):
    lm = tiny()
    lm.config.diffusion = "masked"
    out = t2.generate(lm, "The cat", steps=4, length=6, progress=False)
    assert "<unk>" in out.trajectory.texts[0] and "<unk>" not in out.trajectory.texts[-1]
    assert "step 4 of 4" in explorer(out) and "&lt;unk&gt;" in out._repr_html_()
    out.trajectory.save(tmp_path / "run.safetensors")
    assert torch.equal(Trajectory.load(tmp_path / "run.safetensors").tokens, out.trajectory.tokens)
    assert t2.replay(lm, out, progress=False).token_ids == out.token_ids
    assert t2.infill(lm, "The cat ___ on a mat.", steps=3, progress=False).text.endswith(" on a mat.")
    assert t2.Chat(lm, steps=2, length=4, progress=False)("Who is Tom?").prompt


def test_what_it_cannot_do_gets_a_sentence(tiny):
    lm = tiny()
    lm.config.diffusion = "masked"
    out = t2.generate(lm, "The cat", steps=4, length=6, progress=False)
    with pytest.raises(ValueError, match="start is 2; a masked model has no noise"):
        t2.replay(lm, out, start=2, progress=False)

    with pytest.raises(ValueError, match="This model is one of masked diffusion"):
        t2.generate(lm, "The cat", steps=4, length=6, hooks=[t2.RewardGuidance(small_judge(lm))], progress=False)
    with pytest.raises(ValueError, match="steps is 0"):
        mask_diffusion.denoise(lm, batch_of(), 0)
    torch.nn.init.constant_(lm.lm_head.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="Step 0 produced NaN or inf logits"):
        list(mask_diffusion.denoise(lm, batch_of(), 2, hooks=[lambda step: step.tokens]))


def test_the_simplex_sampler_refuses_a_masked_model():
    lm = t2.load("tinytown-base")
    lm.config.diffusion = "masked"
    with pytest.raises(ValueError, match="masked diffusion; use tess2lite.mask_diffusion.denoise"):
        t2.denoise(lm, {}, 3)
