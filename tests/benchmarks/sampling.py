"""`make bench`: one sampling step beside one bare forward pass of the same model.

A float32 Mistral with hidden 256, 4 layers, vocabulary 32,000; B 2, L 256, the second half masked; 2 threads.
"Bare" is the backbone and the head on the masked half, no gradient. Both are timed in turn in one run, and the
ratio of their medians is printed; peak extra memory is that of a run over the loaded model.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import MistralConfig

import tess2lite as t2
from tess2lite.model import MistralForDiffusionLM

B, L, STEPS = 2, 256, 12


def model(peaked: bool) -> MistralForDiffusionLM:
    """Random weights, the head scaled so that logits are N(0, 1) (flat), or one token takes ≥ 0.9 (peaked)."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=32_000, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=L,
    )  # fmt: skip
    lm = MistralForDiffusionLM(config).eval()
    torch.nn.init.normal_(lm.lm_head.weight, std=config.hidden_size**-0.5)
    if peaked:
        lm.lm_head.weight.data *= 40
    return lm


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 32_000, (B, L))
    return {"input_ids": ids, "span_mask": (torch.arange(L) >= L // 2).expand(B, L)}


def bare(lm, inputs) -> None:
    hidden = lm.model(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
    lm.lm_head(hidden[:, L // 2 - 1 : -1])


@torch.no_grad()
def measure(peaked: bool) -> dict[str, float]:
    lm, inputs, passes, steps = model(peaked), batch(), [], []
    run = t2.denoise(lm, inputs, steps=STEPS, top_p=0.99)
    bare(lm, inputs)
    next(run)
    for _ in range(STEPS - 1):
        begin = time.perf_counter()
        bare(lm, inputs)
        middle = time.perf_counter()
        step = next(run)  # projects one step's prediction, noises it, and reads the next
        steps.append(time.perf_counter() - middle)
        passes.append(middle - begin)
    step_time, pass_time = statistics.median(steps), statistics.median(passes)
    confidence = float(step.confidence[step.span_mask].median())
    return {"step": step_time, "bare": pass_time, "ratio": step_time / pass_time, "confidence": confidence}


def peak_extra_megabytes(kind: str) -> float:
    """Of a run over the loaded model, in a fresh process, from the kernel's high-water mark (Linux)."""
    done = subprocess.run([sys.executable, __file__, "--peak", kind], capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(kind: str) -> None:
    lm, inputs = model(kind == "peaked"), batch()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to what is resident now
    before = _resident("VmRSS")
    for _ in t2.denoise(lm, inputs, steps=3, top_p=0.99):
        pass
    print(_resident("VmHWM") - before)


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main() -> None:
    torch.set_num_threads(2)
    if "--peak" in sys.argv:
        return print_peak(sys.argv[-1])
    print(f"sampling step, hidden 256, 4 layers, V 32,000, B {B}, L {L}, half masked, float32, 2 threads, top_p 0.99")
    print(f"{'logits':8} {'step ms':>8} {'bare ms':>8} {'ratio':>6} {'extra MB':>9}   median top probability")
    for kind in ("flat", "peaked"):
        row, extra = measure(kind == "peaked"), peak_extra_megabytes(kind)
        print(
            f"{kind:8} {row['step'] * 1000:8.0f} {row['bare'] * 1000:8.0f} {row['ratio']:6.2f} {extra:9.0f}   "
            f"{row['confidence']:.3f}"
        )
    return None


if __name__ == "__main__":
    main()
