"""Reward models: load one, read its score. Training and guidance read it by the same code, at the same place."""

from __future__ import annotations

import torch
from transformers import AutoConfig, LlamaForSequenceClassification, MistralForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from . import loading, validation


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
        hidden = self.model(
            inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False,
            position_ids=None if counted is None else (counted - 1).clamp(min=0),
        ).last_hidden_state  # fmt: skip
        last = -1 if counted is None else counted.argmax(1)
        rewards = self.score(hidden[torch.arange(len(hidden)), last])[:, 0]
        return rewards.float() if rewards.dtype.itemsize < 4 else rewards

    @torch.no_grad()
    def score_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Rewards of texts: whole rows of ids (B, L), as `Generation.token_ids`, → (B,)."""
        ids = ids.to(self.device)
        ends = (ids == self.config.eos_token_id).long()
        mask = (ends.cumsum(1) - ends == 0).long() if self.config.read_at == "eos" else None
        return self.score_embeddings(self.get_input_embeddings()(ids), mask)


class MistralRewardModel(RewardModel, MistralForSequenceClassification):
    """A Mistral that judges."""


class LlamaRewardModel(RewardModel, LlamaForSequenceClassification):
    """A Llama that judges."""


REWARD_MODELS = {"mistral": MistralRewardModel, "llama": LlamaRewardModel}  # by config.model_type


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
        raise ValueError(f"read_at is {read_at!r}; choose one of last, eos.")
    if base is not None:
        validation.check_denoiser(base, "base")
        if load_in_4bit or dtype is not None or device is not None:
            raise ValueError("base has a precision and a device already; leave load_in_4bit, dtype and device out.")
    with loading.plain_errors(name):
        adapter = loading.adapter_base(source)
        if base is not None:
            model = _on_base_of(base, adapter, name)
        else:
            whole = loading.find_source(adapter) if adapter else source
            model = load_classifier(whole, load_in_4bit, dtype, device, new_head=bool(adapter))
        if adapter:
            loading.check_adapter(source, model, judges=True)
            model.load_adapter(source)
        said = loading.read_json(source, "config.json") | loading.read_json(source, "reward.json")
        model.config.read_at = read_at or said.get("read_at", "last")
    return frozen(model)


def load_classifier(source: str, load_in_4bit: bool, dtype, device, new_head: bool):
    """A reward model from a sequence classifier, or, with a new head, from any model of its family."""
    if new_head:
        new = {"fresh": ("score.weight",), "num_labels": 1}
        return loading.load_full_model(REWARD_MODELS, source, load_in_4bit, dtype, device, **new)
    if AutoConfig.from_pretrained(source, trust_remote_code=False).num_labels != 1:
        raise ValueError(f"'{source}' is no reward model; give a sequence classifier with one label, or an adapter.")
    return loading.load_full_model(REWARD_MODELS, source, load_in_4bit, dtype, device)


def _on_base_of(lm, adapter: str | None, name):
    """A reward model for an adapter, on the base of a denoiser, if they are the same."""
    if adapter is None:
        raise ValueError(f"'{name}' is a whole model, no adapter; leave base out.")
    source = loading.find_source(adapter)
    if source != loading.find_source(lm.base_name):
        raise ValueError(f"'{name}' is an adapter on '{adapter}', base is on '{lm.base_name}'; leave base out.")
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, num_labels=1, vocab_size=lm.config.vocab_size)
    model = sharing_base(lm, config)
    model.tokenizer = lm.tokenizer
    return model


def sharing_base(lm, config):
    """A reward model with a new head, whose backbone is made of the very modules of a denoiser's base."""
    with torch.device("meta"):
        model = REWARD_MODELS[config.model_type](config)
    model.score.to_empty(device=lm.device).to(lm.model.norm.weight.dtype)  # the adapter brings its weights
    for place, module in [*model.model.named_modules()]:
        if module._parameters or module._buffers:
            parent, _, leaf = place.rpartition(".")
            setattr(model.model.get_submodule(parent), leaf, _without_adapters(lm.model.get_submodule(place)))
    return model


def _without_adapters(module):
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return getattr(module, "original_module", module)


def frozen(model):
    """For guidance: gradients through the model, at the memory of one layer, and none for its weights."""
    model.eval().requires_grad_(False)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # renamed in 5.2x
    enable({"use_reentrant": False})
    for layer in model.model.layers:  # layers are checkpointed in training mode alone; what is in them, dropout, stays
        layer.training = True
    return model


def check_reward_model(model) -> None:
    """Raises TypeError unless this is a reward model."""
    if not isinstance(model, RewardModel):
        raise TypeError(f"The reward model is a {type(model).__name__}; give one from tess2lite.load_reward.")
