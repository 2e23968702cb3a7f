"""Recipes as an engineer runs them: from YAML, killed, resumed, on two processes, on 4-bit weights."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import SENTENCES, save_mistral
from datasets import IterableDataset
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralForCausalLM, TrainerCallback

import tess2lite as t2
from tess2lite.tinytown.language import split_sentences
from tess2lite.training import build, card, memory, recipe, rows, trainer
from tess2lite.training import run as training_run
from tess2lite.training.data import document_ids
from tess2lite.training.merge import merge
from tess2lite.training.muon import MuonAdamW
from tess2lite.training.sources import Source, parse_sources
from tess2lite.training.trainer import last_checkpoint

ROOT = Path(__file__).parent.parent


def losses(folder):
    states = sorted(
        Path(folder).glob("checkpoint-*/trainer_state.json"), key=lambda p: int(p.parent.name.split("-")[1])
    )
    return [entry["loss"] for entry in json.loads(states[-1].read_text())["log_history"] if "loss" in entry]


def weights(folder):
    return load_file(next(Path(folder).glob("*model.safetensors")))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def launch(path, *more, launcher=("-m", "tess2lite.train"), **settings):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *launcher, str(path), *more],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **settings,
    )


def test_a_text_file_is_learned_and_the_adapter_loads_everywhere(own, capsys):
    run = training_run.train(recipe.Recipe(**own(steps=60, lora_rank=8, evaluate_every=1)))
    evaluated = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert evaluated[-1] < 0.8 * evaluated[0]
    printed = capsys.readouterr().out
    assert "memory, estimated" in printed and "memory, measured" in printed
    output = own()["output"]
    ours = t2.load(output)
    assert json.loads(Path(output, "adapter_config.json").read_text())["base_model_name_or_path"] == own()["model"]
    plain = PeftModel.from_pretrained(t2.load(own()["model"]), output)
    ids = torch.randint(3, ours.config.vocab_size, (1, 12))
    mask, simplex = torch.arange(12)[None] > 4, torch.randn(1, 12, ours.config.vocab_size)
    with torch.no_grad():
        arguments = (simplex, torch.full((1, 12), 0.5), ids, mask)
        assert torch.allclose(ours.logits_from_simplex(*arguments), plain.logits_from_simplex(*arguments), atol=1e-5)
    assert t2.generate(ours, "The cat", steps=3, length=8, progress=False).text


@pytest.mark.parametrize("embeddings", ["lora", "trained", "frozen"])
def test_four_bit_weights_learn_through_lora(own, embeddings):
    """The path of the 4-bit Mistral, on a tiny one, with gradient checkpointing and accumulation."""
    fields = own(steps=30, lora_rank=8, load_in_4bit=True, gradient_checkpointing=True, micro_batch_size=4)
    run = training_run.train(recipe.Recipe(**fields | {"embeddings": embeddings}))
    seen = losses(fields["output"])
    assert seen[-1] < seen[0]
    trained = [name for name, p in run.model.named_parameters() if p.requires_grad]
    assert any("timestep_embed" in name for name in trained)
    assert any("embed_tokens" in name for name in trained) == (embeddings != "frozen")
    t2.load(fields["output"], load_in_4bit=True)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_killed_run_goes_on_to_the_bit(own, tmp_path, lora_rank):
    """kill −9 in mid-run, and a checkpoint as a kill in mid-save leaves it."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(own(lora_rank=lora_rank)))
    whole = launch(path, f"output={tmp_path / 'whole'}")
    assert whole.wait() == 0, whole.stdout.read()
    run = launch(path)
    for line in run.stdout:
        if "'loss'" in line and last_checkpoint(own()["output"]):
            os.kill(run.pid, signal.SIGKILL)
            break
    assert run.wait() == -signal.SIGKILL
    output = Path(own()["output"])
    unfinished = output / "checkpoint-99"  # as a kill in mid-save leaves it: newest of all, without its mark
    shutil.copytree(last_checkpoint(output), unfinished)
    (unfinished / "complete").unlink()
    next(unfinished.glob("*model.safetensors")).write_bytes(b"cut")
    done = launch(path)
    assert done.wait() == 0, done.stdout.read()
    assert same(weights(output), weights(tmp_path / "whole"))
    assert losses(output) == losses(tmp_path / "whole")


def test_two_processes_are_one(own, tmp_path):
    """`accelerate launch` at equal global batch: the same losses and weights, within float noise."""
    training_run.train(recipe.Recipe(**own(output=str(tmp_path / "one"), steps=8)))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(own(output=str(tmp_path / "two"), steps=8, micro_batch_size=4)))
    launcher = (
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "-m",
        "tess2lite.train",
    )
    done = launch(path, launcher=launcher)
    printed = done.communicate()[0]
    assert done.returncode == 0, printed
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[key], two[key], atol=1e-3) for key in one)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
def test_deepspeed_trains_as_a_plain_run_and_resumes(own, tmp_path, monkeypatch):
    """ZeRO-2 as `accelerate launch` starts it: the same losses, in its own checkpoints."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    training_run.train(recipe.Recipe(**own(output=str(tmp_path / "plain"), steps=8)))
    path = tmp_path / "recipe.yaml"
    config = Path(__file__).parent.parent / "assets" / "deepspeed_zero2.json"
    launcher = ("-m", "accelerate.commands.launch", "--use_deepspeed", "--deepspeed_config_file", str(config))
    launcher += ("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "-m", "tess2lite.train")
    for steps in (4, 8):
        path.write_text(yaml.safe_dump(own(output=str(tmp_path / "sharded"), steps=steps)))
        done = launch(path, launcher=launcher)
        printed = done.communicate()[0]
        assert done.returncode == 0, printed
    assert "resumes from" in printed
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert list((tmp_path / "sharded").glob("checkpoint-*/global_step*"))


def test_named_recipes_are_whole():
    for path in recipe.NAMED.glob("*.yaml"):
        recipe.read_recipe(path.stem)
    mistral = recipe.read_recipe("mistral-7b-nf4", steps=700)
    assert mistral.load_in_4bit and mistral.lora_rank and mistral.steps == 700


def test_the_memory_estimate_counts_what_is_loaded(own, tmp_path):
    """Weights and adapters to the number, against the loaded model."""
    made = recipe.Recipe(**own(lora_rank=8))
    prepared = build.build_trainer(made)
    base = prepared.model.get_base_model()
    parts = memory.estimate(base.config, made, "cpu", 4)
    adapters = sum(p.numel() for name, p in prepared.model.named_parameters() if "lora_" in name)
    assert parts["adapters"] == pytest.approx(4 * adapters / 1e9)
    frozen = sum(p.numel() for name, p in prepared.model.named_parameters() if "base_layer" in name)
    assert parts["weights"] == pytest.approx(4 * frozen / 1e9)


MISTAKES = [
    ({"stepz": 3}, "knows no field 'stepz'"),
    ({"steps": -1}, "steps is -1"),
    ({"steps": "many"}, "steps is 'many'"),
    ({"masking": "mlm"}, "masking is 'mlm'"),
    ({"load_in_4bit": True}, "load_in_4bit needs LoRA"),
    ({"self_conditioning": 2}, "self_conditioning is 2"),
    ({"micro_batch_size": 3}, "do not divide"),
    ({"length": 100, "lora_rank": 4}, "the context of"),
    ({"length": 60, "data": "one line"}, "at least 5 are needed"),
    ({"data": ""}, "holds no text"),
    ({"data": "\x00\x01"}, "binary data"),
    ({"warmup": 20}, "warmup is 20 of 20 steps"),
    ({"column": "story"}, "column is 'story', but '.*' is read without columns"),
    ({"warmup": -1}, "warmup is -1; give 0 or more"),
    ({"lora_rank": -3}, "lora_rank is -3; give 0 or more"),
    ({"lora_rank": 0, "embeddings": "frozen"}, "embeddings is 'frozen', but without LoRA all is trained"),
    ({"seed": -1}, "seed is -1; give 0 or more"),
    ({"length": 1}, "length is 1; give 2 or more"),
    ({"learning_rate": 0.0}, "learning_rate is 0"),
    ({"learning_rate": float("nan")}, "learning_rate is nan; give a number above 0"),
    ({"kind": ["ar"]}, "a recipe has one of denoiser, masked"),
    ({"output": "/proc/nowhere"}, "Nothing can be written"),
    ({"model": "tinytown-bose"}, "There is no model"),
    ({"steps": 0, "epochs": 1, "warmup": 5000}, "warmup is 5000 of .* steps, as many as epochs=1 gives"),
    ({"early_stopping_patience": 1, "save_every": 5}, "save_every that is a multiple of evaluate_every"),
    ({"report_to": "tensorbord"}, "report_to is 'tensorbord': tensorbord is not supported, only"),
    ({"optim": "muon", "lora_rank": 4}, "optim is 'muon', which trains whole matrices, and lora_rank is 4"),
    ({"optim": "mion"}, "optim is 'mion'; give 'muon' or transformers' name of an optimizer"),
    ({"optim": "galore_adamw"}, "optim is 'galore_adamw': You need to install"),
]


@pytest.mark.parametrize(("mistake", "sentence"), MISTAKES)
def test_mistakes_get_a_sentence(own, tmp_path, mistake, sentence):
    fields = own(**mistake)
    if "data" in mistake:
        fields["data"] = str(tmp_path / "bad.txt")
        Path(fields["data"]).write_text(mistake["data"])
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    with pytest.raises(ValueError, match=sentence):
        training_run.main([str(path)])


FULL_TUNING = {
    "learning_rate": 1e-3,
    "scheduler": "linear",
    "warmup": 2,
    "optim": "adafactor",
    "weight_decay": 0.5,
    "max_grad_norm": 0.01,
    "clip_per_group": True,
    "seed": 1,
    "batch_size": 16,
    "length": 12,
    "masking": "prefix",
    "loss_weighting": "row",
    "timestep_sampling": "informative",
    "self_conditioning": 1.0,
    "center_embeddings": True,
    "bf16": True,
}
WITH_LORA = {
    "lora_rank": 3,
    "lora_alpha": 8,
    "lora_dropout": 0.5,
    "lora_targets": ["q_proj"],
    "load_in_4bit": True,
    "dtype": "bfloat16",
    "embeddings": "frozen",
}


@pytest.mark.parametrize("changes", [FULL_TUNING, WITH_LORA], ids=["full tuning", "LoRA"])
def test_each_field_changes_what_is_trained(own, changes):
    """Against the same three steps without it, which repeat exactly."""
    common = {"steps": 3, "warmup": 1, "evaluate_every": 100, "save_every": 100}
    common |= {"lora_rank": 2} if changes is WITH_LORA else {}

    def trained(**fields):
        run = build.build_trainer(recipe.Recipe(**own(**common | fields)))
        run.train()
        return {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}

    plain = trained()
    assert same(plain, trained())
    without_effect = [name for name, value in changes.items() if same(plain, trained(**{name: value}))]
    assert not without_effect


def test_a_folder_belongs_to_one_recipe(own):
    training_run.train(recipe.Recipe(**own(steps=5)))
    before = weights(own()["output"])
    with pytest.raises(ValueError, match="holds a run with seed 0, this recipe says 1"):
        training_run.train(recipe.Recipe(**own(seed=1)))
    assert same(before, weights(own()["output"]))


def test_a_run_is_not_shortened_and_not_gone_on_with_on_other_data(own, capsys):
    training_run.train(recipe.Recipe(**own(steps=6)))
    with pytest.raises(ValueError, match="has reached step 6; steps=5 asks for less"):
        training_run.train(recipe.Recipe(**own(steps=5)))
    training_run.train(recipe.Recipe(**own(steps=6)))
    assert "already reached step 6" in capsys.readouterr().out
    with Path(own()["data"]).open("a") as file:
        file.write("One sentence more.")
    with pytest.raises(ValueError, match="holds a run with data_sha256"):
        training_run.train(recipe.Recipe(**own(steps=9)))


def test_checkpoints_of_an_unknown_run_are_left_alone(own):
    build.build_trainer(recipe.Recipe(**own(steps=5))).train()
    with pytest.raises(ValueError, match="holds a run with model None"):
        training_run.train(recipe.Recipe(**own(steps=9)))


def test_a_full_gpu_and_an_interrupt_end_with_a_sentence(own, tmp_path, monkeypatch, capsys):
    def fails(error):
        def raises(*_, **__):
            raise error

        return raises

    monkeypatch.setattr(trainer.DiffusionTrainer, "train", fails(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(ValueError, match="memory is full. Give micro_batch_size=1"):
        training_run.train(recipe.Recipe(**own()))
    monkeypatch.setattr(trainer.DiffusionTrainer, "train", fails(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        training_run.train(recipe.Recipe(**own()))
    assert "Interrupted at step 0; run it again" in capsys.readouterr().out


def test_tinytowns_held_out_rows_were_never_read(monkeypatch):
    """By the bundled models either, which have read the whole train split."""
    monkeypatch.setattr(rows, "TINYTOWN_TEXTS", 500)
    lm = t2.load("tinytown-ar")
    made = recipe.Recipe(
        model="tinytown-ar", data="tinytown", output="x", length=64, steps=9, warmup=1, num_eval_examples=4
    )
    train_rows, held_out = build.build_datasets(made, lm.tokenizer)
    read = " ".join(rows.texts(made, Source("tinytown")))
    sentences = [s for row in held_out for s in split_sentences(lm.tokenizer.decode(row["input_ids"]))[1:-1]]
    assert len(held_out) == 4 and sum(s in read for s in sentences) < len(sentences)
    assert all(row["input_ids"] not in train_rows.rows for row in held_out)


FULL = [  # what a full disk really raises: from Python, safetensors, tokenizers, torch.save
    OSError(28, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_loses_nothing(own, monkeypatch, error):
    training_run.train(recipe.Recipe(**own(steps=5)))

    def full(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(ValueError, match="failed.*resumes from .*checkpoint-5"):
            training_run.train(recipe.Recipe(**own(steps=15)))
    training_run.train(recipe.Recipe(**own(steps=15)))
    assert last_checkpoint(own()["output"]).endswith("checkpoint-15")


def test_nothing_of_others_is_deleted_and_other_errors_keep_their_name(own, monkeypatch):
    foreign = Path(own()["output"]) / "checkpoint-500"
    foreign.mkdir(parents=True)
    (foreign / "model.safetensors").write_bytes(b"somebody's")

    def broken(*_, **__):
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(trainer.DiffusionTrainer, "train", broken)
        with pytest.raises(ConnectionResetError):
            training_run.train(recipe.Recipe(**own(steps=5)))
    assert (foreign / "model.safetensors").read_bytes() == b"somebody's"


def test_what_yaml_takes_for_a_word_is_a_number(own, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(own()).replace("learning_rate: 0.003", "learning_rate: 1e-4"))
    assert recipe.read_recipe(path).learning_rate == 1e-4


def test_an_adapter_is_merged_into_its_base(own, tmp_path):
    trained = training_run.train(recipe.Recipe(**own(lora_rank=4, steps=4))).model.eval()
    assert all("lora_" in name or "timestep" in name for name in weights(tmp_path / "run"))  # none of the base's own
    merge(tmp_path / "run", tmp_path / "whole")
    whole = t2.load(tmp_path / "whole")
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        one, two = (m.hidden_states(m.embedding_matrix()[ids], None) for m in (whole, trained.base_model.model))
        untouched = t2.load(tmp_path / "ar")
        before = untouched.hidden_states(untouched.embedding_matrix()[ids], None)
    assert torch.allclose(one, two, atol=1e-4) and not torch.allclose(one, before, atol=1e-3)
    assert len(whole.tokenizer) == whole.config.vocab_size and not hasattr(whole, "peft_config")
    with pytest.raises(ValueError, match="exists already"):
        merge(tmp_path / "run", tmp_path / "whole")
    with pytest.raises(ValueError, match="not an adapter"):
        merge(tmp_path / "whole", tmp_path / "again")


def test_merging_unties_what_has_learned_apart(own, tmp_path, mistral_like_tokenizer):
    """Small Llamas share one matrix between embeddings and head; a LoRA on each makes two of it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(mistral_like_tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    mistral_like_tokenizer.save_pretrained(tmp_path / "tied")
    training_run.train(recipe.Recipe(**own(model=str(tmp_path / "tied"), lora_rank=4, learning_rate=3e-2)))
    merge(tmp_path / "run", tmp_path / "whole")
    ids, outputs = torch.arange(4, 12)[None], []
    for lm in (t2.load(tmp_path / "run"), t2.load(tmp_path / "whole")):
        with torch.no_grad():
            outputs.append(lm.head(lm.hidden_states(lm.embedding_matrix()[ids], None)))
    assert torch.allclose(*outputs, atol=1e-4)


@pytest.mark.parametrize("embeddings", ["lora", "trained"])
def test_what_is_merged_is_as_precise_as_its_base(own, tmp_path, embeddings):
    """A 7 B model of 15 GB is not to become one of 29; the adapter is still in it."""
    base = MistralForCausalLM.from_pretrained(own()["model"], dtype=torch.bfloat16)
    base.save_pretrained(own()["model"])
    training_run.train(recipe.Recipe(**own(lora_rank=4, embeddings=embeddings, learning_rate=3e-2)))
    merge(tmp_path / "run", tmp_path / "whole")
    assert {tensor.dtype for tensor in weights(tmp_path / "whole").values()} == {torch.bfloat16}
    ids, outputs = torch.arange(4, 12)[None], []
    for folder in ("run", "whole", "ar"):
        lm = t2.load(tmp_path / folder)
        with torch.no_grad():
            outputs.append(lm.head(lm.hidden_states(lm.embedding_matrix()[ids], None)).softmax(-1))
    adapted, merged, untouched = outputs
    assert (merged - adapted).abs().max() < 0.05 * (untouched - adapted).abs().max()


def test_an_adapter_is_not_trained_on(own, tmp_path):
    training_run.train(recipe.Recipe(**own(steps=3, lora_rank=2, save_every=1)))
    with pytest.raises(ValueError, match="is an adapter; merge it"):
        training_run.train(recipe.Recipe(**own(model=own()["output"], output=str(tmp_path / "more"))))


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(ValueError, match="There is no recipe 'nothing'.*mistral-7b-nf4"):
        recipe.read_recipe("nothing")
    path = tmp_path / "bad.yaml"
    for content, sentence in (("- a", "holds no recipe"), ("a: [", "holds no recipe"), ("model: x", "lacks 'data'")):
        path.write_text(content)
        with pytest.raises(ValueError, match=sentence):
            recipe.read_recipe(path)
    with pytest.raises(ValueError, match="knows no field 'source'"):
        training_run.main(["own-text", "source=x"])
    with pytest.raises(ValueError, match="write field=value"):
        training_run.main([str(path), "steps"])
    with pytest.raises(ValueError, match="Give a recipe"):
        training_run.main([])


def test_a_lora_run_follows_from_its_seed(own):
    drawn = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # whatever went before
        model = build.build_trainer(recipe.Recipe(**own(lora_rank=4))).model
        drawn.append({name: p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name})
    assert drawn[0] and all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


def streamed(monkeypatch, columns=("text",)):
    """The hub, as far as a recipe sees it: a streamed dataset of the sentences."""

    def records():
        for i in range(300):
            yield {columns[0]: SENTENCES[i % 3]}

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: IterableDataset.from_generator(records))


def test_a_streamed_run_resumes_where_it_was(own, tmp_path, monkeypatch):
    streamed(monkeypatch)
    sizes = {"data": "someone/texts", "steps": 6, "save_every": 3, "evaluate_every": 6}
    training_run.train(recipe.Recipe(**own(**sizes, output=str(tmp_path / "whole"))))
    training_run.train(recipe.Recipe(**own(**sizes | {"steps": 3})))
    training_run.train(recipe.Recipe(**own(**sizes)))
    assert same(weights(own()["output"]), weights(tmp_path / "whole"))


def test_a_streamed_set_without_the_column(own, monkeypatch):
    streamed(monkeypatch, columns=("content",))
    with pytest.raises(ValueError, match="'someone/texts' has no text in column 'text'; it has: content"):
        training_run.train(recipe.Recipe(**own(data="someone/texts")))


def test_a_streamed_set_of_which_nothing_is_left_to_train_on(own, monkeypatch):
    streamed(monkeypatch)
    made, tokenizer = recipe.Recipe(**own(data="someone/texts")), t2.load(own()["model"]).tokenizer
    tokens = sum(len(document_ids(tokenizer, SENTENCES[i % 3])) for i in range(300))
    with pytest.raises(ValueError, match="rows of 16 tokens; at least .* are needed"):
        build.build_datasets(replace(made, num_eval_examples=tokens // 16), tokenizer)


def test_a_loss_that_breaks_down_keeps_the_last_checkpoint(own, monkeypatch):
    whole = trainer.DiffusionTrainer.compute_loss

    def breaks(self, *args, **kwargs):
        loss = whole(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 7 else loss

    monkeypatch.setattr(trainer.DiffusionTrainer, "compute_loss", breaks)
    with pytest.raises(FloatingPointError, match="nan at step 8; what was saved before is whole"):
        training_run.train(recipe.Recipe(**own()))
    assert last_checkpoint(own()["output"]).endswith("checkpoint-5")


@pytest.mark.parametrize("embeddings", ["lora", "trained", "frozen"])
def test_an_adapter_on_a_base_with_another_vocabulary(own, tmp_path, embeddings):
    training_run.train(
        recipe.Recipe(**own(steps=3, lora_rank=4, embeddings=embeddings, save_every=3, evaluate_every=3))
    )
    config = json.loads((Path(own()["output"]) / "adapter_config.json").read_text())
    base = tmp_path / "other"
    save_mistral(base, t2.load("tinytown-base").tokenizer)
    (Path(own()["output"]) / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(base)})
    )
    for use in (lambda: t2.load(own()["output"]), lambda: merge(own()["output"], tmp_path / "merged")):
        with pytest.raises(ValueError, match="another tokenizer than its base|made on a vocabulary of"):
            use()


def test_merging_to_where_nothing_can_be_written(own, capsys):
    training_run.train(recipe.Recipe(**own(steps=3, lora_rank=4, save_every=3, evaluate_every=3)))
    with pytest.raises(ValueError, match="Nothing can be written to '/proc/x/y'"):
        merge(own()["output"], "/proc/x/y")


def test_a_disk_full_from_the_start_gets_a_sentence(own, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_run, "write_atomically", full)
    with pytest.raises(ValueError, match="make room and run it again: it resumes from the start"):
        training_run.train(recipe.Recipe(**own()))


FREE_CHANGES = {"micro_batch_size": 4, "gradient_checkpointing": True, "evaluate_every": 7, "save_every": 7}


def test_what_does_not_change_the_result_may_change_on_resume(own, tmp_path):
    """The advice after an out-of-memory error can be followed, and ends in the same weights."""
    sizes = {"steps": 10, "batch_size": 8}
    training_run.train(recipe.Recipe(**own(**sizes, output=str(tmp_path / "straight"))))
    training_run.train(recipe.Recipe(**own(**sizes | {"steps": 5})))
    training_run.train(recipe.Recipe(**own(**sizes | FREE_CHANGES)))
    one, other = weights(own()["output"]), weights(tmp_path / "straight")
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


@pytest.mark.parametrize("changes", [{"scheduler": "linear"}, {"scheduler": "cosine", "warmup": 0.1}, {"warmup": 0.1}])
def test_a_schedule_that_follows_from_the_steps_is_not_extended(own, changes):
    training_run.train(recipe.Recipe(**own(steps=5, **changes)))
    with pytest.raises(ValueError, match="holds a run with steps 5, this recipe says 9, and its .* schedule follows"):
        training_run.train(recipe.Recipe(**own(steps=9, **changes)))


def test_the_scheduler_and_epochs_of_a_recipe(own):
    """Rates by hand; steps from the number of rows."""
    made = build.build_trainer(recipe.Recipe(**own(steps=0, epochs=2, scheduler="linear", warmup=0.1)))
    steps = round(2 * len(made.train_dataset.rows) / 8)
    assert made.args.max_steps == steps == len(made.train_dataset) // 8
    made.create_optimizer_and_scheduler(steps)
    rates = []
    for _ in range(steps):
        rates.append(made.lr_scheduler.get_last_lr()[0])
        made.optimizer.step()
        made.lr_scheduler.step()
    warm = -(-steps // 10)
    expected = [3e-3 * (s / warm if s < warm else (steps - s) / (steps - warm)) for s in range(steps)]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_a_run_says_what_it_needs_where_it_resumes_and_keeps_a_log(own, capsys):
    training_run.train(recipe.Recipe(**own(steps=6)))
    printed = capsys.readouterr().out
    assert "memory, estimated" in printed and "free" in printed and "resumes" not in printed
    training_run.train(recipe.Recipe(**own(steps=18)))
    printed = capsys.readouterr().out
    assert "resumes from" in printed and "checkpoint-6" in printed and "tokens per second; about" in printed
    lines = (Path(own()["output"]) / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)]
    assert steps == sorted(set(steps)) and steps[-1] == 18


def test_a_run_that_cannot_fit_stops_before_it_loads(own, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 0.1)
    monkeypatch.setattr(build, "load", None)
    with pytest.raises(ValueError, match=r"needs about 0.6 GB, and the computer has 0.1 GB free; give micro_batch"):
        training_run.train(recipe.Recipe(**own()))


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_best_checkpoint_is_kept_and_a_run_stops_early(own, monkeypatch, lora_rank):
    """Also where it was interrupted on the way: how long the loss has not fallen is not forgotten."""
    falls = {5: 3.0, 10: 1.0, 15: 2.0, 20: 2.5, 25: 2.6}
    monkeypatch.setattr(
        trainer.DiffusionTrainer, "_measure", lambda self, rows: {"loss": falls[self.state.global_step]}
    )
    fields = own(steps=30, evaluate_every=5, save_every=5, early_stopping_patience=2, lora_rank=lora_rank)
    for stop in (16, None):
        with monkeypatch.context() as patch:
            patch.setattr(trainer.DiffusionTrainer, "compute_loss", interrupted_at(stop))
            if stop:
                with pytest.raises(KeyboardInterrupt):
                    training_run.train(recipe.Recipe(**fields))
            else:
                run = training_run.train(recipe.Recipe(**fields))
    assert run.state.global_step == 20 and run.state.best_metric == 1.0
    again = training_run.train(recipe.Recipe(**fields))  # to push it, say
    assert again.state.global_step == 21
    best = weights(Path(fields["output"]) / "checkpoint-10")
    assert same(weights(fields["output"]), best)
    assert not same(weights(Path(fields["output"]) / "checkpoint-20"), best)


def test_an_8_bit_optimizer_keeps_its_averages_in_bytes_and_resumes(own, monkeypatch):
    """bitsandbytes' AdamW, through the Trainer's own field, on matrices large enough for it."""
    fields = own(steps=6, evaluate_every=100, save_every=2, optim="adamw_bnb_8bit", learning_rate=1e-2)
    whole = training_run.train(recipe.Recipe(**fields | {"output": fields["output"] + "-whole"}))
    averages = [state["state1"] for state in whole.optimizer.optimizer.state.values()]
    assert {values.dtype for values in averages if values.numel() >= 4096} == {torch.uint8}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.DiffusionTrainer, "compute_loss", interrupted_at(5))
        training_run.train(recipe.Recipe(**fields))
    training_run.train(recipe.Recipe(**fields))
    assert same(weights(fields["output"]), weights(fields["output"] + "-whole"))
    plain = training_run.train(
        recipe.Recipe(**fields | {"output": fields["output"] + "-plain", "optim": "adamw_torch"})
    )
    assert not same(weights(plain.args.output_dir), weights(fields["output"]))


@pytest.mark.parametrize("kind", [recipe.Recipe, recipe.PretrainingRecipe])
def test_muon_is_what_it_is_by_hand_and_resumes(own, monkeypatch, kind):
    """Two steps beside MuonAdamW on the same gradients; the others' rate is a quarter all along the schedule."""
    fields = own(steps=6, scheduler="linear", warmup=2, evaluate_every=100, save_every=2, optim="muon")
    run = build.build_trainer(kind(**fields | {"output": fields["output"] + "-whole"}))
    by_hand = copy.deepcopy(run.model)
    optimizer = MuonAdamW(by_hand, 1.0, weight_decay=0.0)
    rates = []

    def imitate(trained, *args, **settings):
        matrices, others = trained.optimizer.param_groups
        rates.append(matrices["lr"])
        assert others["lr"] == matrices["lr"] / 4
        for weight, other in zip(run.model.parameters(), by_hand.parameters(), strict=True):
            other.grad = weight.grad.clone()
        for mine, theirs in zip(optimizer.param_groups, trained.optimizer.param_groups, strict=True):
            mine["lr"] = theirs["lr"]
        optimizer.step()

    run.add_callback(type("Imitation", (TrainerCallback,), {"on_pre_optimizer_step": lambda *_, **__: imitate(run)})())
    run.train()
    assert rates == pytest.approx([0, 1.5e-3, 3e-3, 2.25e-3, 1.5e-3, 0.75e-3])
    assert same(dict(run.model.named_parameters()), dict(by_hand.named_parameters()))
    run.save_model()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        owner = build.DiffusionTrainer if kind is recipe.Recipe else build.PretrainingTrainer
        patch.setattr(owner, "compute_loss", interrupted_at(5))
        training_run.train(kind(**fields))
    training_run.train(kind(**fields))
    assert same(weights(fields["output"]), weights(fields["output"] + "-whole"))


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_muon_wants_whole_matrices(own, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=f"needs whole matrices, and {name} cuts them; leave optim out"):
        build.check_run(recipe.Recipe(**own(optim="muon")))


def interrupted_at(step):
    """`compute_loss`, but at a step somebody presses Ctrl-C."""
    original = trainer.DiffusionTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    return compute_loss


def test_the_card_is_complete_and_names_no_path(own, tmp_path):
    training_run.train(recipe.Recipe(**own(steps=5, lora_rank=4, evaluate_every=5)))
    text = (Path(own()["output"]) / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["library_name"] == "peft" and header["pipeline_tag"] == "text-generation"
    assert "| 5 |" in text and "lora_rank: 4" in text and "tess2lite" in text
    assert str(tmp_path) not in text
    hub = recipe.Recipe(model="someone/base", data="someone/texts", output="x", push_to_hub="me/mine")
    header = yaml.safe_load(card.card_text(hub, []).split("---")[1])
    assert header["base_model"] == "someone/base" and header["datasets"] == ["someone/texts"]
    assert "t2.load('me/mine')" in card.card_text(hub, [])
    cached = tmp_path / "models--someone--base" / "snapshots" / "0123abcd"
    cached.mkdir(parents=True)
    text = card.card_text(replace(hub, model=str(cached)), [])
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "someone/base" and str(tmp_path) not in text


def test_help_lists_every_field_with_its_default(capsys):
    training_run.main(["--help"])
    printed = capsys.readouterr().out
    for kind, training in recipe.TRAININGS.items():
        assert f"kind: {kind}" in printed
        for name in training.__dataclass_fields__:
            assert name == "DEFAULT_STEPS" or f"  {name} " in printed
    assert "112" in printed and "smollm2-135m" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("  data ")]
    value = recipe.value_of(line[line.index("[") :])
    assert {name for entry in value for name in entry} == {*Source.__dataclass_fields__}
    assert len(parse_sources(value)) == 2
    assert "of the learning rate; the paper's, for adaptation; one of constant, constant_with_warmup, linear" in printed


def test_the_lora_of_embeddings_has_their_size(own):
    """PEFT draws it from N(0, 1), hundreds of times too large for some models."""
    model = build.build_trainer(recipe.Recipe(**own(lora_rank=16))).model
    embedding = model.get_base_model().model.embed_tokens
    factor = embedding.lora_embedding_B["default"]
    rms = embedding.base_layer.weight.square().mean().sqrt()
    assert factor.square().mean().sqrt().item() == pytest.approx(rms.item(), rel=0.2)


def test_lora_fields_reach_peft(own):
    fields = own(lora_rank=4, lora_alpha=8, lora_dropout=0.1, lora_targets=["q_proj"], embeddings="frozen")
    config = build.build_trainer(recipe.Recipe(**fields)).model.peft_config["default"]
    assert (config.lora_alpha, config.lora_dropout, set(config.target_modules)) == (8, 0.1, {"q_proj"})
    with pytest.raises(ValueError, match="lora_targets names 'wq'; .* has down_proj, gate_proj"):
        build.build_trainer(recipe.Recipe(**own(lora_rank=4, lora_targets=["wq"])))


def test_the_attention_of_a_recipe(own):
    lm = build.build_trainer(recipe.Recipe(**own(attn_implementation="eager"))).model
    assert lm.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="attn_implementation is 'fast'"):
        build.build_trainer(recipe.Recipe(**own(attn_implementation="fast")))


def test_a_finished_run_knows_where_its_loss_changes(own):
    """For informative timesteps, in sampling and in training that starts from it; also through an adapter."""
    for changes in ({}, {"lora_rank": 4, "output": own()["output"] + "-lora"}):
        fields = own(steps=4, evaluate_every=2, **changes)
        training_run.train(recipe.Recipe(**fields))
        curve = t2.load(fields["output"]).config.loss_curve
        assert curve["t"][0] == 0.05 and len(curve["loss"]) == len(trainer.GRID)
    tuned = own(model=own()["output"], output=own()["output"] + "-more", timestep_sampling="informative", steps=3)
    made = build.build_trainer(recipe.Recipe(**tuned))
    assert made.data_collator.timesteps is not None
    made.train()


def test_a_model_that_samples_by_its_curve_keeps_no_other_that_never_rises(own, monkeypatch):
    """Sampling could not take its steps by it."""
    made = build.build_trainer(recipe.Recipe(**own()))
    made.model.config.timestep_spacing = "informative"
    falling = iter(range(len(trainer.GRID), 0, -1))
    monkeypatch.setattr(made, "_mean_loss", lambda rows, collate: float(next(falling)))
    made.evaluate()
    assert made._loss_curve is None


@pytest.mark.parametrize("fields", [{"lora_rank": 2}, {"lora_rank": 2, "embeddings": "trained"}], ids=str)
def test_centered_embeddings(own, fields):
    """A uniform p reads as nothing, distances between rows stay, and so does what the head says."""
    plain = build.build_trainer(recipe.Recipe(**own(**fields))).model
    centered = build.build_trainer(recipe.Recipe(**own(center_embeddings=True, **fields))).model
    before, after = plain.embedding_matrix(), centered.embedding_matrix()
    assert before.mean(0).abs().max() > 1e-3
    assert centered.soft_embedding().uniform.abs().max() < 1e-6
    assert torch.allclose(after - after[:1], before - before[:1], atol=1e-5)
    hidden = torch.randn(3, before.shape[1])
    assert torch.equal(centered.head(hidden), plain.head(hidden))


@pytest.mark.parametrize("tied", [False, True])
def test_clean_page_has_the_length_of_tokens_in_full_tuning(own, tied):
    """A first look at a token without noise is its row without the mean row; what the model says stays."""
    base = MistralForCausalLM.from_pretrained(own()["model"], tie_word_embeddings=tied)
    base.save_pretrained(own()["model"])
    plain = build.build_trainer(recipe.Recipe(**own())).model
    centered = build.build_trainer(recipe.Recipe(**own(center_embeddings=True))).model
    E = plain.embedding_matrix()
    tokens = torch.tensor([5, 9, 30])
    clean = 10 * F.one_hot(tokens, len(E)).float()
    first_look = (centered.soft_embedding()(clean.softmax(1)) + centered.soft_embedding().uniform) / 2
    assert torch.allclose(first_look, E[tokens] - E.mean(0), atol=1e-5)
    hidden = torch.randn(3, E.shape[1])
    before, after = (lm.head(lm.base_model.norm(hidden)).log_softmax(1) for lm in (plain, centered))
    assert torch.allclose(before, after, atol=1e-5)


def test_centered_embeddings_are_saved_with_an_adapter(own, tmp_path):
    fields = own(lora_rank=2, steps=1, warmup=0, learning_rate=1e-9, center_embeddings=True)
    training_run.train(recipe.Recipe(**fields))
    assert t2.load(tmp_path / "run").soft_embedding().uniform.abs().max() < 1e-6


def test_frozen_embeddings_are_not_centered(own):
    with pytest.raises(ValueError, match="center_embeddings changes E, but embeddings is 'frozen'"):
        recipe.Recipe(**own(lora_rank=2, embeddings="frozen", center_embeddings=True))
