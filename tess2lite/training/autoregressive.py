"""Autoregressive training, and two other ways to make a base: the models that diffusion is compared with and made of.

causal: every token from those before it. prefix: half of the rows are read in both directions up to a random point
(prefix-LM, Raffel et al. 2020). masked: 15 % of the tokens are hidden and told from both sides (RoBERTa, Liu et al.
2019, with `<unk>` as the only replacement).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ..chunks import generator_for
from ..layers.decoders import original_class
from ..loading import load
from ..pretrained.devices import choose_device
from ..pretrained.full_models import read_config
from ..pretrained.sources import find_source, plain_errors
from ..pretrained.tokenizers import find_tokenizer
from ..validation import InputError
from .recipe import PretrainingRecipe
from .trainer import GRID_SEED, Batch, ResumableTrainer

MASK_RATIO = 0.15  # of the masked objective


@dataclass
class PretrainingCollator:
    """Rows of ids → a batch as a transformers model takes it; what is random is a function of (seed, example).

    `labels` (B, L) are ids where there is a loss and −100 elsewhere. With a `span_mask` in the rows the loss is on the
    response and its EOS alone: an AR model needs no padding to end.

    Attributes:
        objective: "causal", "prefix" or "masked".
        seed: Of everything that is random.
        eos: Token id that ends a response.
        unknown: Token id of `<unk>`, for the masked objective.
    """

    objective: str
    seed: int
    eos: int
    unknown: int | None = None

    def __call__(self, rows: list[dict]) -> Batch:
        ids = torch.tensor([row["input_ids"] for row in rows])  # (B, L)
        if self.objective == "causal":
            is_label = self._response(rows, ids) if "span_mask" in rows[0] else _after_first(ids)
            return {"input_ids": ids, "labels": ids.masked_fill(~is_label, -100)}
        cpu = torch.device("cpu")
        generators = [generator_for(self.seed, row["example"], self.objective, cpu) for row in rows]
        if self.objective == "prefix":
            return _prefix(ids, generators)
        if self.unknown is None:
            raise InputError("objective is 'masked', but no id of <unk> is given; give `unknown`.")
        return _masked(ids, generators, self.unknown)

    def _response(self, rows: list[dict], ids: torch.Tensor) -> torch.Tensor:
        """(B, L), True on a response up to its EOS."""
        mask = torch.tensor([row["span_mask"] for row in rows])
        ends = (mask & (ids == self.eos)).int()
        ends_before = ends.cumsum(1) - ends
        return mask & (ends_before == 0)


def _after_first(ids: torch.Tensor) -> torch.Tensor:
    """(B, L), True on all tokens but the first of each row."""
    return torch.arange(ids.shape[1]).expand_as(ids) > 0


def _prefix(ids: torch.Tensor, generators: list[torch.Generator]) -> Batch:
    """Loss after the prefix, which is 1 … L−1 tokens in half of the rows and 1, the same as causal, in the others."""
    length = ids.shape[1]
    ends = []
    for generator in generators:
        is_prefix = torch.rand((), generator=generator) < 0.5
        end = torch.randint(1, length, (), generator=generator) if is_prefix else 1
        ends.append(int(end))
    places = torch.arange(length)
    in_prefix = places < torch.tensor(ends)[:, None]  # (B, L)
    is_causal = places[:, None] >= places  # (L, L), whether position i sees position j
    is_seen = is_causal | in_prefix[:, None, :]  # (B, L, L)
    scores = torch.zeros(is_seen.shape).masked_fill(~is_seen, -torch.inf)  # added to the attention's
    return {"input_ids": ids, "labels": ids.masked_fill(in_prefix, -100), "attention_mask": scores[:, None]}


def _masked(ids: torch.Tensor, generators: list[torch.Generator], unknown: int) -> Batch:
    """Loss on the masked tokens, each read at its own position: `shift_labels` tells transformers not to shift."""
    length = ids.shape[1]
    number = max(1, round(MASK_RATIO * (length - 1)))
    orders = [torch.randperm(length - 1, generator=generator) for generator in generators]
    masked_idx = 1 + torch.stack([order[:number] for order in orders])  # (B, number)
    is_masked = torch.zeros_like(ids, dtype=torch.bool)
    is_masked.scatter_(1, masked_idx, True)
    labels = ids.masked_fill(~is_masked, -100)
    return {
        "input_ids": ids.masked_fill(is_masked, unknown),
        "labels": labels,
        "shift_labels": labels,
        "attention_mask": torch.zeros(len(ids), 1, length, length),  # added to the attention's scores: all is seen
    }


class PretrainingTrainer(ResumableTrainer):
    """transformers' own loss; with `loss_weights` (B, L) in a batch each label's cross-entropy counts by its weight.

    `evaluate` gives the mean over all labels, with prefixes and masked tokens that are the same in every run.
    """

    def _batch_loss(self, model: torch.nn.Module, inputs: Batch, seed: int) -> torch.Tensor:
        inputs = dict(inputs)
        weights = inputs.pop("loss_weights", None)
        if weights is None:
            return model(**inputs, num_items_in_batch=1, use_cache=False).loss  # the sum: compute_loss divides
        labels = inputs.pop("labels")[:, 1:]
        logits = model(**inputs, use_cache=False).logits[:, :-1]  # (B, L−1, V)
        losses = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
        return (losses * weights[:, 1:].flatten()).sum()

    def _evaluation_loss(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        return self._batch_loss(model, inputs, GRID_SEED)

    def _measure(self, rows: Sequence[dict]) -> dict[str, float]:
        return {"loss": self._mean_loss(rows, replace(self.data_collator, seed=GRID_SEED))}


def load_autoregressive(recipe: PretrainingRecipe) -> PreTrainedModel:
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
