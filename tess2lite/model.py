"""A Hugging Face decoder made into a denoiser of noisy simplexes.

The model remains a `transformers.PreTrainedModel` with its own layers. It gains one submodule, `timestep_embed`,
loses the causal mask, and reads mixtures of embeddings where tokens are unknown. `denoiser_class` makes the class of
any decoder family, `loading.py` gets a model from a name or a folder, and probes (`pretrained/probes.py`) check what
the class promises.
"""

import functools
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.pytorch_utils import Conv1D

from . import textbook
from .layers.decoders import scale_logits
from .layers.embedding import SoftEmbedding, embedding_matrix
from .loss import seeded_loss
from .validation import InputError, expand_path

OPEN_WINDOW = 2**30  # tokens; wider than any text. Some families cannot compute with a sliding window of None.

if TYPE_CHECKING:  # what the mixin is mixed into
    from transformers import PreTrainedModel as _PreTrainedModel
else:
    _PreTrainedModel = object


class SimplexDenoiser(_PreTrainedModel):
    """Mixin for the `*ForCausalLM` classes of transformers: a backbone of layers and an output head."""

    tokenizer: Any = None  # set by `tess2lite.load`; saved with the model

    def __init__(self, config: PreTrainedConfig):
        make_bidirectional(config)
        super().__init__(config)
        self.timestep_embed = nn.Linear(1, config.hidden_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is getattr(self, "timestep_embed", None):
            # Zero: an AR model starts out as the model it was, and the same every time it is loaded.
            nn.init.zeros_(module.weight)
        else:
            super()._init_weights(module)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        span_mask: torch.Tensor | None = None,
        t: torch.Tensor | None = None,
        *,
        loss: Callable[..., torch.Tensor] = seeded_loss,
        attention_mask: torch.Tensor | None = None,
        **settings: Any,
    ) -> torch.Tensor:
        """The diffusion pass: tokens are noised at t, predicted, and scored. What wrappers (DDP, FSDP, PEFT) wrap.

        Args:
            input_ids: (B, L), the true tokens.
            span_mask: (B, L) bool, True where the model must write.
            t: (B,) whole timesteps, 0 … T−1.
            loss: What is computed; `loss.seeded_loss`, whose other arguments may be given too, by default.
            attention_mask: (B, L), 0 on filler; None where there is none.

        Returns:
            The summed loss, in nats.
        """
        if input_ids is None or span_mask is None or t is None:
            raise InputError(
                "lm(...) is the diffusion pass: give input_ids, span_mask and t; to write texts use tess2lite.generate."
            )
        settings = {name: value for name, value in settings.items() if value is not None}  # PEFT passes what is unused
        return loss(self, input_ids, span_mask, t, attention_mask=attention_mask, **settings)

    def generate(self, *_: Any, **__: Any) -> None:
        """Not for denoisers: transformers would write autoregressively."""
        raise InputError("lm.generate is autoregressive; a denoiser writes by tess2lite.generate(lm, prompt).")

    def embedding_matrix(self) -> torch.Tensor:
        """E, (V, H), as the embedding layer computes it.

        A family's scale, a LoRA and a trained copy that PEFT has put around the layer are included, before and after
        saving and merging alike.
        """
        return embedding_matrix(self.get_input_embeddings(), self.config.vocab_size)

    def embed_context(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of the context, (B, L) → (B, L, H); a row of PAD learns as any other."""
        layer = self.get_input_embeddings()
        return F.embedding(input_ids, layer.weight) if type(layer) is nn.Embedding else layer(input_ids)

    def soft_embedding(self) -> SoftEmbedding:
        """p ↦ p·E, (R, V) → (R, H), without gradient for E."""
        return SoftEmbedding(self.get_input_embeddings(), self.config.vocab_size)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The precision that the backbone computes in, whatever its adapters are trained in."""
        linear = next(module for module in self.base_model.modules() if isinstance(module, (nn.Linear, Conv1D)))
        return getattr(linear, "compute_dtype", None) or linear.weight.dtype  # 4-bit weights are stored as bytes

    def embed_time(self, t: torch.Tensor) -> torch.Tensor:
        """Embed t/T: (…) → (…, H), in the backbone's precision whatever it is trained in."""
        weight = self.timestep_embed.weight
        return self.timestep_embed(t[..., None].to(weight.dtype)).to(self.compute_dtype)

    def hidden_states(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Last hidden states of the backbone, with every position attending to every other.

        Positions are counted from each row's first real token, so left padding changes nothing.

        Args:
            inputs_embeds: (B, L, H).
            attention_mask: (B, L), 0 on filler; None where there is none.

        Returns:
            (B, L, H).
        """
        position_ids = None
        if attention_mask is not None:
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        embeds = inputs_embeds.to(self.compute_dtype)
        outputs = self.base_model(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        return outputs.last_hidden_state

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of hidden states, (R, H) → (R, V), in float32 at least, with the family's scale and softcap."""
        layer = self.get_output_embeddings()
        logits = layer(hidden.to(layer.weight.dtype))
        return scale_logits(at_least_float32(logits), self.config)

    def logits_from_simplex(
        self,
        simplex: torch.Tensor,
        t: torch.Tensor,
        input_ids: torch.Tensor,
        span_mask: torch.Tensor,
        previous_logits: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The textbook pass, for teaching and parity: the prediction for every position.

        Args:
            simplex: (B, L, V) noisy simplex.
            t: (B, L) float, timestep / T.
            input_ids: (B, L).
            span_mask: (B, L) bool, True where the model writes.
            previous_logits: (B, L, V) of an earlier prediction; None for none.
            attention_mask: (B, L), 0 on filler.

        Returns:
            Logits (B, L, V), aligned with the positions they predict; zeros at each row's first token.
        """
        return textbook.logits(self, simplex, t, input_ids, span_mask, previous_logits, attention_mask)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as transformers does, and the tokenizer beside the weights."""
        save_directory = expand_path(save_directory)
        super().save_pretrained(save_directory, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Half-precision values in float32, others as they are."""
    return values.to(torch.promote_types(torch.float32, values.dtype))


@functools.cache
def denoiser_class(original: type[PreTrainedModel]) -> type[SimplexDenoiser]:
    """The denoiser of a decoder family: `MistralForCausalLM` → `MistralForDiffusionLM`."""
    family = re.sub("(ForCausalLM|LMHeadModel)$", "", original.__name__)
    name = f"{family}ForDiffusionLM"
    if renamed := get_checkpoint_conversion_mapping(original.__name__):  # old names of weights, by class
        register_checkpoint_conversion_mapping(name, renamed, overwrite=True)
    body = {"__module__": __name__, "__doc__": f"A {family} that denoises."}
    return type(name, (SimplexDenoiser, original), body)


def __getattr__(name: str) -> Any:
    """Every `*ForDiffusionLM` by its name, for imports."""
    family = name.removesuffix("ForDiffusionLM")
    for ending in ("ForCausalLM", "LMHeadModel"):
        if family != name and (original := getattr(transformers, family + ending, None)):
            return denoiser_class(original)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def make_bidirectional(config: PreTrainedConfig) -> None:
    """Switch the causal mask off, in place.

    This is transformers' supported switch; `layer.self_attn.is_causal = False` is silently causal on most attention
    paths.
    """
    config.is_causal = False
    config.use_cache = False
    if hasattr(config, "sliding_window"):
        config.sliding_window = OPEN_WINDOW
