"""Chats: the template, the forms they come in, the rows they become, a conversation, tuning on them."""

import json

import pytest
import torch
from datasets import Dataset

import tess2lite as t2
from tess2lite import chat_template
from tess2lite.training import build, data, recipe
from tess2lite.training import rows as rows_of_recipes
from tess2lite.training import run as training_run

SAID = [
    {"role": "user", "content": "Hello. "},
    {"role": "assistant", "content": "Good day!"},
    {"role": "user", "content": "A word?"},
    {"role": "assistant", "content": "Cat."},
]
SYSTEM = {"role": "system", "content": "Be brief."}


def test_the_template_by_hand():
    assert chat_template.chat_prompt(SAID[:1]) == "<|user|>\nHello.\n<|assistant|>\n"
    whole = "<|user|>\nHello.\n<|assistant|>\nGood day!\n<|user|>\nA word?\n<|assistant|>\n"
    assert chat_template.chat_prompt(SAID[:3]) == whole
    assert chat_template.chat_prompt([SYSTEM, *SAID[:1]]) == "<|system|>\nBe brief.\n<|user|>\nHello.\n<|assistant|>\n"


@pytest.fixture
def tokenizer(tiny):
    return tiny().tokenizer


def test_only_a_response_and_what_follows_is_masked(tokenizer):
    rows = chat_template.encode_chat(tokenizer, [SYSTEM, *SAID], 80)
    assert len(rows) == 2
    for row, prompt, answer in zip(rows, (SAID[:1], SAID[:3]), ("Good day!", "Cat."), strict=True):
        known = [i for i, masked in zip(row["input_ids"], row["span_mask"], strict=True) if not masked]
        written = [i for i, masked in zip(row["input_ids"], row["span_mask"], strict=True) if masked]
        assert tokenizer.decode(known) == "<s>" + chat_template.chat_prompt([SYSTEM, *prompt])
        end = written.index(tokenizer.eos_token_id)
        assert tokenizer.decode(written[:end]) == answer
        assert set(written[end + 1 :]) == {tokenizer.pad_token_id} and len(row["input_ids"]) == 80
    assert (
        chat_template.encode_chat(tokenizer, SAID, 80, from_turn=-1)
        == chat_template.encode_chat(tokenizer, SAID, 80)[1:]
    )


def test_generation_continues_just_what_training_masked(tiny):
    """The prompt of a chat is, id by id, what stood before the response in training."""
    lm = tiny()
    row = chat_template.encode_chat(lm.tokenizer, SAID, 63)[-1]
    out = t2.generate(lm, SAID[:3], steps=1, progress=False)
    known = row["span_mask"].index(True)
    assert out.token_ids[:known] == row["input_ids"][:known] and out.trajectory.span_mask.tolist()[
        known - 1 : known + 1
    ] == [False, True]
    both = t2.generate(lm, [SAID[:1], SAID[:3]], steps=2, progress=False)
    assert [out.prompt for out in both] == [chat_template.chat_prompt(SAID[:1]), chat_template.chat_prompt(SAID[:3])]
    assert both[1].text == t2.generate(lm, SAID[:3], steps=2, progress=False).text


@pytest.mark.parametrize("messages", [SAID[:2], SAID, [SYSTEM, *SAID]])
def test_the_tokenizers_own_template_is_ours(tokenizer, messages):
    tokenizer.chat_template = chat_template.JINJA
    (row,) = chat_template.encode_chat(tokenizer, messages, 100, from_turn=-1)
    end = row["input_ids"].index(tokenizer.eos_token_id)
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids == row["input_ids"][: end + 1]
    asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert asked == tokenizer.bos_token + chat_template.chat_prompt(messages[:-1])


def test_the_tokenizers_own_template_encodes_the_official_examples(golden_data, golden_tokenizer):
    golden_tokenizer.chat_template = chat_template.JINJA
    for case in golden_data["chat"]:
        ids = golden_tokenizer.apply_chat_template(case["messages"], tokenize=True, return_dict=False)
        assert ids == case["input_ids"][-1][: len(ids)] or len(ids) > case["max_length"]


def test_a_loaded_tokenizer_has_the_template():
    assert t2.load("tinytown-instruct").tokenizer.chat_template == chat_template.JINJA


def test_a_full_context_drops_the_oldest_turns_and_says_so(tiny):
    chat = t2.Chat(tiny(max_position_embeddings=120), system="Be brief.", steps=1, length=30, progress=False)
    chat.messages += [*SAID, *SAID]
    with pytest.warns(UserWarning, match="The context is full: the . oldest messages were"):
        chat("And now?")
    assert chat.messages[0] == SYSTEM and chat.dropped == [*SAID, *SAID][: len(chat.dropped)] and chat.dropped
    assert chat.messages[-2] == {"role": "user", "content": "And now?"}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": SAID[2:], "id": 3},
        {"instruction": "A word?", "output": "Cat."},
        {"instruction": "A word?", "input": "", "output": "Cat."},
        {"prompt": "A word?", "response": "Cat."},
        {"prompt": "A word?", "completion": "Cat."},
        {"question": "A word?", "answer": "Cat."},
        {"instruction": "A word?", "instances": [{"input": "", "output": "Cat."}, {"input": "x", "output": "Dog."}]},
    ],
)
def test_the_forms_of_public_sets(record):
    assert data.messages_of(record) == SAID[2:]


def test_input_and_system_prompts_are_kept():
    found = data.messages_of({"instruction": "Add.", "input": "2 and 3", "output": "5", "system": "Be brief."})
    assert found == [SYSTEM, {"role": "user", "content": "Add.\n2 and 3"}, {"role": "assistant", "content": "5"}]


def test_long_answers_are_dropped_and_counted(tokenizer):
    long = [SAID[0], {"role": "assistant", "content": "word " * 40}]
    rows, dropped = data.chat_rows(Dataset.from_list([{"messages": SAID}, {"messages": long}]), tokenizer, 64)
    assert (len(rows), dropped) == (2, 1) and {len(row["input_ids"]) for row in rows} == {64}


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"messages": SAID[:1]}, "Record 1 of .*: No assistant turn"),
        ({"messages": []}, "A chat has no messages"),
        ({"messages": ["Hello.", *SAID[:2]]}, "A message is a str; give records with role and content"),
        ({"messages": [SAID[1], SAID[0]]}, "The roles come as assistant, user; they are perhaps a system prompt, then"),
        ({"messages": [SAID[0], SAID[0], SAID[1]]}, "The roles come as user, user, assistant"),
        ({"messages": [SAID[0], SYSTEM, SAID[1]]}, "The roles come as user, system, assistant"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "has the role 'tool': the chat template has no tool calls. The roles are system, user, assistant",
        ),
        ({"messages": [{"role": "user", "content": "\n"}, SAID[1]]}, "The user's message has no content"),
        ({"messages": [SAID[0], {"role": "assistant"}]}, "The assistant's message has no content"),
        ({"instruction": "A word?", "output": " "}, "The assistant's message has no content"),
        ({"text": "Once"}, "There is no chat in the columns text; give messages, instruction and output"),
    ],
)
def test_records_that_are_no_chats(tmp_path, record, sentence):
    path = jsonl(tmp_path / "chats.jsonl", [record])
    with pytest.raises(ValueError, match=sentence):
        data.read_chats(path)


def test_files_that_hold_none(tmp_path):
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="Record 1 of .* is of type int, not a record"):
        data.read_chats(str(tmp_path / "list.jsonl"))
    with pytest.raises(ValueError, match="no reachable hub dataset"):
        data.read_chats("nobody/nothing")


def test_a_conversation_keeps_both_turns(tiny):
    lm = tiny(max_position_embeddings=200)
    chat = t2.Chat(lm, system="Be brief.", steps=2, length=8, progress=False)
    first = chat("Hello.")
    assert chat.messages[:2] == [SYSTEM, {"role": "user", "content": "Hello."}] and len(chat.messages) == 3
    second = chat("And again?", seed=3)
    assert first.prompt == chat_template.chat_prompt([SYSTEM, {"role": "user", "content": "Hello."}])
    assert second.prompt == chat_template.chat_prompt(chat.messages[:4]) and second.seed == 3
    assert chat.messages[2]["content"] in second.prompt


def test_a_turn_that_fails_is_not_kept(tiny):
    with pytest.raises(ValueError, match="lm is a str; give a denoiser"):
        t2.Chat("tinytown-instruct")
    chat = t2.Chat(tiny(), steps=1, progress=False)
    with pytest.raises(ValueError, match="The user's message has no content"):
        chat("  ")
    with pytest.raises(ValueError, match="the conversation fills this model's context of 64 tokens"):
        chat("word " * 80)
    assert chat.messages == []


def own(tmp_path, **changes):
    records = [{"instruction": f"Say {word}.", "output": f"A {word}!"} for word in ("cat", "dog", "owl", "fox")] * 8
    given = dict(
        data=jsonl(tmp_path / "own.jsonl", records),
        output=str(tmp_path / "tuned"),
        length=48,
        steps=3,
        warmup=1,
        batch_size=4,
        micro_batch_size=4,
        num_eval_examples=4,
        evaluate_every=3,
        save_every=3,
    )
    return recipe.read_recipe("own-chats", **(given | {"model": str(tmp_path / "base")} | changes))


@pytest.fixture
def base(tiny, tmp_path):
    tiny().save_pretrained(tmp_path / "base")


@pytest.mark.parametrize(
    "changes", [{}, {"lora_rank": 4}, {"lora_rank": 4, "load_in_4bit": True}], ids=["full", "lora", "nf4"]
)
def test_tuning_on_a_file_of_ones_own(base, tmp_path, changes):
    """One recipe, three ways; the rows' own masks are what is trained, and the result chats."""
    trainer = training_run.train(own(tmp_path, **changes))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    tokenizer = trainer.processing_class
    for ids, mask in zip(batch["input_ids"], batch["span_mask"], strict=True):
        assert tokenizer.decode(ids[~mask]).endswith("<|assistant|>\n") and tokenizer.decode(ids[mask]).startswith("A ")
        assert (batch["labels"][0] != -100).equal(batch["span_mask"][0])
    lm = t2.load(tmp_path / "tuned", load_in_4bit=changes.get("load_in_4bit", False))
    assert isinstance(t2.Chat(lm, steps=2, progress=False)("Say cat.").text, str)


def test_a_longer_context_is_learned_with_all_weights(base, tmp_path):
    training_run.train(own(tmp_path, length=100))
    assert t2.load(tmp_path / "tuned").config.max_position_embeddings == 100
    with pytest.raises(ValueError, match="or lora_rank=0 to tune all of it to longer texts"):
        build.build_trainer(own(tmp_path, length=100, lora_rank=4))


def test_too_few_answers_fit(base, tmp_path, capsys):
    with pytest.raises(ValueError, match="at least 5 are needed: give more of them or a larger length"):
        build.build_trainer(own(tmp_path, length=10))
    assert "32 of 32 answers are longer than 10 tokens" in capsys.readouterr().out


def test_tinytown_as_chats(monkeypatch):
    monkeypatch.setattr(rows_of_recipes, "TINYTOWN_CHATS", 50)
    made = recipe.Recipe(
        model="tinytown-base",
        data="tinytown",
        output="unused",
        masking="response",
        length=128,
        steps=2,
        warmup=1,
        batch_size=2,
        num_eval_examples=4,
    )
    rows, held_out = build.build_datasets(made, t2.load("tinytown-base").tokenizer)
    assert len(rows) == 4 and 0 < len(held_out) <= 4 and torch.tensor(held_out[0]["span_mask"]).any()


def test_a_file_that_is_named_after_tinytown_holds_out_rows_of_its_own(tmp_path):
    path = tmp_path / "tinytown-chat_template.jsonl"
    path.write_text("".join(f'{{"prompt": "Count to {n}.", "response": "{n}"}}\n' for n in range(20)))
    made = recipe.Recipe(
        model="tinytown-base",
        data=path.name,
        output="unused",
        masking="response",
        length=64,
        steps=2,
        warmup=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        rows, held_out = build.build_datasets(made, t2.load("tinytown-base").tokenizer)
    train = {tuple(row["input_ids"]) for row in rows.rows}
    assert len(held_out) and not any(tuple(row["input_ids"]) in train for row in held_out)
