"""Reward models: where their score is read. Training and guidance read it by the same code, at the same place."""

import functools
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from .layers.decoders import original_class
from .layers.embedding import embedding_matrix
from .model import at_least_float32
from .tokens import eos_token_ids, up_to_eos
from .validation import InputError

if TYPE_CHECKING:  # what the mixin is mixed into
    from transformers import PreTrainedModel as _PreTrainedModel
else:
    _PreTrainedModel = object


class RewardModel(_PreTrainedModel):
    """Mixin for `*ForSequenceClassification` with one label: a text's score is read at its row's last real position.

    `config.score_position` says what is there: "last", whatever ends the row, mostly PAD, as the official code reads it
    and as `train` trains it; or "eos", for models that never saw padding: guidance then hides what follows EOS.
    """

    tokenizer: Any = None

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutputWithPast:
        """As transformers' sequence classifiers: `.logits` (B, 1)."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        rewards = self.score_embeddings(inputs_embeds, attention_mask)
        return SequenceClassifierOutputWithPast(logits=rewards[:, None])

    def score_embeddings(self, embeddings: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Rewards of soft texts: (B, L, H) → (B,), in float32 at least."""
        last = -1
        position_ids = None
        if attention_mask is not None:
            count = attention_mask.cumsum(1)  # (B, L), of real positions
            last = count.argmax(1)
            position_ids = (count - 1).clamp(min=0)
        hidden = self.base_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        rows = torch.arange(len(hidden))
        rewards = self.score(hidden[rows, last])[:, 0]
        return at_least_float32(rewards)

    @torch.no_grad()
    def embedding_rows(self) -> torch.Tensor:
        """E, (V, H), as the embedding layer computes it: some families scale it there."""
        layer = self.get_input_embeddings()
        return embedding_matrix(layer, len(layer.weight)).detach()

    @torch.no_grad()
    def score_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Rewards of texts: whole rows of ids (B, L), as `Generation.token_ids`, → (B,)."""
        ids = ids.to(self.device)
        attention_mask = None
        if self.config.score_position == "eos":
            eos = torch.tensor(eos_token_ids(self), device=ids.device, dtype=ids.dtype)
            after_bos = torch.ones_like(ids, dtype=torch.bool)
            after_bos[:, 0] = False  # BOS may be EOS, too
            attention_mask = up_to_eos(ids, eos, after_bos).long()
        embeddings = self.get_input_embeddings()(ids)
        return self.score_embeddings(embeddings, attention_mask)


@functools.cache
def reward_class(original: type[PreTrainedModel]) -> type[RewardModel]:
    """The reward model of a decoder family, by its `*ForCausalLM` class."""
    family = original.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    classifier = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(original.config_class, None)
    bases = (classifier,) if classifier else (GenericForSequenceClassification, original.__bases__[0])
    body = {"__module__": __name__, "__doc__": f"A {family} that scores texts."}
    return type(f"{family}RewardModel", (RewardModel, *bases), body)


MistralRewardModel = reward_class(MistralForCausalLM)


def classifier(config: PreTrainedConfig) -> type[RewardModel]:
    """The reward model class of a decoder's configuration."""
    return reward_class(original_class(config))


def check_reward_model(model: Any) -> None:
    """Raise InputError unless this is a reward model."""
    if not isinstance(model, RewardModel):
        raise InputError(f"The reward model is a {type(model).__name__}; give one from tess2lite.load_reward.")
