"""What the notebooks' exercises are checked with: your function against an independent truth, on random input."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import MistralConfig

from tess2lite import textbook
from tess2lite.chat_template import ROLES, chat_prompt
from tess2lite.model import MistralForDiffusionLM


@dataclass
class Verdict:
    """`passed`, and a sentence; shows itself in a notebook."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗ not yet:'} {self.message}"


def _verdict(problem) -> Verdict:
    """problem: () → None, or a sentence. A function that raises has not passed, and must not stop the notebook."""
    try:
        sentence = problem()
    except Exception as error:
        sentence = f"your function raised {type(error).__name__}: {error}"
    return Verdict(sentence is None, sentence or "right")


def _small_model(**changes) -> MistralForDiffusionLM:
    config = MistralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=None, attn_implementation="eager", **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    return MistralForDiffusionLM(config).eval()


def _compared(function, cases, hint: str) -> Verdict:
    """cases: pairs of arguments and the wanted number or tensor. hint: what is most likely wrong."""

    def problem():
        for arguments, wanted in cases:
            wanted, found = torch.as_tensor(wanted, dtype=torch.float64), function(*arguments)
            if found is None:
                return "your function returns nothing."
            found = torch.as_tensor(found, dtype=torch.float64)
            if found.shape != wanted.shape:
                return f"the shape is {tuple(found.shape)}; it should be {tuple(wanted.shape)}."
            if not torch.allclose(found, wanted, atol=1e-4):
                return f"some number is off by {(found - wanted).abs().max():.3g}. {hint}"
        return None

    return _verdict(problem)


def noise(function) -> Verdict:
    """function(simplex (B, L, V), epsilon (B, L, V), level, k) → noisy simplex (B, L, V)."""
    torch.manual_seed(0)
    cases = []
    for k, level in ((5.0, 0.3), (2.0, 0.9)):
        simplex, epsilon = textbook.token_simplex(torch.randint(20, (2, 3)), 20, k), torch.randn(2, 3, 20)
        wanted = textbook.add_noise(simplex, epsilon, torch.tensor(level), k)
        cases.append(((simplex, epsilon, torch.tensor(level), k), wanted))
    return _compared(function, cases, "Is the noise as large as k, and are both weights square roots?")


def k_for_mass(function) -> Verdict:
    """function(V, mass) → the k at which a clean token simplex has this softmax mass on its token."""
    cases = []
    for size, k in ((8, 5.0), (1024, 5.0), (1024, 1.0), (32_000, 5.0)):
        clean = textbook.token_simplex(torch.zeros(1, 1, dtype=torch.long), size, k).double()
        cases.append(((size, float(clean.softmax(-1)[0, 0, 0])), k))
    return _compared(function, cases, "The token's logit is k, every other one −k: 2k apart.")


def label_shift(function) -> Verdict:
    """function(output (B, L, V), ids (B, L), span_mask (B, L)) → mean loss at the masked positions, shifted."""
    torch.manual_seed(0)
    output, ids = torch.randn(2, 9, 20), torch.randint(20, (2, 9))
    mask = torch.rand(2, 9) < 0.5
    mask[:, 0] = False
    pairs = [(output[b, i - 1], ids[b, i]) for b in range(2) for i in range(9) if mask[b, i]]
    wanted = torch.stack([F.cross_entropy(row, token) for row, token in pairs]).mean()
    return _compared(function, [((output, ids, mask), wanted)], "Token i is read from the output at i−1.")


def probe(function) -> Verdict:
    """function(lm) → True where a later token reaches earlier positions."""

    def problem():
        causal, both = _small_model(), _small_model()
        causal.config.is_causal = True
        found = function(both), function(causal)
        if None in found:
            return "your function returns nothing."
        if not bool(found[0]):
            return "a model that sees both ways must give True."
        if bool(found[1]):
            return "a causal model must give False."
        return None

    return _verdict(problem)


def self_conditioning(function) -> Verdict:
    """function(simplex (B, L, V), previous_logits (B, L, V), E (V, H)) → soft embeddings (B, L, H)."""
    torch.manual_seed(0)
    simplex, previous, matrix = torch.randn(2, 5, 20) * 5, torch.randn(2, 5, 20), torch.randn(20, 8)
    wanted = textbook.self_condition(simplex, previous) @ matrix
    return _compared(function, [((simplex, previous, matrix), wanted)], "Are probabilities averaged, not logits?")


# Likeliest tokens of a run of 5 steps over 4 positions: settled at once, late, never, and after a change of mind.
RUN = torch.tensor([[7, 1, 1, 5], [7, 2, 2, 6], [7, 3, 1, 5], [7, 3, 1, 5], [7, 3, 2, 5]])


def flips(function) -> Verdict:
    """function(argmax (S, L)) → (L,) how often the likeliest token changed."""
    return _compared(function, [((RUN,), [0, 2, 3, 2]), ((RUN[:1],), [0, 0, 0, 0])], "Count changes, not tokens.")


def commit_step(function) -> Verdict:
    """function(argmax (S, L)) → (L,) index of the first step after which the likeliest token never changes."""
    hint = "A token that comes back after a change of mind was not settled before."
    return _compared(function, [((RUN,), [0, 2, 4, 2]), ((RUN[:1],), [0, 0, 0, 0])], hint)


def steps_until_halt(function) -> Verdict:
    """function(argmax (S, L), patience) → steps made when a run halts once nothing has changed for so many steps."""
    settling = RUN[:, [0, 1, 3]]  # changes up to step index 2, then two steps of peace
    cases = [((settling, 1), 4), ((settling, 2), 5), ((settling, 3), 5), ((RUN, 1), 4), ((RUN, 2), 5)]
    return _compared(function, cases, "The first step has nothing to be compared with; a run without peace goes on.")


def chat_text(function) -> Verdict:
    """function(messages) → the prompt up to where the assistant speaks, BOS apart."""

    def problem():
        generator = random.Random(0)
        for turns in (1, 1, 3, 5):
            said = [" ".join(generator.sample(("a", "red", "kite", "in", "the", "tree"), 4)) for _ in range(turns)]
            messages = [{"role": ROLES[1 + i % 2], "content": text} for i, text in enumerate(said)]
            wanted, found = chat_prompt(messages), function(messages)
            if found is None:
                return "your function returns nothing."
            if found != wanted:
                return f"{found!r} should be {wanted!r}."
        return None

    return _verdict(problem)


def chat_mask(function) -> Verdict:
    """function(input_ids (B, L), known (B,)) → (B, L) True on the answer, its EOS and the PAD after it."""
    torch.manual_seed(0)
    known, ids = torch.tensor([3, 7, 1, 11]), torch.randint(4, 20, (4, 12))
    for row, end in enumerate((8, 10, 4, 11)):
        ids[row, end], ids[row, end + 1 :] = 2, 3  # EOS, PAD
    wanted = [[place >= first for place in range(12)] for first in known.tolist()]
    hint = "The PAD after the answer is masked, the last token before the answer is not."
    return _compared(function, [((ids, known), torch.tensor(wanted).double())], hint)


def first_kept(function) -> Verdict:
    """function(lengths, room) → index of the first message kept: the longest end that the user begins and that fits."""
    generator, cases = random.Random(0), []
    for _ in range(40):
        lengths = [generator.randint(1, 30) for _ in range(generator.choice((1, 3, 5, 7)))]
        room = generator.randint(5, 100)
        fitting = [first for first in range(0, len(lengths), 2) if sum(lengths[first:]) <= room]
        cases.append(((lengths, room), min(fitting, default=len(lengths))))
    return _compared(function, cases, "The user speaks at even indices, and what fits exactly fits.")


def ascent(function) -> Verdict:
    """function(logits (N, V), E_R (V, H), reward: (N, H) → scalar, scale) → logits after one step uphill."""
    torch.manual_seed(0)
    logits, matrix, wish = torch.randn(4, 9), torch.randn(9, 5), torch.randn(4, 5)
    cases = []
    for scale, reward in ((1.0, lambda soft: (soft * wish).sum()), (0.25, lambda soft: soft.sin().sum())):
        p = logits.softmax(-1)
        by_soft = wish if scale == 1 else (p @ matrix).cos()  # ∂R/∂(p·E) by hand
        by_p = by_soft @ matrix.T
        gradient = p * (by_p - (p * by_p).sum(-1, keepdim=True))  # through the softmax
        cases.append(((logits.clone(), matrix, reward, scale), logits + scale * gradient))
    return _compared(function, cases, "Is the gradient that of the reward by the logits, through softmax?")


def hacking_sets_in(function) -> Verdict:
    """function(scales, predicted, true) → first scale past the best at which predicted is above and true below it."""
    cases = [
        (([0, 1, 10, 100], [0.0, 2.0, 3.0, 4.0], [0.0, 3.0, 2.0, 1.0]), 10),
        (([0, 1, 10, 100], [0.0, 2.0, 1.5, 4.0], [0.0, 3.0, 2.0, 1.0]), 100),
        (([0, 5, 50], [0.0, 1.0, 2.0], [1.0, 0.5, 3.0]), -1),
    ]

    def answered(*arguments):
        found = function(*arguments)
        return -1 if found is None and function([0, 1], [0.0, 1.0], [1.0, 0.0]) == 1 else found

    return _compared(
        answered, cases, "The best scale is where the true reward is highest; None where nothing comes after."
    )


def preference_loss(function) -> Verdict:
    """function(chosen (B,), rejected (B,)) → mean of −log σ(chosen − rejected)."""
    torch.manual_seed(0)
    chosen, rejected = torch.randn(6) * 3, torch.randn(6) * 3
    by_hand = torch.log1p(torch.exp(rejected.double() - chosen.double())).mean()
    far = torch.tensor([-200.0]), torch.tensor([200.0])
    return _compared(
        function,
        [((chosen, rejected), by_hand), (far, 400.0)],
        "A pair ordered badly costs much, and still a finite number.",
    )


def dist(function) -> Verdict:
    """function(texts, n) → different n-grams of words among those of all texts."""
    cases = [
        ((["a b a b"], 1), 0.5), ((["a b a b"], 2), 2 / 3), ((["a b", "a c", "a b"], 2), 2 / 3),
        ((["a b", "c d"], 2), 1.0), ((["a b c"], 4), 0.0), ((["a", "b c d e"], 3), 1.0),
    ]  # fmt: skip
    return _compared(function, cases, "Texts share one set of n-grams, and no n-gram reaches from one into the next.")


def win_share(function) -> Verdict:
    """function(scores_a, scores_b) → share of prompts where A wins, a tie being half a win."""
    cases = [
        (([1, 2, 3, 4], [0, 2, 3, 9]), 0.5),
        (([1.0, 1.0], [1.0, 1.0]), 0.5),
        (([5, 5, 5, 5], [1, 1, 5, 7]), 0.625),
    ]
    return _compared(function, cases, "A tie is half a win, and every prompt counts.")


# (name, score(prompts, batch_size), whether it depends on more than the prompt)
SCORERS = (
    ("scores each prompt alone", lambda prompts, size: [len(prompt) for prompt in prompts], False),
    ("adds the prompt's place in its batch", lambda prompts, size: [i % size for i in range(len(prompts))], True),
    ("goes by the prompt's number", lambda prompts, size: [len(p) * i for i, p in enumerate(prompts)], True),
    (
        "reverses each batch, so that the mean stays",
        lambda prompts, size: [len(p) for i in range(0, len(prompts), size) for p in reversed(prompts[i : i + size])],
        True,
    ),
    (
        "pads to the longest of the batch",
        lambda prompts, size: [max(map(len, prompts[i - i % size : i - i % size + size])) for i in range(len(prompts))],
        True,
    ),
)


def depends_on_batch(function) -> Verdict:
    """function(score, prompts) → whether score(prompts, batch_size) gives a prompt another score in another batch."""

    def problem():
        prompts = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
        for what, score, wanted in SCORERS:
            found = function(score, list(prompts))
            if found is None:
                return "your function returns nothing."
            if bool(found) != wanted:
                return f"of a scorer that {what} it says {bool(found)}. Compare score by score, of the same prompts."
        return None

    return _verdict(problem)


def middle_95(function) -> Verdict:
    """function(scores (n,), drawn (R, n)) → (low, high) of the middle 95 % of the means."""
    torch.manual_seed(0)
    cases = []
    for n in (5, 40):
        scores, drawn = torch.rand(n, dtype=torch.float64), torch.randint(n, (401, n))
        means = sorted(float(sum(scores[i] for i in row)) / n for row in drawn.tolist())
        cases.append(((scores, drawn), [means[10], means[390]]))  # 0.025 and 0.975 of the way from 0 to 400
    return _compared(function, cases, "One mean for each row of what is drawn, then their 2.5 % and 97.5 % quantiles.")


def nf4_round(function) -> Verdict:
    """function(weights (N, 64), levels (16,)) → weights rounded to a level times the largest of their block."""
    torch.manual_seed(0)
    levels = torch.cat([torch.tensor([-1.0]), (2 * torch.rand(14) - 1).sort().values, torch.tensor([1.0])])
    weights = torch.randn(4, 64) * torch.tensor([1.0, 0.05, 3.0, 10.0])[:, None]
    largest, between = weights.abs().amax(1, keepdim=True), (levels[1:] + levels[:-1]) / 2
    wanted = levels[torch.bucketize(weights / largest, between)] * largest
    return _compared(function, [((weights, levels), wanted)], "Each block has a scale of its own; the nearest level.")


def lora_weights(function) -> Verdict:
    """function(shapes [(in, out), …], rank) → how many weights a LoRA beside these matrices trains."""
    layer = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096)]
    cases = [((layer, 64), 64 * 81_920), (([(10, 3)], 2), 26), (([], 8), 0)]
    return _compared(function, cases, "Two thin matrices beside each: (in, r) and (r, out).")
