"""Left-to-right training, and two other ways to make a base: the models that diffusion is compared with and made of.

causal: every token from those before it. prefix: half of the rows are read in both directions up to a random point
(prefix-LM, Raffel et al. 2020). masked: 15 % of the tokens are hidden and told from both sides (RoBERTa, Liu et al.
2019, with `<unk>` as the only replacement).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..chunks import generator_for
from ..loading import choose_device, find_source, find_tokenizer, load, plain_errors, read_config
from ..model import original_class
from .recipe import PretrainingRecipe
from .trainer import GRID_SEED, Batch, ResumableTrainer

HIDDEN = 0.15  # share of tokens, of the masked objective


@dataclass
class PretrainingCollator:
    """Rows of ids → a batch as a transformers model takes it; what is random is a function of (seed, example).

    labels: (B, L), ids where there is a loss and −100 elsewhere; with a `span_mask` in the rows the loss is on the
    response and its EOS alone: what writes from left to right needs no padding to end.
    """

    objective: str
    seed: int
    eos: int
    unknown: int | None = None  # id of `<unk>`, for the masked objective

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])  # (B, L)
        counted = torch.arange(ids.shape[1]).expand_as(ids) > 0
        if "span_mask" in rows[0]:
            mask = torch.tensor([row["span_mask"] for row in rows])
            ends = (mask & (ids == self.eos)).int()
            counted = mask & (ends.cumsum(1) - ends == 0)
        if self.objective == "causal":
            return {"input_ids": ids, "labels": ids.masked_fill(~counted, -100)}
        streams = [generator_for(self.seed, row["example"], self.objective, torch.device("cpu")) for row in rows]
        return _prefix(ids, streams) if self.objective == "prefix" else _masked(ids, streams, self.unknown)


def _prefix(ids: torch.Tensor, streams) -> dict[str, torch.Tensor]:
    """Loss after the prefix, which is 1 … L−1 tokens in half of the rows and 1, the same as causal, in the others."""
    places = torch.arange(ids.shape[1])
    ends = [torch.randint(1, len(places), (), generator=s) if torch.rand((), generator=s) < 0.5 else 1 for s in streams]
    inside = places < torch.tensor(ends)[:, None]
    seen = (places[:, None] >= places) | inside[:, None, :]  # (B, L, L): whether position i sees position j
    added = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]  # to the attention's scores
    return {"input_ids": ids, "labels": ids.masked_fill(inside, -100), "attention_mask": added}


def _masked(ids: torch.Tensor, streams, unknown: int) -> dict[str, torch.Tensor]:
    """Loss on the hidden tokens, each read at its own position: `shift_labels` tells transformers not to shift."""
    length = ids.shape[1]
    number = max(1, round(HIDDEN * (length - 1)))
    places = 1 + torch.stack([torch.randperm(length - 1, generator=s)[:number] for s in streams])  # (B, number)
    hidden = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, places, True)
    labels = ids.masked_fill(~hidden, -100)
    seen = torch.zeros(len(ids), 1, length, length)  # added to the attention's scores: all is seen
    ids = ids.masked_fill(hidden, unknown)
    return {"input_ids": ids, "labels": labels, "shift_labels": labels, "attention_mask": seen}


class PretrainingTrainer(ResumableTrainer):
    """transformers' own loss. `evaluate` gives the mean over all labels, with prefixes and hidden tokens that are
    the same in every run."""

    def _batch_loss(self, model: torch.nn.Module, inputs: Batch, seed: int) -> torch.Tensor:
        return model(**inputs, num_items_in_batch=1, use_cache=False).loss  # the sum: compute_loss divides

    def _evaluation_loss(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        return self._batch_loss(model, inputs, GRID_SEED)

    def _measure(self, rows: Sequence[dict]) -> dict[str, float]:
        return {"loss": self._mean_loss(rows, replace(self.data_collator, seed=GRID_SEED))}


def load_left_to_right(recipe: PretrainingRecipe):
    """The recipe's model as transformers has it, causal, in float32, with `lm.tokenizer`; or fresh weights for it."""
    source = find_source(recipe.model)
    with plain_errors(recipe.model):
        config = read_config(source)
        original = original_class(config)
        for name in ("is_causal", "diffusion"):  # of a denoiser
            vars(config).pop(name, None)
        torch.manual_seed(recipe.seed)
        lm = original._from_config(config, dtype=torch.float32)
        lm.tokenizer = find_tokenizer(source, lm)
    if recipe.weights == "pretrained":
        weights = load(recipe.model, dtype=torch.float32, device="cpu").state_dict()
        lm.load_state_dict({name: weight for name, weight in weights.items() if name != "timestep_embed.weight"})
    return lm.to(choose_device(None))
