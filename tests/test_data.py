"""A user's own file, and packed rows."""

import pytest

from tess2lite import data


def test_a_text_file_is_read(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("\ufeffAnna had a kité.\n", encoding="utf-8")
    assert data.read_text(path) == "Anna had a kité.\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no text file"),
        (b" \n", "holds no text"),
        (b"\xff\xfe\x00A", "not UTF-8"),
        (b"a\x00b", "binary"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, sentence):
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        data.read_text(path)


def test_packing_fills_rows_and_starts_each_with_a_text(golden_tokenizer):
    rows = data.pack(["the cat"] * 50, golden_tokenizer, 16)["input_ids"]
    assert all(len(row) == 16 and row[0] == 1 for row in rows)
    with pytest.raises(ValueError, match="fewer than 5000"):
        data.pack(["the cat"], golden_tokenizer, 5000)
