"""E as a factor with a LoRA beside it, and rows that tensor cores can read: the same numbers, in less room."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tess2lite as t2
from tess2lite.layers import rows
from tess2lite.layers.embedding import SoftEmbedding
from tess2lite.pretrained.tokenizers import add_rows
from tess2lite.training.build import apply_lora
from tess2lite.training.recipe import Recipe

VOCABULARY = 200  # not a multiple of 64


@pytest.fixture
def aligned_cpu(monkeypatch):
    monkeypatch.setitem(rows.ALIGNMENT, "cpu", 64)


def probabilities(count=7):
    torch.manual_seed(1)
    return torch.randn(count, VOCABULARY, dtype=torch.float64).mul(3).softmax(1)


@pytest.mark.parametrize("state", ["plain", "lora", "two", "rsLoRA", "DoRA", "off", "merged", "whole copy"])
def test_soft_embeddings_are_p_times_what_the_layer_computes(state):
    """Whatever PEFT does to the layer; in float64."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(VOCABULARY, 16), "linear": nn.Linear(16, 16)}).double()
    expected_without = model["embed"].weight.detach().clone()
    if state != "plain":
        settings = {"target_modules": ["embed"], "r": 3, "lora_alpha": 5}
        if state == "whole copy":
            settings = {"target_modules": ["linear"], "modules_to_save": ["embed"]}
        config = LoraConfig(**settings, use_rslora=state == "rsLoRA", use_dora=state == "DoRA")
        wrapped = get_peft_model(model, config)
        if state == "two":
            wrapped.add_adapter("second", LoraConfig(**settings | {"r": 2}))
            wrapped.base_model.set_adapter(["default", "second"])
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, dtype=torch.float64)
        if state == "off":
            wrapped.base_model.disable_adapter_layers()
        if state == "merged":
            wrapped.base_model.merge_adapter()
    layer = model["embed"]
    matrix = layer(torch.arange(VOCABULARY)).detach()
    assert torch.equal(matrix, expected_without) == (state in ("plain", "off"))
    soft, p = SoftEmbedding(layer, VOCABULARY), probabilities()
    assert torch.allclose(soft(p), p @ matrix, rtol=1e-12, atol=1e-12)
    assert torch.allclose(soft.uniform, matrix.mean(0), rtol=1e-12, atol=1e-12)
    assert not soft(p).requires_grad


class LargeTensors(TorchDispatchMode):
    """Shapes of all that is computed with as many elements as E."""

    def __init__(self, least):
        super().__init__()
        self.least = least
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        is_view = function._schema.returns and any(a.alias_info for a in function._schema.arguments)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.least and not is_view:
                self.shapes.append(tuple(tensor.shape))
        return out


def test_a_training_step_with_lora_never_makes_a_matrix_as_large_as_e(tiny):
    """Not E + ΔE, forward or backward; only small gradients of the factors."""
    hidden, vocabulary = 512, 4000
    lm = tiny(vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=1)
    recipe = Recipe("a base", "tinytown", "nowhere", lora_rank=2)
    model = apply_lora(lm, recipe)
    ids = torch.randint(4, vocabulary, (1, 12))
    mask = torch.arange(12)[None] > 5
    with LargeTensors(vocabulary * hidden) as seen:
        model(ids, mask, t=torch.tensor([2500]), self_condition=True).backward()
        assert seen.shapes == []
        lm.embedding_matrix()
        assert (vocabulary, hidden) in seen.shapes
    factors = lm.get_input_embeddings().lora_embedding_B["default"]
    assert factors.grad is not None


def test_aligned_rows_begin_at_multiples_of_64_elements(aligned_cpu):
    out = rows.empty_rows(5, VOCABULARY, torch.bfloat16, torch.device("cpu"))
    assert out.shape == (5, VOCABULARY) and out.stride() == (256, 1)
    values = probabilities()
    half = rows.aligned(values, torch.bfloat16)
    assert half.stride() == (256, 1) and torch.equal(half, values.to(torch.bfloat16))
    assert rows.aligned(values, torch.float64) is values


def test_an_aligned_head_gives_the_same_bits(aligned_cpu):
    """Logits and both gradients, as of `nn.Linear`."""
    torch.manual_seed(0)
    plain = nn.Linear(32, VOCABULARY, bias=False, dtype=torch.bfloat16)
    head = rows.OutputHead(32, VOCABULARY, bias=False, dtype=torch.bfloat16)
    head.load_state_dict(plain.state_dict())
    results = []
    for layer in (plain, head):
        hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(3)).bfloat16().requires_grad_()
        logits = layer(hidden)
        loss = nn.functional.cross_entropy(logits.float(), torch.arange(9))
        loss.backward()
        results.append((logits, loss, hidden.grad, layer.weight.grad, logits.stride(0)))
    for one, other in zip(results[0][:4], results[1][:4], strict=True):
        assert torch.equal(one, other)
    assert (results[0][4], results[1][4]) == (VOCABULARY, 256)


def test_a_model_writes_the_same_with_aligned_rows_and_saves_its_own_vocabulary(tiny, tmp_path, monkeypatch):
    """In half precision, whose products are aligned; nothing of it is in the checkpoint."""
    lm = tiny(dtype=torch.bfloat16)
    rows.align_head(lm)
    vocabulary = lm.config.vocab_size
    assert vocabulary % 64 and type(lm.lm_head) is rows.OutputHead
    texts = []
    for alignment in (1, 64):
        monkeypatch.setitem(rows.ALIGNMENT, "cpu", alignment)
        out = t2.generate(lm, "The cat", steps=4, length=12, progress=False)
        hidden = torch.ones(3, lm.config.hidden_size, dtype=torch.bfloat16)
        texts.append((out.token_ids, out.trajectory.top_p))
        assert lm.lm_head(hidden).stride(0) % alignment == 0
    assert texts[0][0] == texts[1][0] and torch.equal(texts[0][1], texts[1][1])
    lm.save_pretrained(tmp_path)
    again = t2.load(tmp_path)
    assert len(again.lm_head.weight) == len(again.get_input_embeddings().weight) == vocabulary
    assert again.config.vocab_size == vocabulary


def test_a_vocabulary_that_grows_keeps_its_aligned_head(tiny):
    lm = tiny()
    add_rows(lm, lm.config.vocab_size + 1)
    assert type(lm.lm_head) is rows.OutputHead and lm.lm_head.out_features == lm.config.vocab_size
