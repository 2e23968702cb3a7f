"""What "computes the same as the official code" means, as checks that raise AssertionError.

`test_parity.py` runs them on the package as it is, `test_mutations.py` on the package with one mistake in it.
"""

import torch

from tess2lite import generation, loss, sampling, textbook
from tess2lite.schedule import alpha_bar


def close(ours, theirs, absolute=1e-4):
    worst = (ours - theirs).abs().max().item()
    assert worst <= absolute, f"off by {worst:.2e}, allowed {absolute:.0e}"


def relative(ours, theirs, allowed):
    worst = ((ours - theirs).norm() / theirs.norm()).item()
    assert worst <= allowed, f"off by {worst:.2e} of its norm, allowed {allowed:.0e}"


def golden_batch(golden):
    return {"input_ids": golden["input_ids"], "span_mask": golden["span_mask"]}


def replayed(golden):
    return lambda step, shape: golden["sample_init_noise"] if step < 0 else golden["sample_step_noise"][step]


def check_schedule(lm, golden):
    for steps in (5000, 100, 12):
        close(alpha_bar(steps), golden[f"alphas_cumprod_{steps}"])


def check_textbook(lm, golden):
    """Noisy simplex, logits and losses, without and with a previous prediction, and gradients."""
    ids, mask, t = golden["input_ids"], golden["span_mask"], golden["timesteps"]
    clean = textbook.token_simplex(ids, lm.config.vocab_size)
    noisy = textbook.add_noise(clean, golden["noise"], alpha_bar()[t])
    close(noisy, golden["noisy_simplex"])
    first = lm.logits_from_simplex(golden["noisy_simplex"], t / 5000, ids, mask)
    close(first, golden["logits_first"])
    close(textbook.loss(first, ids, mask), golden["loss_first"])
    second = lm.logits_from_simplex(golden["noisy_simplex"], t / 5000, ids, mask, golden["logits_first"])
    close(second, golden["logits_selfcond"])
    loss = textbook.loss(second, ids, mask)
    close(loss, golden["loss_selfcond"])
    lm.zero_grad()
    loss.backward()
    gradients = {name: p.grad for name, p in lm.named_parameters()}
    for key in (key for key in golden if key.startswith("grad.")):
        relative(gradients[key.removeprefix("grad.")], golden[key], 1e-4)


def check_sampler(lm, golden):
    """The fast path's twelve steps with replayed noise: logits everywhere, tokens inside the mask."""
    run = sampling.denoise(lm, golden_batch(golden), steps=12, top_p=None, noise=replayed(golden))
    mask = golden["span_mask"]
    for i, step in enumerate(run):
        close(step.logits, golden["sample_logits"][i])
        assert torch.equal(step.tokens[mask], golden["sample_tokens"][i][mask])
        assert torch.equal(step.tokens[~mask], golden["input_ids"][~mask])
    assert i == 11


def check_textbook_sampler(lm, golden):
    batch = golden_batch(golden)
    with torch.no_grad():
        run = textbook.sample(lm, batch["input_ids"], batch["span_mask"], alpha_bar(12), replayed(golden))
        for i, (logits, tokens) in enumerate(run):
            close(logits, golden["sample_logits"][i])
            assert torch.equal(tokens[batch["span_mask"]], golden["sample_tokens"][i][batch["span_mask"]])


def check_training_loss(lm, golden):
    """The chunked loss and its gradients against the textbook's, with and without self-conditioning."""
    ids, mask, t = golden["input_ids"], golden["span_mask"], golden["timesteps"][:, 0]
    rows = golden["noise"][mask]
    blocks = [slice(i, min(i + 7, len(rows))) for i in range(0, len(rows), 7)]
    for conditioned in (False, True):
        lm.zero_grad()
        logits = textbook.training_logits(lm, ids, mask, t, golden["noise"], alpha_bar(), conditioned)
        slow = textbook.loss(logits, ids, mask)
        slow.backward()
        gradients = {name: p.grad.clone() for name, p in lm.named_parameters()}
        lm.zero_grad()
        fast = loss.diffusion_loss(lm, ids, mask, t, lambda r: rows[r].clone(), blocks, conditioned) / mask.sum()
        fast.backward()
        relative(fast, slow, 1e-5)
        for name, parameter in lm.named_parameters():
            relative(parameter.grad, gradients[name], 1e-4)


def check_padding(lm, golden):
    """PAD under and beside the mask is an ordinary token; filler, left or right, changes nothing."""
    pad = 0  # the golden config's
    ids = torch.tensor([[1, 22, pad, 49, 70, 82]])
    mask = torch.tensor([[False, False, False, False, True, True]])
    alone = next(sampling.denoise(lm, {"input_ids": ids, "span_mask": mask}, steps=4, top_p=None)).logits
    ids[0, 2] = 23
    other = next(sampling.denoise(lm, {"input_ids": ids, "span_mask": mask}, steps=4, top_p=None)).logits
    assert (alone - other)[0, 4:].abs().max() > 1e-3  # a PAD is attended like any token
    ids[0, 2] = pad
    for left, right in ((2, 0), (0, 2), (2, 3)):
        padded = {
            "input_ids": torch.nn.functional.pad(ids, (left, right)),
            "span_mask": torch.nn.functional.pad(mask, (left, right)),
            "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), (left, right)),
        }
        logits = next(sampling.denoise(lm, padded, steps=4, top_p=None)).logits
        close(logits[:, left : left + 6], alone, 1e-5)
    rows = [(ids[0], mask[0]), (torch.tensor([1, 30, pad, pad]), torch.tensor([False, False, True, True]))]
    batch = generation.make_batch(rows)
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]


CHECKS = [
    check_schedule,
    check_textbook,
    check_sampler,
    check_textbook_sampler,
    check_training_loss,
    check_padding,
]
