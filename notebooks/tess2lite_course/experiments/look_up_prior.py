"""Starting weights in which looking things up is already half wired.

A small decoder on a small corpus learns for millions of tokens before any head copies by content: the two heads that
it takes (one that notes the token before, one that searches for it) are of no use without each other. Here layer 0
starts with heads that attend to the tokens 1, 2, 3 … before, and layer 1 with heads that search for an earlier
occurrence of the current token and copy what followed it. Training is free to change all of it.

Measured on random words said twice (16 rows of 64 tokens a step, Muon): after 200 steps 92 % of the second halves are
predicted with it at a learning rate of 5e-4, 2 % without it at 1e-3. At 4e-3 Muon destroys it: 0 %.
"""

from __future__ import annotations

import torch
from transformers import MistralForCausalLM

SHARPNESS = 5.0  # nats between a head's own offset and the others, about
MATCH = 6.0  # nats for an equal token
WRITE = 0.1  # what the offset heads add to the residual stream, beside embeddings of rms 0.04
COPY = 0.5
CALMER = 0.3  # factor on the other weights that write to the residual stream
BIAS = 3.0  # embedding dimension 0 is this many standard deviations in every token, in place of a bias
FAST = 0.01  # rotary frequencies above it tell neighbours apart
SLOW = 0.0065  # those below it hardly turn within a context of 256
GUESS_OF_NORM = 0.35  # of matching dimensions, after layer 0


def rotary_frequencies(config) -> torch.Tensor:
    """Radians per position of each rotary pair, (head_dim / 2,)."""
    head_dim = config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, head_dim, 2).float() / head_dim
    return config.rope_parameters["rope_theta"] ** -exponents


@torch.no_grad()
def look_up_prior_(model: MistralForCausalLM, seed: int = 1) -> None:
    """Set the starting weights of layers 0 and 1, embeddings and head, in place.

    Args:
        model: fresh, with a rotary base large enough for slow frequencies (1e5).
        seed: of the projections that heads read and write in.
    """
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    generator = torch.Generator().manual_seed(seed)
    read = _projection(config.hidden_size, head_dim, generator)
    noted = [_projection(config.hidden_size, head_dim, generator) for _ in range(config.num_attention_heads)]
    bias = _prepare_embeddings_(model)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.mul_(CALMER)
        layer.self_attn.o_proj.weight.mul_(CALMER)
    _note_the_tokens_before_(model.model.layers[0].self_attn, config, bias, read, noted)
    _search_and_copy_(model.model.layers[1].self_attn, config, read, noted)


def _projection(hidden: int, rows: int, generator: torch.Generator) -> torch.Tensor:
    """Orthonormal rows (rows, H) that do not read the bias dimension."""
    basis, _ = torch.linalg.qr(torch.randn(hidden - 1, rows, generator=generator))
    return torch.cat([torch.zeros(1, rows), basis]).T


def _prepare_embeddings_(model: MistralForCausalLM) -> float:
    """A bias dimension in E, and a head that starts as E. Returns the bias as layers read it, after their norm."""
    embedding = model.model.embed_tokens.weight
    embedding[:, 0] = BIAS * model.config.initializer_range
    model.lm_head.weight.copy_(embedding)
    model.lm_head.weight[:, 0] = 0
    rms = embedding.pow(2).mean(1).sqrt()
    return float((embedding[:, 0] / rms).mean())


def _note_the_tokens_before_(attention, config, bias: float, read: torch.Tensor, noted: list[torch.Tensor]) -> None:
    """Head h attends to the token h + 1 before, and writes what it reads there into a place of its own."""
    frequencies = rotary_frequencies(config)
    pairs = (frequencies > FAST).nonzero()[:, 0]
    head_dim = len(read)
    half = head_dim // 2
    size = (SHARPNESS * head_dim**0.5) ** 0.5 / bias
    for weight in (attention.q_proj.weight, attention.k_proj.weight):
        weight.mul_(0.1)
        weight[:, 0] = 0
    for group in range(config.num_key_value_heads):
        attention.k_proj.weight[group * head_dim + pairs, 0] = size
        attention.v_proj.weight[group * head_dim : (group + 1) * head_dim] = read
    for head, place in enumerate(noted):
        start = head * head_dim
        angles = (head + 1) * frequencies[pairs]
        attention.q_proj.weight[start + pairs, 0] = size * torch.cos(angles)
        attention.q_proj.weight[start + half + pairs, 0] = -size * torch.sin(angles)
        attention.o_proj.weight[:, start : start + head_dim] = WRITE * place.T


def _search_and_copy_(attention, config, read: torch.Tensor, noted: list[torch.Tensor]) -> None:
    """The first head of each group attends to positions after an equal token and copies what it finds there."""
    head_dim = len(read)
    slow = (rotary_frequencies(config) <= SLOW).nonzero()[:, 0]
    matching = torch.cat([slow, slow + head_dim // 2])
    size = (MATCH / (len(matching) * GUESS_OF_NORM / head_dim**0.5)) ** 0.5
    per_group = config.num_attention_heads // config.num_key_value_heads
    for group in range(config.num_key_value_heads):
        keys = group * head_dim
        queries = group * per_group * head_dim
        offset = 2 * group  # 1 before, 3 before …
        attention.k_proj.weight[keys : keys + head_dim].mul_(CALMER)
        attention.k_proj.weight[keys + matching] = size * noted[offset][matching]
        attention.v_proj.weight[keys : keys + head_dim] = read
        attention.q_proj.weight[queries : queries + head_dim].mul_(CALMER)
        attention.q_proj.weight[queries + matching] = size * read[matching]
        attention.o_proj.weight[:, queries : queries + head_dim] = COPY * read.T
