"""The bound on the log-likelihood, against truths that know nothing of its formula."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from tess2lite.evaluation.likelihood import _terms, log_likelihood
from tess2lite.sampling import denoise
from tess2lite.schedule import alpha_bar

K = 5.0


class Toy:
    """A denoiser of three words. belief: logits of every prediction; sees: how much it heeds what it reads."""

    tokenizer, device = None, torch.device("cpu")

    def __init__(self, belief=(0.4, -0.3, 0.0), sees=0.0):
        self.belief, self.sees = torch.tensor(belief), sees
        self.config = SimpleNamespace(vocab_size=3, max_position_embeddings=64, eos_token_id=None)

    def embedding_matrix(self):
        return torch.eye(3)

    def embed_time(self, time):
        return torch.zeros(1, 3)

    def hidden_states(self, embeddings, attention_mask):
        ahead = torch.cat([embeddings[:, 1:], torch.zeros_like(embeddings[:, :1])], 1)
        return self.sees * (ahead + embeddings)  # position i is read from hidden state i − 1

    def head(self, hidden):
        return hidden + self.belief


def batch_of(rows, known=1):
    ids = torch.tensor(rows)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, known:] = True
    return {"input_ids": ids, "span_mask": mask}


def divergence(p, token, level, points, reach=6.0):
    """KL(q ‖ mixture) of one noisy simplex over three words: densities of Gaussians on a grid, no ratio simplified."""
    sigma, signal = math.sqrt(1 - level) * K, 2 * K * math.sqrt(level)
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line, line) * sigma  # (points³, 3), around the true token's mean
    grid[:, token] += signal
    normal = torch.distributions.Normal(0, sigma)
    means = signal * torch.eye(3, dtype=torch.float64)
    densities = torch.stack([normal.log_prob(grid - mean).sum(1) for mean in means])  # (3, points³)
    q = densities[token]
    mixture = (p.double().log()[:, None] + densities).logsumexp(0)
    return float((q.exp() * (q - mixture)).sum() * (sigma * 2 * reach / (points - 1)) ** 3)


@pytest.mark.parametrize("level", [0.01, 0.05, 0.15, 0.4])
def test_a_term_is_the_divergence_of_its_level(level):
    """To a per cent or so, where signal and noise are of a size: 10 % more or less of c shows."""
    belief, rows = torch.tensor([0.4, -0.3, 0.0]), 400_000
    tokens, generator = torch.ones(rows, dtype=torch.long), torch.Generator().manual_seed(0)
    terms = _terms(belief.expand(rows, 3), tokens, torch.tensor(level, dtype=torch.float64), generator)
    exact = -divergence(belief.softmax(0), 1, level, 61)
    assert float(terms.mean()) == pytest.approx(exact, abs=4 * float(terms.std()) / rows**0.5)


def test_fixed_predictions_cost_the_divergence_of_each_step():
    lm, steps, token = Toy(), 4, 1
    p = lm.belief.softmax(0)
    levels = alpha_bar(steps)
    exact = math.log(p[token])  # the text: last step
    exact += math.log(p[token])  # the last step reads the token itself (ᾱ = 1)
    exact -= sum(divergence(p, token, float(levels[t]), 61) for t in (1, 2))
    mean, error = log_likelihood(lm, batch_of([[0, token]] * 200), steps, 8, seed=range(200))
    found = mean.mean()
    assert found == pytest.approx(exact, abs=4 * float(mean.std()) / 14)
    assert float(mean.std()) / 14 < 0.03  # a test that can fail
    assert error.square().mean().sqrt() == pytest.approx(
        float(mean.std()), rel=0.25
    )  # the error says how means scatter


def test_one_step_is_the_cross_entropy_from_pure_noise(golden_lm):
    batch = batch_of([[1, 9, 30, 31], [1, 8, 7, 6]], 2)
    (step,) = denoise(golden_lm, batch, 1, top_p=None, seed=[5, 6])
    nll = torch.nn.functional.cross_entropy(
        step.masked_logits, batch["input_ids"][batch["span_mask"]], reduction="none"
    )
    mean, error = log_likelihood(golden_lm, batch, 1, 1, seed=[5, 6])
    torch.testing.assert_close(mean, -nll.view(2, 2).sum(1).double(), rtol=1e-5, atol=1e-5)
    assert error.isinf().all()


@pytest.mark.parametrize("steps", [2, 4])
def test_bound_is_below_how_often_the_chain_writes_a_text(steps):
    lm, runs = Toy(sees=1.5), 2_000
    for step in denoise(lm, batch_of([[0, 0, 0]] * runs), steps, top_p=1.0, seed=range(runs)):
        written = step.tokens[:, 1:]
    texts = list(itertools.product(range(3), repeat=2))
    bound, error = log_likelihood(lm, batch_of([[0, *text] for text in texts]), steps, 64, seed=1)
    share = torch.stack([(written == torch.tensor(text)).all(1).double().mean() for text in texts])
    at_most = share + 3 * (share / runs).sqrt() + 3 / runs  # what is never seen may still happen
    assert (bound - 3 * error < at_most.log()).all()
    assert 0.1 < bound.exp().sum() < 1  # of all texts together


def test_chain_that_copies_tells_a_text_from_another():
    """The first word cannot be known; what follows it is copied from it, so equal words are likelier."""
    lm = Toy(belief=(0.0, 0.0, 0.0), sees=8.0)
    same, different = log_likelihood(lm, batch_of([[0, 1, 1], [0, 1, 2]]), 6, 64)[0]
    assert same > different


def test_error_falls_with_samples_and_the_first_samples_stay():
    lm = Toy(sees=1.0)
    few, many = (log_likelihood(lm, batch_of([[0, 1, 2]]), 5, n, seed=3) for n in (8, 512))
    assert many[1] < few[1] / 3
    assert abs(few[0] - many[0]) < 4 * few[1]
    one, two, three = (log_likelihood(lm, batch_of([[0, 1, 2]]), 5, n, seed=3) for n in (1, 2, 3))
    second = 2 * two[0] - one[0]
    assert two[1] == pytest.approx(abs(float(second - one[0])) / 2)  # |b − a|/2, the first sample being the same
    assert one[0] != second and two[0] != three[0]


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
    with pytest.raises(ValueError, match="outside this model's vocabulary of 3"):
        log_likelihood(Toy(), batch_of([[0, 3]]))
    with pytest.raises(ValueError, match="no 'span_mask'"):
        log_likelihood(Toy(), {"input_ids": torch.tensor([[0, 1]])})


def test_other_diffusion_has_another_bound():
    lm = Toy()
    lm.config.diffusion = "masked"
    with pytest.raises(ValueError, match="writes by masked diffusion; the bound is of simplex"):
        log_likelihood(lm, batch_of([[0, 1]]))
