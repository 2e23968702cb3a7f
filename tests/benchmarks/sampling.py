"""`make bench`: one sampling step beside one bare forward pass of the same model.

The model and batch of `common.py`, 2 threads. "Bare" is the backbone and the head on the masked half, no gradient. Both
are timed in turn in one run, and the ratio of their medians is printed; peak extra memory is that of a run over the
loaded model.
"""

import statistics
import subprocess
import sys
import time

import torch
from common import B, L, bare, batch, model, reset_peak, resident

import tess2lite as t2
from tess2lite.hooks import Recorder

STEPS = 16


def made(peaked: bool):
    """The model as it is (flat), or its head scaled so that one token takes nearly everything (peaked)."""
    lm = model().eval()
    if peaked:
        lm.lm_head.weight.data *= 40
    return lm


@torch.no_grad()
def measure(peaked: bool) -> dict[str, float]:
    lm, inputs = made(peaked), batch()
    plain = t2.denoise(lm, inputs, steps=STEPS, top_p=0.99)
    recorded = t2.denoise(lm, inputs, steps=STEPS, top_p=0.99, hooks=[Recorder()])
    # A next() projects one step's prediction, noises it, and reads the next.
    timed = {"bare": lambda: bare(lm, inputs), "step": lambda: next(plain), "recorded": lambda: next(recorded)}
    seconds = {name: [] for name in timed}
    for _ in range(STEPS):
        for name, once in timed.items():
            begin = time.perf_counter()
            made_now = once()
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    confidence = float(made_now.confidence[made_now.span_mask].median())
    return medians | {"confidence": confidence}


def peak_extra_megabytes(kind: str) -> float:
    """Of a run over the loaded model, in a fresh process, from the kernel's high-water mark (Linux)."""
    done = subprocess.run([sys.executable, __file__, "--peak", kind], capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(kind: str) -> None:
    lm, inputs = made(kind == "peaked"), batch()
    reset_peak()
    before = resident("VmRSS")
    for _ in t2.denoise(lm, inputs, steps=3, top_p=0.99):
        pass
    print(resident("VmHWM") - before)


def main() -> None:
    torch.set_num_threads(2)
    if "--peak" in sys.argv:
        return print_peak(sys.argv[-1])
    print(f"sampling step, hidden 256, 4 layers, V 32,000, B {B}, L {L}, half masked, float32, 2 threads, top_p 0.99")
    print(f"{'logits':8} {'step ms':>8} {'bare ms':>8} {'ratio':>6} {'recorded':>9} {'extra MB':>9}   median top p")
    for kind in ("flat", "peaked"):
        row, extra = measure(kind == "peaked"), peak_extra_megabytes(kind)
        print(
            f"{kind:8} {row['step'] * 1000:8.0f} {row['bare'] * 1000:8.0f} {row['step'] / row['bare']:6.2f} "
            f"{row['recorded'] / row['step'] - 1:+9.1%} {extra:9.0f}   {row['confidence']:.3f}"
        )
    return None


if __name__ == "__main__":
    main()
