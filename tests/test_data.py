"""A user's own file, and packed rows."""

import pytest

from tess2lite.tokens import encode
from tess2lite.training import data


def test_a_text_file_is_read(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("\ufeffAnna had a kité.\n", encoding="utf-8")
    assert data.read_text(path) == "Anna had a kité.\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no text file"),
        (b" \n", "holds no text"),
        (b"caf\xe9", "not UTF-8"),  # Latin-1
        (b"a\x00b", "binary"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, sentence):
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        data.read_text(path)


def test_packing_by_hand(golden_tokenizer):
    """What the end of a row cuts starts the next row again; what is longer than a row goes on in it."""
    bos, eos = golden_tokenizer.bos_token_id, golden_tokenizer.eos_token_id
    short, long = "the cat", "the cat sat on a mat and looked at the moon"
    a, b = ([bos, *encode(golden_tokenizer, text), eos] for text in (short, long))
    assert len(a) < 16 < len(b)
    assert list(data.pack([short, short, short], golden_tokenizer, 16)) == [(a + a + a)[:16]] * (3 * len(a) >= 16)
    rows = list(data.pack([long, long], golden_tokenizer, 16))
    assert rows[0] == b[:16] and rows[1] == (b + b)[16:32]


def test_rows_are_a_function_of_seed_and_number():
    rows = data.Rows([[i] for i in range(10)], 35, seed=3)
    first = [rows[j]["input_ids"][0] for j in range(35)]
    assert sorted(first[:10]) == sorted(first[10:20]) == list(range(10)) and first[:10] != first[10:20]
    assert rows[4] == {"input_ids": [first[4]], "example": 4} and len(rows) == 35
    assert [data.Rows([[i] for i in range(10)], 35, seed=4)[j]["input_ids"][0] for j in range(35)] != first


def test_a_stream_is_shuffled_the_same_way_every_time(golden_tokenizer):
    texts = [f"{word} cat sat on the mat" for word in "abcdefghij"] * 3
    whole = list(data.pack(texts, golden_tokenizer, 8))

    def read(seed):
        return list(data.endless(lambda: whole[2:], seed).take(len(whole) - 2))

    assert read(0) == read(0) != read(1)
    assert [row["example"] for row in read(0)] == list(range(len(whole) - 2))
    assert sorted(row["input_ids"] for row in read(0)) == sorted(whole[2:])


def test_json_lines(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "one", "n": 1}\n\n{"text": "two\u2028lines"}\r\n', newline="")
    assert list(data.read_column(str(path), "text")) == [
        "one",
        "two\u2028lines",
    ]  # U+2028 ends no line
    with pytest.raises(ValueError, match="Record 1 of .* has no text in column 'body'; it has: text, n"):
        list(data.read_column(str(path), "body"))
    path.write_text('{"text": "one"}\n{"text": "two"\n')
    with pytest.raises(ValueError, match="Line 2 of .* is not JSON"):
        list(data.json_lines(path))


def test_a_hub_set_that_cannot_be_reached():
    with pytest.raises(ValueError, match="no file and no reachable hub dataset 'nobody/nothing'"):
        list(data.read_column("nobody/nothing", "text"))
