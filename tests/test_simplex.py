"""Noise, chunks and the nucleus draw, against the paper's formulas and counted distributions."""

import pytest
import torch
from scipy import stats

from tess2lite import chunks, nucleus, simplex, textbook

V, DRAWS = 203, 60_000


def distributions():
    torch.manual_seed(0)
    tied = torch.ones(V)
    tied[:40] = 5.0
    return {
        "random": torch.randn(V).mul(2).softmax(0),
        "peaked": torch.randn(V).index_fill(0, torch.tensor([17]), 9.0).softmax(0),
        "flat": torch.full((V,), 1 / V),
        "tied": tied / tied.sum(),
        "one": torch.eye(V)[5],
    }


def top_p_set(p, top_p):
    """The renormalised nucleus, ties by token id: what draws must follow."""
    order = sorted(range(V), key=lambda v: (-p[v].item(), v))
    kept, mass = torch.zeros(V, dtype=torch.float64), 0.0
    for v in order:
        if mass >= top_p:
            break
        kept[v] = p[v].double()
        mass += p[v].item()
    return kept / kept.sum()


def chi_square(counts, expected):
    """p-value, cells with few expected draws put together."""
    big = expected * counts.sum() >= 8
    observed = torch.cat([counts[big], counts[~big].sum()[None]])
    wanted = torch.cat([expected[big], expected[~big].sum()[None]]) * counts.sum()
    if wanted[-1] < 1e-9:
        observed, wanted = observed[:-1], wanted[:-1]
    return stats.chisquare(observed.numpy(), wanted.numpy()).pvalue if len(wanted) > 1 else 1.0


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("name", distributions())
@pytest.mark.parametrize("how", ["without a sort", "sorted rows only", "textbook"])
def test_nucleus_draws_from_exactly_the_top_p_set(name, top_p, how):
    p = distributions()[name]
    expected = top_p_set(p, top_p)
    rows = p.expand(DRAWS, V)
    u = torch.rand(nucleus.MAX_REJECTIONS + 1, DRAWS, generator=torch.Generator().manual_seed(1))
    if how == "textbook":
        ids = textbook.nucleus(rows, top_p, torch.Generator().manual_seed(1))
    elif how == "sorted rows only":
        ids = nucleus._sorted_draw(rows, top_p, u[0])
    else:
        ids = nucleus.sample_nucleus(rows, top_p, u)
    counts = torch.bincount(ids, minlength=V).double()
    assert counts[expected == 0].sum() == 0
    assert chi_square(counts, expected) > 1e-4


def test_the_chi_square_notices_a_wrong_nucleus():
    """The test above can fail: draws from the whole distribution are not draws from its nucleus."""
    p = distributions()["random"]
    u = torch.rand(nucleus.MAX_REJECTIONS + 1, DRAWS, generator=torch.Generator().manual_seed(1))
    counts = torch.bincount(nucleus.sample_nucleus(p.expand(DRAWS, V), 1.0, u), minlength=V).double()
    assert counts[top_p_set(p, 0.9) == 0].sum() > 0
    assert chi_square(counts, top_p_set(p, 0.99).clamp(min=1e-12)) < 1e-4


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_a_draw_at_the_edges_has_mass(u):
    for p in distributions().values():
        assert p[nucleus.sample_categorical(p[None], torch.tensor([u]))] > 0


def test_noisy_simplex_is_the_papers_up_to_a_shift():
    """Identity 1: softmax of scaled noise plus one number is softmax of the noised ±k simplex."""
    torch.manual_seed(0)
    tokens, noise = torch.randint(V, (6,)), torch.randn(6, V, dtype=torch.float64)
    for level in (0.0, 0.3, 0.999, 1.0):
        level = torch.tensor(level, dtype=torch.float64)
        ours = simplex.noisy_simplex_(noise.clone(), tokens, level).softmax(1)
        paper = level.sqrt() * textbook.token_simplex(tokens, V) + (1 - level).sqrt() * 5.0 * noise
        assert torch.allclose(ours, paper.softmax(1), atol=1e-12)


def test_streams_are_functions_of_seed_step_and_purpose():
    def first(*key):
        return torch.randn(4, generator=chunks.generator_for(*key, torch.device("cpu"))).tolist()

    assert first(0, 1, "noise") == first(0, 1, "noise")
    assert len({tuple(first(*key)) for key in [(0, 1, "a"), (1, 1, "a"), (0, 2, "a"), (0, 1, "b")]}) == 4
