"""`make bench`: a guided step beside an unguided one, with a reward model of the denoiser's size.

The model and batch of `common.py`, 2 threads. "Whole" is a reward model with weights of its own, "adapter" a LoRA of
rank 8 on the denoiser's base. Steps are timed in turn in one run, the ratio is that of medians; extra memory is what
loading and running with guidance adds to an unguided run's peak.
"""

import os
import statistics
import subprocess
import sys
import time

import torch
from common import batch, model, reset_peak, resident
from peft import LoraConfig, inject_adapter_in_model

import tess2lite as t2
from tess2lite import reward
from tess2lite.pretrained.shared_base import freeze_, share_base
from tess2lite.training.build import lora_targets

STEPS = 10


def judge(lm, kind: str):
    config = type(lm.config)(**(lm.config.to_diff_dict() | {"num_labels": 1}))
    if kind == "whole":
        made = reward.MistralRewardModel(config)
    else:
        made = share_base(reward.MistralRewardModel, lm, config)
        inject_adapter_in_model(LoraConfig(r=8, target_modules=lora_targets(made)), made.model)
    torch.nn.init.normal_(made.score.weight, std=0.02)
    made.config.score_position = "last"
    return freeze_(made)


def guide(lm, kind: str) -> list:
    return [] if kind == "none" else [t2.RewardGuidance(judge(lm, kind), 0.25)]


def seconds(lm) -> dict[str, float]:
    inputs = batch()
    runs = {kind: t2.denoise(lm, inputs, steps=STEPS, hooks=guide(lm, kind)) for kind in ("none", "whole", "adapter")}
    spent = {kind: [] for kind in runs}
    for _ in range(STEPS):
        for kind, run in runs.items():
            begin = time.perf_counter()
            next(run)
            spent[kind].append(time.perf_counter() - begin)
    return {kind: statistics.median(values[1:]) for kind, values in spent.items()}


def peak(kind: str) -> float:
    """MB that a run adds to the loaded denoiser, in a fresh process (Linux)."""
    at_once = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # what is freed goes back at once, and is not counted twice
    done = subprocess.run(
        [sys.executable, __file__, "--peak", kind], capture_output=True, text=True, check=True, env=at_once
    )
    return float(done.stdout)


def print_peak(kind: str) -> None:
    small = model(vocabulary=64).eval()
    few = {"input_ids": torch.arange(16).view(2, 8), "span_mask": torch.arange(8).expand(2, 8) > 3}
    for _ in t2.denoise(small, few, steps=2, hooks=guide(small, "adapter")):  # code and threads of the libraries
        pass
    lm, inputs = model().eval(), batch()
    reset_peak()
    before = resident("VmRSS")
    for _ in t2.denoise(lm, inputs, steps=3, hooks=guide(lm, kind)):
        pass
    print(resident("VmHWM") - before)


def main() -> None:
    torch.set_num_threads(2)
    if "--peak" in sys.argv:
        return print_peak(sys.argv[-1])
    lm = model().eval()
    timed, plain = seconds(lm), peak("none")
    size = sum(p.numel() * p.element_size() for p in lm.parameters()) / 1e6
    print(f"guided step, reward model of the denoiser's size ({size:.0f} MB), one inner step")
    print(f"{'reward':8} {'step ms':>8} {'unguided':>9} {'ratio':>6} {'extra MB':>9} {'of the base':>12}")
    for kind in ("whole", "adapter"):
        extra = peak(kind) - plain
        print(
            f"{kind:8} {timed[kind] * 1000:8.0f} {timed['none'] * 1000:9.0f} {timed[kind] / timed['none']:6.2f} "
            f"{extra:9.0f} {extra / size:12.0%}"
        )
    return None


if __name__ == "__main__":
    main()
