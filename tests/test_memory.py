"""The memory that a run is said to need, beside what one took: on this CPU, in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import MistralConfig, MistralForCausalLM

from tess2lite.training import memory
from tess2lite.training.muon import MuonAdamW
from tess2lite.training.recipe import Recipe, read_recipe

ROOT = Path(__file__).parent.parent
SIZES = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
SETTINGS = {
    "all weights": {},
    "long rows": {"length": 256, "micro_batch_size": 8, "batch_size": 8},
    "LoRA": {"lora_rank": 16, "length": 128},
}

# What glibc keeps of freed memory differs by a fifth from run to run; so it gives all of it back at once.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"} | GIVEN_BACK


@pytest.fixture(scope="module")
def base(tmp_path_factory, mistral_like_tokenizer):
    """A model of 27 million weights with a vocabulary of 8,000, so that what it takes shows beside Python itself."""
    folder = tmp_path_factory.mktemp("base")
    config = MistralConfig(
        vocab_size=8000, num_key_value_heads=8, max_position_embeddings=512, sliding_window=None, **SIZES
    )
    MistralForCausalLM(config).to(torch.float32).save_pretrained(folder)
    mistral_like_tokenizer.save_pretrained(folder)
    (folder / "own.txt").write_text("The cat and the dog sat in the barn. " * 3000)
    return folder


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_estimate_is_what_a_run_takes(base, tmp_path, setting):
    """Within 15 percent of the process's peak."""
    fields = {
        "model": str(base),
        "data": str(base / "own.txt"),
        "output": str(tmp_path / "run"),
        "length": 64,
        "steps": 2,
        "batch_size": 4,
        "micro_batch_size": 4,
        "warmup": 0,
        "num_eval_examples": 1,
        "evaluate_every": 2,
        "save_every": 2,
        "self_conditioning": 1.0,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields | SETTINGS[setting]))
    estimated, measured = estimated_and_measured(path)
    print(f"{setting}: estimated {estimated}, measured {measured} GB")
    assert estimated == pytest.approx(measured, rel=0.15)


def estimated_and_measured(*arguments):
    """GB that a run says before and after."""
    done = subprocess.run(
        [sys.executable, "-m", "tess2lite.train", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    estimated = re.search(r"together +([\d.]+) GB", done.stdout)[1]
    measured = re.search(r"measured: ([\d.]+) GB", done.stdout)[1]
    return float(estimated), float(measured)


def test_muon_keeps_one_average_of_each_matrix():
    config = MistralConfig(vocab_size=400, num_key_value_heads=8, **SIZES)
    model = MistralForCausalLM(config)
    ids = torch.arange(12)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer = MuonAdamW(model, 1e-3)
    optimizer.step()
    kept = sum(4 * tensor.numel() for state in optimizer.state.values() for tensor in state.values())
    recipe = Recipe(model="x", data="x", output="x", optim="muon")
    assert memory.estimate(config, recipe, "cpu", 4)["optimizer"] * memory.GB == pytest.approx(kept, rel=0.01)


def test_a_small_process_of_a_large_one_says_its_own_peak():
    large = b"x" * 2_000_000_000
    script = (
        "import torch; from tess2lite.training.memory import measured_peak; print(measured_peak(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.1 < float(done.stdout) < 1.5 < len(large) / memory.GB


@pytest.mark.parametrize("length", [512, 2048])
def test_the_estimate_is_little_more_than_a_gpu_took(length):
    """For one row of which all is masked; half of it was, when the peak was measured."""
    recipe = read_recipe("mistral-7b-nf4", length=length, micro_batch_size=1, gradient_checkpointing=True)
    estimated = sum(memory.estimate(MistralConfig(vocab_size=32_001), recipe, "cuda", 2).values())
    peak = measured_on_a_gpu(f"QLoRA step, L={length}: peak")["value"]
    assert peak < estimated < 1.15 * peak


def test_the_estimate_of_sampling_is_what_a_gpu_took():
    config = MistralConfig(vocab_size=32_001)
    plain = sum(memory.estimate_sampling(config, 2048, 2, load_in_4bit=True).values())
    assert plain == pytest.approx(measured_on_a_gpu("sampling, nf4, L=2048: peak")["value"], rel=0.05)
    peaks = measured_on_a_gpu("guidance, nf4: memory added")["details"]
    for name, rank in (("plain", 0), ("guided", 32)):
        estimated = memory.estimate_sampling(config, 512, 2, load_in_4bit=True, reward_rank=rank)
        assert sum(estimated.values()) == pytest.approx(peaks[name], rel=0.05)


def measured_on_a_gpu(what):
    """A row of the newest table that `benchmarks/gpu.py` wrote."""
    newest = max((Path(__file__).parent / "benchmarks" / "results").glob("gpu-*.json"))
    rows = json.loads(newest.read_text())["rows"]
    (row,) = [row for row in rows if row["what"] == what]
    return row
