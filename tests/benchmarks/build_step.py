"""`python tests/benchmarks/build_step.py [SECONDS]`: how `build` trains, beside how version 0.1 did, on one core.

The same new model of the same size reads ordinary stories of Tinytown for as many CPU seconds, the old way also five
times as long. Before: rows of 128 tokens packed with repeated beginnings, 32 rows a step, torch's Muon, which
multiplies in bfloat16. Now: whole stories, 1,024 tokens a step, `MuonAdamW`. In both the rate falls to 0 with the CPU
time that is left. Printed are tokens per CPU second, the optimizer's share of it, and nats per unseen story.
"""

import sys
import time

import torch

from tess2lite.tinytown.stories import stories
from tess2lite.tokens import encode
from tess2lite.training.data import pack
from tess2lite.training.muon import MuonAdamW
from tess2lite_course.experiments import build
from tess2lite_course.experiments.batches import CausalCollator, PlannedBatches, as_text, padded
from tess2lite_course.experiments.word_tokenizer import make_tokenizer

SECONDS = 120
OLD_LENGTH = 128
OLD_ROWS = 32
OLD_RATE = 6e-3
RATES = (6e-3, 2e-3)  # a small batch is given both
LONGER = 5  # times, for the old way once more
SCORED = 100  # validation stories
ENOUGH = 1_000_000  # documents


class TorchMuon:
    """torch's Muon for the layers' matrices, AdamW for the others, both at one rate."""

    def __init__(self, model: torch.nn.Module, rate: float):
        inside = [p for layer in model.model.layers for p in layer.parameters() if p.ndim == 2]
        known = {id(parameter) for parameter in inside}
        others = [parameter for parameter in model.parameters() if id(parameter) not in known]
        self.both = [
            torch.optim.Muon(inside, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.param_groups = [group for optimizer in self.both for group in optimizer.param_groups]

    def step(self) -> None:
        for optimizer in self.both:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.both:
            optimizer.zero_grad()


def packed_batches(tokenizer):
    """Yields (32, 128) ids."""
    rows = []
    for row in pack((text for first in range(ENOUGH) for text in stories("train", 200, first)), tokenizer, OLD_LENGTH):
        rows.append(row)
        if len(rows) == OLD_ROWS:
            ids = torch.tensor(rows)
            yield {"input_ids": ids, "labels": ids}
            rows = []


def whole_batches(tokenizer):
    """Yields (B, L) ids and labels of about 1,024 tokens."""
    collate = CausalCollator(tokenizer.pad_token_id, [], chance=0.0)
    plan = PlannedBatches(tokenizer, 1024, ENOUGH, build.LENGTH, collate, kinds={"story": 1})
    for step in range(ENOUGH):
        yield plan[step]


def train(model, optimizer, batches, seconds: float) -> tuple[int, float, float]:
    """Until so many CPU seconds are spent. Returns tokens read, CPU seconds of all, of the optimizer."""
    rates = [group["lr"] for group in optimizer.param_groups]
    begin = time.process_time()
    spent = 0.0
    in_optimizer = 0.0
    read = 0
    for batch in batches:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (1 + spent) / 10) * max(0.0, 1 - spent / seconds)
        model(**batch).loss.backward()
        before_step = time.process_time()
        optimizer.step()
        in_optimizer += time.process_time() - before_step
        optimizer.zero_grad()
        read += int((batch["labels"] != -100).sum())
        spent = time.process_time() - begin
        if spent > seconds:
            break
    return read, spent, in_optimizer


@torch.no_grad()
def nats_per_story(model, tokenizer) -> float:
    """Of unseen stories, with their ends."""
    total = 0.0
    for text in stories("validation", SCORED):
        row = [tokenizer.bos_token_id, *encode(tokenizer, text), tokenizer.eos_token_id]
        ids, _ = padded([row], tokenizer.pad_token_id, len(row))
        total += float(model(input_ids=ids, labels=ids).loss) * (len(row) - 1)
    return total / SCORED


def main() -> None:
    torch.set_num_threads(1)
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    tokenizer = make_tokenizer(as_text(build.document("train", i)) for i in range(5_000))
    arms = [(f"now, rate {rate:g}", rate, MuonAdamW, whole_batches, seconds) for rate in RATES]
    arms += [("before", OLD_RATE, TorchMuon, packed_batches, seconds)]
    arms += [("before, longer", OLD_RATE, TorchMuon, packed_batches, LONGER * seconds)]
    print(f"{seconds:g} CPU seconds each, the last one {LONGER * seconds:g}; one core")
    print(f"{'':18} {'tokens per CPU s':>17} {'in the optimizer':>17} {'tokens read':>12} {'nats per story':>15}")
    for name, rate, optimizer, batches, time_given in arms:
        model = build.new_model(tokenizer)
        read, spent, inside = train(model, optimizer(model, rate), batches(tokenizer), time_given)
        nats = nats_per_story(model, tokenizer)
        print(f"{name:18} {read / spent:17,.0f} {inside / spent:17.0%} {read:12,} {nats:15.1f}", flush=True)


if __name__ == "__main__":
    main()
