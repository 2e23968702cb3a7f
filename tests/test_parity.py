"""The engine against the official implementation's numbers, and its fast path against the textbook."""

import parity
import pytest
import torch
from torch.nn.functional import pad

import tess2lite as t2
from tess2lite import chat_template, sampling, span_masks, textbook
from tess2lite.schedule import alpha_bar


@pytest.mark.parametrize("check", parity.CHECKS, ids=lambda check: check.__name__)
def test_golden(check, golden_lm, golden):
    check(golden_lm, golden)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden_whatever_the_attention_kernel(attention, golden_lm, golden):
    golden_lm.set_attn_implementation(attention)
    parity.check_textbook(golden_lm, golden)


MASKS = {"prefix": [0] * 5 + [1] * 11, "two spans": [0] * 3 + [1] * 4 + [0] * 4 + [1] * 4 + [0], "all": [0] + [1] * 15}


@pytest.mark.parametrize("family", ["mistral", "llama"])
@pytest.mark.parametrize("rows", MASKS)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_fast_path_is_the_textbook(tiny, family, rows, side, monkeypatch):
    """Every logit of every step, in a batch of two lengths, with several chunks a sequence."""
    monkeypatch.setitem(sampling.rows_per_chunk.__globals__["CHUNK"], "cpu", 326 * 3)
    lm = tiny(family)
    torch.manual_seed(1)
    ids, mask = torch.randint(4, 300, (2, 16)), torch.tensor([MASKS[rows], MASKS[rows]]).bool()
    ids[:, 0] = 1
    attention = torch.ones_like(ids)
    if side != "none":
        # the second row is shorter: its filler stands on one side, its own text keeps its order
        filler = (3, 0) if side == "left" else (0, 3)
        ids = torch.stack([ids[0], pad(ids[1, :13], filler)])
        attention[1] = pad(attention[1, :13], filler)
        mask = torch.stack([mask[0], pad(mask[1, :13], filler)])
    noise = torch.randn(8, 2, 16, lm.config.vocab_size)
    fast = t2.denoise(
        lm,
        {"input_ids": ids, "span_mask": mask, "attention_mask": attention},
        steps=7,
        top_p=None,
        noise=lambda step, shape: noise[step],
    )
    with torch.no_grad():
        slow = textbook.sample(lm, ids, mask, alpha_bar(7), lambda step, shape: noise[step], attention)
        for step, (logits, tokens) in zip(fast, slow, strict=True):
            real = attention.bool()
            parity.relative(step.logits[real], logits[real], 1e-5)
            assert torch.equal(step.tokens[mask], tokens[mask])


def batch_of(rows):
    """Ragged rows of ids, all masked after the second token, filler on the right."""
    length = max(map(len, rows))
    ids = torch.stack([pad(torch.tensor(row), (0, length - len(row))) for row in rows])
    attention = torch.stack([pad(torch.ones(len(row), dtype=torch.long), (0, length - len(row))) for row in rows])
    return {"input_ids": ids, "attention_mask": attention, "span_mask": attention.bool() & (torch.arange(length) > 1)}


def test_a_text_in_a_batch_is_the_text_alone(tiny):
    """Exactly in float64; in float32 near-ties may part two runs: they are counted, and few."""
    rows = [list(range(1, 30)), [1, 40, 41, 42, 43], list(range(1, 13)), [1, 50, 3, 3, 3, 3]]

    def disagreements(lm):
        *_, together = t2.denoise(lm, batch_of(rows), steps=6, top_p=0.9, seed=5)
        different = 0
        for i, row in enumerate(rows):
            *_, alone = t2.denoise(lm, batch_of([row]), steps=6, top_p=0.9, seed=5)
            different += int((alone.tokens[0] != together.tokens[i, : len(row)]).sum())
        return different

    assert disagreements(tiny(dtype=torch.float64)) == 0
    assert disagreements(tiny()) <= 2


def test_span_masks_have_the_official_counts(golden_data):
    generator = torch.Generator().manual_seed(0)
    for case in golden_data["span_masks"]:
        for _ in range(20):
            mask = span_masks.span_infilling(case["length"], case["mask_ratio"], case["mean_span"], generator)
            starts = mask & ~torch.cat([torch.tensor([False]), mask[:-1]])
            assert int(mask.sum()) == case["masked"] and [int(starts.sum())] == case["spans"]
            assert not mask[0]


def test_prefix_masks_have_the_official_range(golden_data):
    generator = torch.Generator().manual_seed(0)
    for length, seen in golden_data["prefix_masks"].items():
        firsts = [int(span_masks.prefix(int(length), generator).nonzero()[0]) for _ in range(4000)]
        assert (min(firsts), max(firsts)) == (seen["first_masked_min"], seen["first_masked_max"])


def test_chat_is_encoded_as_in_training(golden_data, golden_tokenizer):
    for case in golden_data["chat"]:
        rows = chat_template.encode_chat(golden_tokenizer, case["messages"], case["max_length"])
        assert [row["input_ids"] for row in rows] == case["input_ids"]
        for row, labels in zip(rows, case["labels"], strict=True):
            assert row["span_mask"] == [label != -100 for label in labels]
    prompt = golden_data["generation_prompt"]
    assert "<s>" + chat_template.chat_prompt([{"role": "user", "content": prompt["content"]}]) == prompt["text"]


def test_half_precision_is_the_textbook_roughly(tiny):
    """A bfloat16 model's step against the float32 textbook: softmax and noise stay in float32."""
    exact, half = tiny(), tiny(dtype=torch.bfloat16)
    half.load_state_dict(exact.state_dict())
    given = batch_of([list(range(1, 20))])
    noise = torch.randn(3, 1, 19, exact.config.vocab_size)
    ours, theirs = (
        [step.logits for step in t2.denoise(lm, given, steps=2, top_p=None, noise=lambda i, shape: noise[i])]
        for lm in (half, exact)
    )
    assert half.dtype == torch.bfloat16 and ours[0].dtype == torch.float32
    parity.relative(ours[0], theirs[0], 0.05)
