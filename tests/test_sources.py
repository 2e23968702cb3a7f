"""What real files hold: odd records, other forms, other line ends; nothing of it may stop a run or leak."""

import gzip
import json
import logging
import time

import pytest
from datasets import Dataset

import tess2lite as t2
from tess2lite.training import data, forms, recipe, rows
from tess2lite.training import reward as reward_training
from tess2lite.training.sources import Source, parse_sources

QUESTION = {"role": "user", "content": "A word?"}
ANSWER = {"role": "assistant", "content": "Cat."}
CHAT = [QUESTION, ANSWER]
SYSTEM = {"role": "system", "content": "Be brief."}


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def chats_of(path):
    return list(data.read_chats(str(path))["messages"])


ODD = {
    "empty answer": {"messages": [QUESTION, {"role": "assistant", "content": ""}]},
    "empty output": {"instruction": "Say.", "output": ""},
    "null output": {"instruction": "Say.", "output": None},
    "turn out of order": {"messages": [ANSWER, QUESTION]},
    "a tool's turn": {"messages": [QUESTION, {"role": "tool", "content": "{}"}, ANSWER]},
    "half a surrogate pair": {"messages": [QUESTION, {"role": "assistant", "content": "a \ud83d b"}]},
    "an image": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
    "a call of a tool": {"messages": [QUESTION, ANSWER | {"tool_calls": [{"name": "search"}]}]},
    "half a surrogate pair in the context": {"instruction": "Say.", "input": "a \ud83d b", "output": "Cat."},
    "a context that is not text": {"question": "Who?", "context": {"title": ["Ann"]}, "answer": "Ann."},
    "a system prompt that is not text": {"system": 5, "messages": CHAT},
    "nothing that can be seen": {"messages": [QUESTION, {"role": "assistant", "content": "\u200b\ufeff"}]},
    "binary data": {"messages": [QUESTION, {"role": "assistant", "content": "a\x00b"}]},
    "another record": {"text": "Once."},
    "no record": [1],
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_records_are_skipped_counted_and_named(tmp_path, capsys, odd):
    path = jsonl(tmp_path / "chats.jsonl", [{"messages": CHAT}] * 500 + [odd])
    assert chats_of(path) == [CHAT] * 500
    printed = capsys.readouterr().out
    assert f"Record 501 of '{path}'" in printed and "1 of 501 records is skipped" in printed


def test_only_three_odd_records_are_named(tmp_path, capsys):
    path = jsonl(tmp_path / "chats.jsonl", [{"messages": CHAT}, {"instruction": "Say.", "output": ""}] * 8)
    assert len(chats_of(path)) == 8
    printed = capsys.readouterr().out
    assert printed.count("It is skipped.") == 3 and "8 of 16 records are skipped" in printed


def test_a_set_of_mostly_odd_records_is_refused_with_the_first_of_them(tmp_path, capsys):
    path = jsonl(tmp_path / "chats.jsonl", [{"messages": CHAT}] * 2 + [{"text": "Once."}] * 3)
    with pytest.raises(
        ValueError, match="3 of 5 records are unreadable. Record 3 of .*There is no chat in the columns"
    ):
        data.read_chats(path)


def test_a_line_that_is_cut_or_not_utf8_spoils_no_other(tmp_path, capsys):
    path = tmp_path / "chats.jsonl"
    line = json.dumps({"messages": CHAT}).encode() + b"\n"
    path.write_bytes(line * 3 + b'{"messages": "\xff\xfe"}\n' + line + b'{"messages": [')
    assert len(chats_of(path)) == 4
    printed = capsys.readouterr().out
    assert "is not UTF-8 text" in printed and "is not JSON" in printed


@pytest.mark.parametrize(
    ("odd", "sentence"),
    [
        ({"text": None}, "has null in 'text'"),
        ({"text": 5}, "has int 5 in 'text'"),
        ({"text": " "}, "has no text in 'text'"),
        ({"text": "\ufeff \u200b"}, "has no text in 'text'"),
        ({"text": "a\x00b"}, "has a NUL character in 'text': it is binary data"),
        ({"text": "a \ud83d b"}, "has an unpaired surrogate in 'text'"),
        ({"body": "x"}, "has no text in column 'text'; it has: body"),
    ],
)
def test_null_and_undecodable_texts_are_skipped(tmp_path, capsys, odd, sentence):
    path = jsonl(tmp_path / "texts.jsonl", [{"text": "one"}, odd, {"text": "two"}])
    assert list(data.read_column(path, "text")) == ["one", "two"]
    assert sentence in capsys.readouterr().out


def test_equal_pairs_are_skipped(tmp_path, capsys):
    good = {"prompt": "Say.", "chosen": "yes", "rejected": "no"}
    equal = {"prompt": "Say.", "chosen": "yes", "rejected": "yes"}
    surrogate = {"prompt": "Say.", "chosen": "\udc00", "rejected": "no"}
    assert len(reward_training.read_pairs(jsonl(tmp_path / "pairs.jsonl", [good, equal, good, surrogate]))) == 2
    printed = capsys.readouterr().out
    assert "Record 2" in printed and "are the same text" in printed and "unpaired surrogate" in printed


OTHER = [{"role": "user", "content": "Another word?"}, {"role": "assistant", "content": "Dog."}]
ODD_PAIRS = {
    "same but for spaces": ({"prompt": "Say.", "chosen": "yes", "rejected": "yes\n"}, "are the same text"),
    "other questions": ({"chosen": CHAT, "rejected": OTHER}, "begin with different questions"),
    "half a surrogate pair in the prompt": (
        {"prompt": "\ud83d", "chosen": "yes", "rejected": "no"},
        "has an unpaired surrogate in 'prompt'",
    ),
}


@pytest.mark.parametrize(("odd", "sentence"), ODD_PAIRS.values(), ids=ODD_PAIRS)
def test_odd_pairs_are_named(odd, sentence):
    with pytest.raises(ValueError, match=sentence):
        forms.pair_of(odd)


def test_a_quote_that_is_never_closed_is_named(tmp_path, capsys):
    """It takes all lines after it, which nobody would miss."""
    path = tmp_path / "a.csv"
    path.write_text('text\none\n"two ""quoted"" words"\n"three\nfour\nfive\n')
    assert list(data.read_column(str(path), "text")) == ["one", 'two "quoted" words']
    printed = capsys.readouterr().out
    assert f"Record 3 of '{path}' is not CSV (unexpected end of data)" in printed and "1 of 3 records" in printed


def test_a_misplaced_quote_spoils_one_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text\none\n"two" words\nsay "three"\n')
    assert list(data.read_column(str(path), "text")) == ["one", 'say "three"']


def test_an_empty_system_prompt_counts_as_none():
    empty = {"role": "system", "content": ""}
    assert forms.messages_of({"messages": [empty, *CHAT]}) == CHAT
    assert forms.messages_of({"system_prompt": "", "question": "A word?", "response": "Cat."}) == CHAT


@pytest.mark.parametrize("nothing", [None, "", " ", float("nan"), [], {}], ids=repr)
def test_an_empty_context_counts_as_none(nothing):
    """NaN is what pandas writes for an empty cell."""
    assert forms.messages_of({"instruction": "A word?", "input": nothing, "output": "Cat."}) == CHAT


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [{"from": "human", "value": "A word?"}, {"from": "gpt", "value": "Cat."}]},
        {"conversations": CHAT},
        {"instruction": "A word?", "context": "", "response": "Cat.", "category": "qa"},
        {"query": "A word?", "response": "Cat."},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"prompt": [QUESTION], "response": "Cat."},
        {"messages": json.dumps(CHAT)},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "A word?"}]}, ANSWER]},
        {"messages": None, "prompt": "A word?", "response": "Cat."},
    ],
)
def test_common_forms_of_chats(record):
    assert forms.messages_of(record) == CHAT


def test_system_prompts_and_contexts_of_common_forms():
    orca = {"system_prompt": "Be brief.", "question": "A word?", "response": "Cat."}
    share = {"conversations": [{"from": "system", "value": "Be brief."}, *CHAT]}
    assert forms.messages_of(orca) == forms.messages_of(share) == [SYSTEM, *CHAT]
    dolly = {"instruction": "A word?", "context": "Of three letters.", "response": "Cat."}
    assert forms.messages_of(dolly)[0]["content"] == "A word?\nOf three letters."


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "No."}]},
        {"prompt": [QUESTION], "chosen": "Cat.", "rejected": "No."},
        {"question": "A word?", "chosen": "Cat.", "rejected": "No."},
        {"chosen": "\n\nHuman: A word?\n\nAssistant: Cat.", "rejected": "\n\nHuman: A word?\n\nAssistant: No."},
        {
            "conversations": [{"from": "human", "value": "A word?"}],
            "chosen": {"from": "gpt", "value": "Cat."},
            "rejected": {"from": "gpt", "value": "No."},
        },
    ],
)
def test_common_forms_of_pairs(record):
    assert forms.pair_of(record) == (CHAT, [QUESTION, {"role": "assistant", "content": "No."}])


def test_local_files_of_every_kind_and_folders(tmp_path):
    records = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(6)]
    expected = [forms.messages_of(record) for record in records]
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "one.json").write_text(json.dumps(records))
    (folder / "wrapped.json").write_text(json.dumps({"data": records}))
    jsonl(folder / "lines.jsonl", records)
    Dataset.from_list(records).to_parquet(folder / "rows.parquet")
    Dataset.from_list(records).to_csv(folder / "cells.csv")
    with gzip.open(folder / "packed.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))
    for name in ("one.json", "wrapped.json", "lines.jsonl", "rows.parquet", "cells.csv", "packed.jsonl.gz"):
        assert chats_of(folder / name) == expected, name
    assert len(chats_of(folder)) == 6 * len(records)
    Dataset.from_list(records).save_to_disk(str(tmp_path / "saved"))
    assert chats_of(tmp_path / "saved") == expected


def test_cells_of_a_table_are_text(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer\n"6 × 7?",42\nMissing?,NA\n"two\nlines",ok\n')
    answers = [chat[1]["content"] for chat in chats_of(tmp_path / "a.csv")]
    assert answers == ["42", "NA", "ok"] and chats_of(tmp_path / "a.csv")[2][0]["content"] == "two\nlines"


def test_the_test_split_of_a_folder_is_not_trained_on(tmp_path):
    jsonl(tmp_path / "train.jsonl", [{"messages": CHAT}])
    jsonl(tmp_path / "test.jsonl", [{"messages": [SYSTEM, *CHAT]}])
    assert chats_of(tmp_path) == [CHAT]
    assert list(data.read_chats(Source(str(tmp_path), split="test"))["messages"]) == [[SYSTEM, *CHAT]]


def made(data, **changes):
    fields = {"model": "tinytown-base", "output": "unused", "length": 32, "steps": 50, "warmup": 1, "batch_size": 8}
    return recipe.Recipe(data=data, **(fields | {"num_eval_examples": 8} | changes))


@pytest.fixture(scope="module")
def tokenizer():
    return t2.load("tinytown-base").tokenizer


def test_several_sets_are_mixed_by_weight(tmp_path, tokenizer):
    for name in ("one", "two"):
        records = [{"prompt": f"Say {name} {n}.", "response": f"{name} {n}"} for n in range(40)]
        jsonl(tmp_path / f"{name}.jsonl", records)
    sets = [{"path": str(tmp_path / "one.jsonl"), "weight": 3}, {"path": str(tmp_path / "two.jsonl"), "weight": 1}]
    mixed, held_out = rows.build_datasets(made(sets, masking="response", length=64), tokenizer)
    texts = [tokenizer.decode(mixed[j]["input_ids"]) for j in range(len(mixed))]
    assert len(mixed) == 400
    share = sum("Say one" in text for text in texts) / len(texts)
    assert share == pytest.approx(0.75, abs=0.05)
    assert mixed[7] == mixed[7] and [mixed[j]["example"] for j in (0, 399)] == [0, 399]
    assert {"one", "two"} == {
        name for name in ("one", "two") for row in held_out if name in tokenizer.decode(row["input_ids"])
    }
    together, _ = rows.build_datasets(made([s["path"] for s in sets], masking="response", length=64), tokenizer)
    assert len(together.rows) == 72


def test_sets_given_wrongly():
    for given, sentence in [
        ([], "data is an empty list"),
        ([{"weight": 1}], "give a path, or path, weight, split and column"),
        ([{"path": "a.txt", "wait": 1}], "give a path, or path, weight, split and column"),
        ([{"path": "a.txt", "weight": 0}], "the weight 0; give a number above 0"),
        ([{"path": "a.txt", "weight": 1}, "b.txt"], "a weight to some of its sets only"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            parse_sources(given)


def test_no_answer_of_a_held_out_chat_is_trained_on(tmp_path, tokenizer):
    """Also where a set lists the beginnings of a chat beside it, and the same chat twice."""
    records = []
    for n in range(40):
        turns = []
        for turn in range(4):
            turns += [
                {"role": "user", "content": f"Question {n} {turn}?"},
                {"role": "assistant", "content": f"Answer {n} {turn}."},
            ]
        records += [{"messages": turns}, {"messages": turns[:4]}, {"messages": turns}]
    path = jsonl(tmp_path / "chats.jsonl", records)
    train, held_out = rows.build_datasets(made(path, masking="response", length=256), tokenizer)

    def answers(encoded):
        for row in encoded:
            masked = [i for i, is_masked in zip(row["input_ids"], row["span_mask"], strict=True) if is_masked]
            yield tokenizer.decode(masked, skip_special_tokens=True)

    assert held_out and set(answers(held_out)).isdisjoint(answers(train.rows))


def test_no_question_of_a_held_out_pair_is_trained_on(tmp_path, tokenizer):
    pairs = [{"prompt": f"Say {n}.", "chosen": f"{n} {i}", "rejected": "no"} for n in range(20) for i in range(3)]
    made_reward = recipe.RewardRecipe(
        model="x", data=jsonl(tmp_path / "pairs.jsonl", pairs), output="unused", length=64, num_eval_examples=9
    )
    train, held_out = reward_training._split_pairs(made_reward, tokenizer)

    def questions(encoded):
        return {tokenizer.decode(ids).split("<|assistant|>")[0] for ids in encoded["chosen_ids"]}

    assert len(held_out) == 9 and questions(train).isdisjoint(questions(held_out))


def test_no_text_is_in_both_parts(tmp_path, tokenizer):
    """Documents are held out whole, a repeated one with its repetition."""
    texts = [f"Word {n} and word {n + 1000}." for n in range(100)] * 2
    path = jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    train, held_out = rows.build_datasets(made(path), tokenizer)
    read = " ".join(tokenizer.decode(row) for row in train.rows)
    evaluated = " ".join(tokenizer.decode(row["input_ids"]) for row in held_out)
    in_train = {text for text in texts if text in read}
    assert held_out and in_train and not [text for text in in_train if text in evaluated]


def test_packing_is_linear_in_length(golden_tokenizer):
    """One text of n tokens: rows are views of it, and no rest is copied for each row."""

    class Counting(list):
        copied = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            Counting.copied += len(found) if isinstance(key, slice) else 0
            return found

    document = Counting(range(100_000))
    packed = list(data.pack_ids([document], 16))
    assert [i for row in packed for i in row] == list(range(100_000))
    assert Counting.copied <= 2 * len(document)
    start = time.process_time()
    list(data.pack_ids([list(range(1_000_000))], 64))
    assert time.process_time() - start < 5


def test_line_ends_and_byte_order_marks(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    assert data.read_text(tmp_path / "a.txt") == "one\ntwo\nthree\n"
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"text": "one"}\r\n{"text": "two"}\r\n'.encode())
    assert list(data.read_column(str(tmp_path / "a.jsonl"), "text")) == ["one", "two"]
    (tmp_path / "a.csv").write_bytes('\ufeffquestion,answer\r\n"A word?",Cat.\r\n'.encode())
    assert chats_of(tmp_path / "a.csv") == [CHAT]


def test_a_long_text_is_packed_without_a_warning(tmp_path, golden_tokenizer, caplog):
    golden_tokenizer.model_max_length = 64
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        assert list(data.pack(["the cat sat " * 500], golden_tokenizer, 32))
    assert "indexing errors" not in caplog.text


TEXTS = {"utf-16": "utf-16", "utf-32": "utf-32", "with a mark": "utf-8-sig"}


@pytest.mark.parametrize("encoding", TEXTS.values(), ids=TEXTS)
def test_a_byte_order_mark_names_the_encoding(tmp_path, encoding):
    record = '{"text": "läuft"}'
    contents = {"a.txt": "läuft", "a.jsonl": record, "a.json": f"[{record}]", "a.csv": "text\nläuft\n"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode(encoding))
        assert list(data.read_column(str(tmp_path / name), "text")) == ["läuft"], name


def test_gzip_is_known_by_its_content(tmp_path):
    packed = gzip.compress(b'{"text": "one"}\n' * 50)
    for name, content in {"a.jsonl": packed, "b.jsonl.gz": packed, "c.jsonl.gz": gzip.decompress(packed)}.items():
        (tmp_path / name).write_bytes(content)
        assert list(data.read_column(str(tmp_path / name), "text")) == ["one"] * 50, name
    for name in ("cut.jsonl.gz", "cut.txt.gz"):
        (tmp_path / name).write_bytes(packed[:-12])
        with pytest.raises(ValueError, match="cannot be read to its end"):
            list(data.read_column(str(tmp_path / name), "text"))


ROW = json.dumps({"messages": CHAT})
MISNAMED = {
    "a comma after each line": f"{ROW},\n{ROW},\n",
    "a list in one line": f"[{ROW}, {ROW}]",
    "a list over many lines": json.dumps([{"messages": CHAT}] * 2, indent=1),
    "chats without a key": json.dumps([CHAT, CHAT]),
    "a tab inside a string": ROW[:-1] + ', "note": "a\tb"}\n' + ROW,
    "numbers that are none": ROW[:-1] + ', "score": NaN}\n' + ROW[:-1] + ', "score": Infinity}',
}


@pytest.mark.parametrize("content", MISNAMED.values(), ids=MISNAMED)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_that_is_almost_json_lines(tmp_path, content, suffix):
    (tmp_path / f"a.{suffix}").write_text(content)
    assert chats_of(tmp_path / f"a.{suffix}") == [CHAT, CHAT]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.json", "[]"),
        ("a.csv", "text\n"),
        ("a.jsonl", "\n\n"),
        ("a.txt", ""),
        ("a.parquet", ""),
    ],
)
def test_a_set_of_nothing_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="has no records|holds no text|cannot be read as parquet"):
        list(data.read_column(str(tmp_path / name), "text"))


def test_a_number_with_too_many_digits_spoils_one_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "n": ' + "9" * 5000 + "}\n" + '{"text": "c"}\n')
    assert list(data.read_column(str(path), "text")) == ["a", "c"]


def test_semicolons_and_tabs_separate_cells(tmp_path):
    for mark in ";\t,":
        (tmp_path / "a.csv").write_text(f"prompt{mark}response\nA word?{mark}Cat.\n")
        assert chats_of(tmp_path / "a.csv") == [CHAT]


def test_a_pattern_names_several_files(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        (tmp_path / name).write_text(ROW)
    assert chats_of(tmp_path / "*.jsonl") == [CHAT, CHAT]
    with pytest.raises(ValueError, match="There is no file"):
        chats_of(tmp_path / "*.csv")


PART = {"type": "text", "text": "A word?"}
OTHER_FORMS = {
    "parts": {"messages": [{"role": "user", "content": [PART]}, ANSWER]},
    "one part": {"messages": [{"role": "user", "content": PART}, ANSWER]},
    "parts that are texts": {"messages": [{"role": "user", "content": ["A ", "word?"]}, ANSWER]},
    "columns of messages": {"messages": {"role": ["user", "assistant"], "content": ["A word?", "Cat."]}},
    "JSON as text": {"messages": json.dumps(CHAT)},
    "Python as text": {"messages": str(CHAT)},
    "texts in turn": {"data": ["A word?", "Cat."]},
    "exchanges": {"conversation": [{"input": "A word?", "output": "Cat."}]},
    "turns": {"turns": CHAT},
    "roles as columns": {"user": "A word?", "assistant": "Cat."},
    "capitals": {"INSTRUCTION": "A word?", "RESPONSE": "Cat."},
}


@pytest.mark.parametrize("record", OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_other_forms_of_chats(record):
    assert forms.messages_of(record) == CHAT


@pytest.mark.parametrize(
    "answer, said", [(None, "null"), (float("nan"), "float nan"), (["x"], "message"), ("", "empty")]
)
def test_a_preference_without_an_answer_is_named(answer, said):
    with pytest.raises(ValueError, match=said):
        forms.pair_of({"prompt": "A word?", "chosen": answer, "rejected": "Dog."})


def test_home_and_variables_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SETS", str(tmp_path))
    jsonl(tmp_path / "chats.jsonl", [{"messages": CHAT}])
    assert chats_of("~/chats.jsonl") == chats_of("$SETS/chats.jsonl") == [CHAT]
    run = recipe.Recipe(model="~/base", data="~/chats.jsonl", output="~/run", steps=3, warmup=1)
    assert (run.output, run.model) == (str(tmp_path / "run"), str(tmp_path / "base"))
    (tmp_path / "a.txt").write_text("one")
    assert data.read_text("~/a.txt") == "one"
