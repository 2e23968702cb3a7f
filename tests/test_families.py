"""Every decoder family: the AR model it was, the denoiser it becomes, with tokenizers as odd as the real ones."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    Ministral3Config,
    MinistralConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    Starcoder2Config,
)

import tess2lite as t2
from tess2lite.layers.decoders import original_class
from tess2lite.model import denoiser_class
from tess2lite.pretrained.probes import causal, check_bidirectional, check_parity
from tess2lite.pretrained.shared_base import freeze_
from tess2lite.reward import reward_class
from tess2lite.tokens import eos_token_ids
from tess2lite.training import embeddings, memory, recipe
from tess2lite.training.merge import merge
from tess2lite.training.run import train
from tess2lite.validation import InputError

TEXT = "The cat sat on the mat, and the dog saw a red ball in the barn. "

# Configuration, its fields beside the common ones, special tokens (bos, eos, unk, pad), and rows to spare.
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
ONE_FOR_ALL = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")  # SmolLM2, GPT-2, OLMo, Phi
WINDOW = {"sliding_window": 4}
FAMILIES = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}, ONE_FOR_ALL, 0),
    "llama-3": (LlamaConfig, {"eos_token_id": [2, 3]}, {"bos_token": "<a>", "eos_token": "<b>"}, 0),
    "vicuna": (LlamaConfig, {}, LLAMA | {"pad_token": "<unk>"}, 0),
    "mistral": (MistralConfig, WINDOW, LLAMA, 0),
    "nemo": (MistralConfig, {"head_dim": 12, "sliding_window": None}, LLAMA | {"pad_token": "<pad>"}, 0),
    "ministral": (MinistralConfig, WINDOW | {"head_dim": 8}, LLAMA, 0),
    "ministral-3": (Ministral3Config, {"head_dim": 8}, LLAMA, 0),
    "qwen2": (Qwen2Config, {"use_sliding_window": True, "max_window_layers": 1} | WINDOW, {"eos_token": "<e>"}, 40),
    "qwen3": (Qwen3Config, {"head_dim": 8}, {"eos_token": "<e>", "pad_token": "<p>"}, 27),
    "gemma": (GemmaConfig, {"head_dim": 8}, LLAMA | {"pad_token": "<pad>"}, 0),
    "gemma2": (Gemma2Config, WINDOW | {"head_dim": 8, "final_logit_softcapping": 2.0}, LLAMA | {"pad_token": "<p>"}, 0),
    "gemma3": (Gemma3TextConfig, WINDOW | {"head_dim": 8}, LLAMA | {"pad_token": "<pad>"}, 64),
    "olmo": (OlmoConfig, {}, ONE_FOR_ALL, 0),
    "olmo2": (Olmo2Config, {}, ONE_FOR_ALL | {"pad_token": "<|pad|>"}, 0),
    "olmo3": (Olmo3Config, WINDOW, ONE_FOR_ALL | {"pad_token": "<|pad|>"}, 0),
    "smollm3": (SmolLM3Config, {}, ONE_FOR_ALL, 0),
    "phi": (PhiConfig, {"partial_rotary_factor": 0.5}, ONE_FOR_ALL, 24),
    "phi3": (Phi3Config, WINDOW, LLAMA, 0),
    "starcoder2": (Starcoder2Config, WINDOW, ONE_FOR_ALL, 0),
    "granite": (
        GraniteConfig,
        {"logits_scaling": 4.0, "embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.1},
        ONE_FOR_ALL | {"pad_token": "<|pad|>"},
        0,
    ),
    "cohere": (CohereConfig, {"logit_scale": 0.25}, LLAMA | {"pad_token": "<PAD>"}, 0),
    "cohere2": (Cohere2Config, WINDOW | {"logit_scale": 0.25}, LLAMA | {"pad_token": "<PAD>"}, 0),
    "gpt2": (GPT2Config, {"n_inner": 48}, ONE_FOR_ALL, 0),
    "pythia": (GPTNeoXConfig, {"rotary_pct": 0.5}, ONE_FOR_ALL, 20),
}


# Where a tokenizer differs from byte-level BPE: a space before every text, or spaces as they are; both with bytes as a
# last resort. The last two sets add BOS of their own accord.
PREPENDED = {"vicuna", "mistral", "ministral", "phi3"}
GEMMAS = {"gemma", "gemma2", "gemma3"}
ADDING_BOS = {*PREPENDED, *GEMMAS, "llama-3", "cohere", "cohere2"}


def byte_level():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe, {"vocab_size": 300, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}


def sentencepiece(is_prepended):
    """As files converted from SentencePiece: spaces are written as ▁."""
    bpe = Tokenizer(models.BPE(byte_fallback=True))
    spaces = [normalizers.Replace(" ", "▁")]
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if is_prepended:
        spaces.insert(0, normalizers.Prepend("▁"))
        parts.append(decoders.Strip(" ", 1, 0))
    bpe.normalizer = normalizers.Sequence(spaces)
    bpe.decoder = decoders.Sequence(parts)
    return bpe, {"vocab_size": 300}


def make_tokenizer(family, special):
    """A tokenizer as odd as the family's own."""
    if family in PREPENDED | GEMMAS:
        bpe, settings = sentencepiece(family in PREPENDED)
        reserve = [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        bpe, settings = byte_level()
        reserve = []
    tokens = [*dict.fromkeys(special.values())]
    trainer = trainers.BpeTrainer(special_tokens=tokens + reserve, show_progress=False, **settings)
    bpe.train_from_iterator([TEXT] * 9, trainer)
    if family in ADDING_BOS:
        bos = special["bos_token"]
        bpe.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **special)


@pytest.fixture
def family_folder(tmp_path):
    """A maker of AR models of a family, as others save them."""

    def make(family, dtype=torch.float32, **more):
        config_class, fields, special, spare = FAMILIES[family]
        tokenizer = make_tokenizer(family, special)
        settings = {
            "vocab_size": len(tokenizer) + spare,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        own = config_class()  # GPT-2 and Pythia have no key heads, for one
        settings = {name: value for name, value in settings.items() if hasattr(own, name)}
        config = config_class(**(settings | fields | more))
        torch.manual_seed(0)
        ar = original_class(config)(config)
        for parameter in ar.parameters():  # so large that a scale or a softcap matters
            torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path / family
        ar.to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_denoiser_starts_as_the_ar_model_it_was(family, family_folder):
    """Against transformers' own class, loaded from the same files, within its sliding window."""
    folder = family_folder(family)
    lm, plain = t2.load(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[5, 60, 7, 200]])
    with torch.no_grad():
        expected = plain(input_ids=ids).logits[0]
        size = expected.shape[1]
        embeddings = lm.embedding_matrix()[ids]
        both_ways = lm.head(lm.hidden_states(embeddings, None)[0])[:, :size]
        with causal(lm):
            logits = lm.head(lm.hidden_states(embeddings, None)[0])[:, :size]
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both_ways[:-1], expected[:-1], rtol=1e-2, atol=1e-2)
    assert expected.std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_position_sees_every_other_beyond_the_window(family, family_folder):
    lm = t2.load(family_folder(family))
    ids, other = torch.full((1, 24), 7), torch.full((1, 24), 7)
    other[0, -1] = 9
    filler = torch.ones(1, 24, dtype=torch.long)
    filler[0, :2] = 0
    with torch.no_grad():
        for mask in (None, filler):
            one, two = (lm.hidden_states(lm.embedding_matrix()[i], mask)[0, 2:-1] for i in (ids, other))
            assert (one != two).any(-1).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_family_says_the_same_with_longer_embeddings(family, tied, family_folder):
    lm = t2.load(family_folder(family, tie_word_embeddings=tied))
    if tied and family == "olmo":  # its norms have no weights
        with pytest.raises(InputError, match="no norm with weights"):
            embeddings.lengthen_embeddings_(lm)
        return
    E = lm.embedding_matrix().detach().clone()
    norm = next(getattr(lm.base_model, name) for name in embeddings.FINAL_NORMS if hasattr(lm.base_model, name))
    hidden = torch.randn(5, 32)
    with torch.no_grad():
        before = lm.head(norm(hidden))
        embeddings.lengthen_embeddings_(lm)
        after = lm.head(norm(hidden))
        share = (10 * torch.eye(len(E))).softmax(1)[0, 0]  # of the true token on a clean page
        assert torch.allclose(lm.embedding_matrix() * share / 2, E, rtol=1e-4, atol=1e-6)
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_memory_estimate_counts_every_matrix_of_a_family(family, family_folder):
    """All weights but norms, biases, GPT-2's positions and the timestep embedding."""
    lm = t2.load(family_folder(family))
    made = recipe.Recipe(model="a base", data="own.txt", output="x", steps=1, warmup=0)
    matrices = [p for name, p in lm.named_parameters() if p.dim() == 2 and "wpe" not in name and "timestep" not in name]
    expected = sum(p.numel() for p in matrices) * 4 / 1e9
    assert memory.estimate(lm.config, made, "cpu", 4)["weights"] == pytest.approx(expected)


def check_plain_peft(adapter, lm):
    """PEFT by itself, on the base as transformers reads it, gives what the denoiser gives under a causal mask."""
    plain = AutoPeftModelForCausalLM.from_pretrained(adapter)
    ids = torch.tensor([[5, 60, 7, 200]])
    with torch.no_grad(), causal(lm):
        expected = plain(input_ids=ids, use_cache=False).logits[0]
        with plain.disable_adapter():
            untouched = plain(input_ids=ids, use_cache=False).logits[0]
        logits = lm.head(lm.hidden_states(lm.embedding_matrix()[ids], None)[0])
    assert torch.allclose(logits[:, : expected.shape[1]], expected, rtol=1e-4, atol=1e-3)
    assert (expected - untouched).abs().max() > 2e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_saves_loads_merges_and_writes(family, family_folder, tmp_path):
    folder = family_folder(family)
    (tmp_path / "own.txt").write_text(TEXT * 60)
    fields = {
        "model": str(folder),
        "data": str(tmp_path / "own.txt"),
        "length": 16,
        "batch_size": 4,
        "micro_batch_size": 4,
        "steps": 20,
        "warmup": 1,
        "learning_rate": 1e-3,
        "num_eval_examples": 4,
        "evaluate_every": 20,
        "save_every": 20,
        "lora_rank": 2,
    }
    train(recipe.Recipe(**fields, output=str(tmp_path / "adapter")))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    adapted = t2.load(tmp_path / "adapter")
    linear = [name for name, module in t2.load(folder).base_model.named_modules() if hasattr(module, "in_features")]
    names = {name.split(".lora_")[0] for name in saved if ".lora_B" in name}
    assert len(linear) + (family == "gpt2") * 8 + 1 == len(names), names  # the head; GPT-2 has other linear layers
    assert all(saved[name].abs().max() > 0 for name in saved if name.endswith("lora_B.weight"))
    check_plain_peft(tmp_path / "adapter", adapted)
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = t2.load(tmp_path / "merged")
    simplex, t = torch.randn(1, 10, adapted.config.vocab_size), torch.full((1, 10), 0.4)
    ids, mask = torch.full((1, 10), 7), torch.arange(10)[None] > 3
    with torch.no_grad():
        one, two = (lm.logits_from_simplex(simplex, t, ids, mask) for lm in (adapted, merged))
    assert torch.allclose(one, two, rtol=1e-3, atol=1e-3)
    out = t2.generate(merged, "The cat", steps=3, length=6, progress=False)
    assert len(out.token_ids) == 6 + 1 + len(merged.tokenizer("The cat", add_special_tokens=False)["input_ids"])
    filled = t2.infill(merged, "The __ sat on the mat.", steps=3, progress=False)
    assert filled.text.startswith("The") and filled.text.endswith(" sat on the mat.")


def test_special_tokens_are_chosen_where_there_are_none(family_folder):
    for family in FAMILIES:
        lm = t2.load(family_folder(family))
        tokenizer = lm.tokenizer
        assert tokenizer.bos_token_id == lm.config.bos_token_id is not None
        assert tokenizer.pad_token_id == lm.config.pad_token_id < lm.config.vocab_size
        assert tokenizer.pad_token_id not in eos_token_ids(lm)
    qwen = t2.load(family_folder("qwen2")).tokenizer
    assert qwen.bos_token == qwen.eos_token == "<e>" != qwen.pad_token


def test_a_family_with_a_step_of_its_own_is_refused(family_folder, monkeypatch):
    """Its logits would silently be others."""
    lm = t2.load(family_folder("granite"))
    check_parity(lm)
    monkeypatch.setattr("tess2lite.model.scale_logits", lambda logits, config: logits)
    for family in ("granite", "cohere", "gemma2"):
        with pytest.raises(InputError, match="has a step of its own between embeddings and logits"):
            t2.load(family_folder(family))


def test_a_causal_mask_that_stays_is_refused(family_folder):
    lm = t2.load(family_folder("mistral"))
    lm.config.is_causal = True
    with pytest.raises(RuntimeError, match="attention is still causal"):
        check_bidirectional(lm)


def test_what_is_autoregressive_by_construction_is_refused(tmp_path):
    config = MambaConfig(vocab_size=100, hidden_size=16, num_hidden_layers=1, state_size=4)
    original_class_or_none = AutoModelForCausalLM.from_config(config)
    original_class_or_none.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="The model is a mamba; the decoders accepted are"):
        t2.load(tmp_path)


def test_every_family_loads_in_half_precision_and_in_four_bits(family_folder):
    for family in ("gemma2", "granite", "cohere", "phi", "gpt2", "olmo"):
        folder = (
            family_folder(family, hidden_size=64, intermediate_size=64) if family != "gpt2" else family_folder(family)
        )
        for settings in ({"dtype": "bfloat16"}, {"load_in_4bit": True}):
            lm = t2.load(folder, **settings)
            out = t2.generate(lm, "The cat", steps=2, length=4, progress=False)
            assert torch.isfinite(out.trajectory.entropy).all()


def test_denoisers_have_importable_names():
    from tess2lite.model import Qwen2ForDiffusionLM

    assert denoiser_class(original_class(Qwen2Config())) is Qwen2ForDiffusionLM
    assert Qwen2ForDiffusionLM.__module__ == "tess2lite.model"
    with pytest.raises(ImportError):
        from tess2lite.model import NobodysForDiffusionLM  # noqa: F401


def test_guidance_reads_a_scaled_embedding(family_folder):
    """Gemma scales E inside its layer; the gradient must be of the reward that is read there."""
    folder = family_folder("gemma")
    lm = t2.load(folder)
    config = lm.config.__class__.from_pretrained(folder, num_labels=1)
    torch.manual_seed(1)
    judge = freeze_(reward_class(original_class(config))(config))
    judge.config.score_position, judge.tokenizer = "last", AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[5, 60, 7, 200]])
    expected = judge(input_ids=ids).logits[:, 0]
    assert torch.allclose(judge.score_embeddings(judge.embedding_rows()[ids], None), expected, atol=1e-5)
    guided = t2.generate(lm, "The cat", steps=2, length=4, hooks=[t2.RewardGuidance(judge)], progress=False)
    assert len(guided.token_ids) > 4
