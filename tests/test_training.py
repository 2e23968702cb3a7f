"""The Trainer around the loss; the loss itself is held to the textbook in parity.py."""

import copy

import pytest
import torch
from transformers import TrainingArguments

from tess2lite import textbook
from tess2lite.loss import diffusion_loss, seeded_noise
from tess2lite.schedule import alpha_bar
from tess2lite.training.data import Rows
from tess2lite.training.trainer import DiffusionCollator, DiffusionTrainer


def some_rows(n=64, length=16):
    rows = torch.randint(4, 300, (n, length), generator=torch.Generator().manual_seed(0))
    rows[:, 0] = 1
    return rows.tolist()


def trainer(lm, folder, steps, **settings):
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, **({"per_device_train_batch_size": 8} | settings),
        learning_rate=3e-3, logging_steps=1, use_cpu=True, report_to=[], save_steps=5, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    return DiffusionTrainer(
        model=lm, args=arguments, train_dataset=Rows(some_rows(), 1000, 0),
        eval_dataset=Rows(some_rows(12), 12, 1), data_collator=DiffusionCollator("ul2", 42),
    )  # fmt: skip


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
