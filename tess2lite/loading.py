"""From a name or a folder to a denoiser: bundled models, AR models, TESS 2 checkpoints, PEFT adapters."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging

from .model import DENOISERS, check_bidirectional

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


def bundled() -> dict[str, Path]:
    """The models that come with the package: name → folder."""
    package = Path(__file__).parent
    for root in (package / "models", package.parent / "assets" / "models"):  # in a wheel; in a clone
        found = {path.parent.name: path.parent for path in sorted(root.glob("*/*config.json"))}
        if found:
            return found
    return {}


def load(name, load_in_4bit: bool = False, dtype=None, device=None):
    """A denoiser, ready to write: `lm`, a `transformers.PreTrainedModel`, with `lm.tokenizer`.

    name: a bundled model ("tinytown-base"); a local folder or a hub name of a Mistral or Llama (AR weights are
    made bidirectional and get a zero timestep embedding), of a TESS 2 checkpoint, or of a PEFT adapter on one.
    load_in_4bit: nf4 through bitsandbytes. dtype: of weights and computation, as torch.dtype or name; by default
    float32 on a CPU, bfloat16 on a GPU that has it, else float16. device: "cpu", "cuda", …; a GPU by default
    where there is one.

    Raises ValueError with what was given and what is accepted.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    source = find_source(name)
    with plain_errors(name), quiet(name):
        adapter = adapter_base(source)
        if adapter is None:
            lm = _load_model(source, load_in_4bit, dtype, device)
        else:
            lm = load(adapter, load_in_4bit, dtype, device)
            check_adapter(source, lm)
            lm.load_adapter(source)
            lm.tokenizer = adapter_tokenizer(source, lm)
    check_bidirectional(lm)
    # What an adapter trained on this model will name as its base; a folder by its full path, to be found from anywhere.
    lm.name_or_path = str(name) if str(name) in bundled() or not Path(name).is_dir() else str(Path(name).resolve())
    lm.base_name = lm.name_or_path if adapter is None else lm.base_name
    return lm.eval()


def choose_device(device) -> torch.device:
    if device is None:
        return (
            torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    given = device
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {given!r}; give 'cpu', 'cuda' or 'cuda:0'.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is '{device}', but PyTorch sees no GPU here; leave device out or give 'cpu'.")
    return device


def choose_dtype(dtype, device: torch.device) -> torch.dtype:
    if dtype is None:
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    dtype = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    return dtype


def find_source(name) -> str:
    """A folder or a hub name, or an error that lists what there is."""
    if not isinstance(name, (str, Path)) or not str(name):
        raise ValueError(f"The name is {name!r}; give a string or a path.")
    if str(name) in bundled():
        return str(bundled()[str(name)])
    path = Path(name)
    if path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
            raise ValueError(
                f"The folder '{name}' holds no config.json and no adapter_config.json; give a model folder."
            )
        return str(path)
    if str(name).count("/") != 1 or path.is_absolute() or path.exists() or str(name).startswith((".", "~")):
        raise ValueError(
            f"There is no model '{name}': give a bundled name ({', '.join(bundled())}), "
            "an existing model folder, or a hub name like 'mistralai/Mistral-7B-v0.1'."
        )
    return str(name)


@contextmanager
def plain_errors(name):
    """Loading fails in many libraries' words; say it in one sentence, and keep the original as its cause."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(f"'{name}' does not fit on the GPU; try load_in_4bit=True, or device='cpu'.") from error
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("'"):
            raise  # already ours
        first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"'{name}' could not be loaded: {first_line}") from error
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def quiet(name):
    """No progress bar for the bundled models, which load in no time."""
    hide = str(name) in bundled() and logging.is_progress_bar_enabled()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()


def _file(source: str, *names: str) -> str | None:
    """Path of the first of these files that a local folder or hub repository has."""
    from transformers.utils import cached_file

    for name in names:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            return path
    return None


def read_json(source: str, name: str) -> dict:
    """A JSON file of a local folder or hub repository; empty where there is none."""
    path = _file(source, name)
    return {} if path is None else json.loads(Path(path).read_text())


def adapter_base(source: str) -> str | None:
    """The base model of a PEFT adapter; None when the source is a whole model."""
    if _file(source, "config.json") is not None:
        return None
    if _file(source, "adapter_config.json") is None:
        raise ValueError(
            f"'{source}' is no folder here and not to be had from the hub; check the name and the network."
        )
    base = read_json(source, "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise ValueError(f"'{source}' is an adapter that does not name its base model.")
    if Path(base).is_dir() and (Path(base) / "adapter_config.json").exists():
        raise ValueError(f"'{source}' is an adapter on another adapter, '{base}'; merge that one into its base first.")
    return base


def check_safetensors(source: str) -> None:
    if _file(source, *WEIGHT_FILES) is None:
        raise ValueError(
            f"'{source}' holds no weights as safetensors; pickled weights (*.bin, *.pt) are not read, "
            "because they can run code: convert them with save_pretrained first."
        )


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("'load_in_4bit' needs bitsandbytes, which is not installed; pip install bitsandbytes.")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", "timestep_embed", "score"],
    )  # fmt: skip


def _load_model(source: str, load_in_4bit: bool, dtype: torch.dtype, device: torch.device):
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if config.model_type not in DENOISERS:
        raise ValueError(f"'{source}' is a {config.model_type}; the decoders accepted are {', '.join(DENOISERS)}.")
    check_safetensors(source)
    lm, info = DENOISERS[config.model_type].from_pretrained(
        source, config=config, dtype=dtype, device_map={"": device}, use_safetensors=True,
        quantization_config=nf4(dtype) if load_in_4bit else None,
        ignore_mismatched_sizes=True, output_loading_info=True,
    )  # fmt: skip
    _check_complete(source, config, info)
    lm.tokenizer = find_tokenizer(source, lm)
    prepare(lm)
    return lm


def prepare(lm) -> None:
    lm.get_input_embeddings().padding_idx = None  # PAD is an ordinary token here: its row must learn
    for module in lm.modules():
        # On CPUs with AVX512-BF16 bitsandbytes repacks nf4 weights at the first inference; the repacked ones
        # are rounded further and pass no gradients to a training that comes after.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_complete(source: str, config, info: dict) -> None:
    was_denoiser = any("ForDiffusionLM" in name for name in config.architectures or [])
    missing = sorted(set(info["missing_keys"]) - (set() if was_denoiser else {"timestep_embed.weight"}))
    surplus = sorted(key for key in info["unexpected_keys"] if ".layers." in key and "rotary" not in key)
    if surplus:
        raise ValueError(f"'{source}' has tensors that its config.json does not know, '{surplus[0]}' first.")
    if missing:
        raise ValueError(
            f"'{source}' lacks {len(missing)} tensors that its config.json asks for, '{missing[0]}' first."
        )
    if info["mismatched_keys"]:
        key, found, wanted = sorted(info["mismatched_keys"])[0]
        raise ValueError(
            f"'{source}' has '{key}' of shape {tuple(found)} where its config.json asks for {tuple(wanted)}."
        )


def find_tokenizer(source: str, lm):
    """The source's tokenizer, with a PAD of its own; None when the source has none."""
    if _file(source, *TOKENIZER_FILES) is None:
        return None
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ValueError(f"'{source}' has a tokenizer without a BOS or an EOS token; a denoiser needs both.")
    if len(tokenizer) > lm.config.vocab_size:
        raise ValueError(
            f"'{source}' has a tokenizer of {len(tokenizer)} tokens for a model of {lm.config.vocab_size}; "
            "they do not belong together."
        )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        _add_pad(tokenizer, lm)
    return tokenizer


@torch.no_grad()
def _add_pad(tokenizer, lm, token: str = "[PAD]") -> None:
    """PAD as a new last id. Its rows start as the mean of the others: no row of noise, the same every time."""
    vocabulary = lm.config.vocab_size
    tokenizer.add_special_tokens({"pad_token": token})
    if len(tokenizer) > vocabulary:  # some models have rows to spare: then [PAD] takes one of those
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for layer in filter(None, (lm.get_input_embeddings(), lm.get_output_embeddings())):
            layer.weight[vocabulary:] = layer.weight[:vocabulary].float().mean(0).to(layer.weight.dtype)
    lm.config.pad_token_id = tokenizer.pad_token_id


# Tensors of an adapter that have a row, or a column, for each token.
VOCABULARY_SIZED = {"lm_head.lora_B.weight": 0, "lm_head.weight": 0, "embed_tokens.weight": 0, "lora_embedding_A": 1}


def check_adapter(source: str, lm, judges: bool = False) -> None:
    """An adapter holds safetensors, and was made on a base with the vocabulary of this one; it `judges` if it has a
    head that scores. Which diffusion it learned is not the base's to say: `lm.config` is told."""
    path = _file(source, "adapter_model.safetensors")
    if path is None:
        raise ValueError(f"'{source}' holds no adapter_model.safetensors; pickled adapters are not read.")
    with safe_open(path, "pt") as file:
        keys = [*file.keys()]
        for key, (ending, axis) in itertools.product(keys, VOCABULARY_SIZED.items()):
            size = file.get_slice(key).get_shape()[axis] if key.endswith(ending) else lm.config.vocab_size
            if size != lm.config.vocab_size:
                raise ValueError(
                    f"'{source}' was made on a vocabulary of {size} tokens, its base has {lm.config.vocab_size}; "
                    "give the base that it was made on."
                )
    if judges and not any(key.endswith("score.weight") for key in keys):
        raise ValueError(f"'{source}' is no reward model: this adapter has no head that scores.")
    if not judges and any(key.endswith("score.weight") for key in keys):
        raise ValueError(f"'{source}' is a reward model and writes nothing; give it to tess2lite.load_reward.")
    vars(lm.config).pop("diffusion", None)
    vars(lm.config).update(read_json(source, "diffusion.json"))  # of a `masked.MaskedTrainer`


def adapter_tokenizer(source: str, lm):
    """The adapter's own tokenizer, or else its base's."""
    if _file(source, *TOKENIZER_FILES) is None:
        return lm.tokenizer
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if len(tokenizer) > lm.config.vocab_size:
        raise ValueError(f"'{source}' has a tokenizer of {len(tokenizer)} tokens for a base of {lm.config.vocab_size}.")
    if lm.tokenizer is not None and not tokenizer.get_vocab().items() <= lm.tokenizer.get_vocab().items():
        raise ValueError(f"'{source}' has another tokenizer than its base; give the base that it was made on.")
    return tokenizer
