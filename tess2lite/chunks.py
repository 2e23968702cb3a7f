"""Vocabulary-sized work in pieces: chunks of rows, and one generator per (seed, step, purpose)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

# V-wide numbers that are computed together: products with E are slow on fewer rows, memory grows with more.
CHUNK = {"cpu": 2**22, "cuda": 2**25}

BLOCKS = {"cpu": 2, "cuda": 1}  # in a chunk, each with a noise stream of its own: other blocks are other noise


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    return max(1, CHUNK.get(device.type, CHUNK["cuda"]) // vocabulary)


def generator_for(seed: int, step: int, purpose: str, device: torch.device) -> torch.Generator:
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
        return [generator_for(*keys[sequence], f"{purpose} {number}", device) for sequence, number, _ in self.blocks]

    def standard_normal_(self, out: torch.Tensor, streams: list[torch.Generator]) -> torch.Tensor:
        """Fills (R, V) in place. A stream keeps one core busy, and a CPU has more."""

        @torch.inference_mode(out.is_inference())  # a thread does not know its caller's mode
        def fill(part, generator):
            part.normal_(generator=generator)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # starts no thread that is given nothing
            alone = len(streams) == 1 or out.device.type != "cpu"
            list((map if alone else pool.map)(fill, out.split(self.counts), streams))
        return out


def make_chunks(counts: list[int], size: int, device: torch.device) -> list[Chunk]:
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
