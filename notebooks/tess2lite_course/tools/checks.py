"""What the notebooks' exercises are checked with: a reader's function against an independent truth, on random input.

A check that fails asks a question first, and says what is most likely wrong when it fails again. One that passes asks
what to think about next.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import MistralConfig

from tess2lite import textbook
from tess2lite.chat_template import ROLES, chat_prompt
from tess2lite.model import MistralForDiffusionLM


@dataclass
class Guide:
    """What a check says beside right and wrong.

    Attributes:
        question: Asked at the first wrong answer.
        hint: What is most likely wrong; from the second wrong answer on.
        next_question: Asked when the answer is right.
    """

    question: str
    hint: str
    next_question: str


GUIDES = {
    "noise": Guide(
        "How large is the noise beside the signal, when ᾱ is 0?",
        "The noise is as large as k, and both weights are square roots.",
        "Which of the two weights falls when ᾱ falls, and what do their squares add up to?",
    ),
    "k_for_mass": Guide(
        "How far apart are the token's logit and the others?",
        "The token's logit is k, every other one −k: they are 2k apart.",
        "How does the k you need grow when the vocabulary doubles?",
    ),
    "label_shift": Guide(
        "Which output has read everything before token i, and not token i itself?",
        "Token i is read from the output at i−1.",
        "Why can the first token of a row never be scored?",
    ),
    "probe": Guide(
        "What would change if a later token changed?",
        "Change the last token and compare the earlier outputs: they differ only in a model that sees both ways.",
        "Would your probe still work if the first token were filler?",
    ),
    "self_conditioning": Guide(
        "What is averaged: what goes into the softmax, or what comes out of it?",
        "Probabilities are averaged, not logits.",
        "Why need nobody keep (B, L, V) probabilities between two steps?",
    ),
    "flips": Guide(
        "Between which pairs of steps can a change happen?",
        "Count changes from one step to the next, not different tokens.",
        "Which positions of a story do you expect to flip most?",
    ),
    "commit_step": Guide(
        "Was a token settled that went away and came back?",
        "A token that comes back after a change was not settled before.",
        "Can a position commit late and never flip?",
    ),
    "steps_until_halt": Guide(
        "What is the first step compared with?",
        "The first step has nothing to be compared with; a run without `patience` unchanged steps makes them all.",
        "What is lost when patience is 1, and what is saved?",
    ),
    "chat_text": Guide(
        "Print repr() of your text and of a prompt of the package: where do they part?",
        "Every turn ends with a newline, and the assistant's tag does, too.",
        "What would a model answer to a prompt without the last newline?",
    ),
    "chat_mask": Guide(
        "Which tokens must the model write by itself, the end included?",
        "The answer, its EOS and the PAD after it are masked; the last token before the answer is not.",
        "What would the model never learn if the PAD were left out?",
    ),
    "first_kept": Guide(
        "Who speaks at index 0, 2, 4?",
        "The user speaks at even indices, and what fits exactly fits.",
        "What does a model lose when the first turn goes?",
    ),
    "ascent": Guide(
        "By what is the reward differentiated: embeddings, probabilities or logits?",
        "The gradient is the reward's by the logits, through the softmax.",
        "Why does the gradient vanish where the model is certain?",
    ),
    "hacking_sets_in": Guide(
        "Where is the true reward highest, and what comes after?",
        "The best scale is where the true reward is highest; None where nothing comes after.",
        "How would you notice, if nobody computed the true reward?",
    ),
    "preference_loss": Guide(
        "What happens to your loss when a pair is ordered badly by far?",
        "A pair that is ordered badly costs much, and still a finite number: log σ in one function.",
        "What does the loss say about a reward that is 100 higher for every text?",
    ),
    "dist": Guide(
        "Of how many texts is the set of n-grams?",
        "Texts share one set of n-grams, and no n-gram reaches from one into the next.",
        "Why must texts be of the same length to be compared by this?",
    ),
    "win_share": Guide(
        "What is a tie worth?",
        "A tie is half a win, and every prompt counts.",
        "Can A win on most prompts and have the lower mean score?",
    ),
    "depends_on_batch": Guide(
        "Do you compare the scores of the same prompts, one by one?",
        "Compare score by score: other batch sizes, and another order of the prompts.",
        "Which of these scorers would a comparison of means have missed?",
    ),
    "middle_95": Guide(
        "How many means are there?",
        "One mean for each row of what is drawn, then their 2.5 % and 97.5 % quantiles.",
        "What does this interval become when all scores are equal, and is that right?",
    ),
    "nf4_round": Guide(
        "How many scales are there?",
        "Each block has a scale of its own; every weight goes to the nearest level.",
        "What does one large weight do to the others of its block?",
    ),
    "lora_weights": Guide(
        "How many matrices stand beside each weight matrix?",
        "Two thin ones beside each: (in, r) and (r, out).",
        "At which rank has the adapter as many weights as the matrix?",
    ),
    "restored": Guide(
        "What is the margin before anything is patched, and what is it in the twin?",
        "The target's own margin is subtracted from both: (patched − target) / (source − target).",
        "What does a share above 1, or below 0, say about a patch?",
    ),
    "silence": Guide(
        "Which columns belong to one head?",
        "The heads lie side by side: columns head · width up to (head + 1) · width, in a copy.",
        "What would replacing the head's part by its mean over texts measure instead?",
    ),
}
_wrong_answers: Counter[str] = Counter()


@dataclass
class Verdict:
    """What a check found; it shows itself in a notebook.

    Attributes:
        passed: Whether the answer is right.
        message: A sentence about it.
    """

    passed: bool
    message: str

    def __repr__(self) -> str:
        return f"{'✓ right.' if self.passed else '✗ not yet:'} {self.message}"


def _verdict(name: str, find_problem: Callable[[], str | None]) -> Verdict:
    """find_problem returns a sentence or None. A function that raises does not pass, and does not stop the notebook."""
    try:
        problem = find_problem()
    except Exception as error:
        problem = f"your function raised {type(error).__name__}: {error}."
    guide = GUIDES[name]
    if problem is None:
        _wrong_answers[name] = 0
        return Verdict(True, f"Next: {guide.next_question}")
    if problem == NOTHING:
        return Verdict(False, problem)
    _wrong_answers[name] += 1
    return Verdict(False, f"{problem} {guide.question if _wrong_answers[name] == 1 else guide.hint}")


NOTHING = "your function returns nothing."


def _compared(name: str, function: Callable, cases: Iterable[tuple[tuple, object]]) -> Verdict:
    """cases: arguments, and the number or tensor that they should give."""

    def find_problem() -> str | None:
        for arguments, expected in cases:
            expected = torch.as_tensor(expected, dtype=torch.float64)
            result = function(*arguments)
            if result is None:
                return NOTHING
            try:
                result = torch.as_tensor(result, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError):
                kind = "a number" if expected.ndim == 0 else f"numbers of shape {tuple(expected.shape)}"
                return f"your function returns {type(result).__name__}; it should return {kind}."
            if result.shape != expected.shape:
                return f"the shape is {tuple(result.shape)}; it should be {tuple(expected.shape)}."
            if not torch.allclose(result, expected, atol=1e-4):
                return f"some number is off by {(result - expected).abs().max():.3g}."
        return None

    return _verdict(name, find_problem)


def _small_model() -> MistralForDiffusionLM:
    config = MistralConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=None,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    return MistralForDiffusionLM(config).eval()


def noise(function: Callable) -> Verdict:
    """Checks function(simplex (B, L, V), epsilon (B, L, V), level, k) → noisy simplex (B, L, V)."""
    torch.manual_seed(0)
    cases = []
    for k, level in ((5.0, 0.3), (2.0, 0.9)):
        simplex = textbook.token_simplex(torch.randint(20, (2, 3)), 20, k)
        epsilon = torch.randn(2, 3, 20)
        expected = textbook.add_noise(simplex, epsilon, torch.tensor(level), k)
        cases.append(((simplex, epsilon, torch.tensor(level), k), expected))
    return _compared("noise", function, cases)


def k_for_mass(function: Callable) -> Verdict:
    """Checks function(V, mass) → the k at which a clean token simplex has this softmax mass on its token."""
    cases = []
    for size, k in ((8, 5.0), (1024, 5.0), (1024, 1.0), (32_000, 5.0)):
        clean = textbook.token_simplex(torch.zeros(1, 1, dtype=torch.long), size, k).double()
        cases.append(((size, float(clean.softmax(-1)[0, 0, 0])), k))
    return _compared("k_for_mass", function, cases)


def label_shift(function: Callable) -> Verdict:
    """Checks function(output (B, L, V), ids (B, L), span_mask (B, L)) → mean loss at the masked positions, shifted."""
    torch.manual_seed(0)
    output = torch.randn(2, 9, 20)
    ids = torch.randint(20, (2, 9))
    mask = torch.rand(2, 9) < 0.5
    mask[:, 0] = False
    pairs = [(output[b, i - 1], ids[b, i]) for b in range(2) for i in range(9) if mask[b, i]]
    expected = torch.stack([F.cross_entropy(row, token) for row, token in pairs]).mean()
    return _compared("label_shift", function, [((output, ids, mask), expected)])


def probe(function: Callable) -> Verdict:
    """Checks function(lm) → True where a later token reaches earlier positions."""

    def find_problem() -> str | None:
        bidirectional = _small_model()
        causal = _small_model()
        causal.config.is_causal = True
        results = [function(bidirectional), function(causal)]
        if None in results:
            return NOTHING
        if not bool(results[0]):
            return "a model that sees both ways must give True."
        if bool(results[1]):
            return "a causal model must give False."
        return None

    return _verdict("probe", find_problem)


def self_conditioning(function: Callable) -> Verdict:
    """Checks function(simplex (B, L, V), previous_logits (B, L, V), E (V, H)) → soft embeddings (B, L, H)."""
    torch.manual_seed(0)
    simplex = torch.randn(2, 5, 20) * 5
    previous = torch.randn(2, 5, 20)
    matrix = torch.randn(20, 8)
    expected = textbook.self_condition(simplex, previous) @ matrix
    return _compared("self_conditioning", function, [((simplex, previous, matrix), expected)])


# Likeliest tokens of a run of 5 steps over 4 positions: settled at once, late, never, and after a change.
RUN = torch.tensor([[7, 1, 1, 5], [7, 2, 2, 6], [7, 3, 1, 5], [7, 3, 1, 5], [7, 3, 2, 5]])


def flips(function: Callable) -> Verdict:
    """Checks function(argmax (S, L)) → (L,) how often the likeliest token changed."""
    return _compared("flips", function, [((RUN,), [0, 2, 3, 2]), ((RUN[:1],), [0, 0, 0, 0])])


def commit_step(function: Callable) -> Verdict:
    """Checks function(argmax (S, L)) → (L,) index of the first step after which the likeliest token never changes."""
    return _compared("commit_step", function, [((RUN,), [0, 2, 4, 2]), ((RUN[:1],), [0, 0, 0, 0])])


def steps_until_halt(function: Callable) -> Verdict:
    """Checks function(argmax (S, L), patience) → steps made when a run halts after `patience` unchanged steps."""
    settling = RUN[:, [0, 1, 3]]  # changes up to step index 2, then two unchanged steps
    cases = [((settling, 1), 4), ((settling, 2), 5), ((settling, 3), 5), ((RUN, 1), 4), ((RUN, 2), 5)]
    return _compared("steps_until_halt", function, cases)


def chat_text(function: Callable) -> Verdict:
    """Checks function(messages) → the prompt up to where the assistant speaks, without BOS."""

    def find_problem() -> str | None:
        generator = random.Random(0)
        for turns in (1, 1, 3, 5):
            texts = [" ".join(generator.sample(("a", "red", "kite", "in", "the", "tree"), 4)) for _ in range(turns)]
            messages = [{"role": ROLES[1 + i % 2], "content": text} for i, text in enumerate(texts)]
            expected = chat_prompt(messages)
            result = function(messages)
            if result is None:
                return NOTHING
            if result != expected:
                return f"{result!r} should be {expected!r}."
        return None

    return _verdict("chat_text", find_problem)


def chat_mask(function: Callable) -> Verdict:
    """Checks function(input_ids (B, L), known (B,)) → (B, L) True on the answer, its EOS and the PAD after it."""
    torch.manual_seed(0)
    lengths = torch.tensor([3, 7, 1, 11])
    ids = torch.randint(4, 20, (4, 12))
    for row, end in enumerate((8, 10, 4, 11)):
        ids[row, end] = 2  # EOS
        ids[row, end + 1 :] = 3  # PAD
    expected = [[place >= first for place in range(12)] for first in lengths.tolist()]
    return _compared("chat_mask", function, [((ids, lengths), torch.tensor(expected).double())])


def first_kept(function: Callable) -> Verdict:
    """Checks function(lengths, room) → first message kept: the longest end that the user begins and that fits."""
    generator = random.Random(0)
    cases = []
    for _ in range(40):
        lengths = [generator.randint(1, 30) for _ in range(generator.choice((1, 3, 5, 7)))]
        room = generator.randint(5, 100)
        fitting = [first for first in range(0, len(lengths), 2) if sum(lengths[first:]) <= room]
        cases.append(((lengths, room), min(fitting, default=len(lengths))))
    return _compared("first_kept", function, cases)


def ascent(function: Callable) -> Verdict:
    """Checks function(logits (N, V), E_R (V, H), reward: (N, H) → scalar, scale) → logits after one step uphill."""
    torch.manual_seed(0)
    logits = torch.randn(4, 9)
    matrix = torch.randn(9, 5)
    wish = torch.randn(4, 5)
    cases = []
    for scale, reward in ((1.0, lambda soft: (soft * wish).sum()), (0.25, lambda soft: soft.sin().sum())):
        p = logits.softmax(-1)
        by_soft = wish if scale == 1 else (p @ matrix).cos()  # ∂R/∂(p·E) by hand
        by_p = by_soft @ matrix.T
        gradient = p * (by_p - (p * by_p).sum(-1, keepdim=True))  # through the softmax
        cases.append(((logits.clone(), matrix, reward, scale), logits + scale * gradient))
    return _compared("ascent", function, cases)


def hacking_sets_in(function: Callable) -> Verdict:
    """Checks function(scales, predicted, true) → first scale past the best with predicted above and true below it."""
    cases = [
        (([0, 1, 10, 100], [0.0, 2.0, 3.0, 4.0], [0.0, 3.0, 2.0, 1.0]), 10),
        (([0, 1, 10, 100], [0.0, 2.0, 1.5, 4.0], [0.0, 3.0, 2.0, 1.0]), 100),
        (([0, 5, 50], [0.0, 1.0, 2.0], [1.0, 0.5, 3.0]), -1),
    ]

    def none_is_minus_one(*arguments):
        result = function(*arguments)
        returns_something = function([0, 1], [0.0, 1.0], [1.0, 0.0]) == 1
        return -1 if result is None and returns_something else result

    return _compared("hacking_sets_in", none_is_minus_one, cases)


def preference_loss(function: Callable) -> Verdict:
    """Checks function(chosen (B,), rejected (B,)) → mean of −log σ(chosen − rejected)."""
    torch.manual_seed(0)
    chosen = torch.randn(6) * 3
    rejected = torch.randn(6) * 3
    by_hand = torch.log1p(torch.exp(rejected.double() - chosen.double())).mean()
    far = torch.tensor([-200.0]), torch.tensor([200.0])
    return _compared("preference_loss", function, [((chosen, rejected), by_hand), (far, 400.0)])


def dist(function: Callable) -> Verdict:
    """Checks function(texts, n) → different n-grams of words among those of all texts."""
    cases = [
        ((["a b a b"], 1), 0.5),
        ((["a b a b"], 2), 2 / 3),
        ((["a b", "a c", "a b"], 2), 2 / 3),
        ((["a b", "c d"], 2), 1.0),
        ((["a b c"], 4), 0.0),
        ((["a", "b c d e"], 3), 1.0),
    ]
    return _compared("dist", function, cases)


def win_share(function: Callable) -> Verdict:
    """Checks function(scores_a, scores_b) → share of prompts where A wins, a tie being half a win."""
    cases = [
        (([1, 2, 3, 4], [0, 2, 3, 9]), 0.5),
        (([1.0, 1.0], [1.0, 1.0]), 0.5),
        (([5, 5, 5, 5], [1, 1, 5, 7]), 0.625),
    ]
    return _compared("win_share", function, cases)


def _length_of_batch(prompts: list[str], size: int) -> list[int]:
    return [max(map(len, prompts[i - i % size : i - i % size + size])) for i in range(len(prompts))]


def _reversed_batches(prompts: list[str], size: int) -> list[int]:
    batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    return [len(prompt) for batch in batches for prompt in reversed(batch)]


# (what it does, score(prompts, batch_size), whether it depends on more than the prompt)
SCORERS = (
    ("scores each prompt alone", lambda prompts, size: [len(prompt) for prompt in prompts], False),
    ("adds the prompt's place in its batch", lambda prompts, size: [i % size for i in range(len(prompts))], True),
    ("goes by the prompt's number", lambda prompts, size: [len(p) * i for i, p in enumerate(prompts)], True),
    ("reverses each batch, so that the mean stays", _reversed_batches, True),
    ("pads to the longest of the batch", _length_of_batch, True),
)


def depends_on_batch(function: Callable) -> Verdict:
    """Checks function(score, prompts) → whether score(prompts, batch_size) depends on batch size or order."""

    def find_problem() -> str | None:
        prompts = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
        for what, score, expected in SCORERS:
            result = function(score, list(prompts))
            if result is None:
                return NOTHING
            if bool(result) != expected:
                return f"of a scorer that {what} it says {bool(result)}."
        return None

    return _verdict("depends_on_batch", find_problem)


def middle_95(function: Callable) -> Verdict:
    """Checks function(scores (n,), drawn (R, n)) → (low, high) of the middle 95 % of the means."""
    torch.manual_seed(0)
    cases = []
    for n in (5, 40):
        scores = torch.rand(n, dtype=torch.float64)
        drawn = torch.randint(n, (401, n))
        means = sorted(float(sum(scores[i] for i in row)) / n for row in drawn.tolist())
        cases.append(((scores, drawn), [means[10], means[390]]))  # 0.025 and 0.975 of the way from 0 to 400
    return _compared("middle_95", function, cases)


def nf4_round(function: Callable) -> Verdict:
    """Checks function(weights (N, 64), levels (16,)) → weights rounded to a level times the largest of their block."""
    torch.manual_seed(0)
    levels = torch.cat([torch.tensor([-1.0]), (2 * torch.rand(14) - 1).sort().values, torch.tensor([1.0])])
    weights = torch.randn(4, 64) * torch.tensor([1.0, 0.05, 3.0, 10.0])[:, None]
    largest = weights.abs().amax(1, keepdim=True)
    between = (levels[1:] + levels[:-1]) / 2
    expected = levels[torch.bucketize(weights / largest, between)] * largest
    return _compared("nf4_round", function, [((weights, levels), expected)])


def lora_weights(function: Callable) -> Verdict:
    """Checks function(shapes [(in, out), …], rank) → how many weights a LoRA beside these matrices trains."""
    layer = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096)]
    cases = [((layer, 64), 64 * 81_920), (([(10, 3)], 2), 26), (([], 8), 0)]
    return _compared("lora_weights", function, cases)


def restored(function: Callable) -> Verdict:
    """Checks function(patched (…, V), target (V,), source (V,), a, b) → (…,) share of the way from target to source."""
    torch.manual_seed(0)
    target = torch.randn(12)
    source = torch.randn(12)
    shares = torch.tensor([[0.0, 0.25, 1.0], [0.5, -0.5, 1.5]])
    patched = target + shares[..., None] * (source - target)  # so far on the way, in every logit
    shifted = patched + 3  # which changes no probability
    cases = [((patched, target, source, 2, 7), shares), ((shifted, target, source, 5, 1), shares)]
    return _compared("restored", function, cases)


def silence(function: Callable) -> Verdict:
    """Checks function(mixed (B, L, heads · width), head, width) → the same with one head's part zero, in a copy."""
    torch.manual_seed(0)
    cases = []
    copies = []
    for heads, head, width in ((4, 2, 3), (6, 0, 5), (2, 1, 8)):
        mixed = torch.randn(2, 5, heads * width)
        remaining = torch.tensor([i != head for i in range(heads) for _ in range(width)])
        cases.append(((mixed, head, width), mixed.double() * remaining))
        copies.append((mixed, mixed.clone()))
    verdict = _compared("silence", function, cases)
    if verdict.passed and not all(torch.equal(mixed, copy) for mixed, copy in copies):
        return Verdict(False, "your function changes `mixed` itself; edit a copy.")
    return verdict
