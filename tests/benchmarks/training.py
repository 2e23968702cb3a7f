"""`make bench`: one diffusion training step beside one autoregressive step of the same model.

Full tuning with AdamW, the model and batch of `common.py`; half of the diffusion steps make a self-conditioning pass
first, as in training. Both kinds are timed in turn in one run. Memory is the peak of each in a process of its own.
"""

import statistics
import subprocess
import sys
import time

import torch
from common import B, V, batch, model, reset_peak, resident
from transformers import MistralForCausalLM

from tess2lite.loss import diffusion_loss, seeded_noise

STEPS = 10


def autoregressive(lm, inputs, _):
    return MistralForCausalLM.forward(lm, input_ids=inputs["input_ids"], labels=inputs["input_ids"]).loss


def diffusion(lm, inputs, number):
    mask = inputs["span_mask"]
    noise, blocks = seeded_noise(0, [B * number, B * number + 1], mask, V)
    t = torch.tensor([1000, 3000])
    return diffusion_loss(lm, inputs["input_ids"], mask, t, noise, blocks, self_condition=number % 2 == 1) / mask.sum()


def step(loss, lm, optimizer, inputs, number) -> float:
    begin = time.perf_counter()
    loss(lm, inputs, number).backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - begin


def times() -> tuple[float, float, float]:
    """Medians in seconds: autoregressive; diffusion without and with its self-conditioning pass."""
    lm, inputs = model(), batch()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-5)
    measured = {autoregressive: [], (diffusion, 0): [], (diffusion, 1): []}
    for number in range(2 * STEPS + 2):
        plain = step(autoregressive, lm, optimizer, inputs, number)
        ours = step(diffusion, lm, optimizer, inputs, number)
        if number >= 2:  # the first ones warm up
            measured[autoregressive].append(plain)
            measured[diffusion, number % 2].append(ours)
    return tuple(statistics.median(seconds) for seconds in measured.values())


def peak(kind: str) -> float:
    done = subprocess.run([sys.executable, __file__, kind], capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(kind: str) -> None:
    lm, inputs = model(), batch()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-5)
    reset_peak()
    before = resident("VmRSS")
    for number in range(3):
        step({"autoregressive": autoregressive, "diffusion": diffusion}[kind], lm, optimizer, inputs, number)
    print(resident("VmHWM") - before)


def main() -> None:
    torch.set_num_threads(2)
    if len(sys.argv) > 1:
        return print_peak(sys.argv[1])
    plain, first, second = times()
    ours = (first + second) / 2
    extra = peak("diffusion") - peak("autoregressive")
    print("training step, the same model and batch, full tuning with AdamW, self-conditioning in every other step")
    print(f"{'diffusion ms':>12} {'AR ms':>17} {'ratio':>6} {'extra MB':>9}")
    print(f"{ours * 1000:12.0f} {plain * 1000:17.0f} {ours / plain:6.2f} {extra:9.0f}")
    return None


if __name__ == "__main__":
    main()
