import json
import os
import shutil
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may wait for a network

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

import tess2lite as t2
from tess2lite.model import LlamaForDiffusionLM, MistralForDiffusionLM

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
GOLDEN = Path(__file__).parent / "golden"
SENTENCES = [
    "The cat sat on the mat. ",
    "The dog saw a red ball in the barn. ",
    "The cat and the dog sat in the barn. ",
]
FAMILIES = {"mistral": (MistralConfig, MistralForDiffusionLM), "llama": (LlamaConfig, LlamaForDiffusionLM)}


@pytest.fixture(scope="session")
def golden():
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="session")
def golden_data():
    return json.loads((GOLDEN / "data.json").read_text())


@pytest.fixture
def golden_lm():
    return t2.load(GOLDEN / "checkpoint")


@pytest.fixture(scope="session")
def golden_tokenizer():
    return AutoTokenizer.from_pretrained(GOLDEN / "tokenizer")


@pytest.fixture
def tiny():
    """A maker of random denoisers with the golden tokenizer: family, dtype and config fields by choice."""

    def make(family="mistral", dtype=torch.float32, seed=0, **fields):
        torch.manual_seed(seed)
        config_class, model_class = FAMILIES[family]
        tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "tokenizer")
        settings = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
        }
        lm = model_class(config_class(**(settings | fields))).to(dtype).eval()
        torch.nn.init.normal_(lm.timestep_embed.weight, std=0.2)
        lm.tokenizer = tokenizer
        return lm

    return make


@pytest.fixture(scope="session")
def mistral_like_tokenizer():
    """As Mistral's: a space before every text, no PAD, and one that adds BOS and EOS of its own accord."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bpe.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=["\n", "|"])
    bpe.train_from_iterator(["The cat sat on the mat, and the dog saw a red ball in the barn.\n"] * 9, trainer)
    bpe.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def save_mistral(folder, tokenizer, **changes):
    """A tiny AR Mistral for a tokenizer's vocabulary; `changes` are fields of its configuration."""
    torch.manual_seed(0)
    settings = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "sliding_window": None,
    }
    config = MistralConfig(vocab_size=len(tokenizer), **(settings | changes))
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipe_fields(folder, **changes):
    """Fields of a short run on `folder`'s model "ar" and text "own.txt"."""
    return {
        "model": str(folder / "ar"),
        "data": str(folder / "own.txt"),
        "output": str(folder / "run"),
        "length": 16,
        "batch_size": 8,
        "micro_batch_size": 4,
        "steps": 10,
        "learning_rate": 3e-3,
        "warmup": 2,
        "num_eval_examples": 8,
        "evaluate_every": 10,
        "save_every": 5,
    } | changes


@pytest.fixture
def own(tmp_path, mistral_like_tokenizer):
    """An AR Mistral without PAD and a text file, as a user has them; returns a maker of recipe fields."""
    save_mistral(tmp_path / "ar", mistral_like_tokenizer)
    (tmp_path / "own.txt").write_text("".join(SENTENCES[i % 3] for i in range(300)))
    return partial(recipe_fields, tmp_path, micro_batch_size=8, steps=20, evaluate_every=20)
