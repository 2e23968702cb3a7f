"""Whole models: configuration and weights of a source → a module, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from ..layers.decoders import original_class
from ..layers.rows import align_head
from ..model import denoiser_class
from ..validation import InputError
from .adapters import Adapter, read_adapter
from .devices import choose_device, choose_dtype
from .four_bits import nf4, uneven_layers
from .probes import check_parity
from .sources import WEIGHTS, find_file, find_source, read_json, split_gguf
from .tokenizers import find_tokenizer


def load_base(
    source: str,
    base: str | None,
    load_in_4bit: bool,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
) -> tuple[PreTrainedModel, Adapter | None]:
    """Load the full model of a source, and the adapter that is to be attached to it.

    Args:
        source: Folder, GGUF file or hub name.
        base: What an adapter names as its base; None where the source is a full model.
        load_in_4bit: nf4 through bitsandbytes.
        dtype: Of weights and computation.
        device: Where it is loaded.

    Returns:
        The model, and its adapter or None.
    """
    full = source if base is None else find_source(base)
    lm = load_full_model(denoiser, full, load_in_4bit, dtype, device, fresh=("timestep_embed.weight",))
    check_parity(lm)
    if base is None:
        lm.tokenizer = find_tokenizer(full, lm)
        return lm, None
    adapter = read_adapter(source)
    adapter.grow_vocabulary(lm)
    lm.tokenizer = find_tokenizer(full, lm, source)
    vars(lm.config).pop("diffusion", None)  # set from the adapter, not from its base
    vars(lm.config).update(read_json(source, "diffusion.json"))
    return lm, adapter


def denoiser(config: PreTrainedConfig) -> type:
    """The denoiser class of a decoder's configuration."""
    original: Any = original_class(config)
    return denoiser_class(original)


def read_config(source: str, **settings: Any) -> PreTrainedConfig:
    """The configuration of a whole model; `settings` change it.

    Raises:
        InputError: Its weights are quantised already, so that they can be neither trained nor quantised again.
    """
    folder, gguf = split_gguf(source)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **gguf, **settings)
    quantised = getattr(config, "quantization_config", None)
    if quantised and not gguf:
        method = dict(quantised).get("quant_method", "unknown method")
        raise InputError(
            f"'{source}' is quantised already ({method}); give the model that it was made from, and load_in_4bit=True."
        )
    return config


def load_full_model(
    class_of: Callable[[PreTrainedConfig], type],
    source: str,
    load_in_4bit: bool,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    fresh: tuple[str, ...] = (),
    **settings: Any,
) -> PreTrainedModel:
    """Load a whole model, without its tokenizer.

    Args:
        class_of: Configuration → class.
        fresh: Weights that the source may lack.
        settings: Changes of its configuration.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    folder, gguf = split_gguf(source)
    if gguf and load_in_4bit:
        raise InputError(
            f"'{source}' is a GGUF file; for 4 bits load it without load_in_4bit, call save_pretrained(folder), "
            "and load that folder with load_in_4bit=True."
        )
    config = read_config(source, **settings)
    if not gguf and find_file(source, *WEIGHTS) is None:
        raise InputError(
            f"'{source}' holds no weights as safetensors; pickled weights (*.bin, *.pt) are not read, "
            "because they can run code: convert them with save_pretrained first."
        )
    kind: Any = class_of(config)
    model, info = kind.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        device_map={"": device},
        use_safetensors=True,
        quantization_config=nf4(dtype, uneven_layers(kind, config, device)) if load_in_4bit else None,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **gguf,
    )
    if type(model).__name__ in (config.architectures or []):  # saved with all of its weights
        fresh = ()
    _check_tensors(source, info, fresh, model.base_model_prefix)
    prepare(model)
    return model


def _check_tensors(source: str, info: dict, fresh: tuple[str, ...], backbone: str) -> None:
    """Every weight of the model was in the source, and every weight of the source's backbone is in the model."""
    wrong = []
    for key in sorted(info["unexpected_keys"]):
        if key.startswith(f"{backbone}.") and "rotary" not in key:
            wrong.append(f"'{key}' is unknown there")
    for key in sorted({*info["missing_keys"]} - {*fresh}):
        wrong.append(f"'{key}' is missing")
    for key, one, other in sorted(info["mismatched_keys"]):
        wrong.append(f"'{key}' is {tuple(one)}, not {tuple(other)}")
    if wrong:
        raise InputError(f"'{source}' does not fit its config.json in {len(wrong)} tensors: {wrong[0]}.")


def prepare(lm: PreTrainedModel) -> None:
    """Undo library defaults that break diffusion training."""
    align_head(lm)
    lm.get_input_embeddings().padding_idx = None  # PAD is an ordinary token here: its row must learn
    # Settings of AR sampling mean nothing to a denoiser, and some of them cannot be saved again.
    lm.generation_config = GenerationConfig.from_model_config(lm.config)
    if getattr(lm, "hf_quantizer", None) and not getattr(lm, "is_loaded_in_4bit", False):  # dequantised from a GGUF
        for name in ("quantization_config", "_is_quantized"):
            vars(lm.config).pop(name, None)
        del lm.hf_quantizer
        lm.is_quantized = False
    for module in lm.modules():
        # On CPUs with AVX512-BF16 bitsandbytes repacks nf4 weights at the first inference; the repacked ones
        # are rounded further and pass no gradients to a training that comes after.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
