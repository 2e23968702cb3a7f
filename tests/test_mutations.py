"""The parity suite catches the mistakes that published code has made: each is put in, and must be noticed."""

import inspect

import parity
import pytest

from tess2lite import generation, loss, model, sampling, textbook, validation
from tess2lite.pretrained import probes

# name → (module, what it says, what a mistaken version says). One mistake a line, in the textbook or the fast path.
MUTATIONS = {
    "attention switch reversed": (model, "config.is_causal = False", "config.is_causal = True"),
    "label shift dropped (textbook)": (
        textbook,
        "torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1)",
        "logits",
    ),
    "label shift dropped (sampler)": (
        sampling,
        "torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)",
        "hidden",
    ),
    "label shift doubled (textbook)": (textbook, "logits[:, :1]), logits[:, :-1]]", "logits[:, :2]), logits[:, :-2]]"),
    "label shift doubled (sampler)": (sampling, "hidden[:, :1]), hidden[:, :-1]]", "hidden[:, :2]), hidden[:, :-2]]"),
    "label shift dropped (training)": (loss, "[self.masked_idx - 1]", "[self.masked_idx]"),
    "self-conditioning left out (textbook)": (
        textbook,
        "(F.softmax(simplex, -1) + F.softmax(previous_logits, -1)) / 2",
        "F.softmax(simplex, -1)",
    ),
    "self-conditioning left out (sampler)": (sampling, "self_condition_(noisy, self_cond)", "noisy.softmax(1)"),
    "self-conditioning left out (training)": (loss, "(noisy + self_cond) / 2", "noisy"),
    "no uniform distribution at the start": (
        sampling,
        "(torch.cat(soft) + self.embedding.mean(0)) / 2",
        "torch.cat(soft)",
    ),
    "ᾱ one step late (sampler)": (
        sampling,
        "noisy_simplex_(noise, tokens, self._alphas_bar[index + 1])",
        "noisy_simplex_(noise, tokens, self._alphas_bar[index])",
    ),
    "ᾱ one step early (textbook)": (
        textbook,
        "noise(i, shape), alpha_bar[t])",
        "noise(i, shape), alpha_bar[max(0, t - 1)])",
    ),
    "timestep off by one": (sampling, "self.times[index], dtype", "self.times[index] + 1 / self.steps, dtype"),
    "self-conditioning from t (training)": (loss, "(t + 1).clamp", "(t + 0).clamp"),
    "E not detached (textbook)": (textbook, "@ matrix.detach()", "@ matrix"),
    "noise of variance 1, not k²": (
        sampling,
        "self.fresh_noise(index, chunk, scratch)",
        "self.fresh_noise(index, chunk, scratch) / 5",
    ),
    "PAD treated as filler (batching)": (
        generation,
        "[torch.ones_like(row) for row in ids]",
        "[(row != 0).long() for row in ids]",
    ),
    "PAD treated as filler (sampler)": (
        validation,
        "torch.ones_like(ids) if attention is None",
        "(ids != 0).long() if attention is None",
    ),
    "filler is attended": (model, "attention_mask=attention_mask, position_ids", "position_ids"),
}


@pytest.fixture
def mutate():
    """Runs a module's source again, with one line changed, in its own namespace; puts it back afterwards."""
    changed = []

    def apply(module, says, should_say):
        source = inspect.getsource(module)
        assert source.count(says) == 1, f"{module.__name__} says {says!r} {source.count(says)} times, not once"
        changed.append((module, dict(vars(module))))
        exec(compile(source.replace(says, should_say), module.__file__, "exec"), vars(module))

    yield apply
    for module, before in changed:
        vars(module).clear()
        vars(module).update(before)


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_parity_suite_notices(name, mutate, golden, golden_lm):
    module, says, should_say = MUTATIONS[name]
    mutate(module, says, should_say)
    if module is model:  # classes are new: make the model again, without the probe that would stop it first
        golden_lm = _remade(golden_lm)
    noticed = []
    for check in parity.CHECKS:
        try:
            check(golden_lm, golden)
        except (AssertionError, ValueError, RuntimeError) as problem:
            noticed.append(f"{check.__name__}: {problem}")
    assert noticed


def _remade(lm):
    fresh = model.MistralForDiffusionLM(lm.config)
    fresh.load_state_dict(lm.state_dict())
    return fresh.eval()


def test_the_probe_notices_causal_attention(golden_lm):
    golden_lm.config.is_causal = True
    with pytest.raises(RuntimeError, match="still causal"):
        probes.check_bidirectional(golden_lm)
