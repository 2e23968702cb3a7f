"""The harness's model: what it writes and scores is what the package's own functions write and score."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lm_eval.tasks._index import TaskIndex

import tess2lite as t2
from tess2lite.chat_template import chat_prompt
from tess2lite.evaluation import lm_eval_adapter
from tess2lite.evaluation.likelihood import log_likelihood
from tess2lite.evaluation.lm_eval_adapter import Denoiser, _digest
from tess2lite.tokens import encode

PROMPTS = ["Tom saw a dog", "Ann has the key. Who has", "Sort these words: cup bell", "Once there was a"]


def asking(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def asked(prompts=PROMPTS, **given):
    return asking(*((prompt, {"until": [], "max_gen_toks": 12} | given) for prompt in prompts))


@pytest.fixture(scope="module")
def lm():
    return t2.load("tinytown-instruct")


def model(lm, **settings):
    return Denoiser(lm, **{"steps": 3, "samples": 2} | settings)


def test_writes_what_generate_writes(lm):
    for chat in (False, True):
        written = model(lm, chat=chat).generate_until(asked())
        prompts = [chat_prompt([{"role": "user", "content": p}]) if chat else p for p in PROMPTS]
        seeds = [int(_digest([0, p, 1])[:8], 16) for p in PROMPTS]
        expected = t2.generate(lm, prompts, steps=3, seed=seeds, length=12, progress=False)
        assert written == [e.text for e in expected]


def test_a_masked_model_writes_what_generate_writes():
    masked = t2.load("tinytown-instruct")
    masked.config.diffusion = "masked"
    seeds = [int(_digest([0, p, 1])[:8], 16) for p in PROMPTS]
    expected = t2.generate(masked, PROMPTS, steps=3, seed=seeds, length=12, progress=False)
    assert model(masked).generate_until(asked()) == [e.text for e in expected]
    with pytest.raises(ValueError, match="writes by masked diffusion; the bound is of simplex"):
        model(masked).loglikelihood(asking(("Tom has the", " key")))


def test_scores_do_not_depend_on_batch_or_order(lm):
    once = model(lm, batch_size=4).generate_until(asked())
    assert model(lm, batch_size=1).generate_until(asked()) == once
    assert model(lm, batch_size=3).generate_until(asked(PROMPTS[::-1])) == once[::-1]
    pairs = [("Tom has the", " key"), ("Tom has the", " old brown cup"), ("", "Tom")]
    scored = model(lm, batch_size=3).loglikelihood(asking(*pairs))
    again = model(lm, batch_size=1).loglikelihood(asking(*pairs[::-1]))[::-1]
    for (value, greedy), (other, too) in zip(scored, again, strict=True):
        assert value == pytest.approx(other, rel=1e-4) and greedy is too


def test_seed_and_repeats_make_other_texts(lm):
    first, second = model(lm).generate_until(asked([PROMPTS[0]] * 2))
    assert first != second  # asked again, answered anew
    assert model(lm, seed=1).generate_until(asked([PROMPTS[0]]))[0] not in (first, second)


def test_a_model_that_was_trained_since_answers_anew():
    lm = t2.load("tinytown-instruct")
    tested = model(lm)
    before = tested.generate_until(asked())
    assert tested.generate_until(asked()) == before
    lm.lm_head.weight.data.neg_()
    assert tested.generate_until(asked()) != before


def test_until_and_length(lm):
    (whole,) = model(lm).generate_until(asked(PROMPTS[:1]))
    stop = whole.split()[1]
    assert model(lm).generate_until(asked(PROMPTS[:1], until=[stop])) == [whole.split(stop)[0]]
    short = model(lm, length=2).generate_until(asked(PROMPTS[:1]))[0]
    assert len(encode(lm.tokenizer, short)) <= 3


@pytest.mark.parametrize(
    ("until", "kept"),
    [
        (" dog", "Tom has a"),
        ([" dog", " a"], "Tom has"),
        ([" a", " dog"], "Tom has"),
        (["", "cat"], "Tom has a dog"),
        (None, "Tom has a dog"),
    ],
)
def test_the_first_of_several_stop_strings_ends_an_answer(lm, until, kept, monkeypatch):
    ids = [*encode(lm.tokenizer, "Tom has a dog"), lm.tokenizer.eos_token_id]
    tested = model(lm)
    monkeypatch.setattr(tested, "_denoise", lambda *_: [ids])
    assert tested.generate_until(asked(PROMPTS[:1], until=until)) == [kept]


@pytest.mark.parametrize("eos", [None, [2, 9], [9]])
def test_an_answer_ends_at_every_eos_that_the_model_has(lm, eos, monkeypatch):
    tested = model(lm)
    own = lm.tokenizer.eos_token_id
    monkeypatch.setattr(lm.config, "eos_token_id", eos)
    ids = encode(lm.tokenizer, "Tom has a dog")
    for end in {own, *(eos or [])}:
        monkeypatch.setattr(tested, "_denoise", lambda *_, end=end: [[*ids, end, *ids]])
        tested.log.records.clear()
        (answer,) = tested.generate_until(asked(PROMPTS[:1]))
        assert answer == "Tom has a dog"
        assert [record["ended"] for record in tested.log.records.values()] == [True]


@pytest.mark.parametrize(
    ("name", "value", "length"),
    [("max_gen_toks", None, 256), ("max_new_tokens", 5, 5), ("max_tokens", "7", 7), ("max_gen_toks", 5.0, 5)],
)
def test_lengths_have_any_of_the_harness_names(lm, name, value, length, monkeypatch):
    tested = model(lm)
    rows = []
    monkeypatch.setattr(tested, "_denoise", lambda given, *_: rows.extend(given) or [[lm.tokenizer.eos_token_id]])
    tested.generate_until(asking(("Tom", {"until": [], name: value})))
    prompt, written = rows[0]
    assert len(written) == min(length, lm.config.max_position_embeddings - len(prompt))


def test_long_prompts_lose_their_left_and_are_counted(lm, tmp_path, caplog):
    long = "The dog saw the cat. " * 80
    for _ in range(2):  # the second time from the log
        tested = model(lm, answers=tmp_path / "log.jsonl")
        (text,) = tested.generate_until(asked([long], max_gen_toks=1000))
        assert "1 prompts did not fit" in caplog.text and tested.get_model_info()["prompts_truncated"] == 1
        caplog.clear()
    half = lm.config.max_position_embeddings // 2
    ids = [lm.tokenizer.bos_token_id, *encode(lm.tokenizer, long)[-(half - 1) :]]
    assert model(lm)._truncate(encode(lm.tokenizer, long), half) == (ids, True)
    tested = model(lm)
    tested.generate_until(asked(["Tom"], max_gen_toks=1000))
    assert tested.truncated_prompts == 0  # it fits, and has the rest of the context to write in


def test_a_prompt_keeps_its_beginning_where_no_length_is_asked_for(lm):
    """Of 256 tokens, 8 are kept for the answer; all that is left is written in."""
    tested, size = model(lm), len(encode(lm.tokenizer, " dog" * 8)) // 8
    tested.generate_until(asking((" dog" * (246 // size), {"until": []})))
    assert (
        tested.truncated_prompts == 0
        and tested._answer_length(-1) == (256, 8)
        and tested._answer_length(1000) == (1000, 128)
    )
    tested.generate_until(asking((" dog" * (252 // size), {"until": []})))
    assert (
        tested.truncated_prompts == 1
        and model(lm, length=7)._answer_length(-1) == (7, 7)
        and model(lm, length=7)._answer_length(5) == (5, 5)
    )


def test_log_likelihood_is_the_bound_of_the_chain(lm, tmp_path):
    path = tmp_path / "log.jsonl"
    ((value, greedy),) = model(lm, answers=path, bound_steps=3, samples=4).loglikelihood(
        asking(("Tom has the ", "key"))
    )
    known, scored = encode(lm.tokenizer, "Tom has the"), encode(lm.tokenizer, "Tom has the key")
    ids = torch.tensor([[lm.tokenizer.bos_token_id, *scored]])
    mask = torch.arange(ids.shape[1])[None] > len(known)
    seed = int(_digest([0, "Tom has the ", 1])[:8], 16)
    mean, error = log_likelihood(lm, {"input_ids": ids, "span_mask": mask}, 3, 4, seed)
    assert value == pytest.approx(float(mean)) and isinstance(greedy, bool)
    record = json.loads(path.read_text())[1]
    assert record["standard_error"] == pytest.approx(float(error))


def test_is_greedy_when_argmax_writes_it(lm):
    tested = model(lm, top_p=None, chat=True)
    (text,) = tested.generate_until(asked(["Tell me something about the barn."], max_gen_toks=5))
    ((_, greedy), (_, other)) = tested.loglikelihood(
        asking(("Tell me something about the barn.", text), ("Tell me something about the barn.", " key key key"))
    )
    assert len(encode(lm.tokenizer, text)) != 5 or greedy
    assert not other


def test_rolling_adds_up_pieces_of_long_texts(lm):
    tested = model(lm, bound_steps=1)
    long = "The dog saw the cat. " * 60
    short, whole = tested.loglikelihood_rolling(asking(("The dog saw the cat.",), (long,)))
    assert whole < short < 0


def test_interrupted_run_goes_on_without_counting_twice(lm, tmp_path, monkeypatch):
    path, computed = tmp_path / "log.jsonl", []
    whole = model(lm, batch_size=1).generate_until(asked())
    write = Denoiser._write

    def counted(self, requests, seeds):
        if len(computed) == 2 and "resumed" not in computed:
            raise KeyboardInterrupt
        computed.extend(text for text, _ in requests)
        return write(self, requests, seeds)

    monkeypatch.setattr(Denoiser, "_write", counted)
    with pytest.raises(KeyboardInterrupt):
        model(lm, batch_size=1, answers=path).generate_until(asked())
    path.write_bytes(path.read_bytes()[:-5])  # killed in mid-line, too
    computed.append("resumed")
    assert model(lm, batch_size=2, answers=path).generate_until(asked()) == whole
    assert computed == [*PROMPTS[:2], "resumed", *PROMPTS[1:]]
    assert len(path.read_text().splitlines()) == len(PROMPTS)
    model(lm, batch_size=2, answers=path, steps=2).generate_until(asked())  # other settings, other answers
    assert len(path.read_text().splitlines()) == 2 * len(PROMPTS)


def test_chat_template_continues_the_answer_that_a_task_begins(lm):
    """lm-eval's gen_prefix comes as a last turn of the assistant's."""
    asked = {"role": "user", "content": "How many?"}
    beginning = {"role": "assistant", "content": "Answer:"}
    tested = model(lm)
    expected = "<|user|>\nHow many?\n<|assistant|>\n"
    assert tested.apply_chat_template([asked]) == expected
    assert tested.apply_chat_template([asked, beginning], add_generation_prompt=False) == expected + "Answer:"
    whole = tested.apply_chat_template([asked, beginning, asked])  # worked examples as turns
    assert tested.apply_chat_template([asked, beginning, asked, beginning], False) == whole + "Answer:"


def test_first_space_of_an_answer_stays():
    """A decoder like Llama's drops the space that the first token carries."""

    class Tokenizer:
        pieces = ["a", "▁cat", "▁sat", "ch"]

        def __call__(self, text, **_):
            return {"input_ids": [self.pieces.index(text)]}

        def decode(self, ids, **_):
            return "".join(self.pieces[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert Tokenizer().decode([1, 2]) == "cat sat"
    decode = lm_eval_adapter._decode_continuation
    assert decode(Tokenizer(), [1, 2]) == " cat sat" and decode(Tokenizer(), [3]) == "ch"
    assert decode(Tokenizer(), []) == ""


def test_a_continuation_may_begin_within_a_word(lm):
    """`kite` is one token as a whole; of its end alone something is left to score all the same."""
    tested = model(lm)
    known, scored = tested._split("Tom had a k", "ite")
    assert lm.tokenizer.decode(known) == "Tom had a k" and lm.tokenizer.decode(scored) == "ite"
    assert len(encode(lm.tokenizer, "Tom had a kite")) <= len(known)
    assert tested._split("", "Tom has") == ([], encode(lm.tokenizer, "Tom has"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stepz": 3}, "no argument stepz; it has pretrained, steps"),
        ({"steps": 0}, "steps is 0"),
        ({"top_p": 2}, "top_p is 2"),
        ({"batch_size": "auto"}, "batch_size is 'auto'; give a whole number"),
        ({"chat": "yes"}, "chat is 'yes'; give true or false"),
        ({"length": 0}, "length is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_wrong_arguments(lm, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        model(lm, **settings)


def test_wrong_requests(lm):
    with pytest.raises(ValueError, match="There is no model 'nothing'"):
        Denoiser("nothing")
    with pytest.raises(ValueError, match="has 0 tokens; this model scores 1 to"):
        model(lm).loglikelihood(asking(("Tom", "")))
    with pytest.raises(ValueError, match="this model scores 1 to"):
        model(lm).loglikelihood(asking(("Tom", " dog" * 400)))
    with pytest.raises(ValueError, match="max_gen_toks is 0"):
        model(lm).generate_until(asked(max_gen_toks=0))
    with pytest.raises(ValueError, match="leave --apply_chat_template out"):
        model(lm, chat=True).apply_chat_template([{"role": "user", "content": "Hi"}])


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_without_lm_eval_one_sentence_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'tess2lite\[eval\]'"):
        runpy.run_module("tess2lite.evaluation.lm_eval_adapter")


# ---------------------------------------------------------------- lm-eval's own commands

TASK = """
task: copying
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
SHIPPED = Path(lm_eval_adapter.__file__).with_name("tess2lite.yaml")


def task_file(folder, kind="generate_until", metric="exact_match", more='generation_kwargs: {until: ["."]}'):
    rows = [{"question": q, "answer": a} for q, a in (("Tom has", "a dog"), ("Ann has", "the key"), ("Who has", "it"))]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "copying.yaml").write_text(TASK.format(data=data, kind=kind, metric=metric, more=more))
    return folder / "copying.yaml"


def test_lm_eval_itself_finds_the_model_through_a_file_among_the_tasks(tmp_path):
    task_file(tmp_path)
    command = [
        Path(sys.executable).with_name("lm_eval"),
        "--model",
        "tess2lite",
        "--model_args",
        f"pretrained=tinytown-instruct,steps=2,length=8,batch_size=2,answers={tmp_path / 'log.jsonl'}",
        "--include_path",
        tmp_path,
        "--tasks",
        f"copying,{SHIPPED}",
        "--limit",
        "2",
        "--output_path",
        tmp_path / "out",
        "--log_samples",
    ]
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "exact_match" in done.stdout
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    (found,) = (tmp_path / "out").rglob("results*.json")
    assert "lower bound" in json.loads(found.read_text())["config"]["log_likelihood"]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_own_command_runs_multiple_choice(tmp_path, monkeypatch, capsys):
    build = TaskIndex.build
    monkeypatch.setattr(TaskIndex, "build", staticmethod(lambda paths: build([])))  # thousands of files, for seconds
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = task_file(tmp_path, "multiple_choice", "acc", "doc_to_choice: ['a dog', 'the key', 'it']")
    arguments = "pretrained=tinytown-instruct,steps=2,samples=2"
    run = [
        "lm_eval",
        "run",
        "--model",
        "tess2lite",
        "--model_args",
        arguments,
        "--batch_size",
        "9",
        "--tasks",
        str(path),
    ]
    monkeypatch.setattr(sys, "argv", run)
    runpy.run_module("tess2lite.evaluation.lm_eval_adapter", run_name="__main__")
    assert "copying" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*run[:5], "pretrained=nothing", *run[6:]])
    with pytest.raises(SystemExit, match="There is no model 'nothing'"):
        runpy.run_module("tess2lite.evaluation.lm_eval_adapter", run_name="__main__")
