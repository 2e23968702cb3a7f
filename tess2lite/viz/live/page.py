"""One offline HTML file with a denoiser in it: `python -m tess2lite.viz.live page.html model=tinytown-base`.

The page holds the model's weights in float16, its tokenizer, and a forward pass and sampler in JavaScript
(`denoiser.js`, `sampler.js`; the matrix product also in WebAssembly, `simd.js`) that run in a Web Worker. It makes no
request to any network. `explorer.mjs` draws the runs. A model that was tuned on chats answers questions, by the chat
template; others continue a text or fill its blanks.
"""

from __future__ import annotations

import base64
import json
import re
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import torch

from ...loading import load
from ...validation import InputError, expand_path
from .wording import CHAT, STORY, Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...model import SimplexDenoiser

FOLDER = Path(__file__).parent
MAX_BYTES = 12 * 2**20
ENGINE = (
    "denoiser.js",
    "simd.js",
    "sampler.js",
    "attribution.js",
    "worker.js",
)  # what runs in the worker, in order of imports
DEFAULTS = {"steps": 40, "length": 96, "seed": 1, "topP": 0.95, "temperature": 1}
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


def export_config(lm: SimplexDenoiser) -> dict[str, Any]:
    """The numbers that the forward pass in JavaScript needs.

    Raises:
        InputError: The model has parts that the page does not compute.
    """
    config = lm.config
    rope = config.rope_parameters
    sizes = {name: getattr(config, name) for name in SIZES}
    sizes["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes["rope_theta"] = rope["rope_theta"]
    sizes["timestep_spacing"] = getattr(config, "timestep_spacing", "uniform")
    sizes["loss_curve"] = getattr(config, "loss_curve", None)
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
            raise InputError(f"The live page needs {part}, which this model does not have; choose a bundled model.")
    return sizes


@torch.no_grad()
def export_weights(lm: SimplexDenoiser) -> tuple[list[dict], bytes]:
    """All weights in float16.

    Returns:
        The tensors' names and shapes in order, and the numbers' bytes (little-endian) in the same order.

    Raises:
        InputError: A weight is too large for float16, or the forward pass has no use for it.
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
            raise InputError(f"The live page cannot compute with '{name}'; merge adapters, or choose a bundled model.")
        half = weight.detach().cpu().to(torch.float16)
        if not half.isfinite().all():
            raise InputError(f"'{name}' holds numbers too large for float16; the live page cannot hold this model.")
        tensors.append({"name": name, "shape": list(weight.shape)})
        parts.append(half.contiguous().numpy().astype("<f2").tobytes())
    return tensors, b"".join(parts)


def export_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What `tokenizer.js` reads of tokenizer.json.

    Raises:
        InputError: It is not a byte-level BPE or Unigram tokenizer.
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
        raise InputError("The live page needs a byte-level BPE or Unigram tokenizer; choose a bundled model.")
    fields = ("type", "vocab", "merges", "unk_token", "unk_id")
    return {
        "model": {name: model[name] for name in fields if name in model},
        "pre_tokenizer": {"add_prefix_space": pre_tokenizer["add_prefix_space"]},
        "added_tokens": spec["added_tokens"],
    }


def embed_json(value: Any) -> str:
    """JSON that cannot end the script element it is put into."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def is_chat_model(lm: SimplexDenoiser) -> bool:
    """Whether a model answers questions, by its name: every denoiser's tokenizer has the chat template."""
    return "instruct" in Path(lm.name_or_path).name


def build_page(lm: SimplexDenoiser) -> str:
    """The page as HTML.

    Args:
        lm: A denoiser with its tokenizer.

    Raises:
        InputError: The page cannot hold or compute this model.
    """
    tensors, weights = export_weights(lm)
    is_chat = is_chat_model(lm)
    wording = CHAT if is_chat else STORY
    model = {
        "config": export_config(lm),
        "tensors": tensors,
        "tokenizer": export_tokenizer(lm.tokenizer),
        "defaults": DEFAULTS | {"text": wording.tries[0]},
        "isChat": is_chat,
    }
    explorer = (FOLDER.parent / "explorer.mjs").read_text(encoding="utf-8")
    sources = {"engine": bundle(*ENGINE), "explorer": explorer}
    tries = [f'<button type="button" data-try="{escape(text)}">{escape(text)}</button>' for text in wording.tries]
    advice = [f"<li>{escape(sentence)}</li>" for sentence in wording.advice]
    parts = {
        "style": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "app": bundle("tokenizer.js", "schedule.js", "settings.js", "app.js"),
        "model": embed_json(model),
        "sources": embed_json(sources),
        "weights": base64.b64encode(weights).decode(),
        "about": escape(describe(lm, wording)),
        "tries": "".join(tries),
        "advice": "\n".join(advice),
        "title": escape(wording.title),
        "lead": escape(wording.lead),
        "label": escape(wording.label),
        "button": escape(wording.button),
        "length": escape(wording.length),
    }
    return Template((FOLDER / "page.html").read_text(encoding="utf-8")).substitute(parts)


def describe(lm: SimplexDenoiser, wording: Wording) -> str:
    """What the model is, from its own numbers."""
    config = lm.config
    millions = sum(weight.numel() for weight in lm.parameters()) / 1e6
    return (
        f"The model is tess2lite’s {Path(lm.name_or_path).name}: {millions:.1f} million numbers in "
        f"{config.num_hidden_layers} layers, a vocabulary of {config.vocab_size:,} tokens, trained {wording.training}. "
        "It knows nothing else; outside that town it writes nonsense."
    )


def write_page(path: str | Path, lm: SimplexDenoiser) -> int:
    """Writes the page. Returns its size in bytes; raises InputError where it would exceed `MAX_BYTES`."""
    page = build_page(lm).encode()
    if len(page) > MAX_BYTES:
        raise InputError(
            f"The page would have {len(page) / 2**20:.1f} MB and may have {MAX_BYTES // 2**20}; choose a smaller model."
        )
    Path(expand_path(path)).write_bytes(page)
    return len(page)


def main(arguments: list[str]) -> None:
    """The command: a path that ends in .html, and optionally model=NAME."""
    paths = [argument for argument in arguments if "=" not in argument]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if len(paths) != 1 or not paths[0].endswith(".html") or not options.keys() <= {"model"}:
        raise InputError(
            "Give a file to write and a model: python -m tess2lite.viz.live page.html model=tinytown-base, or "
            "model=tinytown-instruct for one that answers questions."
        )
    lm = load(options.get("model", "tinytown-base"), dtype="float32", device="cpu")
    try:
        size = write_page(paths[0], lm)
    except OSError as problem:
        raise InputError(f"'{paths[0]}' could not be written ({problem.strerror}); give another path.") from problem
    print(f"Wrote {paths[0]} ({size / 2**20:.1f} MB); open it in any browser.")
