"""Metrics that need no right answer, those of the paper's Table 1. None says alone that texts are good: one sentence
said over and over can have a lower perplexity than real stories, so diversity and repetition belong beside it.
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
from tess2lite.validation import check_denoiser, check_int


def encode_for_judge(
    model, tokenizer, text: str, prompt: str = "", end: tuple[str, ...] = ()
) -> tuple[torch.Tensor, int]:
    """`<s>` + prompt + text + end as ids (1, L), and the place where the text begins. end: names, as "eos" and "pad".

    Raises ValueError where tokenizer and model do not fit, or the row does not fit the model's context.
    """
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", *end)}
    context = getattr(model.config, "max_position_embeddings", None) or math.inf
    size = len(model.get_input_embeddings().weight)
    if None in special.values() or len(tokenizer) > size:
        names = " and ".join(map(str.upper, special))
        raise ValueError(f"The judge needs its own tokenizer, of {size} tokens at most, with {names}; give that one.")
    known = [special["bos"], *(encode(tokenizer, prompt) if prompt else [])]
    written = encode_continuation(tokenizer, text) if prompt else encode(tokenizer, text)
    ids = [*known, *written, *(special[name] for name in end)]
    if len(ids) > context:
        raise ValueError(
            f"The text that begins {text[:40]!r} needs {len(ids)} tokens, with BOS and any prompt; the judge's context "
            f"is {context}: shorten it, or take a judge with a longer one."
        )
    return torch.tensor([ids], device=model.device), len(known)


def check_texts(name: str, texts, number: int | None = None) -> None:
    """Raises ValueError unless these are strings, `number` of them, or one at least."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} is no list of strings but {type(texts).__name__}; give a list, one string each.")
    if not len(texts) or len(texts) != (number or len(texts)):
        raise ValueError(f"There are {len(texts)} {name}; give {number or 'at least one'}.")


@torch.no_grad()
def perplexity(judge, tokenizer, texts: list[str], prompts: list[str] | None = None) -> list[tuple[float, int]]:
    """(summed negative log-likelihood in nats, tokens) of each text and its end, given its prompt if there is one.

    `corpus_perplexity` makes one number of them. judge: a left-to-right `*ForCausalLM`, with its own tokenizer. Texts
    are read one by one, so neither their order nor their number changes anything. An empty text is something a model
    may write: one token, its end.
    """
    if hasattr(judge, "embedding_matrix") or not hasattr(judge, "generate"):
        raise TypeError(f"The judge is a {type(judge).__name__}; give a left-to-right AutoModelForCausalLM.")
    check_texts("texts", texts)
    prompts = [""] * len(texts) if prompts is None else prompts
    check_texts("prompts", prompts, len(texts))
    found = []
    for text, prompt in zip(texts, prompts, strict=True):
        ids, first = encode_for_judge(judge, tokenizer, text, prompt)
        logits = judge(input_ids=ids).logits[0, first - 1 :].float()
        targets = F.pad(ids[0, first:], (0, 1), value=tokenizer.eos_token_id)
        found.append((float(F.cross_entropy(logits, targets, reduction="sum")), len(targets)))
    return found


def corpus_perplexity(found: list[tuple[float, int]]) -> float:
    """From what `perplexity` returned: exp of the summed nats over the summed tokens."""
    if not found:
        raise ValueError("There is nothing to sum up; give what `perplexity` returned.")
    return math.exp(sum(nll for nll, _ in found) / sum(tokens for _, tokens in found))


def _grams(texts: list[str], n: int) -> list[list[tuple[str, ...]]]:
    """The n-grams of words of each text."""
    check_texts("texts", texts)
    check_int("n", n, 1)
    return [[*zip(*(text.split()[i:] for i in range(n)), strict=False)] for text in texts]


def distinct(texts: list[str], n: int = 2) -> float:
    """dist-n: different n-grams of words among those of all texts (Li et al. 2016), 0 where there are none.

    It falls with the number of words: compare as many of them.
    """
    grams = [gram for text in _grams(texts, n) for gram in text]
    return len(set(grams)) / max(1, len(grams))


def entropy(texts: list[str], n: int = 1) -> float:
    """Of the n-grams of words of all texts, in nats: ln k where k of them are equally frequent, 0 where none are."""
    counts = Counter(gram for text in _grams(texts, n) for gram in text)
    return sum(count / counts.total() * math.log(counts.total() / count) for count in counts.values())


def repetition(texts: list[str], n: int = 4) -> float:
    """seq-rep-n (Welleck et al. 2020): the share of a text's n-grams of words that occurred in it before, 0 for one
    that has none; mean over texts."""
    return statistics.fmean(1 - len(set(some)) / len(some) if some else 0 for some in _grams(texts, n))


@torch.no_grad()
def features(model, tokenizer, texts: list[str]) -> torch.Tensor:
    """What MAUVE compares: the last hidden state of each text's last token, (N, H), after BOS.

    model: any transformers model that was loaded; MAUVE's authors take GPT-2 large. An empty text counts, too.
    """
    check_texts("texts", texts)
    rows = [encode_for_judge(model, tokenizer, text)[0] for text in texts]
    return torch.cat([model(input_ids=ids, output_hidden_states=True).hidden_states[-1][:, -1] for ids in rows]).float()


def mauve(ours: torch.Tensor, references: torch.Tensor) -> float:
    """MAUVE (Pillutla et al. 2021), 0 … 1: how far two sets of texts are one distribution. By mauve-text, its seed
    fixed.

    ours, references: of a model's and of human texts, (N, H) from `features` by the same model. It needs many: its
    authors advise 5,000 on each side, and only values from as many texts and the same model compare.
    """
    try:
        from mauve import compute_mauve
    except ImportError:
        raise ValueError("MAUVE needs mauve-text, which is not here; pip install 'tess2lite[eval]'.") from None
    sets = (references, ours)
    if not all(torch.is_tensor(some) and some.dim() == 2 for some in sets) or len({some.shape[1] for some in sets}) > 1:
        raise ValueError("MAUVE compares features by one model, (N, H) both; give what `features` returned.")
    if min(map(len, sets)) < 20:  # it makes one bucket of ten texts: fewer than two compare nothing
        raise ValueError(f"There are {len(ours)} and {len(references)} texts; give 20 each, better 5,000.")
    return float(compute_mauve(*(some.cpu().numpy() for some in sets)).mauve)


@torch.no_grad()
def loss_by_t(lm, rows: list, masking: str = "prefix") -> dict[int, float]:
    """The diffusion loss at each t of the trainer's grid, in nats a masked token, self-conditioned.

    rows: lists of ids, or dicts with `input_ids`, masked by their own `span_mask` where they bring one, else as
    `masking` says ("ul2" or "prefix"). Mask and noise follow from a row's place: `DiffusionTrainer.evaluate`'s own.
    """
    check_denoiser(lm)
    if masking not in ("ul2", "prefix") or not len(rows):
        raise ValueError(f"There are {len(rows)} rows, masking is {masking!r}; give rows, and 'ul2' or 'prefix'.")
    totals, count = dict.fromkeys(GRID, 0.0), 0
    for number, given in enumerate(rows):
        given = given if isinstance(given, dict) else {"input_ids": given}
        collate = DiffusionCollator("given" if "span_mask" in given else masking, GRID_SEED)
        batch = collate([{**given, "example": number}])
        ids, mask = batch["input_ids"].to(lm.device), batch["span_mask"].to(lm.device)
        count += int(mask.sum())
        for t in GRID:
            noise, blocks = seeded_noise(GRID_SEED, [number], mask, lm.config.vocab_size)
            at = torch.tensor([t], device=lm.device)
            totals[t] += float(diffusion_loss(lm, ids, mask, at, noise, blocks, self_condition=True))
    return {t: total / count for t, total in totals.items()}
