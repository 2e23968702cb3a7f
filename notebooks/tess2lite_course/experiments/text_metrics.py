"""Metrics that need no right answer, those of the paper's Table 1.

None says alone that texts are good: one sentence repeated over and over can have a lower perplexity than real stories,
so diversity and repetition belong beside it.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tess2lite.loss import diffusion_loss, seeded_noise
from tess2lite.tokens import encode, encode_continuation
from tess2lite.training.trainer import GRID, GRID_SEED, DiffusionCollator
from tess2lite.validation import InputError, check_denoiser, check_int


def encode_for_judge(
    model, tokenizer, text: str, prompt: str = "", end: tuple[str, ...] = ()
) -> tuple[torch.Tensor, int]:
    """Encodes `<s>` + prompt + text + end for a judge.

    Args:
        model: The judge, whose context and embeddings the row must fit.
        tokenizer: The judge's own.
        text: What is judged; may be empty.
        prompt: What stands before it.
        end: Names of special tokens after the text, such as "eos" and "pad".

    Returns:
        (ids (1, L), the position where the text begins).

    Raises:
        InputError: If tokenizer and model do not fit, or the row does not fit the model's context.
    """
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", *end)}
    context = getattr(model.config, "max_position_embeddings", None) or math.inf
    size = len(model.get_input_embeddings().weight)
    if None in special.values() or len(tokenizer) > size:
        names = " and ".join(map(str.upper, special))
        raise InputError(f"The judge needs its own tokenizer, of {size} tokens at most, with {names}; give that one.")
    context_ids = [special["bos"]]
    if prompt:
        context_ids += encode(tokenizer, prompt)
    text_ids = (encode_continuation if prompt else encode)(tokenizer, text)
    ids = [*context_ids, *text_ids, *(special[name] for name in end)]
    if len(ids) > context:
        raise InputError(
            f"The text that begins {text[:40]!r} needs {len(ids)} tokens, with BOS and any prompt; the judge's context "
            f"is {context}: shorten it, or use a judge with a longer one."
        )
    return torch.tensor([ids], device=model.device), len(context_ids)


def check_texts(name: str, texts, number: int | None = None) -> None:
    """Raises InputError unless these are strings, `number` of them, or one at least."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} is {type(texts).__name__}; give a list of strings.")
    if not len(texts) or len(texts) != (number or len(texts)):
        raise InputError(f"There are {len(texts)} {name}; give {number or 'at least one'}.")


@torch.no_grad()
def perplexity(judge, tokenizer, texts: list[str], prompts: list[str] | None = None) -> list[tuple[float, int]]:
    """Returns (summed negative log-likelihood in nats, tokens) of each text and its EOS, given its prompt if any.

    Texts are read one by one, so neither their order nor their number changes anything. `corpus_perplexity` makes one
    number of them.

    Args:
        judge: An autoregressive `*ForCausalLM`.
        tokenizer: The judge's own.
        texts: An empty text is something a model may write: one token, its EOS.
        prompts: One per text, or None.

    Raises:
        TypeError: If the judge is not autoregressive.
        InputError: If the lists do not fit together, or a text does not fit the judge.
    """
    if hasattr(judge, "embedding_matrix") or not hasattr(judge, "generate"):
        raise TypeError(f"The judge is a {type(judge).__name__}; give an autoregressive AutoModelForCausalLM.")
    check_texts("texts", texts)
    prompts = [""] * len(texts) if prompts is None else prompts
    check_texts("prompts", prompts, len(texts))
    losses = []
    for text, prompt in zip(texts, prompts, strict=True):
        ids, first = encode_for_judge(judge, tokenizer, text, prompt)
        logits = judge(input_ids=ids).logits[0, first - 1 :].float()
        targets = F.pad(ids[0, first:], (0, 1), value=tokenizer.eos_token_id)
        losses.append((float(F.cross_entropy(logits, targets, reduction="sum")), len(targets)))
    return losses


def corpus_perplexity(losses: list[tuple[float, int]]) -> float:
    """Returns exp of the summed nats over the summed tokens, from what `perplexity` returned."""
    if not losses:
        raise InputError("There are no texts to sum up; give what `perplexity` returned.")
    return math.exp(sum(nll for nll, _ in losses) / sum(tokens for _, tokens in losses))


def _grams(texts: list[str], n: int) -> list[list[tuple[str, ...]]]:
    """The n-grams of words of each text."""
    check_texts("texts", texts)
    check_int("n", n, 1)
    return [[*zip(*(text.split()[i:] for i in range(n)), strict=False)] for text in texts]


def distinct(texts: list[str], n: int = 2) -> float:
    """Returns dist-n, the share of different n-grams of words among those of all texts (Li et al. 2016); 0 for none.

    It falls with the number of words, so compare texts of as many.
    """
    grams = [gram for text in _grams(texts, n) for gram in text]
    return len(set(grams)) / max(1, len(grams))


def entropy(texts: list[str], n: int = 1) -> float:
    """Returns the entropy of the n-grams of words of all texts in nats: ln k for k equally frequent ones, or 0."""
    counts = Counter(gram for text in _grams(texts, n) for gram in text)
    return sum(count / counts.total() * math.log(counts.total() / count) for count in counts.values())


def repetition(texts: list[str], n: int = 4) -> float:
    """Returns seq-rep-n (Welleck et al. 2020): the mean share of a text's n-grams that occurred in it before."""
    return statistics.fmean(1 - len(set(grams)) / len(grams) if grams else 0 for grams in _grams(texts, n))


@torch.no_grad()
def features(model, tokenizer, texts: list[str]) -> torch.Tensor:
    """Returns what MAUVE compares: the last hidden state of each text's last token, (N, H), after BOS.

    Args:
        model: Any loaded transformers model; MAUVE's authors use GPT-2 large.
        tokenizer: Its own.
        texts: An empty text counts, too.
    """
    check_texts("texts", texts)
    rows = [encode_for_judge(model, tokenizer, text)[0] for text in texts]
    return torch.cat([model(input_ids=ids, output_hidden_states=True).hidden_states[-1][:, -1] for ids in rows]).float()


def mauve(ours: torch.Tensor, references: torch.Tensor) -> float:
    """Returns MAUVE (Pillutla et al. 2021), 0 … 1: how far two sets of texts are one distribution.

    It needs many texts (its authors advise 5,000 on each side), and only values from as many texts and the same model
    compare. Computed by mauve-text with a fixed seed.

    Args:
        ours: Of a model's texts, (N, H) from `features`.
        references: Of human texts, by the same model.

    Raises:
        InputError: If mauve-text is missing, or there are fewer than 20 texts on a side.
    """
    try:
        from mauve import compute_mauve
    except ImportError:
        raise InputError("MAUVE needs mauve-text, which is not here; pip install 'tess2lite[eval]'.") from None
    sets = (references, ours)
    are_matrices = all(torch.is_tensor(matrix) and matrix.dim() == 2 for matrix in sets)
    if not are_matrices or len({matrix.shape[1] for matrix in sets}) > 1:
        raise InputError("MAUVE compares features by one model, (N, H) both; give what `features` returned.")
    if min(map(len, sets)) < 20:  # it makes one bucket of ten texts: fewer than two compare nothing
        raise InputError(f"There are {len(ours)} and {len(references)} texts; give 20 each, better 5,000.")
    return float(compute_mauve(*(matrix.cpu().numpy() for matrix in sets)).mauve)


@torch.no_grad()
def loss_by_t(lm, rows: list, masking: str = "prefix") -> dict[int, float]:
    """Returns the self-conditioned diffusion loss at each t of the trainer's grid, in nats per masked token.

    Mask and noise follow from a row's place: they are `DiffusionTrainer.evaluate`'s own.

    Args:
        lm: A denoiser.
        rows: Lists of ids, or dicts with `input_ids` and perhaps their own `span_mask`.
        masking: "ul2" or "prefix", for rows without one.

    Raises:
        InputError: If there are no rows, or masking is neither.
    """
    check_denoiser(lm)
    if masking not in ("ul2", "prefix") or not len(rows):
        raise InputError(f"There are {len(rows)} rows, masking is {masking!r}; give rows, and 'ul2' or 'prefix'.")
    totals, count = dict.fromkeys(GRID, 0.0), 0
    for number, row in enumerate(rows):
        row = row if isinstance(row, dict) else {"input_ids": row}
        collate = DiffusionCollator("given" if "span_mask" in row else masking, GRID_SEED)
        batch = collate([{**row, "example": number}])
        ids, mask = batch["input_ids"].to(lm.device), batch["span_mask"].to(lm.device)
        count += int(mask.sum())
        for t in GRID:
            noise, blocks = seeded_noise(GRID_SEED, [number], mask, lm.config.vocab_size)
            at = torch.tensor([t], device=lm.device)
            totals[t] += float(diffusion_loss(lm, ids, mask, at, noise, blocks, self_condition=True))
    return {t: total / count for t, total in totals.items()}
