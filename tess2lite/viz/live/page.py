"""One offline HTML file with a denoiser in it: `python -m tess2lite.viz.live page.html model=tinytown-base`.

The page holds the model's weights in float16, its tokenizer, and a forward pass and sampler in plain JavaScript
(`denoiser.js`, `sampler.js`, `tokenizer.js`) that run in a Web Worker. It makes no request to any network.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
MAX_BYTES = 12 * 2**20
ENGINE = ("tokenizer.js", "denoiser.js", "sampler.js", "worker.js")  # what runs in the worker, in order of imports
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def bundle(*names: str) -> str:
    """Joins ES modules of this folder into one script: imports and the word `export` are dropped.

    A page opened from a file cannot import modules. Top-level names of the joined modules must differ.
    """
    sources = [(FOLDER / name).read_text(encoding="utf-8") for name in names]
    script = "\n".join(sources)
    script = re.sub(r'^import [^;]*? from "[^"]+";\n', "", script, flags=re.M)
    return re.sub(r"^export (?=class|const|function|async)", "", script, flags=re.M)


def export_config(lm) -> dict:
    """The numbers that the forward pass in JavaScript needs.

    Raises:
        ValueError: The model has parts that the page does not compute.
    """
    config = lm.config
    rope = config.rope_parameters
    sizes = {name: getattr(config, name) for name in SIZES}
    sizes["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes["rope_theta"] = rope["rope_theta"]
    needed = {
        "a denoiser of noisy simplexes": getattr(config, "diffusion", "simplex") == "simplex",
        "silu activations": config.hidden_act == "silu",
        "plain rotary position embeddings": rope["rope_type"] == "default",
        "sizes that are multiples of 4": all(
            size % 4 == 0 for size in (config.hidden_size, config.intermediate_size, sizes["head_dim"])
        ),
    }
    for part, is_given in needed.items():
        if not is_given:
            raise ValueError(f"The live page needs {part}, which this model does not have; choose a bundled model.")
    return sizes


@torch.no_grad()
def export_weights(lm) -> tuple[list[dict], bytes]:
    """All weights in float16.

    Returns:
        The tensors' names and shapes in order, and the numbers' bytes (little-endian) in the same order.

    Raises:
        ValueError: A weight is too large for float16, or the forward pass has no use for it.
    """
    weights = dict(lm.state_dict())
    weights["model.embed_tokens.weight"] = lm.embedding_matrix()
    weights["timestep_embed.weight"] = lm.timestep_embed.weight[:, 0]
    if lm.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    tensors = []
    parts = []
    for name, weight in weights.items():
        if not name.endswith(".weight") or "lora" in name:
            raise ValueError(f"The live page cannot compute with '{name}'; merge adapters, or choose a bundled model.")
        half = weight.detach().cpu().to(torch.float16)
        if not half.isfinite().all():
            raise ValueError(f"'{name}' holds numbers too large for float16; the live page cannot hold this model.")
        tensors.append({"name": name, "shape": list(weight.shape)})
        parts.append(half.contiguous().numpy().astype("<f2").tobytes())
    return tensors, b"".join(parts)


def export_tokenizer(tokenizer) -> dict:
    """What `tokenizer.js` reads of tokenizer.json.

    Raises:
        ValueError: It is not a byte-level BPE or Unigram tokenizer.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    pre_tokenizer = spec["pre_tokenizer"] or {}
    plain_model = {
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "dropout": None,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    is_supported = [
        model["type"] in ("BPE", "Unigram"),
        all(model.get(name) in (None, default) for name, default in plain_model.items()),
        pre_tokenizer.get("type") == "ByteLevel" and pre_tokenizer["use_regex"],
        spec["normalizer"] is None,
        (spec["decoder"] or {}).get("type") == "ByteLevel",
        all(token["special"] for token in spec["added_tokens"]),
    ]
    if not all(is_supported):
        raise ValueError("The live page needs a byte-level BPE or Unigram tokenizer; choose a bundled model.")
    kept = ("type", "vocab", "merges", "unk_token", "unk_id")
    return {
        "model": {name: model[name] for name in kept if name in model},
        "pre_tokenizer": {"add_prefix_space": pre_tokenizer["add_prefix_space"]},
        "added_tokens": spec["added_tokens"],
    }


def embed_json(value) -> str:
    """JSON that cannot end the script element it is put into."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
