"""TESS 2 the long way: the paper's equations with full B×L×V tensors and no tricks.

Read it beside the paper; the tests hold the fast path (`simplex`, `sampling`, `loss`) equal to it.
`lm` is any denoiser of this package; B sequences, L positions, V ids, H hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

K = 5.0


def token_simplex(ids: torch.Tensor, vocabulary: int, k: float = K) -> torch.Tensor:
    """S^w: +k at the token's id, −k everywhere else. (B, L) → (B, L, V)."""
    return k * (2 * F.one_hot(ids, vocabulary).float() - 1)


def add_noise(simplex: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, k: float = K) -> torch.Tensor:
    """√ᾱ_t·S + √(1−ᾱ_t)·k·ε. simplex, noise: (B, L, V); alpha_bar: (B, L) or (). → (B, L, V)."""
    alpha_bar = torch.as_tensor(alpha_bar, dtype=simplex.dtype)[..., None]
    return alpha_bar.sqrt() * simplex + (1 - alpha_bar).sqrt() * k * noise


def self_condition(simplex: torch.Tensor, previous_logits: torch.Tensor | None) -> torch.Tensor:
    """The mean of what the model reads and what it last believed, as probabilities. → (B, L, V).

    Without a previous prediction that belief is uniform: softmax(0).
    """
    if previous_logits is None:
        previous_logits = torch.zeros_like(simplex)
    return (F.softmax(simplex, -1) + F.softmax(previous_logits, -1)) / 2


def input_embeddings(lm, probabilities, t, input_ids, span_mask) -> torch.Tensor:
    """Σ_v p_v·E_v + the timestep inside the mask, plain embeddings outside it. → (B, L, H).

    E is detached on the soft path, as in the official code: it learns from known tokens alone.
    """
    matrix = lm.embedding_matrix()  # E, (V, H)
    soft = probabilities.to(matrix.dtype) @ matrix.detach()
    soft = soft + lm.embed_time(t)
    return torch.where(span_mask[..., None], soft, F.embedding(input_ids, matrix))


def shift(logits: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Position i is read from the output at i−1; zeros stand at each row's first real token. (B, L, V)."""
    shifted = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1)
    first = attention_mask.bool() & (attention_mask.cumsum(1) == 1)
    return shifted.masked_fill(first[..., None], 0.0)


def logits(lm, simplex, t, input_ids, span_mask, previous_logits=None, attention_mask=None) -> torch.Tensor:
    """What the model believes about every position.

    simplex: (B, L, V) noisy simplex; t: (B, L) float, t/T; input_ids: (B, L); span_mask: (B, L) bool, True
    where tokens are unknown; previous_logits: (B, L, V) or None; attention_mask: (B, L), 0 on filler.
    Returns (B, L, V), aligned with the positions they speak of.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    embeddings = input_embeddings(lm, self_condition(simplex, previous_logits), t, input_ids, span_mask)
    hidden = lm.hidden_states(embeddings, attention_mask)
    return shift(lm.head(hidden), attention_mask)


def loss(logits: torch.Tensor, input_ids: torch.Tensor, span_mask: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the masked positions."""
    return F.cross_entropy(logits[span_mask], input_ids[span_mask])


def nucleus(probabilities: torch.Tensor, top_p: float, generator=None) -> torch.Tensor:
    """One draw from the smallest set of top tokens that holds top_p; ties by token id. (…, V) → (…)."""
    ranked, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    outside = ranked.cumsum(-1) - ranked >= top_p
    ranked = ranked.masked_fill(outside, 0.0)
    choice = torch.multinomial(ranked.flatten(0, -2), 1, generator=generator)
    return ids.gather(-1, choice.view(*ids.shape[:-1], 1))[..., 0]


def project(logits: torch.Tensor, top_p: float | None = None, generator=None) -> torch.Tensor:
    """Logits → tokens: argmax, or a draw from the nucleus. (B, L, V) → (B, L)."""
    return logits.argmax(-1) if top_p is None else nucleus(F.softmax(logits, -1), top_p, generator)


def sample(lm, input_ids, span_mask, alpha_bar, noise, attention_mask=None, top_p=None):
    """Denoise all masked positions together, one step a turn of the loop.

    alpha_bar: (steps,) schedule; noise: (step, shape) → standard normal, step −1 for the start.
    Yields (logits (B, L, V), tokens (B, L)) of each step.
    """
    steps, shape = len(alpha_bar), (*input_ids.shape, lm.config.vocab_size)
    alpha_bar = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar])  # index t+1; ᾱ_{−1} = 1
    simplex, previous = K * noise(-1, shape), None
    for i in range(steps):
        t = steps - 1 - i
        time = torch.full(input_ids.shape, t / steps, dtype=torch.float64)
        previous = logits(lm, simplex, time, input_ids, span_mask, previous, attention_mask)
        tokens = torch.where(span_mask, project(previous, top_p), input_ids)
        yield previous, tokens
        simplex = add_noise(token_simplex(tokens, shape[-1]), noise(i, shape), alpha_bar[t])


def training_logits(lm, input_ids, span_mask, t, noise, alpha_bar, conditioned, attention_mask=None):
    """The prediction a training step is scored on.

    t: (B,) whole timesteps; noise: (B, L, V); alpha_bar: (T,). With `conditioned`, a first prediction from
    t+1 (clamped) with the same noise and without gradient is mixed in.
    """
    clean, T = token_simplex(input_ids, lm.config.vocab_size), len(alpha_bar)

    def predict(t, previous):
        t = t[:, None].expand_as(input_ids)
        return logits(lm, add_noise(clean, noise, alpha_bar[t]), t / T, input_ids, span_mask, previous, attention_mask)

    with torch.no_grad():
        previous = predict((t + 1).clamp(max=T - 1), None) if conditioned else None
    return predict(t, previous)
