"""`python tests/fake_mistral.py CASE …`: Mistral-7B's shape on the pretended GPU; a JSON line per case."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import fake_cuda
import torch
from benchmarks.gpu import MISTRAL_7B
from fake_cuda import GPU, FakeGPU
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import AutoTokenizer, MistralConfig

import tess2lite as t2
from tess2lite import chunks, generation, reward
from tess2lite.loss import cross_entropy
from tess2lite.model import MistralForDiffusionLM
from tess2lite.pretrained.full_models import prepare
from tess2lite.pretrained.shared_base import freeze_, share_base
from tess2lite.span_masks import after
from tess2lite.training.build import apply_lora, embedding_names, lora_config, lora_targets, train_in_float32_
from tess2lite.training.memory import estimate, estimate_sampling
from tess2lite.training.recipe import Recipe, RewardRecipe

TOKENIZER = Path(__file__).parent / "golden" / "tokenizer"
GB = 1e9
IS_DETAILED = bool(os.environ.get("FAKE_CUDA_DETAILS"))
HALF = torch.bfloat16


class _Product(torch.autograd.Function):
    """As bitsandbytes: 4-bit weights are made whole for the product, forward and backward, and kept by neither."""

    @staticmethod
    def forward(context, x, shape):
        context.shape = shape
        return nn.functional.linear(x, torch.empty(shape, dtype=x.dtype, device=GPU))

    @staticmethod
    def backward(context, gradient):
        return gradient @ torch.empty(context.shape, dtype=gradient.dtype, device=GPU), None


class NF4Linear(nn.Linear):
    """A linear layer that takes the room of a 4-bit one, double-quantised."""

    def __init__(self, inputs: int, outputs: int):
        nn.Module.__init__(self)
        self.in_features = inputs
        self.out_features = outputs
        size = inputs * outputs
        self.weight = nn.Parameter(torch.empty(size // 2, 1, dtype=torch.uint8, device=GPU), requires_grad=False)
        self.scales = torch.empty(size // 64, dtype=torch.uint8, device=GPU)
        self.scales_of_scales = torch.empty(size // 64 // 256, device=GPU)
        self.bias = None
        self.compute_dtype = HALF
        self.is_copied = False

    def forward(self, x):
        with torch.autocast("cuda", enabled=False):
            y = _Product.apply(x.to(HALF), (self.out_features, self.in_features)).to(x.dtype)
        return y.clone() if self.is_copied else y  # PEFT's LoRA on 4-bit layers copies


def denoiser(four_bit: bool = True, **changes):
    """Weights without values, of Mistral-7B's shape."""
    config = MistralConfig(**MISTRAL_7B | changes, sliding_window=None, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(HALF)
    try:
        with GPU:
            lm = MistralForDiffusionLM(config)
    finally:
        torch.set_default_dtype(default)
    if four_bit:
        for name, module in [*lm.named_modules()]:
            if isinstance(module, nn.Linear) and ".layers." in name:
                parent, _, leaf = name.rpartition(".")
                setattr(lm.get_submodule(parent), leaf, NF4Linear(module.in_features, module.out_features))
    prepare(lm)
    return lm.eval().requires_grad_(False)


def recipe_of(**fields) -> Recipe:
    settings = {"lora_rank": 64, "load_in_4bit": True, "gradient_checkpointing": True, "length": 512}
    return Recipe("a base", "tinytown", "nowhere", batch_size=64, **settings | fields)


def adapted(recipe: Recipe, layers: int):
    """The model as `train` trains it."""
    with GPU:
        model = apply_lora(denoiser(recipe.load_in_4bit, num_hidden_layers=layers), recipe).train()
    if not recipe.lora_rank:
        model.requires_grad_(True)
    as_trained(model, recipe)
    return model


def as_trained(model, recipe: Recipe | RewardRecipe) -> None:
    """Layers copy as PEFT's do in training, and are run again for their gradient where a recipe says so."""
    for module in model.modules():
        if isinstance(module, NF4Linear):
            module.is_copied = True
    if recipe.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})


def batch(length: int, masked: int, rows: int = 1):
    ids = torch.full((rows, length), 5, device=GPU)
    mask = after(length, length - masked).expand(rows, -1).to(GPU)
    return {"input_ids": ids, "span_mask": mask}


def sampling(gpu, length: int, masked: int, kind: str = "nf4", texts: int = 1):
    """Peak of a run; waits, FLOPs and the share of unaligned ones of one step."""
    lm = denoiser(kind != "bf16")
    hooks = []
    if kind == "adapter":
        with GPU:
            wrapped = get_peft_model(lm, LoraConfig(r=64, target_modules=lora_targets(lm) + embedding_names(lm)))
        halve(wrapped)
    if kind == "guided":
        hooks = [t2.RewardGuidance(judge(lm), 0.25)]
    gc.collect()
    weights = gpu.now
    gpu.reset()
    given = batch(length, masked, texts)
    run = t2.denoise(lm, given, steps=5, seed=0, hooks=hooks)
    next(run), next(run)
    gpu.waits.clear()
    gpu.flops = gpu.unaligned = 0
    next(run)
    result = {"peak": gpu.peak / GB, "weights": weights / GB, "waits": places(gpu), "largest": gpu.top()}
    result |= {"flops": gpu.flops, "unaligned": gpu.unaligned, "chunks": len(chunks_of([masked] * texts))}
    rank = 32 if kind == "guided" else 0
    parts = estimate_sampling(lm.config, length, 2, texts, load_in_4bit=kind != "bf16", reward_rank=rank)
    result |= {"estimate": sum(parts.values()), "parts": parts}
    gpu.flops = 0
    with torch.no_grad():
        hidden = lm.model(input_ids=given["input_ids"], use_cache=False).last_hidden_state
        lm.lm_head(hidden[:, length - masked - 1 : -1])
    return result | {"bare": gpu.flops}


def chunks_of(masked: list[int]):
    vocabulary = MISTRAL_7B["vocab_size"]
    return chunks.make_chunks(masked, chunks.rows_per_chunk(vocabulary, GPU), GPU)


def halve(model) -> None:
    """Adapters are loaded in the precision of their base."""
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(HALF)
        parameter.requires_grad_(False)


def judge(lm):
    """A reward model as an adapter on the denoiser's own base."""
    config = MistralConfig(**MISTRAL_7B, sliding_window=None, num_labels=1)
    model = share_base(reward.MistralRewardModel, lm, config)
    with GPU:
        inject_adapter_in_model(LoraConfig(r=32, target_modules=lora_targets(model)), model.model)
    halve(model)
    model.config.score_position = "last"
    return freeze_(model)


def training(gpu, micro_batch_size: int = 1, layers: int = 4, **fields):
    """Peak of whole steps, of which one masks all but a row's first token, beside the estimate of it."""
    recipe = recipe_of(micro_batch_size=micro_batch_size, **fields)
    model = adapted(recipe, layers)
    gc.collect()
    weights = gpu.now
    gpu.reset()
    t = torch.zeros(micro_batch_size, dtype=torch.long, device=GPU)
    half, full = (batch(recipe.length, masked, micro_batch_size) for masked in (recipe.length // 2, recipe.length - 1))
    steps = {"bare": (half, False), "self-conditioned": (half, True), "full": (full, True)}
    flops = {}
    for name, (given, self_condition) in steps.items():
        gpu.flops = gpu.unaligned = 0
        gpu.waits.clear()
        with torch.autocast("cuda", HALF):
            loss = model(**given, t=t, self_condition=self_condition)
        loss.backward()
        flops[name] = gpu.flops
        del loss
        gc.collect()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    optimizer = (2 if recipe.load_in_4bit else 8) * trained
    parts = estimate(model.config, recipe, "cuda", 2)
    result = {"peak": (gpu.peak + optimizer) / GB, "weights": weights / GB, "waits": places(gpu)}
    result |= {"largest": gpu.top(15), "at": gpu.at, "unaligned": gpu.unaligned / gpu.flops}
    result |= {"estimate": sum(parts.values()), "parts": parts}
    gpu.flops = 0
    ar = partial(autoregressive, targets=half["input_ids"])
    model.config.is_causal = True
    with torch.autocast("cuda", HALF):
        model(**half, t=t, loss=ar).backward()
    return result | {"to_ar": (flops["bare"] + flops["self-conditioned"]) / 2 / gpu.flops}


def reward_training(gpu, layers: int = 4, **fields):
    """Peak of a step of TRL's trainer on one pair, as long as the recipe allows, beside the estimate of it."""
    settings = {"lora_rank": 64, "load_in_4bit": True, "gradient_checkpointing": True, "length": 512}
    recipe = RewardRecipe("a base", "pairs", "nowhere", batch_size=64, micro_batch_size=1, **settings | fields)
    lm = denoiser(recipe.load_in_4bit, num_hidden_layers=layers)
    config = MistralConfig(**MISTRAL_7B | {"num_hidden_layers": layers}, sliding_window=None, num_labels=1)
    model = share_base(reward.MistralRewardModel, lm, config)
    model.config.score_position = "last"
    del lm.lm_head
    with GPU:
        adapter = lora_config(recipe, lora_targets(model), ["score"], task_type="SEQ_CLS")
        model = get_peft_model(model, adapter).train()
        train_in_float32_(model)
    as_trained(model, recipe)
    gc.collect()
    weights = gpu.now
    gpu.reset()
    ids = torch.full((2 * recipe.micro_batch_size, recipe.length), 5, device=GPU)
    with torch.autocast("cuda", HALF):
        chosen, rejected = model(input_ids=ids).logits[:, 0].chunk(2)
        loss = -nn.functional.logsigmoid(chosen - rejected).mean()
    loss.backward()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parts = estimate(model.config, recipe, "cuda", 2)
    result = {"peak": (gpu.peak + 2 * trained) / GB, "weights": weights / GB, "waits": places(gpu)}
    result |= {"largest": gpu.top(15), "at": gpu.at}
    return result | {"estimate": sum(parts.values()), "parts": parts}


def autoregressive(lm, input_ids, *_, targets, **__):
    """The step that the adaptation is compared with: same layers, same adapters, every token predicted."""
    hidden = lm.model(inputs_embeds=lm.get_input_embeddings()(input_ids), use_cache=False).last_hidden_state
    size = chunks.rows_per_chunk(lm.config.vocab_size, GPU)
    return cross_entropy(lm.head, hidden[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), size)


def places(gpu) -> dict[str, int]:
    return {" ".join(place): count for place, count in gpu.waits.items()}


def generating(gpu):
    """Waits of one step of `generate`, with what it records and shows: those of 8 steps without those of 4."""
    lm = denoiser(num_hidden_layers=1)
    lm.tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    generation.as_generation = lambda *_: None
    counts = []
    for steps in (4, 8):
        gpu.reset()
        t2.generate(lm, ["The cat", "The dog"], steps=steps, length=64, progress=True, seed=0)
        counts.append(places(gpu))
    return {"waits": {place: (count - counts[0].get(place, 0)) / 4 for place, count in counts[1].items()}}


CASES = {
    "generate": generating,
    "sampling-512": partial(sampling, length=512, masked=384),
    "sampling-2048": partial(sampling, length=2048, masked=2047),
    "sampling-bf16": partial(sampling, length=512, masked=384, kind="bf16"),
    "sampling-adapter": partial(sampling, length=2048, masked=2047, kind="adapter"),
    "guided-512": partial(sampling, length=512, masked=384, kind="guided"),
    "guided-2048": partial(sampling, length=2048, masked=2047, kind="guided"),
    "sampling-512-8": partial(sampling, length=512, masked=511, texts=8),
    "reward-512": reward_training,
    "reward-2048": partial(reward_training, length=2048),
    "training-32-layers": partial(training, layers=32),
    "training-512": partial(training),
    "training-512-4": partial(training, micro_batch_size=4),
    "training-512-8": partial(training, micro_batch_size=8),
    "training-2048": partial(training, length=2048),
    "training-frozen": partial(training, embeddings="frozen"),
    "training-trained": partial(training, embeddings="trained"),
    "training-rank-8": partial(training, lora_rank=8),
    "training-bf16": partial(training, load_in_4bit=False),
    "training-stored": partial(training, gradient_checkpointing=False),
    "training-whole": partial(training, load_in_4bit=False, lora_rank=0, layers=2),
}


def main(names: list[str]) -> None:
    """Each case in a process of its own, which ends without tidying up: there is no memory to give back."""
    fake_cuda.install()
    generator_for = chunks.generator_for
    chunks.generator_for = lambda *given: generator_for(*given) if given[-1].type == "cpu" else None
    for name in names or CASES:
        child = os.fork()
        if not child:
            run_case(name)
        _, status = os.waitpid(child, 0)
        if status:
            print(f"{name} failed", file=sys.stderr, flush=True)
            os._exit(1)
    os._exit(0)


def run_case(name: str) -> None:
    begin = time.perf_counter()
    try:
        with FakeGPU(IS_DETAILED) as gpu:
            result = CASES[name](gpu)
        print(json.dumps({"case": name} | result | {"seconds": time.perf_counter() - begin}), flush=True)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
