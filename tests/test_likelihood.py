"""The bound on the log-likelihood, against truths that know nothing of its formula."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from tess2lite import textbook
from tess2lite.evaluation import likelihood
from tess2lite.evaluation.likelihood import log_likelihood
from tess2lite.sampling import denoise

V, K = 5, 5.0


class Toy:
    """A denoiser of five words.

    bias: logits of every prediction; sees: how much it heeds what it reads, at its place and at the next; only_clean:
    it heeds nothing in the first step, whose noise then changes nothing.
    """

    tokenizer, device = None, torch.device("cpu")

    def __init__(self, bias=(0.4, -0.3, 0.0, 0.8, -1.0), sees=0.0, only_clean=False):
        self.bias, self.sees, self.only_clean = torch.tensor(bias), sees, only_clean
        self.config = SimpleNamespace(vocab_size=V, max_position_embeddings=64, eos_token_id=None)
        self.is_first = False

    def embedding_matrix(self):
        return torch.eye(V)

    def embed_time(self, time):
        self.is_first = bool(time > 0)
        return torch.zeros(1, V)

    def hidden_states(self, embeddings, attention_mask):
        if self.only_clean and self.is_first:
            return torch.zeros_like(embeddings)
        ahead = torch.cat([embeddings[:, 1:], torch.zeros_like(embeddings[:, :1])], 1)
        return self.sees * (ahead + 0.5 * embeddings)  # position i is read from hidden state i − 1

    def head(self, hidden):
        return hidden + self.bias


def batch_of(rows, known=1):
    ids = torch.tensor(rows)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, known:] = True
    return {"input_ids": ids, "span_mask": mask}


TEXTS = list(itertools.product(range(V), repeat=2))


def exact_two_steps(lm, text):
    """log p(text) of two steps by enumeration: all 25 hidden texts, each read as the textbook says it is."""
    first = lm.bias.softmax(0)
    total = 0.0
    for hidden in TEXTS:
        clean = textbook.token_simplex(torch.tensor([hidden]), V, K)
        soft = textbook.self_condition(clean, lm.bias.expand(1, 2, V)) @ torch.eye(V)
        embeddings = torch.cat([torch.eye(V)[[0]][None], soft], 1)
        lm.is_first = False
        second = lm.head(lm.hidden_states(embeddings, None)).softmax(-1)[0, :2]
        total += math.prod(float(first[v]) for v in hidden) * math.prod(float(second[i, v]) for i, v in enumerate(text))
    return math.log(total)


def shares(lm, steps, runs):
    """How often the chain writes each text, (25,)."""
    for step in denoise(lm, batch_of([[0, 0, 0]] * runs), steps, top_p=1.0, seed=range(runs), final="sample"):
        written = step.tokens[:, 1:]
    number = written[:, 0] * V + written[:, 1]
    return torch.bincount(number, minlength=V * V) / runs


@pytest.mark.parametrize("sees", [0.0, 2.0, 6.0])
def test_default_bound_is_within_a_tenth_of_a_nat_per_token(sees):
    """From a model that ignores what it reads to one that copies it."""
    lm = Toy(sees=sees, only_clean=True)
    exact = torch.tensor([exact_two_steps(lm, text) for text in TEXTS])
    assert exact.exp().sum() == pytest.approx(1, abs=1e-4)  # the enumeration is a distribution
    bound, error = log_likelihood(lm, batch_of([[0, *text] for text in TEXTS]))
    gaps = (exact - bound) / 2  # nats per token
    assert gaps.abs().mean() <= 0.1 and gaps.abs().max() <= 0.3
    assert (bound - 4 * error < exact + 1e-6).all()


@pytest.mark.parametrize(("steps", "sees"), [(1, 1.5), (2, 1.5), (4, 1.5)])
def test_bound_is_below_how_often_the_chain_writes_a_text_and_close_to_it(steps, sees):
    """The chain's own runs are counted; here the first prediction depends on the noise, too."""
    lm, runs = Toy(sees=sees), 4_000
    share = shares(lm, steps, runs)
    bound, error = log_likelihood(lm, batch_of([[0, *text] for text in TEXTS]), steps, 32, seed=1)
    at_most = share + 3 * (share / runs).sqrt() + 3 / runs  # what is never seen may still happen
    assert (bound - 3 * error < at_most.log()).all()
    assert bound.exp().sum() == pytest.approx(1, abs=0.15)
    assert ((share.log() - bound)[share > 0.02] / 2).abs().max() < 0.2


def test_true_tokens_alone_are_a_looser_bound(monkeypatch):
    """Sampling the hops is what makes it tight: a proposal of true tokens alone pays for every hop."""
    lm = Toy(sees=1.0)
    batch = batch_of([[0, *text] for text in TEXTS])
    bound = log_likelihood(lm, batch, 4)[0]
    proposal = likelihood._proposal
    monkeypatch.setattr(likelihood, "_proposal", lambda p, w, a: proposal(p, w, torch.full_like(a, 30.0)))
    assert (bound - log_likelihood(lm, batch, 4)[0]).mean() / 2 > 0.5


def test_weights_have_mean_one_at_every_level(monkeypatch):
    """Of a hop alone: Σ p·N over Σ r·N is 1 in the mean over draws from r, whatever r is."""
    generator = torch.Generator().manual_seed(0)
    rows = 200_000
    log_p = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log().double().expand(rows, V)
    truth = torch.full((rows,), 2)
    for level in (0.02, 0.3, 1.0):
        log_r = likelihood._proposal(log_p, truth, torch.full((rows,), 1.5, dtype=torch.float64))
        torch.testing.assert_close(log_r.exp().sum(1), torch.ones(rows, dtype=torch.float64))
        drawn = torch.multinomial(log_r.exp(), 1, generator=generator)[:, 0]
        noise = torch.randn(rows, V, generator=generator)
        level = torch.tensor(level, dtype=torch.float64)
        weights = likelihood._log_ratio(log_p, log_r, drawn, level, noise).exp()
        assert weights.mean() == pytest.approx(1, abs=5 * float(weights.std()) / rows**0.5)


def test_one_step_is_the_cross_entropy_from_pure_noise(golden_lm):
    batch = batch_of([[1, 9, 30, 31], [1, 8, 7, 6]], 2)
    bound, error = log_likelihood(golden_lm, batch, 1, 1, seed=[5, 6])
    seeds = [seed + (1 + 2 * likelihood.PILOTS << 64) for seed in (5, 6)]
    noise = likelihood._Noise(batch["span_mask"], golden_lm.config.vocab_size, seeds)
    (step,) = denoise(golden_lm, batch, 1, top_p=None, noise=noise)
    targets = batch["input_ids"][batch["span_mask"]]
    nll = torch.nn.functional.cross_entropy(step.masked_logits, targets, reduction="none")
    torch.testing.assert_close(bound, -nll.view(2, 2).sum(1).double(), rtol=1e-5, atol=1e-5)
    assert error.isinf().all()


def test_chain_that_copies_tells_a_text_from_another():
    """The first word cannot be known; what follows it is copied from it, so equal words are likelier."""
    lm = Toy(bias=(0.0,) * V, sees=8.0)
    same, different = log_likelihood(lm, batch_of([[0, 1, 1], [0, 1, 2]]), 6, 64)[0]
    assert same > different


def test_error_falls_with_samples_and_the_first_samples_stay():
    lm = Toy(sees=1.0)
    few, many = (log_likelihood(lm, batch_of([[0, 1, 2]]), 4, n, seed=3) for n in (8, 256))
    assert many[1] < few[1] / 2
    assert abs(few[0] - many[0]) < 4 * few[1]
    one, two = (log_likelihood(lm, batch_of([[0, 1, 2]]), 4, n, seed=3)[0] for n in (1, 2))
    second = 2 * two.exp() - one.exp()  # the mean of two weights, the first being the same
    assert second > 0 and not torch.equal(one, two)
    error = log_likelihood(lm, batch_of([[0, 1, 2]]), 4, 2, seed=3)[1]
    assert float(error) == pytest.approx(float((second - one.exp()).abs() / 2 / two.exp()))


def test_a_text_costs_the_same_in_any_batch(golden_lm):
    rows = [[1, 9, 30, 31, 12], [1, 8, 7, 6, 0]]
    mask = torch.tensor([[False, False, True, True, True], [False, True, True, True, False]])
    real = torch.tensor([[1] * 5, [1] * 4 + [0]])
    together = {"input_ids": torch.tensor(rows), "span_mask": mask, "attention_mask": real}
    alone = [
        {"input_ids": torch.tensor([rows[0]]), "span_mask": mask[:1]},
        {"input_ids": torch.tensor([rows[1][:4]]), "span_mask": mask[1:, :4]},
    ]
    both = log_likelihood(golden_lm, together, 4, 2, seed=[7, 8])[0]
    for i, batch in enumerate(alone):
        assert log_likelihood(golden_lm, batch, 4, 2, seed=7 + i)[0] == pytest.approx(float(both[i]), rel=1e-5)


def test_blocks_of_rows_give_one_sum(golden_lm, monkeypatch):
    """A vocabulary so large that every row is a block of its own: other noise, the same expectation."""
    batch = batch_of([[1, 9, 30, 31]])
    whole = log_likelihood(golden_lm, batch, 3, 64)
    monkeypatch.setattr("tess2lite.sampling.rows_per_chunk", lambda vocabulary, device: 1)
    cut = log_likelihood(golden_lm, batch, 3, 64)
    assert abs(whole[0] - cut[0]) < 5 * (whole[1] + cut[1])


@pytest.mark.parametrize("samples", [0, 1.5, True])
def test_samples_are_a_whole_number(samples):
    with pytest.raises(ValueError, match="samples is"):
        log_likelihood(Toy(), batch_of([[0, 1]]), samples=samples)


def test_ids_that_the_model_lacks():
    with pytest.raises(ValueError, match="outside this model's vocabulary of 5"):
        log_likelihood(Toy(), batch_of([[0, 5]]))
    with pytest.raises(ValueError, match="no 'span_mask'"):
        log_likelihood(Toy(), {"input_ids": torch.tensor([[0, 1]])})


def test_other_diffusion_has_another_bound():
    lm = Toy()
    lm.config.diffusion = "masked"
    with pytest.raises(ValueError, match="writes by masked diffusion; the bound is of simplex"):
        log_likelihood(lm, batch_of([[0, 1]]))
