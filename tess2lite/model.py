"""A Hugging Face decoder made into a denoiser of noisy simplexes.

The model stays what it was, a `transformers.PreTrainedModel` with its own layers; it gains one submodule,
`timestep_embed`, loses the causal mask, and reads mixtures of embeddings where tokens are unknown.
`loading.py` gets one from a name or a folder.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM

from . import textbook


class SimplexDenoiser:
    """Mixin for `*ForCausalLM` classes with a `.model` backbone and an `.lm_head`."""

    tokenizer = None  # set by `tess2lite.load`; saved with the model

    def __init__(self, config):
        make_bidirectional(config)
        super().__init__(config)
        self.timestep_embed = nn.Linear(1, config.hidden_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        if module is getattr(self, "timestep_embed", None):
            # Zero: an AR model starts out as the model it was, and the same every time it is loaded.
            nn.init.zeros_(module.weight)
        else:
            super()._init_weights(module)

    def forward(self, *args, run=None, **kwargs):
        """As in transformers; with `run`, run(self): what wrappers (DDP, FSDP, PEFT) must see as a forward pass."""
        return super().forward(*args, **kwargs) if run is None else run(self)

    def embedding_matrix(self) -> torch.Tensor:
        """E, (V, H), as the embedding layer really computes it: through a LoRA or a trained copy that PEFT has
        put around it, before and after saving and merging alike."""
        layer = self.get_input_embeddings()
        if type(layer) is nn.Embedding:
            return layer.weight
        return layer(torch.arange(self.config.vocab_size, device=self.device))

    def embed_time(self, t: torch.Tensor) -> torch.Tensor:
        """t/T, (…) → its embedding (…, H), in the backbone's precision whatever it is trained in."""
        return self.timestep_embed(t[..., None].to(self.timestep_embed.weight.dtype)).to(self.model.norm.weight.dtype)

    def hidden_states(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Last hidden states of the backbone, every position seeing every other.

        inputs_embeds: (B, L, H). attention_mask: (B, L), 0 on filler, None where there is none. Positions are
        counted from each row's first real token, so left padding changes nothing. Returns (B, L, H).
        """
        position_ids = None if attention_mask is None else (attention_mask.cumsum(1) - 1).clamp(min=0)
        return self.model(
            inputs_embeds=inputs_embeds.to(self.model.norm.weight.dtype), use_cache=False,
            attention_mask=attention_mask, position_ids=position_ids,
        ).last_hidden_state  # fmt: skip

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, H) → logits (R, V), in float32 at least."""
        layer = self.get_output_embeddings()
        logits = layer(hidden.to(layer.weight.dtype))
        return logits.float() if logits.dtype.itemsize < 4 else logits

    def logits_from_simplex(self, simplex, t, input_ids, span_mask, previous_logits=None, attention_mask=None):
        """The textbook pass, for teaching and parity: what the model believes about every position.

        simplex: (B, L, V) noisy simplex. t: (B, L) float, timestep / T. input_ids: (B, L). span_mask: (B, L)
        bool, True where the model must write. previous_logits: (B, L, V) of an earlier prediction, None for
        none. attention_mask: (B, L), 0 on filler. Returns logits (B, L, V), aligned with the positions they
        speak of; zeros at each row's first token.
        """
        return textbook.logits(self, simplex, t, input_ids, span_mask, previous_logits, attention_mask)

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, and the tokenizer goes along."""
        super().save_pretrained(save_directory, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)


class MistralForDiffusionLM(SimplexDenoiser, MistralForCausalLM):
    """A Mistral that denoises."""


class LlamaForDiffusionLM(SimplexDenoiser, LlamaForCausalLM):
    """A Llama that denoises."""


DENOISERS = {"mistral": MistralForDiffusionLM, "llama": LlamaForDiffusionLM}  # by config.model_type


def make_bidirectional(config) -> None:
    """The supported switch. `layer.self_attn.is_causal = False` is silently causal on most attention paths."""
    config.is_causal = False
    config.sliding_window = None
    config.use_cache = False


@torch.no_grad()
def check_bidirectional(lm) -> None:
    """Change the last token and see that every earlier position notices, with and without filler.

    Raises RuntimeError where the attention is causal after all.
    """
    matrix = lm.embedding_matrix()
    ids = torch.arange(6, device=matrix.device)[None] % len(matrix)
    other = ids.clone()
    other[0, -1] = len(matrix) - 1
    filler = torch.tensor([[0, 1, 1, 1, 1, 1]], device=matrix.device)
    for attention_mask in (None, filler):
        before, after = (lm.hidden_states(matrix[i], attention_mask)[0, 1:-1] for i in (ids, other))
        if not (torch.isfinite(before).all() and torch.isfinite(after).all()):
            raise ValueError("The model's weights give no finite numbers; the checkpoint is broken.")
        if not (before != after).any(-1).all():
            raise RuntimeError(
                "The model's attention is still causal: a later token does not reach earlier positions. "
                f"attn_implementation is {lm.config._attn_implementation!r}; use 'sdpa' or 'eager'."
            )
