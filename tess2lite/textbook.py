"""TESS 2 the long way: the paper's equations with full B×L×V tensors and no tricks.

Read it beside the paper; the tests hold the fast path (`simplex`, `sampling`, `loss`) equal to it.
`lm` is any denoiser of this package; B sequences, L positions, V ids, H hidden size.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

K = 5.0


def token_simplex(ids: torch.Tensor, vocabulary: int, k: float = K) -> torch.Tensor:
    """S^w: +k at the token's id, −k everywhere else. (B, L) → (B, L, V)."""
    one_hot = F.one_hot(ids, vocabulary).float()
    return k * (2 * one_hot - 1)


def add_noise(simplex: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, k: float = K) -> torch.Tensor:
    """√ᾱ_t·S + √(1−ᾱ_t)·k·ε. simplex, noise: (B, L, V); alpha_bar: (B, L) or (). → (B, L, V)."""
    alpha_bar = torch.as_tensor(alpha_bar, dtype=simplex.dtype, device=simplex.device)[..., None]
    signal = alpha_bar.sqrt() * simplex
    return signal + (1 - alpha_bar).sqrt() * k * noise


def self_condition(simplex: torch.Tensor, previous_logits: torch.Tensor | None) -> torch.Tensor:
    """The mean of what the model reads and what it last predicted, as probabilities. → (B, L, V).

    Without a previous prediction that is uniform: softmax(0).
    """
    if previous_logits is None:
        previous_logits = torch.zeros_like(simplex)
    return (F.softmax(simplex, -1) + F.softmax(previous_logits, -1)) / 2


def input_embeddings(
    lm: Any,
    probabilities: torch.Tensor,
    t: torch.Tensor,
    input_ids: torch.Tensor,
    span_mask: torch.Tensor,
) -> torch.Tensor:
    """Σ_v p_v·E_v + the timestep inside the mask, plain embeddings outside it. → (B, L, H).

    E is detached on the soft path, as in the official code: it learns from the context's tokens alone.
    """
    matrix = lm.embedding_matrix()  # E, (V, H)
    soft = probabilities.to(matrix.dtype) @ matrix.detach()
    soft = soft + lm.embed_time(t)
    plain = F.embedding(input_ids, matrix)
    return torch.where(span_mask[..., None], soft, plain)


def shift(logits: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Position i is predicted from the output at i−1; each row's first real token gets zeros. (B, L, V)."""
    shifted = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1)
    is_first = attention_mask.cumsum(1) * attention_mask == 1
    return shifted.masked_fill(is_first[..., None], 0.0)


def logits(
    lm: Any,
    simplex: torch.Tensor,
    t: torch.Tensor,
    input_ids: torch.Tensor,
    span_mask: torch.Tensor,
    previous_logits: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The prediction for every position.

    Args:
        lm: The denoiser.
        simplex: (B, L, V) noisy simplex.
        t: (B, L) float, t/T.
        input_ids: (B, L).
        span_mask: (B, L) bool, True where the model must write.
        previous_logits: (B, L, V) of an earlier prediction; None for none.
        attention_mask: (B, L), 0 on filler.

    Returns:
        (B, L, V), aligned with the positions they predict.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    probabilities = self_condition(simplex, previous_logits)
    embeddings = input_embeddings(lm, probabilities, t, input_ids, span_mask)
    hidden = lm.hidden_states(embeddings, attention_mask)
    return shift(lm.head(hidden), attention_mask)


def loss(logits: torch.Tensor, input_ids: torch.Tensor, span_mask: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the masked positions."""
    return F.cross_entropy(logits[span_mask], input_ids[span_mask])


def nucleus(probabilities: torch.Tensor, top_p: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Sample from the smallest set of top tokens that holds top_p; ties by token id. (…, V) → (…)."""
    ranked, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    mass_before = ranked.cumsum(-1) - ranked
    ranked = ranked.masked_fill(mass_before >= top_p, 0.0)
    rows = ranked.flatten(0, -2)
    choice = torch.multinomial(rows, 1, generator=generator)
    choice = choice.view(*ids.shape[:-1], 1)
    return ids.gather(-1, choice)[..., 0]


def project(
    logits: torch.Tensor,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Logits → tokens: argmax, or a sample from the nucleus. (B, L, V) → (B, L)."""
    if top_p is None:
        return logits.argmax(-1)
    probabilities = F.softmax(logits, -1)
    return nucleus(probabilities, top_p, generator)


def sample(
    lm: Any,
    input_ids: torch.Tensor,
    span_mask: torch.Tensor,
    alpha_bar: torch.Tensor,
    noise: Callable[[int, tuple[int, ...]], torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    top_p: float | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Denoise all masked positions together, one step per turn of the loop.

    Args:
        lm: The denoiser.
        input_ids: (B, L).
        span_mask: (B, L) bool, True where the model must write.
        alpha_bar: (steps,) schedule.
        noise: (step, shape) → standard normal, step −1 for the start.
        attention_mask: (B, L), 0 on filler.
        top_p: Nucleus of the projection; None for argmax.

    Yields:
        Logits (B, L, V) and tokens (B, L) of each step.
    """
    steps = len(alpha_bar)
    shape = (*input_ids.shape, lm.config.vocab_size)
    no_noise = torch.ones(1, dtype=alpha_bar.dtype)
    alpha_bar = torch.cat([no_noise, alpha_bar])  # index t+1; ᾱ_{−1} = 1
    simplex = K * noise(-1, shape)
    previous = None
    for i in range(steps):
        t = steps - 1 - i
        time = torch.full(input_ids.shape, t / steps, dtype=torch.float64)
        previous = logits(lm, simplex, time, input_ids, span_mask, previous, attention_mask)
        tokens = torch.where(span_mask, project(previous, top_p), input_ids)
        yield previous, tokens
        clean = token_simplex(tokens, lm.config.vocab_size)
        simplex = add_noise(clean, noise(i, shape), alpha_bar[t])


def training_logits(
    lm: Any,
    input_ids: torch.Tensor,
    span_mask: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    alpha_bar: torch.Tensor,
    conditioned: bool,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The prediction a training step is scored on, (B, L, V).

    Args:
        lm: The denoiser.
        input_ids: (B, L), the true tokens.
        span_mask: (B, L) bool, True where the model must write.
        t: (B,) whole timesteps.
        noise: (B, L, V), standard normal.
        alpha_bar: (T,) schedule.
        conditioned: Mix in a first prediction from t+1 (clamped), with the same noise and without gradient.
        attention_mask: (B, L), 0 on filler.
    """
    T = len(alpha_bar)
    clean = token_simplex(input_ids, lm.config.vocab_size)

    def predict(t, previous):
        t = t[:, None].expand_as(input_ids)
        noisy = add_noise(clean, noise, alpha_bar[t])
        return logits(lm, noisy, t / T, input_ids, span_mask, previous, attention_mask)

    previous = None
    if conditioned:
        with torch.no_grad():
            previous = predict((t + 1).clamp(max=T - 1), None)
    return predict(t, previous)
