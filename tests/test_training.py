"""The Trainer around the loss; the loss itself is held to the textbook in parity.py."""

import copy
import math
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainingArguments

from tess2lite import textbook
from tess2lite.loss import diffusion_loss, seeded_noise
from tess2lite.schedule import alpha_bar
from tess2lite.training.checkpoints import cannot_write, last_checkpoint, write_atomically
from tess2lite.training.data import Rows
from tess2lite.training.timesteps import TimestepSampler, reader_without_context, timestep_probabilities
from tess2lite.training.trainer import DiffusionCollator, DiffusionTrainer


def some_rows(n=64, length=16):
    rows = torch.randint(4, 300, (n, length), generator=torch.Generator().manual_seed(0))
    rows[:, 0] = 1
    return rows.tolist()


def trainer(lm, folder, steps, **settings):
    settings = {"per_device_train_batch_size": 8, "learning_rate": 3e-3} | settings
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        **settings,
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        save_steps=5,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    return DiffusionTrainer(
        model=lm,
        args=arguments,
        train_dataset=Rows(some_rows(), 1000, 0),
        eval_dataset=Rows(some_rows(12), 12, 1),
        data_collator=DiffusionCollator("ul2", 42),
    )


def losses(trained):
    return [float(entry["loss"]) for entry in trained.state.log_history if "loss" in entry]


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_loss_falls(tiny, tmp_path):
    trained = trainer(tiny(), tmp_path, 40)
    before = trained.evaluate()["eval_loss"]
    trained.train()
    seen = losses(trained)
    assert sum(seen[-10:]) < 0.95 * sum(seen[:10])
    assert trained.evaluate()["eval_loss"] < before == trainer(tiny(), tmp_path, 1).evaluate()["eval_loss"]


def test_a_run_is_repeated_and_resumed_to_the_bit(tiny, tmp_path):
    whole = trainer(tiny(), tmp_path / "whole", 10)
    whole.train()
    trainer(tiny(), tmp_path / "parts", 10).train()
    resumed = trainer(tiny(seed=1), tmp_path / "parts", 10)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-5"))
    assert same_weights(resumed.model, whole.model) and losses(resumed) == losses(whole)


def test_accumulated_small_batches_are_one_large_batch(tiny, tmp_path):
    """The mean is over the whole batch's masked positions, however it is cut."""
    large = trainer(tiny(), tmp_path / "a", 3)
    large.train()
    small = trainer(tiny(), tmp_path / "b", 3, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    small.train()
    assert losses(small) == pytest.approx(losses(large), rel=1e-5)


def test_evaluation_by_hand(tiny, tmp_path):
    """One timestep of the grid against the textbook, with the same masks and noise."""
    lm = tiny()
    one = trainer(lm, tmp_path, 1)
    batch = DiffusionCollator("ul2", 0)([one.eval_dataset[j] for j in range(12)])
    ids, mask = batch["input_ids"], batch["span_mask"]
    noise, blocks = seeded_noise(0, list(range(12)), mask, lm.config.vocab_size)
    full = torch.zeros(*ids.shape, lm.config.vocab_size)
    full[mask] = torch.cat([noise(block) for block in blocks])
    t = torch.full((12,), 2750)
    logits = textbook.training_logits(lm, ids, mask, t, full, alpha_bar(), conditioned=True)
    assert one.evaluate()["eval_loss_at_2750"] == pytest.approx(textbook.loss(logits, ids, mask).item(), rel=1e-5)


def test_a_notebooks_table_has_no_column_for_each_noise_level(tiny, tmp_path):
    """The losses at noise levels are logged; the callbacks, which draw the table, are given the rest."""
    given = []

    class Table(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **_):
            given.append(dict(metrics))

    one = trainer(tiny(), tmp_path, 1)
    one.add_callback(Table())
    measured = one.evaluate()
    assert [set(metrics) for metrics in given] == [{"eval_loss", "epoch"}]  # "epoch" is the Trainer's own
    assert one.state.log_history[-1]["eval_loss_at_2750"] == measured["eval_loss_at_2750"]


def test_gradients_against_finite_differences(tiny):
    """On a few weights; E is left out, since the soft path leaves it out on purpose. (The norms of the backbone
    compute in float32 even in a float64 model, hence the coarse steps.)"""
    lm = tiny(dtype=torch.float64)
    ids = torch.tensor(some_rows(2, 8))
    mask = torch.arange(8).expand(2, 8) > 2
    noise, blocks = seeded_noise(0, [0, 1], mask, lm.config.vocab_size)
    t = torch.tensor([700, 2500])

    def loss():
        return diffusion_loss(lm, ids, mask, t, lambda rows: noise(rows).double(), blocks, self_condition=False)

    loss().backward()
    for weight in (lm.lm_head.weight, lm.timestep_embed.weight, lm.model.layers[0].self_attn.q_proj.weight):
        gradient = copy.deepcopy(weight.grad)
        place = tuple(int(i) for i in torch.unravel_index(gradient.abs().argmax(), gradient.shape))
        with torch.no_grad():
            weight[place] += 1e-3
            above = loss()
            weight[place] -= 2e-3
            below = loss()
            weight[place] += 1e-3
        assert gradient[place].item() == pytest.approx((above - below).item() / 2e-3, rel=2e-3)


def test_a_loss_that_is_no_number_stops_the_run(tiny, tmp_path):
    lm = tiny()
    torch.nn.init.constant_(lm.lm_head.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="The loss is nan at step 0"):
        trainer(lm, tmp_path, 2).train()


def test_masks_and_times_belong_to_seed_and_example():
    rows = [{"input_ids": row, "example": j} for j, row in enumerate(some_rows(6))]
    together, alone = DiffusionCollator("ul2", 0)(rows), DiffusionCollator("ul2", 0)(rows[3:4])
    assert torch.equal(together["span_mask"][3:4], alone["span_mask"]) and together["t"][3] == alone["t"][0]
    other = DiffusionCollator("ul2", 1)(rows)
    assert not torch.equal(together["t"], other["t"])
    prefixes = DiffusionCollator("prefix", 0)(rows)["span_mask"]
    assert all(row[int(row.nonzero()[0]) :].all() for row in prefixes)
    given = DiffusionCollator("given", 0)([{"input_ids": [1, 5, 6], "span_mask": [0 > 1, 1 > 0, 0 > 1], "example": 0}])
    assert given["span_mask"].tolist() == [[False, True, False]] and given["labels"].tolist() == [[-100, 5, -100]]


def test_noise_belongs_to_seed_and_example():
    mask = torch.tensor([[False, True, True], [False, False, True]])

    def rows(seed, examples):
        noise, blocks = seeded_noise(seed, examples, mask, 50)
        return torch.cat([noise(block) for block in blocks])

    assert torch.equal(rows(0, [1, 2]), rows(0, [1, 2]))
    assert torch.equal(rows(0, [1, 2])[:2], rows(0, [1, 3])[:2])
    assert not torch.equal(rows(0, [1, 2]), rows(1, [1, 2]))
    assert not torch.equal(rows(0, [1, 2])[:2], rows(0, [3, 2])[:2])


def test_several_gpus_need_a_process_each(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="2 GPUs; start it with `accelerate launch`"):
        trainer(tiny(), tmp_path, 1)


def test_a_batch_may_bring_times_weights_and_filler(tiny, tmp_path):
    """By hand: weights scale each position's cross-entropy, and filler changes nothing but the shape."""
    lm = tiny()
    ids = torch.tensor(some_rows(2, 10))
    mask = torch.arange(10).expand(2, 10) > torch.tensor([[3], [5]])
    batch = {"input_ids": ids, "span_mask": mask, "t": torch.tensor([900, 3100]), "example": torch.tensor([4, 9])}
    batch["labels"] = ids.masked_fill(~mask, -100)
    batch["loss_weights"] = torch.rand(2, 10, generator=torch.Generator().manual_seed(0))
    one = trainer(lm, tmp_path, 1)
    one.self_conditioning = 1.0
    weighted = one.compute_loss(lm, batch)

    noise, blocks = seeded_noise(one.args.seed, [4, 9], mask, lm.config.vocab_size)
    full = torch.zeros(*ids.shape, lm.config.vocab_size)
    full[mask] = torch.cat([noise(block) for block in blocks])
    logits = textbook.training_logits(lm, ids, mask, batch["t"], full, alpha_bar(), conditioned=True)
    cross_entropies = -logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    weights = batch["loss_weights"] * mask
    assert weighted.item() == pytest.approx(((weights * cross_entropies).sum() / weights.sum()).item(), rel=1e-5)

    pad = torch.nn.functional.pad
    padded = {name: pad(value, (0, 3)) for name, value in batch.items() if value.dim() == 2}
    padded["labels"] = pad(batch["labels"], (0, 3), value=-100)
    filler = pad(torch.ones_like(ids), (0, 3))
    padded |= {"t": batch["t"], "example": batch["example"], "attention_mask": filler}
    assert one.compute_loss(lm, padded).item() == pytest.approx(weighted.item(), rel=1e-5)


def test_weighted_small_batches_are_one_large_batch(tiny, tmp_path):
    """The mean is over the weights of the whole batch, however it is cut."""

    class Weighted(DiffusionCollator):
        def __call__(self, rows):
            batch = super().__call__(rows)
            batch["loss_weights"] = batch["span_mask"] / (1 + batch["example"][:, None])
            return batch

    seen = []
    for size in (8, 2):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        made = trainer(tiny(), tmp_path / str(size), 3, **settings)
        made.data_collator = Weighted("ul2", 42)
        made.train()
        seen.append(losses(made))
    assert seen[1] == pytest.approx(seen[0], rel=1e-5)


def test_checkpoints_with_weights_that_are_not_finite_are_not_written(tiny, tmp_path):
    """The loss is tested before a step, so that the step which spoils the weights shows in the weights alone."""
    made = trainer(tiny(), tmp_path, 10)
    step = made.training_step

    def spoils(*args, **kwargs):
        loss = step(*args, **kwargs)
        if made.state.global_step == 9:
            made.model.lm_head.weight.grad.fill_(float("nan"))
        return loss

    made.training_step = spoils
    with pytest.raises(
        FloatingPointError, match="The weights are not finite at step 10; what was saved before is whole"
    ):
        made.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert not (tmp_path / "checkpoint-10").exists()


def test_checkpoints_whose_loss_is_not_finite_are_not_written(tiny, tmp_path):
    """Weights so large that a forward pass overflows are finite numbers."""
    made = trainer(tiny(), tmp_path, 5, learning_rate=1e36)
    with pytest.raises(FloatingPointError, match="at step"):
        made.train()
    assert last_checkpoint(tmp_path) is None


def test_a_checkpoint_whose_weights_overflow_is_not_written(tiny, tmp_path):
    """Finite weights, spoiled by the very step that would be saved: no loss has been computed with them yet."""
    made = trainer(tiny(), tmp_path, 10)

    class Spoils(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            if state.global_step == 10:
                model.lm_head.weight.data.fill_(1e38)

    made.add_callback(Spoils())
    with pytest.raises(FloatingPointError, match="The weights give a loss that is not finite at step 10"):
        made.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert not (tmp_path / "checkpoint-10").exists()


def chat_row(prompt, answer, padding, example):
    ids = [1, *range(10, 10 + prompt), *range(40, 40 + answer), 2, *[3] * padding]
    mask = [i > prompt for i in range(len(ids))]
    return {"input_ids": ids, "span_mask": mask, "example": example}


def test_loss_weights_of_answers_and_padding_by_hand():
    rows = [chat_row(3, 1, 6, 0), chat_row(3, 7, 0, 1)]
    weigh = {"pad_id": 3, "pad_weight": 0.5}
    token = DiffusionCollator("given", 0, **weigh)(rows)["loss_weights"]
    assert token[0].tolist() == [0] * 4 + [1, 1] + [0.5] * 6 and token[1].tolist() == [0] * 4 + [1] * 8
    row = DiffusionCollator("given", 0, loss_weighting="row", **weigh)(rows)["loss_weights"]
    assert torch.allclose(row.sum(1), torch.ones(2)) and row[0, 4].item() == pytest.approx(1 / 5)
    root = DiffusionCollator("given", 0, loss_weighting="sqrt", **weigh)(rows)["loss_weights"]
    assert root[0, 4].item() == pytest.approx(5**-0.5) and root[0, 6].item() == pytest.approx(0.5 * 5**-0.5)
    assert "loss_weights" not in DiffusionCollator("given", 0)(rows)


def test_rows_are_as_long_as_needed_except_in_every_fifth_step():
    rows = [chat_row(3, 2, 90, j) for j in range(400)]
    collate = DiffusionCollator("given", 0, pad_id=3, batch_size=4)
    lengths = [collate(rows[start : start + 4])["input_ids"].shape[1] for start in range(0, 400, 4)]
    full = sum(length == 97 for length in lengths)
    assert 10 <= full <= 30 and max(length for length in lengths if length < 97) <= 7 + 16
    short = next(start for start in range(0, 400, 4) if lengths[start // 4] < 97)
    batch, alone = collate(rows[short : short + 4]), collate(rows[short : short + 1])
    length = int(batch["attention_mask"][0].sum()) if "attention_mask" in batch else batch["input_ids"].shape[1]
    assert alone["input_ids"].shape[1] == length and not batch["span_mask"][0, length:].any()


def test_row_weights_are_the_mean_of_the_rows_means(tiny, tmp_path):
    """What the official code computes with one row per forward pass."""
    lm, made = tiny(), trainer(tiny(), tmp_path, 1)
    rows = [chat_row(3, 1, 6, 0), chat_row(3, 7, 0, 1)]
    weighted = made.compute_loss(lm, DiffusionCollator("given", 0, loss_weighting="row")(rows))
    alone = [made.compute_loss(lm, DiffusionCollator("given", 0)([row])) for row in rows]
    assert weighted.item() == pytest.approx((sum(alone) / 2).item(), rel=1e-5)


def test_informative_timesteps_lie_where_the_loss_changes():
    curve = {"t": [0.05, 0.3, 0.5, 0.95], "loss": [0.0, 0.1, 4.1, 4.2]}
    probabilities = timestep_probabilities(1024, curve)
    t = torch.arange(5000) / 5000
    assert probabilities.sum().item() == pytest.approx(1) and probabilities.min() >= 0.15 / 5000 - 1e-12
    window = probabilities[(t >= 0.3) & (t < 0.5)].sum().item()
    assert window == pytest.approx(0.85 * 4 / 4.2 + 0.15 * 0.2, abs=1e-3)
    sampler = TimestepSampler(probabilities)
    drawn = torch.stack([sampler.draw(torch.Generator().manual_seed(i)) for i in range(2000)]) / 5000
    assert ((drawn >= 0.3) & (drawn < 0.5)).float().mean().item() == pytest.approx(window, abs=0.04)
    with pytest.raises(ValueError, match="does not rise with t; set timestep_sampling: uniform"):
        timestep_probabilities(1024, {"t": [0.1, 0.5], "loss": [1.0, 1.0]})


def test_a_reader_without_context_by_its_limits():
    """ln V where nothing is left of the token, 0 where nothing hides it; the step moves to cleaner t as V grows."""
    small, large = reader_without_context(64), reader_without_context(4096)
    assert small["loss"][0] < 1e-3 and small["loss"][-1] == pytest.approx(math.log(64), rel=0.02)

    def middle(curve, vocabulary):
        return next(t for t, loss in zip(curve["t"], curve["loss"], strict=True) if loss > math.log(vocabulary) / 2)

    assert middle(large, 4096) < middle(small, 64)


def test_gradients_are_clipped_per_group(tiny, tmp_path):
    lm = tiny()
    made = trainer(lm, tmp_path, 1, max_grad_norm=1.0)
    made.clip_per_group = True
    for name, weight in lm.named_parameters():
        weight.grad = torch.full_like(weight, 1e3 if "embed_tokens" in name else 1e-6)
    before = lm.model.layers[0].mlp.up_proj.weight.grad.clone()
    made._clip_grad_norm(lm)
    assert torch.equal(lm.model.layers[0].mlp.up_proj.weight.grad, before)
    assert lm.model.embed_tokens.weight.grad.norm().item() == pytest.approx(1, rel=1e-3)


def test_files_are_written_whole_with_the_mode_of_a_users_file(tmp_path, monkeypatch):
    path, plain = tmp_path / "a.json", tmp_path / "plain"
    plain.write_text("x")
    write_atomically(path, "one")
    assert path.stat().st_mode == plain.stat().st_mode

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "two")
    assert path.read_text() == "one" and {file.name for file in tmp_path.iterdir()} == {"a.json", "plain"}


WRITERS = {  # each library's own way to say that a file cannot be written to its end
    "Python": lambda folder, tokenizer: (folder / "a.json").write_text("a" * 10_000),
    "safetensors": lambda folder, tokenizer: save_file({"a": torch.zeros(5_000)}, folder / "a.safetensors"),
    "tokenizers": lambda folder, tokenizer: tokenizer.save_pretrained(folder),
    "torch": lambda folder, tokenizer: torch.save(torch.zeros(5_000), folder / "a.pt"),
}


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_known_by_the_words_of_each_library(library, tmp_path, golden_tokenizer):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(Exception) as problem:  # noqa: B017, PT011
            WRITERS[library](tmp_path, golden_tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert cannot_write(problem.value)
    assert not cannot_write(RuntimeError("CUDA error: an illegal memory access was encountered"))
