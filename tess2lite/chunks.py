"""Vocabulary-sized work in pieces: chunks of rows, and one generator per (seed, step, purpose)."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

# Elements per chunk: smaller chunks slow the matmul with E, larger ones cost memory.
CHUNK = {"cpu": 2**22, "cuda": 2**25}

# Blocks per chunk, one RNG stream each; changing this changes the samples.
BLOCKS = {"cpu": 2, "cuda": 1}


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """How many rows of `vocabulary` elements are computed together on this kind of device."""
    elements = CHUNK.get(device.type, CHUNK["cuda"])
    return max(1, elements // vocabulary)


def generator_for(seed: int, step: int, purpose: str, device: torch.device) -> torch.Generator:
    """The generator of one sequence, for one purpose in one step.

    Noise and draws are functions of (seed, step), so a run can be replayed or branched from any step, and an edited
    token does not change the noise that comes after it.
    """
    key = f"{seed}/{step}/{purpose}".encode()
    digest = hashlib.blake2b(key, digest_size=4).digest()
    own_seed = int.from_bytes(digest, "big")
    return torch.Generator(device).manual_seed(own_seed)


class Chunk(NamedTuple):
    """Rows that are computed together, in blocks with one RNG stream each.

    blocks: (sequence, number of the block within it, rows) of each.
    """

    blocks: list[tuple[int, int, slice]]

    @property
    def rows(self) -> slice:
        """All rows of the chunk."""
        first = self.blocks[0][2]
        last = self.blocks[-1][2]
        return slice(first.start, last.stop)

    @property
    def counts(self) -> list[int]:
        """The number of rows in each block."""
        return [rows.stop - rows.start for _, _, rows in self.blocks]

    def split(self, values: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """(R, …) → rows and values of each block."""
        rows = [rows for _, _, rows in self.blocks]
        return zip(rows, values.split(self.counts), strict=True)

    def generators(self, keys: list[tuple[int, int]], purpose: str, device: torch.device) -> list[torch.Generator]:
        """One generator per block; keys: (seed, step) of each sequence of the batch."""
        generators = []
        for sequence, number, _ in self.blocks:
            seed, step = keys[sequence]
            generators.append(generator_for(seed, step, f"{purpose} {number}", device))
        return generators

    def standard_normal_(self, out: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        """Fill (R, V) in place. One stream keeps one core busy, and a CPU has more."""

        @torch.inference_mode(out.is_inference())  # a thread does not inherit its caller's mode
        def fill(part: torch.Tensor, generator: torch.Generator) -> None:
            part.normal_(generator=generator)

        parts = out.split(self.counts)
        if len(generators) == 1 or out.device.type != "cpu":
            for part, generator in zip(parts, generators, strict=True):
                fill(part, generator)
        else:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                list(pool.map(fill, parts, generators))
        return out


def make_chunks(counts: list[int], size: int, device: torch.device) -> list[Chunk]:
    """Chunks of at most `size` rows, for sequences that have `counts` rows each."""
    chunks: list[Chunk] = []
    end = 0
    blocks_per_chunk = BLOCKS.get(device.type, 1)
    block = max(1, size // blocks_per_chunk)
    for sequence, count in enumerate(counts):
        starts = range(end, end + count, block)
        end += count
        for number, start in enumerate(starts):
            rows = slice(start, min(start + block, end))
            if not chunks or rows.stop - chunks[-1].rows.start > size:
                chunks.append(Chunk([]))
            chunks[-1].blocks.append((sequence, number, rows))
    return chunks
