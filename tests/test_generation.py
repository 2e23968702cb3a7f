"""generate and infill: what a person types, and what comes back."""

import pytest
import torch

import tess2lite as t2
from tess2lite import chat_template
from tess2lite.tokens import encode, encode_blanks


def quick(lm, prompt="The cat", **settings):
    return t2.generate(lm, prompt, **({"steps": 3, "length": 8, "progress": False} | settings))


def write(lm, text):
    """A hook that makes the model write a text, then `</s>`, then PAD."""
    ids = encode(lm.tokenizer, text) + [lm.tokenizer.eos_token_id]

    def hook(step):
        row = step.tokens.clone()
        places = step.span_mask[0].nonzero()[:, 0]
        for place, token in zip(places, ids + [lm.tokenizer.pad_token_id] * len(places), strict=False):
            row[0, place] = token
        step.tokens = row

    return hook


def test_the_text_ends_at_eos(tiny):
    lm = tiny()
    out = quick(lm, hooks=[write(lm, " sat")])
    assert out.text == " sat" and out.ended and str(out) == " sat"
    assert "</s>[PAD]" in out.trajectory.texts[-1]
    long = quick(lm, hooks=[write(lm, " sat on a mat and looked at the moon")])
    assert not long.ended and "without an end" in long._repr_html_()


def test_a_list_gives_a_list_and_each_as_alone(tiny):
    lm = tiny(dtype=torch.float64)
    prompts = ["The cat", "A red ball in the barn was", "x"]
    together = quick(lm, prompts, seed=7)
    assert [out.token_ids for out in together] == [quick(lm, p, seed=7).token_ids for p in prompts]
    assert [out.prompt for out in together] == prompts


def test_seed_none_is_fresh_and_can_be_repeated(tiny):
    lm = tiny()
    first, second = quick(lm, seed=None), quick(lm, seed=None)
    assert first.seed != second.seed
    assert quick(lm, seed=first.seed).token_ids == first.token_ids


def test_length_and_context(tiny):
    lm = tiny()
    prompt = len(quick(lm, length=1).token_ids) - 1
    assert len(quick(lm, length=5).token_ids) == prompt + 5
    assert len(quick(lm, length=None).token_ids) == 64
    with pytest.raises(ValueError, match=f"after a prompt of {prompt} tokens only {64 - prompt} of 64 are left"):
        quick(lm, length=64)
    with pytest.raises(ValueError, match="fills this model's context of 64"):
        quick(lm, "one two three " * 30)
    with pytest.raises(ValueError, match="length is 0"):
        quick(lm, length=0)


@pytest.mark.parametrize("prompt", ["", "  \n", []])
def test_empty_prompts(tiny, prompt):
    with pytest.raises(ValueError, match="prompt is empty"):
        quick(tiny(), prompt)


def test_what_is_no_prompt_or_no_model(tiny):
    with pytest.raises(ValueError, match="prompt is int"):
        quick(tiny(), 3)
    with pytest.raises(ValueError, match="give a denoiser"):
        quick("tinytown-base")
    lm = tiny()
    lm.tokenizer = None
    with pytest.raises(ValueError, match="without a tokenizer"):
        quick(lm)


UNUSUAL = ["</s> and <s>", "[PAD]", "tab\tbell\a", "שלום", "🙂👩‍👩‍👧", 'quotes " & <b>', "zero\u200bwidth"]


@pytest.mark.parametrize("text", UNUSUAL)
def test_unusual_text_is_text(tiny, text):
    """It is encoded byte for byte, and special tokens that it spells are not special."""
    lm = tiny()
    out = quick(lm, text)
    prompt = out.token_ids[1:-8]
    assert lm.tokenizer.decode(prompt, skip_special_tokens=True) == text
    assert not {0, 1, 2, 3} & set(prompt)


def test_a_tokenizer_without_bytes_says_what_it_cannot_read(tiny, mistral_like_tokenizer):
    lm = tiny()
    lm.tokenizer = mistral_like_tokenizer
    with pytest.raises(ValueError, match="no tokens for part of"):
        quick(lm, "The cat 🙂")


def test_infilling_keeps_what_is_known(tiny):
    lm = tiny()
    text = "The ____ sat on __ mat."
    out = t2.infill(lm, text, steps=3, progress=False)
    assert out.text.startswith("The") and out.text.endswith(" mat.") and out.ended
    assert int(out.trajectory.span_mask.sum()) == 6
    known = [i for i, masked in zip(out.token_ids, out.trajectory.span_mask, strict=True) if not masked]
    assert lm.tokenizer.decode(known[1:]) == "The sat on mat."
    with pytest.raises(ValueError, match="has no blanks"):
        t2.infill(lm, "The cat sat.")
    with pytest.raises(ValueError, match="context is 64"):
        t2.infill(lm, "The " + "_" * 70)


def test_an_end_inside_a_filled_text_cuts_nothing_off(tiny):
    lm = tiny()

    def end(step):
        step.tokens = torch.where(step.span_mask, lm.tokenizer.eos_token_id, step.input_ids)

    out = t2.infill(lm, "The __ sat on the mat.", steps=2, hooks=[end], progress=False)
    assert out.text == "The sat on the mat." and out.ended


@pytest.mark.parametrize("text", ["The cat ___ on the mat.", "___ cat", "The ___, the dog", "a\n\n__\n\nb"])
def test_blanks_split_text_as_if_it_were_whole(golden_tokenizer, mistral_like_tokenizer, text):
    """The known parts decode to what was typed, for tokenizers that mark a text's start with a space too."""
    mistral_like_tokenizer.pad_token = "</s>"
    for tokenizer in (golden_tokenizer, mistral_like_tokenizer):
        ids, mask = encode_blanks(tokenizer, text)
        assert ids[0] == tokenizer.bos_token_id and sum(mask) == text.count("_")
        pieces, run = [], []
        for token, masked in zip(ids[1:], mask[1:], strict=True):
            if masked and run:
                pieces.append(tokenizer.decode(run))
                run = []
            elif not masked:
                run.append(token)
        pieces.append(tokenizer.decode(run))
        known = [part.strip(" ") for part in text.replace(" _", "_").split("_") if part]
        assert [piece.strip(" ") for piece in pieces if piece] == known


def test_chat_without_roles_it_knows():
    with pytest.raises(ValueError, match="role 'tool'"):
        chat_template.chat_prompt([{"role": "tool", "content": "x"}])
    with pytest.raises(ValueError, match="message has no content"):
        chat_template.chat_prompt([{"role": "user"}])
    with pytest.raises(ValueError, match="not the user's"):
        chat_template.chat_prompt([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])


def test_half_a_sign_and_no_record_get_a_sentence():
    lm = t2.load("tinytown-base")
    with pytest.raises(ValueError, match="contains an unpaired surrogate"):
        t2.generate(lm, "Tom \ud800")
    with pytest.raises(ValueError, match="record is 0; give a whole number of 1 or more"):
        t2.generate(lm, "Tom", record=0)


def test_prompt_and_text_join_with_their_space_whatever_the_decoder_drops(tiny, mistral_like_tokenizer):
    """Decoders such as Mistral's drop the space that a text begins with."""
    lm = tiny()
    mistral_like_tokenizer.pad_token = "</s>"
    lm.tokenizer = mistral_like_tokenizer
    ids = encode(lm.tokenizer, "The cat sat on the mat")
    known = len(encode(lm.tokenizer, "The cat"))
    assert lm.tokenizer.decode(ids[known:]) == "sat on the mat"

    def hook(step):
        tokens = step.tokens
        tokens[0, 1 + known : 1 + len(ids)] = torch.tensor(ids[known:])
        step.tokens = tokens

    out = quick(lm, "The cat", length=len(ids) - known, hooks=[hook])
    assert out.prompt + out.text == "The cat sat on the mat"
    assert out.prompt + out.trajectory.texts[-1] == "The cat sat on the mat"


@pytest.mark.parametrize("eos", [None, 2, [2, 9]])
def test_texts_end_at_every_eos_that_the_model_has(tiny, eos):
    lm = tiny()
    lm.config.eos_token_id = eos
    expected = {None: [2], 2: [2]}.get(eos, eos) if not isinstance(eos, list) else eos
    for token in expected:

        def end(step, token=token):
            step.masked_logits = torch.zeros_like(step.masked_logits).index_fill(1, torch.tensor([token]), 50.0)

        masks = []
        out = quick(lm, hooks=[end, lambda step, masks=masks: masks.append(step.text_mask)])
        assert out.ended and out.text == ""
        assert int(masks[-1].sum()) == 1  # the EOS itself
