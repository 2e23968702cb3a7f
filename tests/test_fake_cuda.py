"""On a GPU that is pretended (`fake_cuda.py`): devices, waits, peaks and FLOPs of Mistral-7B's shape, all counted.

A mixture of devices raises in `fake_mistral.py`; that its cases end is the first thing tested here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])}
SAMPLING = ["sampling-512", "sampling-512-8", "sampling-2048", "sampling-bf16", "guided-512", "guided-2048"]
REWARD = ["reward-512", "reward-2048"]
TRAINING = [
    "training-512",
    "training-512-4",
    "training-512-8",
    "training-2048",
    "training-frozen",
    "training-trained",
    "training-rank-8",
    "training-bf16",
    "training-stored",
    "training-whole",
    "training-32-layers",
]


@pytest.fixture(scope="module")
def counted():
    """What each case counted, in two processes that believe in a GPU."""
    cases = [*TRAINING, *SAMPLING, *REWARD, "generate"]
    running = [start(cases[::2]), start(cases[1::2])]
    results = []
    for process in running:
        out, problems = process.communicate()
        assert process.returncode == 0, problems
        results += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {result["case"]: result for result in results}


def start(cases: list[str]) -> subprocess.Popen:
    command = [sys.executable, str(TESTS / "fake_mistral.py"), *cases]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_generate_waits_at_most_twice_per_step(counted):
    """For the one chunk and for the step's entropy, with its trajectory recorded and its bar shown."""
    waits = counted["generate"]["waits"]
    assert 1 <= sum(waits.values()) <= 2, waits


@pytest.mark.parametrize("case", SAMPLING)
def test_a_step_waits_once_and_at_most_twice_per_chunk(counted, case):
    waits = counted[case]["waits"]
    assert 1 <= sum(waits.values()) <= 1 + 2 * counted[case]["chunks"], waits


@pytest.mark.parametrize("case", TRAINING)
def test_a_training_step_waits_for_its_masks_alone(counted, case):
    waits = counted[case]["waits"]
    assert 1 <= sum(waits.values()) <= 3, waits


def test_the_flops_of_a_denoising_step_are_those_of_a_bare_pass(counted):
    """1.014 at 512 tokens, 1.017 at 2,048, as counted before; an unmerged adapter or a sort would add to it."""
    for case, expected in (("sampling-512", 1.014), ("sampling-bf16", 1.014), ("sampling-2048", 1.017)):
        result = counted[case]
        assert result["flops"] / result["bare"] == pytest.approx(expected, abs=0.002)


def test_a_training_step_has_the_flops_of_1_17_autoregressive_ones(counted):
    """Self-conditioning half of the time is one more forward pass in two steps."""
    assert counted["training-32-layers"]["to_ar"] == pytest.approx(1.17, abs=0.02)


@pytest.mark.parametrize("case", SAMPLING + TRAINING)
def test_products_in_half_precision_are_aligned(counted, case):
    """With a vocabulary of 32,001; what is left is a LoRA's on the head."""
    result = counted[case]
    share = result["unaligned"] if case in TRAINING else result["unaligned"] / result["flops"]
    assert share < 0.01


@pytest.mark.parametrize("case", TRAINING + REWARD + SAMPLING)
def test_the_estimate_is_the_simulated_peak(counted, case):
    """Within 5 percent, of the whole step; a training's with its optimizer."""
    result = counted[case]
    assert result["estimate"] == pytest.approx(result["peak"], rel=0.05), result["parts"]


@pytest.mark.parametrize("case", ["sampling-512-8", "sampling-2048", "guided-512", "guided-2048"])
def test_what_sampling_needs_beside_the_weights_is_estimated_too(counted, case):
    """Within an eighth: 5 percent of all would be satisfied by the weights alone. Most of each text is masked."""
    result = counted[case]
    assert result["parts"]["activations"] == pytest.approx(result["peak"] - result["weights"], rel=0.125)


def test_peaks_are_below_what_the_design_asks_for(counted):
    """GB, without the CUDA context and fragmentation."""
    assert counted["sampling-2048"]["peak"] < 6.5
    assert counted["training-32-layers"]["peak"] < 8
    for length, most in ((512, 0.6), (2048, 1.5)):  # a copy of E more is 0.26
        assert counted[f"guided-{length}"]["peak"] - counted[f"sampling-{length}"]["peak"] < most


HARNESS = """
import os, fake_cuda, torch
fake_cuda.install()
from fake_cuda import GPU, FakeGPU
with FakeGPU() as gpu:
    ids = torch.arange(10, device=GPU)
    weight = torch.empty(64, 33, dtype=torch.bfloat16, device=GPU, requires_grad=True)
    assert gpu.now == 512 + 64 * 33 * 2 // 512 * 512 + 512 * bool(64 * 33 * 2 % 512)
    before = gpu.now
    large = torch.empty(1000, 1024, device=GPU)
    assert gpu.now == before + 4_096_000 and gpu.peak == gpu.now
    del large
    assert gpu.now == before and gpu.peak == before + 4_096_000
    gpu.reset()
    assert bool((ids > 8).any()) and (ids > 7).nonzero()[:, 0].tolist() == [8, 9] and ids[ids > 3].shape == (6,)
    assert sum(gpu.waits.values()) == 4, gpu.waits
    ids.cpu()
    torch.tensor([1, 2], device=GPU)
    assert sum(gpu.waits.values()) == 6, gpu.waits
    (torch.empty(5, 64, dtype=torch.bfloat16, device=GPU) @ weight).sum().backward()
    assert gpu.flops == 2 * 2 * 5 * 64 * 33 and gpu.unaligned == gpu.flops
    assert weight.grad.device == GPU
    try:
        torch.empty(3, device=GPU) + torch.empty(3)
    except RuntimeError as problem:
        assert "same device" in str(problem)
    else:
        raise AssertionError("a mixture of devices went unnoticed")
os._exit(0)
"""
TEXTBOOK = """
import os, fake_cuda, torch
fake_cuda.install()
from fake_cuda import GPU, FakeGPU
from tess2lite import textbook
with FakeGPU():
    simplex = torch.empty(1, 4, 9, device=GPU)
    noise = torch.empty(1, 4, 9, device=GPU)
    level = torch.tensor(0.5, dtype=torch.float64)  # on the CPU, as a step gives it
    assert textbook.add_noise(simplex, noise, level).device == GPU
os._exit(0)
"""


def test_the_harness_counts_what_is_known():
    """Bytes, waits, FLOPs and a mixture of devices of a few lines that can be counted by hand."""
    run_script(HARNESS)


def test_the_textbook_takes_a_noise_level_from_the_cpu():
    """On a real GPU the comparison of both paths once stopped here."""
    run_script(TEXTBOOK)


def run_script(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], cwd=TESTS, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
