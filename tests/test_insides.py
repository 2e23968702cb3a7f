"""What is read inside a network, against the network itself and against edits made by hand."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import tess2lite as t2
from tess2lite.insides.inputs import predict, step_inputs, text_inputs
from tess2lite.insides.network import attention, logit_lens, patch_each, patched, residuals, without_heads

POSITION = 5


@pytest.fixture(params=["denoiser", "autoregressive"])
def network(request, tiny):
    """A model and two inputs (L, H) of it."""
    lm = tiny()
    if request.param == "autoregressive":
        lm.config.is_causal = True
    torch.manual_seed(1)
    return lm, torch.randn(9, 32), torch.randn(9, 32)


def logits_of(lm, inputs):
    """(B, V) at POSITION, by the model's own two parts."""
    hidden = lm.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    return lm.lm_head(hidden[:, POSITION - 1])


@torch.no_grad()
def test_step_inputs_give_the_runs_own_logits(tiny):
    lm, logits = tiny(), []
    out = t2.infill(lm, "the cat ___ on", steps=4, hooks=[lambda step: logits.append(step.logits)], progress=False)
    inputs = step_inputs(lm, out.trajectory)
    for position in out.trajectory.span_mask.nonzero()[:, 0].tolist():
        wanted = torch.stack([step[0, position] for step in logits])
        assert torch.allclose(predict(lm, inputs, position), wanted, atol=1e-5)


@torch.no_grad()
def test_text_inputs_give_the_parents_own_logits():
    parent = AutoModelForCausalLM.from_pretrained(t2.bundled()["tinytown-ar"]).eval()
    ids = torch.tensor([[1, 9, 40, 7, 12]])
    assert torch.allclose(predict(parent, text_inputs(parent, ids), 4), parent(ids).logits[:, 3], atol=1e-4)


@torch.no_grad()
def test_logit_lens_ends_with_the_models_logits(network):
    lm, a, b = network
    inputs = torch.stack([a, b])
    lens = logit_lens(lm, inputs, POSITION)
    assert lens.shape == (3, 2, lm.config.vocab_size)
    assert torch.allclose(lens[-1], logits_of(lm, inputs), atol=1e-5)
    assert torch.allclose(lens[0], lm.lm_head(lm.model.norm(inputs[:, POSITION - 1])), atol=1e-5)
    last = lm.model.layers.pop(1)  # the lens after layer 0 is a model that ends there
    assert torch.allclose(lens[1], logits_of(lm, inputs), atol=1e-5)
    lm.model.layers.append(last)


@torch.no_grad()
def test_attention_mixes_values_into_what_the_layer_writes(network):
    lm, a, b = network
    inputs = torch.stack([a, b])
    values, written, handles = [], [], []
    for layer in lm.model.layers:
        keep = layer.self_attn.v_proj.register_forward_hook(lambda _, args, output: values.append(output))
        handles += [keep, layer.self_attn.register_forward_hook(lambda _, args, output: written.append(output[0]))]
    lm.model(inputs_embeds=inputs, use_cache=False)  # with the model's usual attention
    for handle in handles:
        handle.remove()
    weights = attention(lm, inputs)
    assert weights.shape == (2, 2, 4, 9, 9) and torch.allclose(weights.sum(-1), torch.ones(1), atol=1e-5)
    for i, layer in enumerate(lm.model.layers):
        v = values[i].view(2, 9, 2, 8).transpose(1, 2).repeat_interleave(2, dim=1)  # (B, heads, L, head_dim)
        mixed = (weights[i] @ v).transpose(1, 2).reshape(2, 9, 32)
        assert torch.allclose(layer.self_attn.o_proj(mixed), written[i], atol=1e-5)
    later = torch.ones(9, 9).triu(1).bool()
    assert bool((weights[..., later] == 0).all()) == lm.config.is_causal
    assert lm.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_a_silenced_head_is_a_zero_slice_of_o_proj(network):
    lm, a, _ = network
    before = logits_of(lm, a[None])
    with without_heads(lm, [(1, 2), (0, 3)]):
        found = logits_of(lm, a[None])
    assert torch.equal(logits_of(lm, a[None]), before) and not torch.allclose(found, before, atol=1e-3)
    for layer, head in ((1, 2), (0, 3)):  # a slice of zeros in, or columns of zeros in the weights
        lm.model.layers[layer].self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] = 0
    assert torch.allclose(logits_of(lm, a[None]), found, atol=1e-6)


@torch.no_grad()
def test_patching_a_run_with_itself_changes_nothing(network):
    lm, a, _ = network
    effects = patch_each(lm, a, a, POSITION)
    assert effects.shape == (2, 9, lm.config.vocab_size)
    assert torch.allclose(effects, logits_of(lm, a[None]).expand_as(effects), atol=1e-5)


@torch.no_grad()
def test_patching_everything_gives_the_other_run(network):
    lm, a, b = network
    states, everywhere = residuals(lm, a[None]), torch.ones(1, 9, dtype=torch.bool)
    with patched(lm, {layer: (everywhere, states[layer + 1]) for layer in range(2)}):
        assert torch.allclose(logits_of(lm, b[None]), logits_of(lm, a[None]), atol=1e-5)
    assert not torch.allclose(logits_of(lm, b[None]), logits_of(lm, a[None]), atol=1e-2)


@torch.no_grad()
def test_patching_one_residual_by_hand(network, monkeypatch):
    lm, a, b = network
    monkeypatch.setattr("tess2lite.insides.network.PASS", 2 * a.numel())  # in several passes
    effects, source = patch_each(lm, a, b, POSITION), residuals(lm, a[None])
    for layer, position in ((0, 2), (0, 4), (1, 4), (1, 7)):
        state = residuals(lm, b[None])[layer + 1].clone()
        state[0, position] = source[layer + 1, 0, position]
        edited = lm.model.layers[layer].register_forward_hook(lambda _, args, output, state=state: state)
        assert torch.allclose(effects[layer, position], logits_of(lm, b[None])[0], atol=1e-5)
        edited.remove()
    # In the last layer only the position that is read counts.
    plain = logits_of(lm, b[None])[0]
    same = torch.isclose(effects[1], plain, atol=1e-5).all(-1)
    assert same.tolist() == [i != POSITION - 1 for i in range(9)]


def test_hooks_leave_nothing_behind(network):
    lm, a, b = network
    residuals(lm, a[None])
    patch_each(lm, a, b, POSITION)
    with pytest.raises(ZeroDivisionError), without_heads(lm, [(0, 0)]):
        raise ZeroDivisionError
    assert not [module for module in lm.modules() if module._forward_hooks or module._forward_pre_hooks]


def test_mistakes_get_a_sentence(network):
    lm, a, _ = network
    with pytest.raises(ValueError, match="head is 4; give a whole number from 0 to 3"), without_heads(lm, [(0, 4)]):
        pass
    with pytest.raises(ValueError, match="layer is 2"), patched(lm, {2: (None, None)}):
        pass
    with pytest.raises(ValueError, match="position is 0"):
        logit_lens(lm, a[None], 0)
    with pytest.raises(ValueError, match="give runs of one length"):
        patch_each(lm, a, a[:5], POSITION)
