"""Public tasks from local files in their true formats, and Tinytown's, with lm-eval's own prompts and scorers."""

import inspect
import json
import random
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

import tess2lite as t2
from tess2lite.evaluation import tasks
from tess2lite.evaluation.lm_eval_adapter import Denoiser
from tess2lite.tinytown.tasks import TASKS

LM_EVAL = Path(inspect.getfile(TaskManager)).parent
SUMS = [(12, 7), (30, 41), (5, 9), (100, 23), (8, 80), (64, 3), (17, 17), (2, 900)]
GSM8K = [
    {
        "question": f"Mara had {a} marbles and won {b}. How many has she?",
        "answer": f"She won {b} more.\nSo she has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} marbles.\n#### {a + b:,}",
    }
    for a, b in SUMS
]
TRUTHS = ["True and False", "not False", "True or False", "not ( True )", "False and True", "True and True"]
BBH = {
    "canary": "none",
    "examples": [{"input": f"{text} is", "target": str(eval(text))} for text in TRUTHS],
}
IFEVAL = [  # instruction, kwargs, an answer that follows it, one that does not
    ("punctuation:no_comma", {}, "No pause here at all.", "Here, there is one."),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, "One two three four.", "One two."),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        "I am. You are.",
        "I am. You are. She is. They are.",
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "BIG RED dog.",
        "big",
    ),
    ("detectable_format:json_format", {}, '{"a": 1}', "a is 1"),
    ("startend:quotation", {}, '"All of it is quoted."', "It is not."),
    ("keywords:existence", {"keywords": ["barn", "owl"]}, "An owl lives in the barn.", "An owl lives here."),
    ("detectable_format:title", {}, "<<Night>>\nIt was dark.", "Night\nIt was dark."),
    ("startend:end_checker", {"end_phrase": "That is all."}, "I went home. That is all.", "I went home."),
    (
        "language:response_language",
        {"language": "de"},
        "Das ist ein ganz normaler deutscher Satz.",
        "This is an English one.",
    ),
]
TRIVIA = [{"question_id": "q1", "question": "Who wrote Faust", "answer": {"aliases": ["Goethe", "J. W. Goethe"]}}]
SQUAD = [
    {
        "id": "s1",
        "title": "Barn",
        "context": "The old barn stood near the river.",
        "question": "What stood there?",
        "answers": {"text": ["old barn", "The old barn"], "answer_start": [4, 0]},
    }
]


class Said(LM):
    """A model that says what it is told to, by the document it is asked about."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.seed, self.prompts = answer, 0, []

    def generate_until(self, requests):
        self.prompts = [request.args[0] for request in requests]
        return [self.answer(request.doc) for request in requests]

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@pytest.fixture
def ask(tmp_path):
    """ask(task, records, answer) → (scores, prompts), from a file that holds the records."""

    def evaluated(task, records, answer, **given):
        said = Said(answer)
        path = write(tmp_path, records)
        found = tasks.evaluate(task, said, data=path, out=tmp_path / "out.json", **given)
        return found["scores"][task], said.prompts

    return evaluated


def write(folder, records, name="data"):
    path = folder / (f"{name}.json" if isinstance(records, dict) else f"{name}.jsonl")
    text = json.dumps(records) if isinstance(records, dict) else "".join(json.dumps(row) + "\n" for row in records)
    path.write_text(text)
    return str(path)


def test_gold_answers_of_gsm8k_are_all_right_and_others_wrong(ask):
    scores, prompts = ask("gsm8k", GSM8K, lambda doc: doc["answer"], shots=0)
    assert prompts[0] == f"Question: {GSM8K[0]['question']}\nAnswer:"
    for name in ("exact_match,strict-match", "exact_match,flexible-extract"):
        low = scores[name].pop("low")
        assert scores[name] == {"mean": 1, "seeds": {0: 1}, "high": 1, "scored": 8}
        assert 0.6 < low < 1  # eight right answers do not make sure of the ninth
    other = {row["question"]: GSM8K[i - 1]["answer"] for i, row in enumerate(GSM8K)}
    scores, _ = ask("gsm8k", GSM8K, lambda doc: other[doc["question"]], shots=0)
    assert scores["exact_match,strict-match"]["mean"] == 0  # all sums differ


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("bbh_zeroshot_boolean_expressions", "{}"),
        ("bbh_fewshot_boolean_expressions", "{}"),
        ("bbh_cot_zeroshot_boolean_expressions", "It is so. So the answer is {}."),
        ("bbh_cot_fewshot_boolean_expressions", "It is so. So the answer is {}."),
    ],
)
def test_gold_answers_of_bbh_are_all_right(ask, task, says):
    scores, prompts = ask(task, BBH, lambda doc: says.format(doc["target"]))
    assert all(score["mean"] == 1 for score in scores.values() if isinstance(score, dict)) and scores["prompts"] == 6
    assert "True and False is" in prompts[0]
    assert ("not ( ( not not True ) ) is" in prompts[0]) is ("fewshot" in task)  # lm-eval's worked examples


def test_shuffled_answers_score_what_chance_gives(ask):
    means, rng, targets = [], random.Random(0), [row["target"] for row in BBH["examples"]]
    for _ in range(4):
        shuffled = dict(zip(TRUTHS, rng.sample(targets, 6), strict=True))
        found, _ = ask("bbh_zeroshot_boolean_expressions", BBH, lambda doc, said=shuffled: said[doc["input"][:-3]])
        means.append(found["exact_match,strict-match"]["mean"])
    assert 0.25 < sum(means) / len(means) < 0.75  # three of six are True


def test_ifeval_verifiers_without_a_download(ask, monkeypatch):
    def download(*arguments, **named):
        raise AssertionError("a download")

    monkeypatch.setattr("nltk.download", download)
    rows = [
        {"key": i, "prompt": f"Do {i}.", "instruction_id_list": [name], "kwargs": [kwargs]}
        for i, (name, kwargs, _, _) in enumerate(IFEVAL)
    ]
    good, bad = ({f"Do {i}.": row[which] for i, row in enumerate(IFEVAL)} for which in (2, 3))
    scores, prompts = ask("ifeval", rows, lambda doc: good[doc["prompt"]])
    assert prompts == [row["prompt"] for row in rows]
    assert scores["prompt_level_strict_acc,none"]["mean"] == scores["inst_level_strict_acc,none"]["mean"] == 1
    scores, _ = ask("ifeval", rows, lambda doc: bad[doc["prompt"]])
    assert scores["prompt_level_strict_acc,none"]["mean"] == scores["inst_level_loose_acc,none"]["mean"] == 0


def test_ifeval_counts_instructions_and_takes_the_hubs_nulls(ask):
    rows = [
        {
            "key": 1,
            "prompt": "P.",
            "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
            "kwargs": [{}, {}],
        },
        {
            "key": 2,
            "prompt": "Q.",
            "instruction_id_list": ["length_constraints:number_words"],
            "kwargs": [{"num_words": 2, "relation": "at least", "keywords": None}],
        },
    ]
    scores, _ = ask("ifeval", rows, lambda doc: "no comma here")
    assert scores["prompt_level_strict_acc,none"]["mean"] == 0.5
    assert scores["inst_level_strict_acc,none"]["mean"] == pytest.approx(2 / 3)
    assert scores["inst_level_strict_acc,none"]["scored"] == 3 and scores["prompts"] == 2


def test_triviaqa_takes_any_alias(ask):
    scores, prompts = ask("triviaqa", TRIVIA, lambda doc: " j. w. goethe")
    assert scores["exact_match,remove_whitespace"]["mean"] == 1 and prompts == ["Question: Who wrote Faust?\nAnswer:"]
    assert ask("triviaqa", TRIVIA, lambda doc: "Schiller")[0]["exact_match,remove_whitespace"]["mean"] == 0


def test_squad_counts_exact_matches_and_overlap(ask):
    scores, prompts = ask("squad", SQUAD, lambda doc: "the Old Barn.")
    assert scores["exact_match,none"]["mean"] == scores["f1,none"]["mean"] == 1
    assert prompts[0].endswith("\n\nQuestion: What stood there?\n\nAnswer:")
    scores, _ = ask("squad", SQUAD, lambda doc: "a barn there")
    assert scores["exact_match,none"]["mean"] == 0
    assert scores["f1,none"]["mean"] == pytest.approx(0.5)  # one of two words, both ways


def test_worked_examples_come_from_a_second_file(ask, tmp_path):
    shots = write(tmp_path, GSM8K[4:], "shots")
    _, (prompt, *_) = ask("gsm8k", GSM8K[:4], lambda doc: "", fewshot=shots, shots=3)
    assert prompt.count("Question:") == 4 and sum(row["question"] in prompt for row in GSM8K[4:]) == 3
    with pytest.raises(ValueError, match="gsm8k shows 5 worked examples, .* fewshot, or shots=0"):
        ask("gsm8k", GSM8K, lambda doc: "")
    with pytest.raises(ValueError, match="gsm8k shows 5 worked examples, .* has 4; give a file of more"):
        ask("gsm8k", GSM8K[:4], lambda doc: "", fewshot=shots)


def test_questions_that_an_official_file_repeats_are_asked_and_count_as_one(ask):
    """Of BIG-Bench Hard, causal_judgement and sports_understanding have such; the answers may differ, too."""
    once = [{"input": f"{text} is", "target": str(eval(text))} for text in TRUTHS]
    repeated = {"examples": once + [once[0]] * 3 + [{"input": once[0]["input"], "target": "True"}]}
    targets = {row["input"]: row["target"] for row in once}
    scores, prompts = ask("bbh_zeroshot_boolean_expressions", repeated, lambda doc: targets[doc["input"]])
    assert len(prompts) == scores["prompts"] == 10 and len(set(prompts)) == 6
    wide = scores["exact_match,strict-match"]
    once, _ = ask("bbh_zeroshot_boolean_expressions", {"examples": once}, lambda doc: targets[doc["input"]])
    assert wide["mean"] == 0.9 and wide["low"] <= once["exact_match,strict-match"]["low"]
    scores, _ = ask("gsm8k", GSM8K + GSM8K[:2], lambda doc: doc["answer"], shots=0)
    assert scores["prompts"] == 10


class Chatting(Said):
    """The same with TESS 2's chat template, as `Denoiser` applies it."""

    tokenizer_name = "said"

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return Denoiser.apply_chat_template(SimpleNamespace(chat=False), chat_history, add_generation_prompt)

    def chat_template(self, chat_template=False):
        return ""


def as_published(tmp_path, task, records, answer, **given):
    said = Chatting(answer)
    found = tasks.evaluate(task, said, data=write(tmp_path, records), out=tmp_path / "out.json", **given)
    return found["scores"][task], said.prompts


def test_gsm8k_as_published_asks_eight_examples_and_takes_the_last_number(tmp_path):
    scores, (prompt, *_) = as_published(tmp_path, "gsm8k_published", GSM8K, lambda doc: doc["answer"] + "\n")
    assert scores["exact_match,none"]["mean"] == 1
    assert prompt.startswith("<|user|>\nAnswer the following questions.\n\nQuestion: There are 15 trees")
    assert prompt.count("Question: ") == 9 and prompt.count("The answer is") == 8
    assert prompt.endswith(f"\n\nQuestion: {GSM8K[0]['question']}\n<|assistant|>\nAnswer:")
    thousand = {"question": "How many?", "answer": "#### 1,200"}
    for text, score in ((" It is 7, so 1,200.", 1), (" 1,200, of 3.", 0), ("none", 0)):
        assert tasks.published_gsm8k_scores(thousand, [text])["exact_match"] == score


def test_squad_and_triviaqa_as_published_show_worked_examples_in_the_users_turn(tmp_path):
    shots = write(tmp_path, [SQUAD[0] | {"id": f"t{i}", "question": f"Which {i}?"} for i in range(4)], "shots")
    scores, (prompt,) = as_published(tmp_path, "squad_published", SQUAD, lambda doc: "The old barn", fewshot=shots)
    passage = "The old barn stood near the river."
    worked = "".join(f"{passage}\n\nWhich {i}?\n\nold barn\n" for i in range(3))
    assert prompt == f"<|user|>\n{worked}{passage}\n\nWhat stood there?\n<|assistant|>\n"
    assert scores["exact_match,none"]["mean"] == scores["f1,none"]["mean"] == 1
    shots = write(tmp_path, [TRIVIA[0] | {"question_id": f"t{i}", "question": f"Who {i}"} for i in range(2)], "shots")
    scores, (prompt,) = as_published(tmp_path, "triviaqa_published", TRIVIA, lambda doc: "goethe", fewshot=shots)
    worked = "".join(f"Who {i}\n\nGoethe\n" for i in range(2))
    assert prompt == f"<|user|>\n{worked}Who wrote Faust\n<|assistant|>\n"
    assert scores["exact_match,none"]["mean"] == 1


def test_as_published_a_denoiser_may_fill_its_context(tmp_path, monkeypatch):
    rows = []
    denoise = Denoiser._denoise
    monkeypatch.setattr(Denoiser, "_denoise", lambda self, some, *rest: rows.extend(some) or denoise(self, some, *rest))
    monkeypatch.setattr(tasks, "published_gsm8k_prompt", lambda doc: doc["question"])
    lm = Denoiser("tinytown-instruct", steps=1, top_p=None)
    tasks.evaluate("gsm8k_published", lm, data=write(tmp_path, GSM8K[:1]), out=tmp_path / "out.json")
    ((prompt, answer),) = rows
    assert len(prompt) + len(answer) == lm.context


@pytest.mark.parametrize("task", sorted(TASKS))
def test_tinytown_goes_through_the_same_door(task, tmp_path):
    found = tasks.evaluate(task, Said(lambda doc: doc["response"]), limit=12, out=tmp_path / "gold.json")
    scores = found["scores"][task]
    assert scores["score,none"]["mean"] == 1 and scores["prompts"] == 12
    found = tasks.evaluate(task, Said(lambda doc: "nonsense"), limit=12, out=tmp_path / "bad.json")
    assert found["scores"][task]["score,none"]["mean"] < 0.5  # a request's own answer may be a gloomy one


def test_a_denoiser_over_seeds_resumes_and_says_what_it_did(tmp_path, monkeypatch):
    data, out = write(tmp_path, GSM8K), tmp_path / "runs" / "gsm8k.json"
    given = {"data": data, "shots": 0, "limit": 3, "seeds": [0, 1], "steps": 2, "length": 8, "batch_size": 2}
    calls, write_ = [], Denoiser._write

    def counted(self, requests, seeds):
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write_(self, requests, seeds)

    monkeypatch.setattr(Denoiser, "_write", counted)
    with pytest.raises(KeyboardInterrupt):
        tasks.evaluate("gsm8k", "tinytown-instruct", out=out, **given)
    assert not out.exists()
    found = tasks.evaluate("gsm8k", "tinytown-instruct", out=out, **given)
    assert calls == [2, 1, 2, 2, 1]  # the first seed's answers were there
    assert len((tmp_path / "runs" / "gsm8k.answers.jsonl").read_text().splitlines()) == 6
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    again = tasks.evaluate("gsm8k", "tinytown-instruct", out=out, **given | {"batch_size": 3})
    assert len(calls) == 5 and again["scores"] == found["scores"]
    assert found["seeds"] == [0, 1] and set(found["scores"]["gsm8k"]["exact_match,strict-match"]["seeds"]) == {0, 1}
    assert found["settings"]["steps"] == 2 and found["environment"]["tess2lite"] and found["sha256"][data]
    assert found["command"].startswith("python -m tess2lite.evaluation.tasks gsm8k model=tinytown-instruct seeds=0,1 ")


def test_scores_do_not_depend_on_the_order_of_the_file(tmp_path):
    lm, texts = t2.load("tinytown-instruct"), []
    for rows in (GSM8K[:4], GSM8K[3::-1]):
        path, log = write(tmp_path, rows), tmp_path / f"{rows[0]['question']}.jsonl"
        denoiser = Denoiser(lm, steps=2, length=8, batch_size=3, answers=log)
        tasks.evaluate("gsm8k", denoiser, data=path, shots=0, out=tmp_path / "out.json")
        records = [json.loads(line)[1] for line in log.read_text().splitlines()]
        texts.append({record["prompt"]: record["text"] for record in records})
    assert texts[0] == texts[1] and len(texts[0]) == 4


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("task", "content", "sentence"),
    [
        ("gsm8k", "", "holds no text"),
        ("gsm8k", "{", "Line 1 of .* is not JSON"),
        (
            "gsm8k",
            '{"question": "Q"}\n',
            'Line 1 of .* has no answer as gsm8k needs it: {"question": "…", "answer": "…"}',
        ),
        ("gsm8k", '{"question": "Q", "answer": "A"}\n{"question": 3, "answer": "A"}\n', "Line 2 of .* has no question"),
        ("triviaqa", '{"question_id": "1", "question": "Q", "answer": "A"}', "has no answer as triviaqa needs it"),
        ("triviaqa", '{"question_id": "1", "question": "Q", "answer": {}}', "has no answer as triviaqa needs it"),
        (
            "squad",
            '{"id": "1", "title": "T", "context": "C", "question": "Q", "answers": {"text": []}}',
            "has no answers as squad needs it",
        ),
        (
            "ifeval",
            '{"key": 1, "prompt": "P", "instruction_id_list": ["a:b"], "kwargs": [{}]}',
            "Line 1 of .* asks for a:b with 1 kwargs; give instructions that IFEval verifies",
        ),
        (
            "ifeval",
            '{"key": 1, "prompt": "P", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}',
            "has no kwargs as ifeval needs it",
        ),
        (
            "ifeval",
            '{"key": 1, "prompt": "P", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}, {}]}',
            "asks for punctuation:no_comma with 2 kwargs; give .* kwargs for each",
        ),
        (
            "ifeval",
            '{"key": 1, "prompt": "P", "instruction_id_list": [["a"]], "kwargs": [{}]}',
            "has no instruction_id_list as ifeval needs it",
        ),
        (
            "ifeval",
            '{"key": 1, "prompt": "P", "instruction_id_list": ["startend:quotation"], "kwargs": [{}]}\n'
            '{"key": 1, "prompt": "R", "instruction_id_list": ["startend:quotation"], "kwargs": [{}]}',
            "Line 2 of .* has the same key as 1",
        ),
    ],
)
def test_wrong_files(tmp_path, task, content, sentence):
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        tasks.load_tasks(task, data=str(path), shots=0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[1", "is not JSON .*correct it"),
        ("{}", "holds no examples"),
        ('{"examples": []}', "holds no examples"),
        ("[3]", "Example 1 of .* has no input"),
    ],
)
def test_wrong_json_files(tmp_path, content, sentence):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        tasks.load_tasks("bbh_zeroshot_word_sorting", data=str(path))


@pytest.fixture
def few(monkeypatch):
    """Of lm-eval's thousands of tasks, which take seconds to read, those of one more folder."""
    build = TaskIndex.build
    folders = {LM_EVAL: LM_EVAL / "gsm8k_platinum"}
    monkeypatch.setattr(TaskIndex, "build", staticmethod(lambda paths: build([folders.get(p, p) for p in paths])))


def test_wrong_wishes(tmp_path, few):
    data = write(tmp_path, GSM8K)
    for given, sentence in [
        ({"task": "bbh_9"}, "There is no task 'bbh_9'; give squad, one of Tinytown's"),
        ({"task": "gsm8k", "data": str(tmp_path / "none.jsonl")}, "There is no text file"),
        ({"task": "gsm8k", "fewshot": data}, "fewshot goes with data"),
        ({"task": "bbh_zeroshot", "data": data}, "'bbh_zeroshot' is not one"),
        ({"task": "gsm8k_platinum", "data": data}, "'gsm8k_platinum' is not one"),
        ({"task": "reading", "data": data}, "reading is Tinytown's"),
        ({"task": "gsm8k"}, "did not come from the hub .* give data=FILE"),
        ({"task": "gsm8k_platinum"}, "did not come from the hub"),  # which lm-eval has, in another folder than gsm8k
    ]:
        with pytest.raises(ValueError, match=sentence):
            tasks.load_tasks(**given)
    for given, sentence in [
        ({"seeds": [0, 0]}, "seeds are .0, 0.; give different ones"),
        ({"seeds": []}, "give different ones"),
        ({"limit": 0}, "limit is 0"),
        ({"shots": -1}, "shots is -1"),
        ({"shots": 0, "stepz": 3}, "no argument stepz"),
        ({"seed": 3, "answers": "x"}, "An evaluation sets answers, seed itself; give model, seeds and out"),
        ({"model": Said(str), "steps": 3}, "The model is loaded already; give it steps yourself"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            given = {"task": "gsm8k", "model": "tinytown-instruct", "data": data, "out": tmp_path / "out.json"} | given
            tasks.evaluate(**given)


def test_command(tmp_path, capsys):
    out = tmp_path / "puzzle.json"
    tasks.main(["puzzle", "model=tinytown-instruct", "limit=4", "seeds=0,1", "steps=2", "chat=true", f"out={out}"])
    assert "puzzle, score,none: " in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["scores"]["puzzle"]["prompts"] == 4 and found["seeds"] == [0, 1] and found["settings"]["chat"] is True
    for arguments, sentence in [
        ([], "Give a task, a model .* this is nothing"),
        (["--help"], "Give a task, a model"),
        (["model=x"], "Give a task, a model .* this is model=x"),
        (["puzzle"], "Give a task, a model and each field once"),
        (["puzzle", "model=x", "limit"], "each field once: .* this is puzzle model=x limit"),
        (["puzzle", "model=x", "model=y"], "each field once"),
        (["puzzle", "model=x", "seeds=0,a"], "seed is 'a'"),
        (["puzzle", "model=nothing", f"out={out}"], "There is no model 'nothing'"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            tasks.main(arguments)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_command_ends_with_a_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tasks", "puzzle"])
    with pytest.raises(SystemExit, match="Give a task, a model and each field once"):
        runpy.run_module("tess2lite.evaluation.tasks", run_name="__main__")
