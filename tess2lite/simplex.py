"""Tokens ↔ noisy simplex ↔ embeddings, for rows of V numbers, a chunk at a time.

Everything V wide happens here, on (rows, V) tensors that the caller keeps small (`rows_per_chunk`),
and in place where it can. `textbook.py` says the same in the paper's own words; tests hold both equal.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

SIMPLEX_VALUE = 5.0  # k of the paper: a token is +k at its id and −k elsewhere
TRIES = 8  # nucleus draws before a row is sorted instead

# V-wide numbers that are computed together: products with E are slow on fewer rows, memory grows with more.
CHUNK = {"cpu": 2**22, "cuda": 2**25}
BLOCKS = {"cpu": 2, "cuda": 1}  # in a chunk, each with a noise stream of its own: other blocks are other noise


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    return max(1, CHUNK.get(device.type, CHUNK["cuda"]) // vocabulary)


def stream(seed: int, step: int, purpose: str, device: torch.device) -> torch.Generator:
    """The generator of one sequence, for one purpose in one step.

    Noise and draws are functions of (seed, step), so a run can be replayed or branched from any step,
    and an edited token does not change the noise that comes after it.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=4).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


class Chunk(NamedTuple):
    """Rows that are computed together, in blocks with a stream each: (sequence, number within it, rows)."""

    blocks: list[tuple[int, int, slice]]

    @property
    def rows(self) -> slice:
        return slice(self.blocks[0][2].start, self.blocks[-1][2].stop)

    @property
    def counts(self) -> list[int]:
        return [rows.stop - rows.start for _, _, rows in self.blocks]

    def split(self, whole: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """(R, …) → its blocks: rows and part."""
        return zip((rows for *_, rows in self.blocks), whole.split(self.counts), strict=True)

    def streams(self, keys: list[tuple[int, int]], purpose: str, device: torch.device) -> list[torch.Generator]:
        """keys: (seed, step) of each sequence of the batch."""
        return [stream(*keys[sequence], f"{purpose} {number}", device) for sequence, number, _ in self.blocks]

    def standard_normal_(self, out: torch.Tensor, streams: list[torch.Generator]) -> torch.Tensor:
        """Fills (R, V) in place. A stream keeps one core busy, and a CPU has more."""

        @torch.inference_mode(out.is_inference())  # a thread does not know its caller's mode
        def fill(part, generator):
            part.normal_(generator=generator)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # starts no thread that is given nothing
            alone = len(streams) == 1 or out.device.type != "cpu"
            list((map if alone else pool.map)(fill, out.split(self.counts), streams))
        return out


def cut(counts: list[int], size: int, device: torch.device) -> list[Chunk]:
    """The rows of sequences that have so many each, in chunks of at most `size`."""
    chunks, start, block = [], 0, max(1, size // BLOCKS.get(device.type, 1))
    for sequence, count in enumerate(counts):
        for number, offset in enumerate(range(0, count, block)):
            rows = slice(start + offset, start + min(offset + block, count))
            if not chunks or rows.stop - chunks[-1].rows.start > size:
                chunks.append(Chunk([]))
            chunks[-1].blocks.append((sequence, number, rows))
        start += count
    return chunks


def noisy_simplex_(noise: torch.Tensor, tokens: torch.Tensor | None, alpha_bar: torch.Tensor) -> torch.Tensor:
    """ε → √(1−ᾱ)·k·ε + 2k√ᾱ·onehot(w), in place.

    The same as √ᾱ·S^w + √(1−ᾱ)·k·ε up to a constant of each row, which softmax does not see (identity 1
    of the design: no ±k tensor, no one-hot).

    noise: (R, V), standard normal. tokens: (R,) ids, None for no signal at all. alpha_bar: (R, 1) or ().
    """
    noise.mul_(torch.sqrt(1 - alpha_bar) * SIMPLEX_VALUE)
    if tokens is not None:
        signal = (2 * SIMPLEX_VALUE * torch.sqrt(alpha_bar)).to(noise.dtype)
        noise.scatter_add_(1, tokens[:, None], signal.expand(len(tokens), 1))
    return noise


def self_conditioned(noisy: torch.Tensor, belief: torch.Tensor | float) -> torch.Tensor:
    """softmax(noisy) + belief, in place, twice their mean: (R, V), belief already probabilities."""
    return torch.softmax(noisy, 1, out=noisy).add_(belief)


def soft_embedding(probabilities: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """p·E, (R, V)·(V, H) → (R, H), in E's precision."""
    return probabilities.to(embedding.dtype) @ embedding


def draw(probabilities: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """One id a row from its distribution, by inversion in two levels: first a block, then an id in it.

    probabilities: (R, V), any positive scale. u: (R,) uniform in [0, 1). Returns ids (R,).
    """
    vocabulary = probabilities.shape[1]
    width = 2 ** math.ceil(math.log2(max(2, vocabulary)) / 2)
    whole = vocabulary // width * width
    blocks = probabilities[:, :whole].unflatten(1, (-1, width)).sum(-1)  # (R, V // width)
    tail = probabilities[:, whole:].sum(-1, keepdim=True)
    mass = torch.cat([blocks, tail], 1).double().cumsum(1)  # (R, V // width + 1)
    goal = u.double() * mass[:, -1]
    block = torch.searchsorted(mass, goal[:, None], right=True)[:, 0].clamp(max=mass.shape[1] - 1)
    before = torch.where(block > 0, mass.gather(1, (block[:, None] - 1).clamp(min=0))[:, 0], 0.0)
    ids = block[:, None] * width + torch.arange(width, device=u.device)  # (R, width)
    inside = probabilities.gather(1, ids.clamp(max=vocabulary - 1)).double() * (ids < vocabulary)
    within = inside.cumsum(1)
    # never past the last id with any mass, whatever rounding did to the goal
    goal = torch.minimum(goal - before, within[:, -1] * (1 - 1e-12))
    place = torch.searchsorted(within, goal[:, None], right=True)[:, 0].clamp(max=width - 1)
    return ids.gather(1, place[:, None])[:, 0].clamp(max=vocabulary - 1)  # where p is no number, too


def _in_nucleus(p: torch.Tensor, ids: torch.Tensor, top_p: float) -> torch.Tensor:
    """Whether each drawn id is in its row's top-p set: the mass ranked before it is below top_p."""
    chosen = p.gather(1, ids[:, None])  # (R, 1)
    # Where it and what ranks after it, counted in a part of the row, have more than 1 − top_p, all is said.
    some = p[:, : math.ceil(min(1, 8 * (1 - top_p)) * p.shape[1])]
    inside = chosen[:, 0] + torch.where(some < chosen, some, 0).sum(1) > 1 - top_p + 1e-4
    unsure = (~inside).nonzero()[:, 0]  # few; count exactly what ranks before it, ties by token id
    if len(unsure):
        q, c, i = p[unsure], chosen[unsure], ids[unsure, None]
        tied_before = (q == c) & (torch.arange(p.shape[1], device=p.device) < i)
        inside[unsure] = torch.where((q > c) | tied_before, q, 0).sum(1) < top_p
    return inside


def _sorted_draw(p: torch.Tensor, top_p: float, u: torch.Tensor) -> torch.Tensor:
    """The textbook nucleus draw, for the few rows that no try has settled."""
    ranked, ids = p.sort(dim=1, descending=True, stable=True)
    ranked = torch.where(ranked.cumsum(1) - ranked < top_p, ranked, 0)
    return ids.gather(1, draw(ranked, u)[:, None])[:, 0]


def nucleus(p: torch.Tensor, top_p: float, u: torch.Tensor) -> torch.Tensor:
    """Draw from the top-p set of each row without sorting it (identity 6 of the design).

    Draw w ~ p and keep it when it belongs to the nucleus, else draw again: what is kept has exactly the
    renormalised distribution.

    p: (R, V), rows sum to 1. u: (TRIES + 1, R) uniform. Returns ids (R,).
    """
    ids = draw(p, u[0])
    if top_p >= 1:
        return ids
    open_rows = (~_in_nucleus(p, ids, top_p)).nonzero()[:, 0]
    for attempt in range(1, TRIES):
        if not len(open_rows):
            return ids
        again = draw(p[open_rows], u[attempt, open_rows])
        ids[open_rows] = again
        open_rows = open_rows[~_in_nucleus(p[open_rows], again, top_p)]
    if len(open_rows):
        ids[open_rows] = _sorted_draw(p[open_rows], top_p, u[TRIES, open_rows])
    return ids
