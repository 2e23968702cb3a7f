"""`python tests/benchmarks/gpu.py`: what the kit costs on a GPU, with a model of Mistral-7B's shape, in one run.

The weights are random and made on the device, in nf4 or bf16: speed and memory do not depend on their values, and
nothing is downloaded. A ratio's two sides are timed in turn and compared by their medians. Under 9 minutes on an
H100-class GPU, because repetitions are few: a 100-step run is 100 times its median step, for the steps are alike; a
autoregressive text is timed over 64 tokens in its middle, where the cache is as long as it is on average; and no row
begins after seven minutes. A table comes last; the JSON beside it is written anew after each row.

`--tiny` runs all of it with a tiny model on a CPU, to see that it runs; its numbers say nothing and are not kept.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import bitsandbytes as bnb
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import CompileConfig, GenerationConfig, MistralConfig, MistralForCausalLM, StoppingCriteria

import tess2lite as t2
from tess2lite import reward, textbook
from tess2lite.evaluation.results import stamp, write_json
from tess2lite.loss import seeded_loss
from tess2lite.model import MistralForDiffusionLM
from tess2lite.pretrained.full_models import prepare
from tess2lite.pretrained.shared_base import freeze_, share_base
from tess2lite.span_masks import after
from tess2lite.training.build import apply_lora, lora_targets
from tess2lite.training.memory import GB, measured_peak
from tess2lite.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
LAST_START = 420  # seconds after which no row begins
WARM_UP = 2  # turns that are not counted
DTYPES = {"nf4": torch.bfloat16, "qlora": torch.bfloat16, "bf16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Sizes:
    """Of the model and of what it is asked; lengths in tokens."""

    shape: dict  # of MistralConfig
    length: int
    masked: int  # of `length`, at its end
    long: int
    steps: int  # of a run
    batches: tuple[int, ...]
    timed: int  # autoregressive tokens
    sampling_turns: int
    training_turns: int
    rank: int  # of LoRA, as in the recipe mistral-7b-nf4
    reward_rank: int  # as in mistral-7b-reward-nf4


MISTRAL_7B = {  # with [PAD] as its last token, as every run has it: 32,001, which is odd
    "vocab_size": 32_001,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
}
SMALL = {
    "vocab_size": 121,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
REAL = Sizes(MISTRAL_7B, 512, 384, 2048, 100, (1, 8), 64, 20, 5, 64, 32)
TINY = Sizes(SMALL, 16, 12, 32, 10, (1, 2), 4, 2, 1, 4, 2)


def made(kind: str, sizes: Sizes, device: torch.device) -> MistralForDiffusionLM:
    """A denoiser with random weights, filled in module by module, so that a 4-bit one never takes more than it will."""
    torch.manual_seed(0)
    # Without an EOS nothing ends early.
    config = MistralConfig(**sizes.shape, sliding_window=None, eos_token_id=None, pad_token_id=0)
    with torch.device("meta"):
        lm = MistralForDiffusionLM(config).to(DTYPES[kind])
    four_bit = kind in ("nf4", "qlora")
    for place, module in [*lm.named_modules()]:
        if four_bit and isinstance(module, nn.Linear) and ".layers." in place:
            parent, _, leaf = place.rpartition(".")
            setattr(lm.get_submodule(parent), leaf, quantised(module, DTYPES[kind], device))
            continue
        module.to_empty(device=device, recurse=False)
        for weight in module.parameters(recurse=False):
            nn.init.ones_(weight) if weight.dim() == 1 else nn.init.normal_(weight, std=0.02)
    lm.model.rotary_emb = type(lm.model.rotary_emb)(lm.config).to(device)  # computed, not drawn
    lm.is_loaded_in_4bit = lm.model.is_loaded_in_4bit = four_bit  # as from_pretrained says it; PEFT asks
    prepare(lm)
    if kind != "qlora":
        return lm.eval()
    recipe = Recipe(
        "a base", "tinytown", "nowhere", lora_rank=sizes.rank, load_in_4bit=True, gradient_checkpointing=True
    )
    adapted = apply_lora(lm, recipe).train()
    enable = getattr(adapted, "activation_checkpointing_enable", adapted.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    return adapted


def quantised(linear: nn.Linear, dtype: torch.dtype, device: torch.device) -> bnb.nn.Linear4bit:
    """An nf4 layer of this shape with random weights, double-quantised as in `four_bits.nf4`."""
    nf4 = {"compress_statistics": True, "quant_type": "nf4"}
    size = linear.in_features, linear.out_features
    layer = bnb.nn.Linear4bit(*size, bias=False, compute_dtype=dtype, device="meta", **nf4)
    weight = torch.empty(*size[::-1], dtype=dtype, device=device).normal_(std=0.02)
    layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, module=layer, **nf4).to(device)
    return layer


@dataclass
class Bench:
    """The device, one model at a time, and what was measured for more than one row."""

    sizes: Sizes
    device: torch.device
    kind: str | None = None
    lm: nn.Module | None = None
    known: dict = field(default_factory=dict)

    def model(self, kind: str):
        if self.kind != kind:
            self.kind = self.lm = None
            self.known.pop("optimizer", None)
            self.tidy()
            self.lm = made(kind, self.sizes, self.device)
            self.kind = kind
        return self.lm

    def tidy(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def now(self) -> float:
        """Seconds; the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def medians(self, turns: int, **timed: Callable) -> dict[str, float]:
        """Seconds of each, in turn."""
        spent = {name: [] for name in timed}
        for _ in range(WARM_UP + turns):
            for name, once in timed.items():
                begin = self.now()
                once()
                spent[name].append(self.now() - begin)
        return {name: statistics.median(values[WARM_UP:]) for name, values in spent.items()}

    def peak(self, once: Callable) -> float:
        """GB at the highest point of a call, the model included."""
        if self.device.type == "cuda":
            self.tidy()
            torch.cuda.reset_peak_memory_stats(self.device)
        once()
        return measured_peak(self.device)

    def batch(self, length: int, masked: int, rows: int = 1) -> dict[str, torch.Tensor]:
        """Random texts (B, L), masked at their ends."""
        ids = torch.randint(3, self.sizes.shape["vocab_size"], (rows, length), device=self.device)
        return {"input_ids": ids, "span_mask": after(length, length - masked).to(self.device).expand(rows, -1)}


# What each row measures: (value, details).


@torch.no_grad()
def fast_and_textbook(bench: Bench, kind: str):
    """Three steps by both paths from the same tokens, noise and previous logits: max |difference| / max |logit|."""
    lm, vocabulary, steps, errors = bench.model(kind), bench.sizes.shape["vocab_size"], 4, []
    batch = bench.batch(bench.sizes.length // 4, bench.sizes.length // 8)
    ids, mask = batch["input_ids"], batch["span_mask"]
    shape = (*ids.shape, vocabulary)

    def noise(step, shape):
        generator = torch.Generator(bench.device).manual_seed(step + 1)
        return torch.randn(shape, generator=generator, device=bench.device)

    simplex, previous = textbook.K * noise(-1, shape), None
    for step, _ in zip(t2.denoise(lm, batch, steps, top_p=None, noise=noise), range(steps - 1), strict=False):
        t = torch.full(ids.shape, step.t, dtype=torch.float64, device=bench.device)
        slow, fast = lm.logits_from_simplex(simplex, t, ids, mask, previous).float(), step.logits
        errors.append(float((fast - slow)[mask].abs().max() / slow[mask].abs().max()))
        level = step.next_alpha_bar
        simplex = textbook.add_noise(textbook.token_simplex(step.tokens, vocabulary), noise(step.index, shape), level)
        previous = fast
    return max(errors), {"by_step": errors}


@torch.no_grad()
def denoising_step(bench: Bench, kind: str):
    """A step to a forward pass of the backbone on the same tokens with the head on the masked rows."""
    lm, turns, first = bench.model(kind), bench.sizes.sampling_turns, bench.sizes.length - bench.sizes.masked
    batch = bench.batch(bench.sizes.length, bench.sizes.masked)
    run = t2.denoise(lm, batch, WARM_UP + turns)  # a next() projects one prediction, noises it, and reads the next

    def bare():
        hidden = lm.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        lm.lm_head(hidden[:, first - 1 : -1])

    seconds = bench.medians(turns, bare=bare, step=lambda: next(run))
    return seconds["step"] / seconds["bare"], seconds


def sampling_peak(bench: Bench):
    """Three steps of a text with all but its first token masked."""
    lm, length = bench.model("nf4"), bench.sizes.long
    return bench.peak(lambda: [*t2.denoise(lm, bench.batch(length, length - 1), steps=3)]), {}


def judge(bench: Bench, lm):
    """A reward model as an adapter on the denoiser's own 4-bit base."""
    config = MistralConfig(**bench.sizes.shape, sliding_window=None, num_labels=1)
    model = share_base(reward.MistralRewardModel, lm, config)
    model.model.is_loaded_in_4bit = True
    inject_adapter_in_model(LoraConfig(r=bench.sizes.reward_rank, target_modules=lora_targets(model)), model.model)
    nn.init.normal_(model.score.weight, std=0.02)
    model.config.score_position = "last"
    return freeze_(model)


def guided_step(bench: Bench):
    lm, turns = bench.model("nf4"), bench.sizes.sampling_turns
    batch, guide = bench.batch(bench.sizes.length, bench.sizes.masked), t2.RewardGuidance(judge(bench, lm), 0.25)
    plain = t2.denoise(lm, batch, WARM_UP + turns)
    guided = t2.denoise(lm, batch, WARM_UP + turns, hooks=[guide])
    seconds = bench.medians(turns, unguided=lambda: next(plain), guided=lambda: next(guided))
    return seconds["guided"] / seconds["unguided"], seconds


def guidance_memory(bench: Bench):
    """What the adapter and three guided steps add to the peak of three unguided ones."""
    lm = bench.model("nf4")
    batch = bench.batch(bench.sizes.length, bench.sizes.masked)
    plain = bench.peak(lambda: [*t2.denoise(lm, batch, steps=3)])
    guide = t2.RewardGuidance(judge(bench, lm), 0.25)
    guided = bench.peak(lambda: [*t2.denoise(lm, batch, steps=3, hooks=[guide])])
    return guided - plain, {"plain": plain, "guided": guided}


def training_steps(bench: Bench, length: int) -> dict[str, Callable]:
    """Whole steps of one adapted model: autoregressive, and denoising without and with its self-conditioning pass."""
    model = bench.model("qlora")
    if "optimizer" not in bench.known:  # as the recipes': paged, in 8 bits; there is none for a CPU
        kind = bnb.optim.PagedAdamW8bit if bench.device.type == "cuda" else torch.optim.AdamW
        bench.known["optimizer"] = kind([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    optimizer, config = bench.known["optimizer"], model.config
    # Half of the text masked: UL2's mixture masks 47 % on average.
    batch, t = bench.batch(length, length // 2), torch.tensor([2500], device=bench.device)
    ids, mask = batch["input_ids"], batch["span_mask"]

    def autoregressive(lm, ids, *_, **__):
        return MistralForCausalLM.forward(lm, input_ids=ids, labels=ids).loss

    def denoising(*arguments, conditioned, **settings):
        return seeded_loss(*arguments, self_condition=conditioned, **settings) / mask.sum()

    def step(loss, causal):
        config.is_causal = causal  # until the backward pass is done: checkpointed layers run again there
        try:
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.device.type == "cuda"):
                value = model(input_ids=ids, span_mask=mask, t=t, loss=loss)
            value.backward()
        finally:
            config.is_causal = False
        optimizer.step()
        optimizer.zero_grad()

    return {
        "autoregressive": partial(step, autoregressive, True),
        "first_pass_only": partial(step, partial(denoising, conditioned=False), False),
        "self_conditioned": partial(step, partial(denoising, conditioned=True), False),
    }


def adaptation_step(bench: Bench, length: int):
    """Self-conditioning half of the time, as in the paper, to an autoregressive one with the same adapters."""
    seconds = bench.medians(bench.sizes.training_turns, **training_steps(bench, length))
    mean = (seconds["first_pass_only"] + seconds["self_conditioned"]) / 2
    return mean / seconds["autoregressive"], seconds


def adaptation_peak(bench: Bench, length: int):
    steps = training_steps(bench, length)
    allocated = bench.peak(lambda: [steps[name]() for name in ("first_pass_only", "self_conditioned")])
    state = [value for state in bench.known["optimizer"].state.values() for value in state.values()]
    # Paged state lies in managed memory, which PyTorch does not count.
    paged = sum(value.numel() * value.itemsize for value in state if getattr(value, "is_paged", False)) / GB
    return allocated + paged, {"allocated": allocated, "paged": paged}


def run_seconds(bench: Bench, rows: int) -> float:
    """A whole run that writes all but the first token of each text."""
    if ("run", rows) not in bench.known:
        lm, turns, length = bench.model("bf16"), bench.sizes.training_turns, bench.sizes.long
        run = t2.denoise(lm, bench.batch(length, length - 1, rows), bench.sizes.steps, seed=range(rows))
        bench.known["run", rows] = bench.medians(turns, step=lambda: next(run))["step"] * bench.sizes.steps
    return bench.known["run", rows]


class Watch(StoppingCriteria):
    """Notes when `first` and `last` tokens were written, and ends the text there."""

    def __init__(self, bench: Bench, first: int, last: int):
        self.bench, self.first, self.last, self.written, self.times = bench, first, last, 0, []

    def __call__(self, input_ids, scores, **_):
        self.written += 1
        if self.written in (self.first, self.last):
            self.times.append(self.bench.now())
        return torch.full((len(input_ids),), self.written >= self.last, device=input_ids.device)


def autoregressive_twin(lm, sizes: Sizes) -> MistralForCausalLM:
    """An AR model of the very weights of a denoiser."""
    with torch.device("meta"):
        ar = MistralForCausalLM(MistralConfig(**sizes.shape, sliding_window=None, eos_token_id=None, pad_token_id=0))
    ar.load_state_dict(lm.state_dict(), strict=False, assign=True)  # it has no timestep_embed
    ar.model.rotary_emb = lm.model.rotary_emb
    return ar.eval()


@torch.no_grad()
def speed_up(bench: Bench, rows: int, static: bool):
    """transformers' own `generate` with its KV cache, as it is or static and compiled, to a run of as many tokens."""
    diffusion, half, turns = run_seconds(bench, rows), bench.sizes.long // 2, bench.sizes.timed
    ar = autoregressive_twin(bench.model("bf16"), bench.sizes)
    settings = GenerationConfig(max_new_tokens=half, do_sample=False, pad_token_id=0)
    if static:
        torch.compiler.reset()  # nothing is left of another batch size
        settings.cache_implementation = "static"
        if bench.device.type == "cuda":
            settings.compile_config = CompileConfig(dynamic=False)  # each batch size a graph of its own
    watch = Watch(bench, turns // 4, turns // 4 + turns)  # the first ones compile, and warm up
    ids = bench.batch(half, 0, rows)["input_ids"]
    ar.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings, stopping_criteria=[watch])
    token = (watch.times[1] - watch.times[0]) / turns
    autoregressive = token * bench.sizes.long
    return autoregressive / diffusion, {"diffusion": diffusion, "autoregressive": autoregressive, "per_token": token}


@dataclass(frozen=True)
class Row:
    """aim: the most it may be; None where it is only reported."""

    what: str
    unit: str
    aim: float | None
    measure: Callable


def rows_of(sizes: Sizes) -> list[Row]:
    """In an order that makes each model once, the rows that compile last."""
    long, times = sizes.long, "times"
    lengths = (sizes.length, long)
    speed = [
        Row(
            f"{sizes.steps} steps against {name}, {long} tokens, B={rows}, bf16",
            "times faster",
            None,
            partial(speed_up, rows=rows, static=static),
        )
        for static, name in ((False, "AR, eager"), (True, "AR, static cache compiled"))
        for rows in sizes.batches
    ]
    return [
        Row("fast path against textbook, float32", "relative", 1e-5, partial(fast_and_textbook, kind="float32")),
        Row("denoising step, nf4, to a bare pass", times, 1.10, partial(denoising_step, kind="nf4")),
        Row(f"sampling, nf4, L={long}: peak", "GB", 6.5, sampling_peak),
        Row("guided step, nf4, to an unguided one", times, 4, guided_step),
        Row("guidance, nf4: memory added", "GB", 2.5, guidance_memory),
        *(
            Row(f"QLoRA step, L={length}, to an AR one", times, 1.35, partial(adaptation_step, length=length))
            for length in lengths
        ),
        *(
            Row(f"QLoRA step, L={length}: peak", "GB", aim, partial(adaptation_peak, length=length))
            for length, aim in zip(lengths, (8, 12), strict=True)
        ),
        Row("denoising step, bf16, to a bare pass", times, 1.10, partial(denoising_step, kind="bf16")),
        Row("fast path against textbook, bf16", "relative", 1e-2, partial(fast_and_textbook, kind="bf16")),
        *speed,
    ]


def measured(row: Row, bench: Bench, elapsed: float) -> dict:
    """A row of the result: its value, or in `problem` why there is none."""
    result = {"what": row.what, "unit": row.unit, "aim": row.aim, "value": None}
    if elapsed > LAST_START:
        return result | {"problem": "no time left"}
    try:
        value, details = row.measure(bench)
        result |= {"value": value, "details": details}
    except torch.OutOfMemoryError:
        result["problem"] = "out of memory"
    except Exception as problem:  # a run on a borrowed GPU is not to be lost for one row
        traceback.print_exc()
        result["problem"] = f"failed: {(str(problem) or type(problem).__name__).splitlines()[0]}"
    bench.tidy()
    return result


def environment(device: torch.device) -> dict[str, str]:
    """Device, driver and packages."""
    if device.type == "cpu":
        return stamp()
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    memory = f"{torch.cuda.get_device_properties(device).total_memory / GB:.0f} GB"
    packages = {name: version(name) for name in ("accelerate", "bitsandbytes", "peft")}
    return stamp() | {"memory": memory, "driver": driver, "cuda": torch.version.cuda} | packages


def table(results: list[dict], judged: bool) -> str:
    """One line a row, with its aim; `judged`: whether it was reached."""
    lines = [f"{'':66} {'measured':>14}  {'unit':12}  to reach"]
    for row in results:
        value, aim = row["value"], row["aim"]
        number = row["problem"] if value is None else f"{value:.2e}" if row["unit"] == "relative" else f"{value:.2f}"
        wanted = f"≤ {aim:g}" if aim else "(reported)"
        if judged and aim and value is not None:
            wanted += ", reached" if value <= aim else ", missed"
        lines.append(f"{row['what']:66} {number:>14}  {row['unit']:12}  {wanted}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    tiny = arguments == ["--tiny"]
    if arguments and not tiny:
        sys.exit(f"'{' '.join(arguments)}' means nothing here; there is only --tiny.")
    if not tiny and not torch.cuda.is_available():
        sys.exit("This benchmark needs an NVIDIA GPU and PyTorch sees none; --tiny shows on a CPU that it runs.")
    begin, device = time.monotonic(), torch.device("cpu" if tiny else "cuda")
    bench, rows, results = Bench(TINY if tiny else REAL, device), rows_of(TINY if tiny else REAL), []
    report = {"date": date.today().isoformat(), "environment": environment(device), "shape": bench.sizes.shape}
    for row in rows:
        results.append(measured(row, bench, time.monotonic() - begin))
        seconds = round(time.monotonic() - begin, 1)
        print(f"{seconds:5.0f} s  {row.what}", flush=True)
        if not tiny:
            write_json(RESULTS / f"gpu-{report['date']}.json", report | {"seconds": seconds, "rows": results})
    if tiny:
        print("\nA tiny model on a CPU: these numbers say nothing, but that the script runs.")
    print(f"\n{report['environment']['device']}\n{table(results, judged=not tiny)}")


if __name__ == "__main__":
    main(sys.argv[1:])
