"""Reward models: load one, read its score. Training and guidance read it by the same code, at the same place."""

from __future__ import annotations

import functools

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from . import loading, validation
from .model import original_class
from .pretrained.probes import share_modules
from .tokens import eos_token_ids
from .validation import InputError


class RewardModel:
    """Mixin for `*ForSequenceClassification` with one label: a text's score is read at its row's last real position.

    config.read_at says what stands there: "last", whatever ends the row, PAD mostly, as the official code reads it and
    as `train` trains it; or "eos", for models that never saw padding: guidance then hides what follows the first EOS.
    """

    tokenizer = None

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **_):
        """As transformers' sequence classifiers: `.logits` (B, 1)."""
        embeddings = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        return SequenceClassifierOutputWithPast(logits=self.score_embeddings(embeddings, attention_mask)[:, None])

    def score_embeddings(self, embeddings: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Rewards of soft texts: (B, L, H) → (B,), in float32 at least."""
        counted = None if attention_mask is None else attention_mask.cumsum(1)  # of real positions, (B, L)
        hidden = self.base_model(
            inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False,
            position_ids=None if counted is None else (counted - 1).clamp(min=0),
        ).last_hidden_state  # fmt: skip
        last = -1 if counted is None else counted.argmax(1)
        rewards = self.score(hidden[torch.arange(len(hidden)), last])[:, 0]
        return rewards.float() if rewards.dtype.itemsize < 4 else rewards

    @torch.no_grad()
    def embedding_rows(self) -> torch.Tensor:
        """E, (V, H), as the embedding layer computes it: some families scale it there."""
        layer = self.get_input_embeddings()
        if type(layer) is torch.nn.Embedding:
            return layer.weight.detach()
        return layer(torch.arange(len(layer.weight), device=layer.weight.device))

    @torch.no_grad()
    def score_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Rewards of texts: whole rows of ids (B, L), as `Generation.token_ids`, → (B,)."""
        ids = ids.to(self.device)
        ends = torch.isin(ids, torch.tensor(eos_token_ids(self), device=ids.device, dtype=ids.dtype)).long()
        ends[:, 0] = 0  # a BOS, which may be EOS, too
        mask = (ends.cumsum(1) - ends == 0).long() if self.config.read_at == "eos" else None
        return self.score_embeddings(self.get_input_embeddings()(ids), mask)


@functools.cache
def reward_class(original: type[PreTrainedModel]) -> type[RewardModel]:
    """The reward model of a decoder family, by its `*ForCausalLM` class."""
    family = original.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    classifier = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(original.config_class, None)
    bases = (classifier,) if classifier else (GenericForSequenceClassification, original.__bases__[0])
    body = {"__module__": __name__, "__doc__": f"A {family} that scores texts."}
    return type(f"{family}RewardModel", (RewardModel, *bases), body)


MistralRewardModel = reward_class(MistralForCausalLM)


def scorer(config: PreTrainedConfig) -> type[RewardModel]:
    """The reward model class of a decoder's configuration."""
    return reward_class(original_class(config))


def load_reward(name, load_in_4bit: bool = False, dtype=None, device=None, base=None, read_at: str | None = None):
    """A reward model: a sequence classifier with one label, as `hamishivi/mistral_tess2_rm`, or an adapter.

    name: a bundled reward model, a local folder or a hub name. load_in_4bit, dtype, device: as in `tess2lite.load`.
    base: for an adapter, a denoiser that was loaded from the same base: its weights are shared, as they are, and
    guidance costs the adapter's memory alone. read_at: "last" or "eos", see `RewardModel`; by default what the model
    says of itself, else "last", as in the official code. Weights are frozen; gradients are taken of its input alone.

    Raises ValueError or TypeError with what was given and what is accepted.
    """
    source = loading.find_source(name)
    if read_at not in (None, "last", "eos"):
        raise InputError(f"read_at is {read_at!r}; choose one of last, eos.")
    if base is not None:
        validation.check_denoiser(base, "base")
        if load_in_4bit or dtype is not None or device is not None:
            raise InputError("base has a precision and a device already; leave load_in_4bit, dtype and device out.")
    with loading.plain_errors(name):
        adapter_base = loading.adapter_base(source)
        if base is not None:
            model = _on_base_of(base, adapter_base, name)
        else:
            whole = loading.find_source(adapter_base) if adapter_base else source
            model = load_classifier(whole, load_in_4bit, dtype, device, new_head=bool(adapter_base))
        if adapter_base:
            loading.read_adapter(source, scores=True).attach(model)
        saved = loading.read_json(source, "config.json") | loading.read_json(source, "reward.json")
        model.config.read_at = read_at or saved.get("read_at", "last")
    return frozen(model)


def load_classifier(source: str, load_in_4bit: bool, dtype, device, new_head: bool):
    """A reward model from a sequence classifier, or, with a new head, from any model of its family."""
    new = {}
    if new_head:
        new = {"fresh": ("score.weight",), "num_labels": 1}
    elif loading.read_config(source).num_labels != 1:
        raise InputError(f"'{source}' is not a reward model; give a sequence classifier with one label, or an adapter.")
    model = loading.load_full_model(scorer, source, load_in_4bit, dtype, device, **new)
    model.tokenizer = loading.find_tokenizer(source, model)
    return model


def _on_base_of(lm, adapter_base: str | None, name):
    """A reward model for an adapter, on the base of a denoiser, if they are the same."""
    if adapter_base is None:
        raise InputError(f"'{name}' is a whole model, not an adapter; leave base out.")
    source = loading.find_source(adapter_base)
    if source != loading.find_source(lm.base_name):
        raise InputError(f"'{name}' is an adapter on '{adapter_base}', base is on '{lm.base_name}'; leave base out.")
    config = loading.read_config(source, num_labels=1, vocab_size=lm.config.vocab_size)
    config.pad_token_id = lm.config.pad_token_id
    model = sharing_base(lm, config)
    model.tokenizer = lm.tokenizer
    return model


def sharing_base(lm, config: PreTrainedConfig):
    """A reward model with a new head, whose backbone is made of the very modules of a denoiser's base."""
    with torch.device("meta"):
        model = scorer(config)(config)
    model.score.to_empty(device=lm.device).to(lm.compute_dtype)  # the adapter brings its weights
    share_modules(model.base_model, lm.base_model)
    return model


def frozen(model):
    """For guidance: gradients through the model, at the memory of one layer, and none for its weights."""
    model.eval().requires_grad_(False)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # renamed in 5.2x
    enable({"use_reentrant": False})
    for layer in model.modules():  # layers are checkpointed in training mode alone; what is in them, dropout, stays
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True
    return model


def check_reward_model(model) -> None:
    """Raises TypeError unless this is a reward model."""
    if not isinstance(model, RewardModel):
        raise InputError(f"The reward model is a {type(model).__name__}; give one from tess2lite.load_reward.")
