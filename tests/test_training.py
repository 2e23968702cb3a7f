"""The Trainer around the loss; the loss itself is held to the textbook in parity.py."""

import torch
from datasets import Dataset
from transformers import TrainingArguments

from tess2lite.training import DiffusionTrainer, seeded_noise


def trainer(lm, folder, steps, **settings):
    rows = torch.randint(4, 300, (64, 16), generator=torch.Generator().manual_seed(0))
    rows[:, 0] = 1
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=8, learning_rate=3e-3, logging_steps=1,
        use_cpu=True, report_to=[], save_steps=5, disable_tqdm=True, **settings,
    )  # fmt: skip
    return DiffusionTrainer(
        model=lm,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": rows.tolist()}),
        data_collator=lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])},
    )


def losses(trained):
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


def test_the_loss_falls(tiny, tmp_path):
    trained = trainer(tiny(), tmp_path, 40)
    trained.train()
    seen = losses(trained)
    assert sum(map(float, seen[-10:])) < 0.9 * sum(map(float, seen[:10]))


def test_a_run_is_repeated_and_resumed_to_the_bit(tiny, tmp_path):
    whole = trainer(tiny(), tmp_path / "whole", 10)
    whole.train()
    trainer(tiny(), tmp_path / "parts", 10).train()
    resumed = trainer(tiny(seed=1), tmp_path / "parts", 10)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-5"))
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_noise_belongs_to_seed_step_and_example():
    mask = torch.tensor([[False, True, True], [False, False, True]])

    def rows(seeds, step):
        noise, blocks = seeded_noise(seeds, mask, 50, step)
        return torch.cat([noise(block) for block in blocks])

    assert torch.equal(rows([1, 2], 0), rows([1, 2], 0))
    assert torch.equal(rows([1, 2], 0)[:2], rows([1, 3], 0)[:2])
    assert not torch.equal(rows([1, 2], 0)[:2], rows([1, 2], 1)[:2])
