"""Adapters that fit their base give bit for bit what PEFT computes; all others are refused in one sentence."""

import json
import shutil

import pytest
import torch
from conftest import GOLDEN, save_mistral
from peft import AutoPeftModel, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralForCausalLM

import tess2lite as t2
from tess2lite.model import MistralForDiffusionLM
from tess2lite.pretrained.probes import causal
from tess2lite.training.merge import merge
from tess2lite.training.recipe import Recipe
from tess2lite.training.run import train
from tess2lite.validation import InputError

ALL = ["q_proj", "up_proj", "embed_tokens", "lm_head"]
KINDS = {
    "plain": {},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "rank pattern": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 32}},
    "bias": {"target_modules": ["q_proj"], "lora_bias": True},
    "trainable tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [4, 7, 9]},
}


def forward(lm):
    torch.manual_seed(3)
    ids, mask = torch.randint(4, min(90, lm.config.vocab_size), (1, 10)), torch.arange(10)[None] > 3
    simplex, t = 3 * torch.randn(1, 10, lm.config.vocab_size), torch.full((1, 10), 0.4)
    with torch.no_grad():
        return lm.logits_from_simplex(simplex, t, ids, mask)


def randomise(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.1)
    return model.eval()


@pytest.fixture
def adapter(tiny, tmp_path):
    """A maker of adapters on a saved base: (folder, the model as PEFT has it)."""
    tiny(hidden_size=64).save_pretrained(tmp_path / "base")

    def make(**fields):
        fields = {"target_modules": ALL, "modules_to_save": ["timestep_embed"], "r": 4, "lora_alpha": 12} | fields
        model = randomise(get_peft_model(t2.load(tmp_path / "base"), LoraConfig(**fields)))
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        return tmp_path / "adapter", model

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_lora_loads_and_merges_as_peft_computes_it(kind, adapter, tmp_path):
    folder, trained = adapter(**KINDS[kind])
    untouched, expected = forward(t2.load(tmp_path / "base")), forward(trained)
    assert (expected - untouched).abs().max() > 0.1
    assert torch.allclose(forward(t2.load(folder)), expected, atol=1e-5)
    if kind == "bias":  # which the base's layers have no place for
        with pytest.raises(InputError, match="Impossible to merge LoRA"):
            merge(folder, tmp_path / "merged")
        return
    merge(folder, tmp_path / "merged")
    assert torch.allclose(forward(t2.load(tmp_path / "merged")), expected, rtol=1e-3, atol=1e-3)


def spoil(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def drop_two_thirds(tensors):
    for name in sorted(tensors)[: 2 * len(tensors) // 3]:
        tensors.pop(name)


def rename(tensors):
    for name in [name for name in tensors if "q_proj" in name]:
        tensors[name.replace("q_proj", "query")] = tensors.pop(name)


def another_rank(tensors):
    name = next(name for name in tensors if "up_proj.lora_A" in name)
    tensors[name] = tensors[name][:-1].clone()


SPOILT = {
    "missing": (drop_two_thirds, "' is missing"),
    "renamed": (rename, "does not fit its base in 8 tensors"),
    "misshapen": (another_rank, r"lora_A.weight' is \(3, 64\), not \(4, 64\)"),
    "no timestep": (
        lambda tensors: tensors.pop("base_model.model.timestep_embed.weight"),
        "timestep_embed.* is missing",
    ),
    "unknown": (
        lambda tensors: tensors.update({"base_model.model.x.lora_A.weight": torch.ones(2)}),
        "x.lora_A.* unknown",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_an_adapter_that_does_not_fit_is_refused(kind, adapter, tmp_path):
    change, sentence = SPOILT[kind]
    folder, _ = adapter()
    spoil(folder, change)
    for use in (t2.load, lambda folder: merge(folder, tmp_path / "merged")):
        with pytest.raises(InputError, match=sentence) as problem:
            use(folder)
        assert "\n" not in str(problem.value)
    assert not list(tmp_path.glob("merged*"))


def test_a_reward_adapter_that_does_not_fit_is_refused(adapter, tmp_path):
    folder, _ = adapter(target_modules=["q_proj"], modules_to_save=["score"])
    spoil(folder, lambda tensors: tensors.update({"base_model.model.score.weight": torch.ones(1, 64)}))
    spoil(folder, lambda tensors: tensors.pop(next(name for name in tensors if "lora_B" in name)))
    with pytest.raises(InputError, match="does not fit its base in 1 tensors"):
        t2.load_reward(folder)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_begins_with_a_part_of_its_base(start, adapter, tmp_path):
    """PEFT takes that part out of the base again, the same each time."""
    folder, trained = adapter(target_modules=["q_proj"], init_lora_weights=start)
    assert torch.allclose(forward(t2.load(folder)), forward(trained), atol=1e-4)


CONFIGS = {
    "another rank": ({"r": 8}, r"is \(4, 64\), not \(8, 64\)"),
    "no scale": ({"lora_alpha": None}, "has lora_alpha None in adapter_config.json"),
    "one target more": ({"target_modules": [*ALL, "k_proj"]}, "k_proj.lora_A.weight' is missing"),
    "one target less": ({"target_modules": ALL[1:]}, "q_proj.lora_A.weight' is unknown"),
    "targets of another family": ({"target_modules": ["c_attn"]}, "[Tt]arget"),
    "a kind that nobody knows": ({"peft_type": "NEW"}, "is a NEW adapter; LoRA adapters are accepted"),
    "IA3": ({"peft_type": "IA3"}, "is a IA3 adapter"),
    "a random part of the base": ({"init_lora_weights": "pissa_niter_4"}, "began as pissa_niter_4"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_whose_config_does_not_fit_is_refused(kind, adapter):
    changes, sentence = CONFIGS[kind]
    folder, _ = adapter()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=sentence):
        t2.load(folder)


def test_other_kinds_of_adapters_are_refused(adapter, tmp_path):
    folder, _ = adapter()
    config = PromptTuningConfig(num_virtual_tokens=2, base_model_name_or_path=str(tmp_path / "base"))
    config.save_pretrained(folder)
    with pytest.raises(InputError, match="PROMPT_TUNING adapter; LoRA adapters are accepted"):
        t2.load(folder)


@pytest.fixture
def raw_base(tmp_path, mistral_like_tokenizer):
    """A base as the hub has it: AR, without PAD."""
    changes = {"hidden_size": 32, "initializer_range": 0.2, "sliding_window": 4096}
    save_mistral(tmp_path / "raw", mistral_like_tokenizer, **changes)
    return tmp_path / "raw"


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ALL},
        {"target_modules": ALL, "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["lora", "dora", "trained copies"],
)
def test_an_adapter_by_plain_peft_on_the_raw_base(fields, raw_base, tmp_path):
    """Made before [PAD] was there: ordinary tokens are as PEFT computes them, and so is what is merged."""
    plain = randomise(get_peft_model(AutoModelForCausalLM.from_pretrained(raw_base), LoraConfig(r=2, **fields)))
    folder = tmp_path / "adapter"
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(raw_base).save_pretrained(folder)
    (folder / "config.json").write_text((raw_base / "config.json").read_text())  # hides no adapter
    ids = torch.tensor([[1, 20, 30, 40, 50]])
    with torch.no_grad():
        expected = plain(input_ids=ids).logits[0]
        merge(folder, tmp_path / "merged")
        for lm in (t2.load(folder), t2.load(tmp_path / "merged")):
            assert lm.tokenizer.pad_token == "[PAD]" and lm.config.vocab_size == expected.shape[1] + 1
            lm.config.is_causal = True
            logits = lm.head(lm.hidden_states(lm.embedding_matrix()[ids], None)[0])
            assert torch.allclose(logits[:, :-1], expected, rtol=1e-3, atol=1e-3)
            lm.config.is_causal = False
            assert t2.generate(lm, "The cat", steps=2, length=4, progress=False).token_ids


def test_an_adapter_with_tokens_of_its_own(raw_base, tmp_path):
    """As chat tuning adds them: the base grows to the adapter's rows, to a multiple of 64."""
    tokenizer = AutoTokenizer.from_pretrained(raw_base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    base = AutoModelForCausalLM.from_pretrained(raw_base)
    base.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    plain = randomise(get_peft_model(base, config))
    plain.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    lm = t2.load(tmp_path / "adapter")
    assert lm.config.vocab_size % 64 == 0 and "<|im_start|>" in lm.tokenizer.get_vocab()
    assert lm.tokenizer.pad_token == "[PAD]"
    trained = plain.base_model.model.model.embed_tokens.modules_to_save["default"].weight
    assert torch.equal(lm.embedding_matrix(), trained)


def test_an_adapter_of_another_vocabulary_is_refused(adapter, tmp_path):
    folder, _ = adapter()

    def shorter(tensors):
        name = next(name for name in tensors if "lora_embedding_A" in name)
        tensors[name] = tensors[name][:, :-5].clone()

    spoil(folder, shorter)
    with pytest.raises(InputError, match="was made on a vocabulary of 321 tokens, its base has 326"):
        t2.load(folder)


def test_a_whole_model_beside_an_adapter_is_refused(tmp_path):
    shutil.copytree(GOLDEN / "checkpoint", tmp_path / "both")
    (tmp_path / "both" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "nobody/nothing"}))
    with pytest.raises(InputError, match="holds a whole model and an adapter"):
        t2.load(tmp_path / "both")


def test_no_half_merged_folder_is_left(adapter, tmp_path, monkeypatch):
    folder, _ = adapter()

    def full(self, path, **_):
        path.mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(MistralForDiffusionLM, "save_pretrained", full)
    with pytest.raises(InputError, match="No space left"):
        merge(folder, tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))


def test_a_prequantised_base_is_named_in_a_sentence(adapter, tmp_path):
    folder, _ = adapter()
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    for use in (t2.load, lambda folder: merge(folder, tmp_path / "merged"), lambda _: t2.load(tmp_path / "base")):
        with pytest.raises(InputError, match="is quantised already .*load_in_4bit=True"):
            use(folder)
    assert not list(tmp_path.glob("merged*"))


def test_a_saved_adapter_opens_with_plain_peft(raw_base, tmp_path):
    """On the base from the hub format, with PEFT's own automatic class."""
    (tmp_path / "own.txt").write_text("The cat sat on the mat. " * 100)
    fields = {
        "model": str(raw_base),
        "data": str(tmp_path / "own.txt"),
        "output": str(tmp_path / "adapter"),
        "length": 16,
        "batch_size": 4,
        "steps": 2,
        "warmup": 1,
        "learning_rate": 1e-3,
        "num_eval_examples": 4,
        "lora_rank": 2,
        "evaluate_every": 2,
        "save_every": 2,
    }
    train(Recipe(**fields))
    opened = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert isinstance(opened, PeftModel) and isinstance(opened.base_model.model, MistralForCausalLM)
    lm, plain = t2.load(tmp_path / "adapter"), opened.base_model.model.model.layers[1].mlp.up_proj
    assert torch.equal(plain.lora_B["default"].weight, lm.model.layers[1].mlp.up_proj.lora_B["default"].weight)
    ids = torch.tensor([[1, 5, 17, 40, 9]])
    with torch.no_grad(), causal(lm):
        expected = opened(input_ids=ids, use_cache=False).logits[0]
        logits = lm.head(lm.hidden_states(lm.embedding_matrix()[ids], None)[0])
    assert torch.allclose(logits[:, : expected.shape[1]], expected, atol=1e-4)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card and "[More Information Needed]" not in card
