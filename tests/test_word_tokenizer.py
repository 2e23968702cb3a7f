"""The bundled models' tokenizer: a token per word of the world, and any text at all."""

import pytest

from tess2lite.tinytown.documents import document
from tess2lite.tinytown.language import words
from tess2lite_course.experiments.batches import CausalCollator, PlannedBatches, as_text
from tess2lite_course.experiments.word_tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(as_text(document("train", n)) for n in range(2_000))


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_word_of_the_world_is_one_token(tokenizer):
    entries = [word for entry in words().values() for place in entry for word in place.split()]
    assert [word for word in entries if len(encode(tokenizer, " " + word)) != 1] == []


@pytest.mark.parametrize("text", ["Das Mädchen läuft.", "naïve “quotes” 🙂", "x  =  1\n\tif y:", " ", "Pikachu's"])
def test_any_text_is_encoded_without_loss(tokenizer, text):
    assert tokenizer.decode(encode(tokenizer, text)) == text
    assert tokenizer.unk_token_id not in encode(tokenizer, text)


def planned(tokenizer, steps=70, **fields):
    collate = CausalCollator(tokenizer.pad_token_id, [5, 6, 7], chance=fields.pop("chance", 0.0))
    return PlannedBatches(tokenizer, 512, steps, 256, collate, **fields)


def test_a_batch_follows_from_its_number(tokenizer):
    forwards, backwards = planned(tokenizer), planned(tokenizer)
    there = {step: forwards[step]["input_ids"] for step in (0, 1, 65)}
    assert all((backwards[step]["input_ids"] == there[step]).all() for step in (65, 1, 0))


def test_no_document_is_read_twice(tokenizer):
    batches = planned(tokenizer)
    rows = [tuple(row.tolist()) for step in range(64) for row in batches[step]["input_ids"]]
    texts = [tokenizer.decode([i for i in row if i != tokenizer.pad_token_id]) for row in rows]
    long_ones = [text for text in texts if len(text) > 150]
    assert len(set(long_ones)) > 0.98 * len(long_ones)


def test_batches_are_whole_documents_of_about_the_size_asked_for(tokenizer):
    batches = planned(tokenizer)
    for step in range(20):
        ids = batches[step]["input_ids"]
        assert ids.numel() <= 1.5 * 512
        assert (ids[:, 0] == tokenizer.bos_token_id).all()
        assert ((ids == tokenizer.eos_token_id).sum(1) == 1).all()


def test_replaced_tokens_are_not_learned(tokenizer):
    plain, replaced = planned(tokenizer)[0], planned(tokenizer, chance=1.0)[0]
    changed = plain["input_ids"] != replaced["input_ids"]
    assert changed.any()
    assert (replaced["labels"][changed] == -100).all()
