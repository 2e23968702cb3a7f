"""From a name or a folder to a denoiser: bundled models, AR models, TESS 2 checkpoints, PEFT adapters."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import cached_file, logging

from .model import DENOISERS, check_bidirectional

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def bundled() -> dict[str, Path]:
    """The models that come with the package: name → folder."""
    package = Path(__file__).parent
    roots = (package / "models", package.parent / "assets" / "models")  # in a wheel; in a clone
    return {path.parent.name: path.parent for root in roots for path in sorted(root.glob("*/*config.json"))}


def load(name, load_in_4bit: bool = False, dtype=None, device=None):
    """A denoiser, ready to write: `lm`, a `transformers.PreTrainedModel`, with `lm.tokenizer`.

    name: a bundled model ("tinytown-base"); a local folder or a hub name of a Mistral or Llama (AR weights are
    made bidirectional and get a zero timestep embedding), of a TESS 2 checkpoint, or of a PEFT adapter on one.
    load_in_4bit: nf4 through bitsandbytes. dtype: of weights and computation, as torch.dtype or name; by default
    float32 on a CPU, bfloat16 on a GPU that has it, else float16. device: "cpu", "cuda", …; a GPU by default
    where there is one.

    Raises ValueError with what was given and what is accepted.
    """
    source = find_source(name)
    with plain_errors(name):
        base = adapter_base(source)
        if base is None:
            lm = load_full_model(DENOISERS, source, load_in_4bit, dtype, device, fresh=("timestep_embed.weight",))
        else:
            lm = load(base, load_in_4bit, dtype, device)
            check_adapter(source, lm)
            lm.load_adapter(source)
            lm.tokenizer = adapter_tokenizer(source, lm)
    check_bidirectional(lm)
    lm.name_or_path = str(name) if str(name) in bundled() else source  # what an adapter on it will name as its base
    lm.base_name = lm.name_or_path if base is None else lm.base_name
    return lm.eval()


def choose_device(device) -> torch.device:
    """The device asked for; for None the GPU of this process where there is one."""
    gpu = torch.cuda.is_available()
    if device is None:
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if gpu else "cpu")
    with suppress(RuntimeError, TypeError):  # as torch calls what is no device
        if torch.device(device).type in ["cpu"] + ["cuda"] * gpu:
            return torch.device(device)
    accepted = "'cpu', 'cuda' or 'cuda:0'" if gpu else "'cpu' or leave it out: PyTorch sees no GPU here"
    raise ValueError(f"device is {device!r}; give {accepted}.")


def choose_dtype(dtype, device: torch.device) -> torch.dtype:
    """The precision asked for, by torch.dtype or name; for None the device's best that `load` speaks of."""
    if dtype is None:
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    dtype = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    return dtype


def find_source(name) -> str:
    """The full path of a folder, to be found from anywhere, or a hub name; or an error that lists what there is."""
    name = str(name)
    folder = bundled().get(name, Path(name))
    if name and folder.is_dir():
        return str(folder.resolve())
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ValueError(
            f"There is no model '{name}': give a bundled name ({', '.join(bundled())}), "
            "an existing model folder, or a hub name like 'mistralai/Mistral-7B-v0.1'."
        )
    return name


@contextmanager
def plain_errors(name):
    """Loading fails in many libraries' words; say it in one sentence, and keep the original as its cause.

    No progress bar for the bundled models, which load in no time.
    """
    verbosity, hide = logging.get_verbosity(), str(name) in bundled() and logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(f"'{name}' does not fit on the GPU; try load_in_4bit=True, or device='cpu'.") from error
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("'"):
            raise  # already ours
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"'{name}' could not be loaded: {first_line}") from error
    finally:
        logging.set_verbosity(verbosity)
        if hide:
            logging.enable_progress_bar()


def _file(source: str, *names: str) -> str | None:
    """Path of the first of these files that a local folder or hub repository has."""
    paths = (cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in names)
    return next(filter(None, paths), None)


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
            f"'{source}' is no model: neither here nor on the hub it holds a config.json or an adapter_config.json; "
            "check the name and the network."
        )
    base = read_json(source, "adapter_config.json").get("base_model_name_or_path") or ""
    with suppress(ValueError):  # of what is neither a folder nor a hub name
        if _file(find_source(base), "config.json") is not None:
            return base
    raise ValueError(
        f"'{source}' is an adapter on '{base}', which is no whole model here or on the hub; in its adapter_config.json "
        "give the base's full path or hub name as base_model_name_or_path."
    )


def load_full_model(
    classes: dict, source: str, load_in_4bit: bool, dtype, device, fresh: tuple[str, ...] = (), **settings
):
    """A model of these classes, and its tokenizer. `fresh` weights may be missing; `settings` change its config."""
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **settings)
    if config.model_type not in classes:
        raise ValueError(f"'{source}' is a {config.model_type}; the decoders accepted are {', '.join(classes)}.")
    if _file(source, "model.safetensors", "model.safetensors.index.json") is None:
        raise ValueError(
            f"'{source}' holds no weights as safetensors; pickled weights (*.bin, *.pt) are not read, "
            "because they can run code: convert them with save_pretrained first."
        )
    model, info = classes[config.model_type].from_pretrained(
        source, config=config, dtype=dtype, device_map={"": device}, use_safetensors=True,
        quantization_config=nf4(dtype) if load_in_4bit else None,
        ignore_mismatched_sizes=True, output_loading_info=True,
    )  # fmt: skip
    if type(model).__name__ in (config.architectures or []):  # saved with all of its weights
        fresh = ()
    unknown = [key for key in sorted(info["unexpected_keys"]) if ".layers." in key and "rotary" not in key]
    wrong = [f"'{key}' is unknown there" for key in unknown]
    wrong += [f"'{key}' is missing" for key in sorted({*info["missing_keys"]} - {*fresh})]
    wrong += [f"'{key}' is {tuple(one)}, not {tuple(other)}" for key, one, other in sorted(info["mismatched_keys"])]
    if wrong:
        raise ValueError(f"'{source}' does not fit its config.json in {len(wrong)} tensors: {wrong[0]}.")
    model.tokenizer = find_tokenizer(source, model)
    prepare(model)
    return model


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit weights that are multiplied in `dtype`; the heads and the timestep embedding keep theirs."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", "timestep_embed", "score"],
    )  # fmt: skip


def prepare(lm) -> None:
    """What libraries do to a loaded model that diffusion cannot have, undone."""
    lm.get_input_embeddings().padding_idx = None  # PAD is an ordinary token here: its row must learn
    for module in lm.modules():
        # On CPUs with AVX512-BF16 bitsandbytes repacks nf4 weights at the first inference; the repacked ones
        # are rounded further and pass no gradients to a training that comes after.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _tokenizer(source: str, lm):
    """The source's own tokenizer; None when it has none."""
    if _file(source, "tokenizer.json", "tokenizer.model", "tokenizer_config.json") is None:
        return None
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if len(tokenizer) > lm.config.vocab_size:
        sizes = f"{len(tokenizer)} tokens for a model of {lm.config.vocab_size}"
        raise ValueError(f"'{source}' has a tokenizer of {sizes}; give it the model's own.")
    return tokenizer


def find_tokenizer(source: str, lm):
    """The source's tokenizer, with a PAD of its own; None when the source has none."""
    tokenizer = _tokenizer(source, lm)
    if tokenizer and None in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        raise ValueError(f"'{source}' has a tokenizer without a BOS or an EOS token; a denoiser needs both.")
    if tokenizer and tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        _add_pad(tokenizer, lm)
    return tokenizer


@torch.no_grad()
def _add_pad(tokenizer, lm) -> None:
    """PAD as a new last id. Its rows start as the mean of the others: no row of noise, the same every time."""
    vocabulary = lm.config.vocab_size
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
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
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    sized = ((key, axis) for ending, axis in VOCABULARY_SIZED.items() for key in shapes if key.endswith(ending))
    others = {shapes[key][axis] for key, axis in sized} - {lm.config.vocab_size}
    if others:
        sizes = f"{others.pop()} tokens, its base has {lm.config.vocab_size}"
        raise ValueError(f"'{source}' was made on a vocabulary of {sizes}; give the base that it was made on.")
    scores = any(key.endswith("score.weight") for key in shapes)
    if scores != judges:
        kind = "a reward model; give it to tess2lite.load_reward" if scores else "no reward model: it has no score head"
        raise ValueError(f"'{source}' is {kind}.")
    vars(lm.config).pop("diffusion", None)
    vars(lm.config).update(read_json(source, "diffusion.json"))  # of a `masked.MaskedTrainer`


def adapter_tokenizer(source: str, lm):
    """The adapter's own tokenizer, or else its base's."""
    own = _tokenizer(source, lm)
    if own and lm.tokenizer and not own.get_vocab().items() <= lm.tokenizer.get_vocab().items():
        raise ValueError(f"'{source}' has another tokenizer than its base; give the base that it was made on.")
    return own or lm.tokenizer
