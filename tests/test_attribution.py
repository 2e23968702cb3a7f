"""Attribution against brute force with the textbook's full tensors, and against finite differences."""

import json

import pytest
import torch
from transformers import Gemma2Config, GPT2Config

import tess2lite as t2
from tess2lite import textbook
from tess2lite.chunks import generator_for
from tess2lite.hooks import Pin
from tess2lite.insides.attribution import DRAWS, attribute, nothing_known
from tess2lite.insides.inputs import predict, step_inputs
from tess2lite.insides.network import residuals
from tess2lite.layers.decoders import original_class
from tess2lite.model import denoiser_class
from tess2lite.schedule import alpha_bar
from tess2lite.validation import InputError

STEPS, SEED = 5, 3


@pytest.fixture
def run(tiny):
    """A small denoiser in float64, and a run of it: known tokens, generated ones, known ones after them."""
    lm = tiny(dtype=torch.float64)
    out = t2.infill(lm, "the cat _____ on the mat", steps=STEPS, seed=SEED, progress=False)
    return lm, out.trajectory


def noise_of(run, step, seed=SEED):
    """ε of one step, (M, V), drawn as the sampler draws it."""
    lm, trajectory = run
    noise = torch.empty(int(trajectory.span_mask.sum()), lm.config.vocab_size)
    return noise.normal_(generator=generator_for(seed, step, "noise 0", torch.device("cpu"))).double()


def probabilities(run, step, noise=None):
    """What a step reads, in the paper's own words: (1, L, V) for the masked positions; noise (M, V) replaces ε."""
    lm, trajectory = run
    mask, ids = trajectory.span_mask[None], trajectory.tokens.long()
    noise = noise_of(run, step - 1) if noise is None else noise
    epsilon = torch.zeros(1, mask.shape[1], lm.config.vocab_size, dtype=torch.float64)
    epsilon[mask] = noise
    if step == 0:
        return textbook.self_condition(textbook.K * epsilon, None)
    clean = textbook.token_simplex(ids[step - 1][None], lm.config.vocab_size).double()
    noisy = textbook.add_noise(clean, epsilon, alpha_bar(STEPS)[STEPS - 1 - step].double())
    return textbook.self_condition(noisy, logits(run, step - 1))


def logits(run, step, read=None, mask=None):
    lm, trajectory = run
    read = probabilities(run, step) if read is None else read
    mask = trajectory.span_mask[None] if mask is None else mask
    ids = trajectory.tokens[-1].long()[None]
    time = torch.full(ids.shape, (STEPS - 1 - step) / STEPS, dtype=torch.float64)
    embeddings = textbook.input_embeddings(lm, read, time, ids, mask)
    hidden = lm.hidden_states(embeddings, torch.ones_like(ids))
    return textbook.shift(lm.get_output_embeddings()(hidden), torch.ones_like(ids))


def logprob(values, position, token):
    return values[0, position].log_softmax(-1)[token]


@pytest.mark.parametrize("step", [0, 3])
@torch.no_grad()
def test_occlusion_equals_brute_force(run, step):
    lm, trajectory = run
    position = int(trajectory.span_mask.nonzero()[2])
    token = int(trajectory.tokens[step, position])
    read, length = probabilities(run, step), len(trajectory.span_mask)
    before = logprob(logits(run, step), position, token)
    wanted = []
    for i in range(length):
        other, mask = read.clone(), trajectory.span_mask[None].clone()
        other[0, i] = 1 / lm.config.vocab_size
        mask[0, i] = True
        wanted.append(before - logprob(logits(run, step, other, mask), position, token))
    answer = attribute(lm, trajectory, step, position)
    assert torch.allclose(answer.weights, torch.stack(wanted).float(), atol=1e-5)
    assert answer.logprob == pytest.approx(float(before), abs=1e-6) and answer.weights.abs().max() > 0.01


@pytest.mark.parametrize("step", [0, 3])
@torch.no_grad()
def test_noise_equals_brute_force(run, step):
    lm, trajectory = run
    written = trajectory.span_mask.nonzero()[:, 0].tolist()
    position, token = written[1], 7
    before, wanted = logprob(logits(run, step), position, token), torch.zeros(len(trajectory.span_mask))
    for draw in range(DRAWS):
        fresh = noise_of(run, step - 1, SEED + 1 + draw)
        for row, i in enumerate(written):
            noise = noise_of(run, step - 1)
            noise[row] = fresh[row]
            after = logprob(logits(run, step, probabilities(run, step, noise)), position, token)
            wanted[i] += (before - after) / DRAWS
    answer = attribute(lm, trajectory, step, position, "noise", token)
    assert torch.allclose(answer.weights, wanted.float(), atol=1e-5) and wanted.abs().max() > 1e-3


def test_gradient_equals_finite_differences(run):
    lm, trajectory = run
    step, position, h = 3, int(trajectory.span_mask.nonzero()[2]), 1e-2  # the norms compute in float32
    token = int(trajectory.tokens[step, position])
    read = step_inputs(lm, trajectory)[step]
    nothing = lm.embedding_matrix().mean(0) + lm.embed_time(torch.tensor((STEPS - 1 - step) / STEPS).double())
    wanted = []
    with torch.no_grad():
        for i in range(len(read)):
            change = torch.zeros_like(read)
            change[i] = (read[i] - nothing) * h
            ahead, behind = (predict(lm, (read + sign * change)[None], position).log_softmax(-1) for sign in (1, -1))
            wanted.append((ahead - behind)[0, token] / (2 * h))
    answer = attribute(lm, trajectory, step, position, "gradient")
    assert torch.allclose(answer.weights, torch.stack(wanted).float(), atol=1e-3) and answer.weights.abs().max() > 0.1
    assert all(parameter.grad is None for parameter in lm.parameters())


def test_inputs_once_listened_to_serve_every_question(run):
    lm, trajectory = run
    inputs, position = step_inputs(lm, trajectory), int(trajectory.span_mask.nonzero()[0])
    assert inputs.shape == (STEPS, len(trajectory.span_mask), lm.config.hidden_size)
    for step in (0, 2):
        one, other = attribute(lm, trajectory, step, position), attribute(lm, trajectory, step, position, inputs=inputs)
        assert torch.equal(one.weights, other.weights)


def test_many_positions_are_asked_in_bounded_passes(run, monkeypatch):
    lm, trajectory = run
    position = int(trajectory.span_mask.nonzero()[0])
    whole = attribute(lm, trajectory, 2, position).weights
    monkeypatch.setattr("tess2lite.insides.inputs.PASS", 3 * len(whole) * lm.config.hidden_size)
    sizes = []
    handle = lm.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    assert torch.allclose(attribute(lm, trajectory, 2, position).weights, whole, atol=1e-6)
    handle.remove()
    assert max(sizes) == 3 and sum(sizes) >= len(whole) + 1


def test_top_and_json(run):
    lm, trajectory = run
    position = int(trajectory.span_mask.nonzero()[2])
    answer = attribute(lm, trajectory, 1, position, token=9)
    ranked = sorted(set(range(len(answer.weights))) - {position}, key=lambda i: -answer.weights[i])
    assert answer.top(4) == ranked[:4] and answer.token == 9
    why = json.loads(json.dumps(answer.as_dict()))
    assert (why["step"], why["position"], why["unit"]) == (1, position, "nats")
    assert torch.allclose(torch.tensor(why["weights"]), answer.weights, atol=1e-4)


def test_hooks_of_the_run_are_needed_again(run):
    lm, trajectory = run
    position = int(trajectory.span_mask.nonzero()[2])
    token = (int(trajectory.tokens[0, position]) + 1) % 9 + 4
    pin = Pin({position: token})
    pinned = t2.replay(lm, trajectory, [pin], progress=False).trajectory
    assert attribute(lm, pinned, 2, position, hooks=[pin]).token == token
    with pytest.raises(ValueError, match="these hooks again"):
        attribute(lm, pinned, 2, position)
    edited = t2.replay(lm, trajectory, [lambda step: pin(step)], progress=False).trajectory
    with pytest.raises(InputError, match="departs from the recorded run at step 0"):
        attribute(lm, edited, 2, position)


@pytest.mark.parametrize(
    "mistake, sentence",
    [
        ({"step": STEPS}, "step is 5; give a whole number from 0 to 4"),
        ({"position": 0}, "Position 0 was given, not generated"),
        ({"position": 99}, "position is 99"),
        ({"method": "magic"}, "method is 'magic'; give one of occlusion, noise, gradient"),
        ({"token": 10**6}, "token is 1000000"),
    ],
)
def test_mistakes_get_a_sentence(run, mistake, sentence):
    lm, trajectory = run
    arguments = {"step": 1, "position": int(trajectory.span_mask.nonzero()[0])} | mistake
    with pytest.raises(ValueError, match=sentence):
        attribute(lm, trajectory, **arguments)


@pytest.mark.parametrize("config", [GPT2Config, Gemma2Config], ids=lambda config: config.model_type)
@torch.no_grad()
def test_other_families_are_asked_as_they_answer(config, golden_tokenizer):
    """GPT-2 calls its backbone otherwise; Gemma 2 scales embeddings and caps logits."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "max_position_embeddings": 64}
    gemma = {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "final_logit_softcapping": 2.0}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "vocab_size": len(golden_tokenizer)}
    settings = config(**sizes, **special, **(gemma if config is Gemma2Config else {}))
    torch.manual_seed(0)
    lm = denoiser_class(original_class(settings))(settings).eval()
    lm.tokenizer, logits = golden_tokenizer, []
    kept = [lambda step: logits.append(step.logits)]
    run = t2.infill(lm, "the cat ___ on", steps=3, hooks=kept, progress=False).trajectory
    position = int(run.span_mask.nonzero()[1])
    for step in range(3):
        answer = attribute(lm, run, step, position)
        assert answer.logprob == pytest.approx(float(logprob(logits[step], position, answer.token)), abs=1e-4)
        assert answer.weights.abs().max() > 0
    if config is GPT2Config:
        with pytest.raises(InputError, match="The model is a gpt2"):
            residuals(lm, torch.zeros(1, 4, 32))


def test_what_stands_for_an_unknown_position_has_the_time_of_its_step(tiny):
    lm = tiny()
    times = [0.9, 0.4, 0.35, 0.1]
    run = t2.generate(lm, "A", length=6, steps=None, timestep_spacing=times, progress=False).trajectory
    mean = lm.embedding_matrix().mean(0)
    for step, time in enumerate(times):
        expected = mean + lm.embed_time(torch.tensor(time, dtype=torch.float64))
        assert torch.allclose(nothing_known(lm, run, step), expected.to(mean.dtype), atol=1e-6)
