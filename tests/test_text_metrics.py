"""Intrinsic metrics, each against a count by hand or the library it comes from."""

import math
import sys

import pytest
import torch
from test_training import trainer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import tess2lite as t2
from tess2lite.tinytown.stories import stories
from tess2lite.training.trainer import DiffusionCollator, DiffusionTrainer
from tess2lite_course.experiments import text_metrics

TEXTS = ["Anna ran.", "", "Ben saw a red ball in the barn and was happy all day."]


@pytest.fixture(scope="module")
def judge():
    return AutoModelForCausalLM.from_pretrained(t2.bundled()["tinytown-ar"]).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(t2.bundled()["tinytown-ar"])


def by_hand(judge, ids, first):
    """Nats of ids[first:], one forward pass a token, by a softmax written out."""
    nats = 0
    for i in range(first, len(ids)):
        with torch.no_grad():
            scores = judge(input_ids=torch.tensor([ids[:i]])).logits[0, -1].double()
        nats -= math.log(scores[ids[i]].exp() / scores.exp().sum())
    return nats


def test_perplexity_by_hand(judge, tokenizer):
    found = text_metrics.perplexity(judge, tokenizer, TEXTS)
    nats = 0
    for text, (nll, tokens) in zip(TEXTS, found, strict=True):
        ids = [1, *tokenizer(text, add_special_tokens=False)["input_ids"], 2]
        assert tokens == len(ids) - 1
        nats += by_hand(judge, ids, 1)
        assert nll == pytest.approx(by_hand(judge, ids, 1), rel=1e-4)
    assert found[1][1] == 1  # the empty text's end
    assert text_metrics.corpus_perplexity(found) == pytest.approx(math.exp(nats / sum(t for _, t in found)), rel=1e-4)


def test_a_prompt_is_read_and_not_counted(judge, tokenizer):
    ((nll, tokens),) = text_metrics.perplexity(judge, tokenizer, [" was happy."], ["Anna had a dog. She"])
    known = [1, *tokenizer("Anna had a dog. She", add_special_tokens=False)["input_ids"]]
    ids = [*known, *tokenizer(" was happy.", add_special_tokens=False)["input_ids"], 2]
    assert tokens == len(ids) - len(known) and nll == pytest.approx(by_hand(judge, ids, len(known)), rel=1e-4)
    assert nll != pytest.approx(text_metrics.perplexity(judge, tokenizer, [" was happy."])[0][0], rel=0.01)
    empty = text_metrics.perplexity(judge, tokenizer, ["", "Anna ran."], ["Anna ran.", ""])
    assert empty[0][1] == 1 and empty[1] == text_metrics.perplexity(judge, tokenizer, ["Anna ran."])[0]


def test_a_continuation_begins_with_no_space_of_its_own(mistral_like_tokenizer):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=300)
    judge = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=64)).eval()
    pieces, first = text_metrics.encode_for_judge(judge, mistral_like_tokenizer, " sat", "The cat")
    assert mistral_like_tokenizer.decode(pieces[0, first:]) == "sat"  # one marked space, decoded to none
    split, first = text_metrics.encode_for_judge(judge, mistral_like_tokenizer, "s", "The cat")
    whole, _ = text_metrics.encode_for_judge(judge, mistral_like_tokenizer, "", "The cats")
    assert mistral_like_tokenizer.decode(split[0, 1:]) == mistral_like_tokenizer.decode(whole[0, 1:]) == "The cats"


def test_neither_order_nor_company_changes_a_perplexity(judge, tokenizer):
    texts = stories("test", 4)
    found = text_metrics.perplexity(judge, tokenizer, texts)
    assert text_metrics.perplexity(judge, tokenizer, texts[::-1])[::-1] == found
    assert [text_metrics.perplexity(judge, tokenizer, [text])[0] for text in texts] == found


def test_the_context_is_filled_to_its_last_token(judge, tokenizer):
    """A text that filled a model's room of 256 with BOS has its end judged as well; one word more is too long."""
    word = " " + next(w for w in ("happy", "ball", "dog") if len(tokenizer(" " + w)["input_ids"]) == 1)
    full = word * 255
    assert text_metrics.encode_for_judge(judge, tokenizer, full)[0].shape[1] == 256
    assert text_metrics.perplexity(judge, tokenizer, [full])[0][1] == 256
    with pytest.raises(ValueError, match="needs 257 tokens, with BOS and any prompt; the judge's context is 256"):
        text_metrics.perplexity(judge, tokenizer, ["ok", full + word])


def test_judges_that_cannot_judge(judge, tokenizer, golden_tokenizer, tiny):
    small = tiny()
    with pytest.raises(TypeError, match="autoregressive AutoModelForCausalLM"):
        text_metrics.perplexity(small, golden_tokenizer, TEXTS)  # a denoiser is one by class, and sees what it predicts
    with pytest.raises(TypeError, match="is a MistralModel"):
        text_metrics.perplexity(AutoModel.from_pretrained(t2.bundled()["tinytown-ar"]), tokenizer, TEXTS)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=300)
    with pytest.raises(ValueError, match="its own tokenizer, of 300 tokens at most"):
        text_metrics.perplexity(LlamaForCausalLM(LlamaConfig(**sizes)), tokenizer, TEXTS)
    with pytest.raises(ValueError, match="its own tokenizer, .* with BOS"):
        text_metrics.perplexity(judge, None, TEXTS)


@pytest.mark.parametrize(
    "texts, prompts, says",
    [
        ([], None, "There are 0 texts; give at least one"),
        ("a text", None, "texts is str; give a list"),
        (["a", 3], None, "texts is .*; give a list of strings"),
        (None, None, "texts is NoneType"),
        (["a", "b"], ["a"], "There are 1 prompts; give 2"),
        (["a", "b"], [""], "There are 1 prompts; give 2"),
        (["a"], "a", "prompts is .*; give a list"),
    ],
)
def test_texts_that_are_none(judge, tokenizer, texts, prompts, says):
    with pytest.raises(ValueError, match=says):
        text_metrics.perplexity(judge, tokenizer, texts, prompts)


def test_nothing_to_sum_up():
    with pytest.raises(ValueError, match="no texts to sum up"):
        text_metrics.corpus_perplexity([])


def test_distinct_by_hand():
    texts = ["a b a b", "a b c", ""]
    assert [text_metrics.distinct(texts, n) for n in (1, 2, 3, 4)] == [3 / 7, 3 / 5, 3 / 3, 1]  # abab aba bab abc
    assert text_metrics.distinct(["a", ""], 2) == 0  # no bigram; and none across texts
    assert text_metrics.distinct(texts) == text_metrics.distinct(texts[::-1]) == 3 / 5


def test_entropy_by_hand():
    assert text_metrics.entropy(["a b a b", "a b c"]) == pytest.approx(2 * 3 / 7 * math.log(7 / 3) + math.log(7) / 7)
    assert text_metrics.entropy(["a b a b", "a b c"], 2) == pytest.approx(0.6 * math.log(5 / 3) + 0.4 * math.log(5))
    assert text_metrics.entropy(["a b", "c d"]) == pytest.approx(math.log(4))
    assert text_metrics.entropy(["a a", "a"]) == text_metrics.entropy([""]) == 0


def test_repetition_by_hand():
    assert text_metrics.repetition(["a b a b a"], 2) == 0.5  # ab ba | ab ba
    assert text_metrics.repetition(["a b c d e", "a b c d e"]) == 0  # what other texts say does not count
    assert text_metrics.repetition(["a a a a a a", "a b c", ""]) == pytest.approx((2 / 3 + 0 + 0) / 3)
    text = "the cat sat . the cat sat . the cat ran ."
    seen, again = set(), 0
    words = text.split()
    for i in range(len(words) - 3):
        again += tuple(words[i : i + 4]) in seen
        seen.add(tuple(words[i : i + 4]))
    assert text_metrics.repetition([text]) == pytest.approx(again / (len(words) - 3)) == pytest.approx(3 / 9)


@pytest.mark.parametrize("metric", [text_metrics.distinct, text_metrics.entropy, text_metrics.repetition])
def test_counts_of_nothing(metric):
    for n in (0, 1.5, True):
        with pytest.raises(ValueError, match="n is .*; give a whole number of 1 or more"):
            metric(["a b"], n)
    with pytest.raises(ValueError, match="texts is .*; give a list of strings"):
        metric("a b")
    with pytest.raises(ValueError, match="There are 0 texts"):
        metric([])


def test_features_are_of_the_last_token(judge, tokenizer):
    found = text_metrics.features(judge, tokenizer, TEXTS)
    assert found.shape == (3, 192)
    for text, one in zip(TEXTS, found, strict=True):
        ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            assert torch.equal(one, judge.model(input_ids=ids).last_hidden_state[0, -1])
    backbone = AutoModel.from_pretrained(t2.bundled()["tinytown-ar"]).eval()
    assert torch.equal(text_metrics.features(backbone, tokenizer, TEXTS[::-1]).flip(0), found)


def test_mauve_is_the_librarys(judge, tokenizer):
    compute = pytest.importorskip("mauve").compute_mauve
    texts = [text for text in stories("test", 330) if len(tokenizer(text)["input_ids"]) < 128][:300]
    told = text_metrics.features(judge, tokenizer, texts)
    noise = torch.Generator().manual_seed(0)
    garbage = [tokenizer.decode(torch.randint(4, 1024, (60,), generator=noise)).replace("�", "") for _ in range(150)]
    garbage = text_metrics.features(judge, tokenizer, [text[:200] for text in garbage])
    same, apart = text_metrics.mauve(told[:150], told[150:]), text_metrics.mauve(garbage, told[150:])
    assert same > 0.9 and apart < 0.1
    assert same == text_metrics.mauve(told[:150], told[150:])  # its seed is fixed
    assert same == compute(p_features=told[150:].numpy(), q_features=told[:150].numpy()).mauve
    assert apart == compute(p_features=told[150:].numpy(), q_features=garbage.numpy()).mauve


def test_mauve_of_too_little(monkeypatch):
    many = torch.zeros(40, 8)
    with pytest.raises(ValueError, match="There are 19 and 40 texts; give 20 each"):
        text_metrics.mauve(many[:19], many)
    for other in (many[:, :4], many[0], ["a text"] * 40):
        with pytest.raises(ValueError, match="features by one model"):
            text_metrics.mauve(many, other)
        with pytest.raises(ValueError, match="features by one model"):
            text_metrics.mauve(other, many)
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ValueError, match=r"pip install 'tess2lite\[eval\]'"):
        text_metrics.mauve(many, many)


@pytest.mark.parametrize("masking", ["prefix", "ul2"])
def test_the_loss_is_the_trainers(tiny, tmp_path, monkeypatch, masking):
    lm = tiny()
    monkeypatch.setattr(DiffusionTrainer, "grid_masking", masking)
    made = trainer(lm, tmp_path, 1)
    rows = [{"input_ids": row, "example": j} for j, row in enumerate(made.eval_dataset.rows)]
    said = made.evaluate(rows)
    ours = text_metrics.loss_by_t(lm.eval(), made.eval_dataset.rows, masking)
    assert list(ours) == [*range(250, 5000, 500)]
    for t, loss in ours.items():
        assert loss == pytest.approx(said[f"eval_loss_at_{t}"], rel=1e-5)
    other = text_metrics.loss_by_t(lm, rows, {"prefix": "ul2", "ul2": "prefix"}[masking])
    assert other[2750] != pytest.approx(ours[2750], rel=1e-4)


def test_rows_bring_their_masks(tiny, tmp_path):
    lm = tiny()
    made = trainer(lm, tmp_path, 1)
    rows = [
        {"input_ids": row, "span_mask": [i > 2 + j % 5 for i in range(16)], "example": j}
        for j, row in enumerate(made.eval_dataset.rows)
    ]
    said, ours = made.evaluate(rows), text_metrics.loss_by_t(lm.eval(), rows)
    assert ours == {t: pytest.approx(said[f"eval_loss_at_{t}"], rel=1e-5) for t in ours}


def test_rows_of_different_lengths_count_by_their_masked_tokens(tiny):
    lm, rows = tiny(), [[1, *range(4, 20)], [1, *range(30, 36)]]
    counts = [
        int(DiffusionCollator("prefix", 0)([{"input_ids": r, "example": j}])["span_mask"].sum())
        for j, r in enumerate(rows)
    ]
    both, first = text_metrics.loss_by_t(lm, rows), text_metrics.loss_by_t(lm, rows[:1])
    moved = text_metrics.loss_by_t(lm, [rows[0], rows[0][:1] + rows[1][1:]])
    assert moved == both
    second = {t: (both[t] * sum(counts) - first[t] * counts[0]) / counts[1] for t in both}
    assert all(2 < loss < 30 for loss in second.values())  # ln 310 = 5.7 and a random model


def test_a_loss_of_nothing(tiny, judge):
    with pytest.raises(ValueError, match="give a denoiser from tess2lite.load"):
        text_metrics.loss_by_t(judge, [[1, 5, 6, 7]])
    for rows, masking in (([], "prefix"), ([[1, 5, 6, 7]], "given"), ([[1, 5, 6, 7]], None)):
        with pytest.raises(ValueError, match="give rows, and 'ul2' or 'prefix'"):
            text_metrics.loss_by_t(tiny(), rows, masking)
