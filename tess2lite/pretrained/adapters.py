"""PEFT adapters that fit their base: every tensor that the adapter has and the model wants, in the right shape."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from ..validation import InputError
from .four_bits import import_bitsandbytes
from .sources import find_file, read_json
from .tokenizers import add_rows

REPEATED = r"\.(original_module|modules_to_save)\.(weight|bias)$"  # what PEFT saves twice where a vocabulary grew
# LoRA's beginnings that took something away from the base which nobody can compute again.
CHANGE_THE_BASE = ("pissa_niter", "loftq", "corda", "lora_ga")
PREFIX = "base_model.model."  # PEFT's, before each name of an adapter file
INNER = ("weight", "bias", "base_layer.weight", "base_layer.bias")  # an embedding or a head, whole, beside LoRA

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Adapter:
    """A LoRA adapter as it was saved, to be attached to the base that it was made on."""

    def __init__(self, source: str, path: str):
        """Read an adapter.

        Args:
            source: Its folder or hub name.
            path: Its adapter_model.safetensors.

        Raises:
            InputError: It is not a LoRA adapter.
        """
        self.source = source
        import_bitsandbytes()
        from peft import PeftConfig, PeftType  # late, as loading a plain model does not need it

        saved = read_json(source, "adapter_config.json")
        kind = saved.get("peft_type")
        if kind != PeftType.LORA.value or saved.get("alora_invocation_tokens"):
            raise InputError(f"'{source}' is a {kind} adapter; LoRA adapters are accepted.")
        for name in ("r", "lora_alpha"):
            if not isinstance(saved.get(name), int | float):
                raise InputError(f"'{source}' has {name} {saved.get(name)!r} in adapter_config.json; give a number.")
        start = saved.get("init_lora_weights")
        if isinstance(start, str) and start.startswith(CHANGE_THE_BASE):
            raise InputError(
                f"'{source}' began as {start}, which changes the base by more than the adapter's file says; "
                "convert it to a plain LoRA with PEFT's path_initial_model_for_weight_conversion."
            )
        self.config = PeftConfig.from_pretrained(source)
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(path).items()}
        self.tensors = {name: tensor for name, tensor in tensors.items() if not re.search(REPEATED, name)}

    @property
    def scores(self) -> bool:
        """Whether it has a head that scores, as a reward model's."""
        return any(name.endswith("score.weight") for name in self.tensors)

    def _vocabulary_axes(self, model) -> dict[str, int]:
        """The tensors that have an entry for each token: name → axis."""
        embedding, head = _names(model)
        axes = {f"{embedding}.lora_embedding_A": 1}
        for layer in filter(None, (embedding, head)):
            axes |= {f"{layer}.{inner}": 0 for inner in INNER}
        if head:
            axes |= {f"{head}.lora_B.weight": 0, f"{head}.lora_magnitude_vector": 0}
        return {name: axis for name, axis in axes.items() if name in self.tensors}

    def grow_vocabulary(self, model: PreTrainedModel) -> None:
        """Give the base, in place, the rows of tokens that were added with the adapter, where the adapter has them."""
        embedding, head = _names(model)
        for name in (f"{embedding}.weight", f"{embedding}.base_layer.weight"):
            rows = self.tensors.get(name)
            tied = model.config.tie_word_embeddings
            has_head = not head or tied or any(f"{head}.{inner}" in self.tensors for inner in INNER)
            if rows is not None and has_head and len(rows) > model.config.vocab_size:
                add_rows(model, len(rows))

    def attach(self, model: PreTrainedModel, trained_precision: bool = False) -> PeftModel:
        """Attach the adapter to its base, in place.

        Where it was made before `[PAD]` became the vocabulary's last entry, `[PAD]` gets no change, and the mean where
        the adapter holds whole matrices.

        Args:
            model: The base, on which no adapter is yet.
            trained_precision: Keep half-precision LoRA weights in float32.

        Returns:
            PEFT's wrapper, for merging.

        Raises:
            InputError: Tensors are missing, unknown or of another shape.
        """
        self._fit_pad(model)
        embedding, head = _names(model)
        self.config.inference_mode = True
        from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

        wrapped = PeftModel(model, self.config, autocast_adapter_dtype=trained_precision)
        expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        shapes = {name.removeprefix(PREFIX): tensor.shape for name, tensor in expected.items()}
        of_base = {f"{layer}.{inner}" for layer in (embedding, head) for inner in INNER}
        wrong = [f"'{name}' is missing" for name in sorted(shapes.keys() - self.tensors.keys())]
        wrong += [f"'{name}' is unknown" for name in sorted(self.tensors.keys() - shapes.keys() - of_base)]
        for name in sorted(shapes.keys() & self.tensors.keys()):
            if self.tensors[name].shape != shapes[name]:
                wrong.append(f"'{name}' is {tuple(self.tensors[name].shape)}, not {tuple(shapes[name])}")
        if wrong:
            raise InputError(
                f"'{self.source}' does not fit its base in {len(wrong)} tensors: {wrong[0]}; give the base that it was "
                "made on, and the whole file."
            )
        set_peft_model_state_dict(wrapped, {PREFIX + name: tensor for name, tensor in self.tensors.items()})
        model._hf_peft_config_loaded = True  # so that transformers saves the adapter, not the base
        wrapped.eval().requires_grad_(False)
        return wrapped

    def _fit_pad(self, model) -> None:
        """Extend an adapter by the entries of a base that has since got `[PAD]`."""
        size, pad = model.config.vocab_size, model.config.pad_token_id
        for name, axis in self._vocabulary_axes(model).items():
            tensor = self.tensors[name]
            if tensor.shape[axis] == size:
                continue
            if tensor.shape[axis] != size - 1 or pad != size - 1:
                sizes = f"{tensor.shape[axis]} tokens, its base has {size}"
                raise InputError(
                    f"'{self.source}' was made on a vocabulary of {sizes}; give the base that it was made on."
                )
            new = torch.zeros_like(tensor.narrow(axis, 0, 1))
            if ".lora_" not in name:
                new = tensor.float().mean(axis, keepdim=True).to(tensor.dtype)
            if name.endswith("lora_magnitude_vector"):
                new = model.get_output_embeddings().weight[-1:].float().norm(dim=1).to(tensor.dtype)
            self.tensors[name] = torch.cat([tensor, new], axis)


def read_adapter(source: str, scores: bool = False) -> Adapter:
    """The adapter of a source, read but not attached; `scores` if it must have a head that scores."""
    path = find_file(source, "adapter_model.safetensors")
    if path is None:
        raise InputError(f"'{source}' holds no adapter_model.safetensors; pickled adapters are not read.")
    adapter = Adapter(source, path)
    if adapter.scores != scores:
        right = "a reward model; give it to tess2lite.load_reward"
        wrong = "not a reward model: it has no score head"
        raise InputError(f"'{source}' is {right if adapter.scores else wrong}.")
    return adapter


def _names(model) -> tuple[str, str | None]:
    """The names of the embedding and of the head, which a reward model does not have."""
    names = {module: name for name, module in model.named_modules()}
    return names[model.get_input_embeddings()], names.get(model.get_output_embeddings())
