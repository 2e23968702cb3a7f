"""Any task on any denoiser: `python -m tess2lite.evaluation.tasks gsm8k model=NAME [data=FILE] [field=value …]`.

Tasks: lm-eval's by name (gsm8k, ifeval, triviaqa, bbh_zeroshot_word_sorting, …), from the hub or from a local file;
squad, with lm-eval's prompt and SQuAD's own scores; Tinytown's six. Prompts and scorers of public tasks are lm-eval's.
Fields: data, fewshot, shots, limit, seeds, out, and what the model takes (`harness.Denoiser`): steps, top_p, chat, ….
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shlex
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

from transformers import AutoTokenizer

from .. import inputs
from ..data import json_lines, read_text
from ..loading import bundled
from ..recipe import value_of
from ..tinytown import instruct
from ..tinytown import tasks as tinytown
from .results import stamp, write_json
from .statistics import bootstrap

# Of each family of tasks: its fields in a local file, and which of them nothing else may share.
FIELDS = {
    "gsm8k": ({"question": str, "answer": str}, ("question",)),
    "bbh": ({"input": str, "target": str}, ("input",)),
    "ifeval": ({"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list}, ("key", "prompt")),
    "triviaqa": ({"question_id": str, "question": str, "answer": dict}, ("question_id",)),
    "squad": ({"id": str, "title": str, "context": str, "question": str, "answers": dict}, ("id",)),
}
OTHERS = ("squadv2", "squad_completion")  # of lm-eval, for the hub's data alone
PROMPTS, FITTING = 200, 124  # of a Tinytown task, where no limit is given; tokens of prompt and answer, of 128


def read_records(path, family: str) -> list[dict]:
    """A local task file, checked: JSON lines, a JSON list, or a JSON object with `examples` as BIG-Bench Hard has."""
    if Path(path).suffix == ".jsonl":
        records = list(json_lines(path))
    else:
        try:
            content = json.loads(read_text(path))
        except json.JSONDecodeError as problem:
            raise ValueError(f"'{path}' is not JSON ({problem.msg}, line {problem.lineno}); mend it.") from None
        content = content.get("examples") if isinstance(content, dict) else content
        if not isinstance(content, list) or not content:
            raise ValueError(
                f"'{path}' holds no examples; give a list of records, or an object with one as 'examples'."
            )
        records = list(enumerate(content, 1))
    fields, unique = FIELDS[family]
    seen = {}
    for number, record in records:
        where = f"{'Line' if Path(path).suffix == '.jsonl' else 'Example'} {number} of '{path}'"
        for name, kind in fields.items():
            value = record.get(name) if isinstance(record, dict) else None
            if not isinstance(value, kind) or value == "":
                raise ValueError(f"{where} has no {name} ({kind.__name__}); {family} needs {', '.join(fields)}.")
        for name in unique:
            if (before := seen.setdefault((name, record[name]), number)) != number:
                raise ValueError(f"{where} has the same {name} as {before}; leave one of them out.")
    if family == "ifeval":
        _check_instructions(path, records)
    return [{name: record[name] for name in fields} for _, record in records]


def _check_instructions(path, records) -> None:
    prepare_ifeval()
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    for number, record in records:
        unknown = [name for name in record["instruction_id_list"] if name not in INSTRUCTION_DICT]
        if unknown or len(record["kwargs"]) != len(record["instruction_id_list"]):
            problem = f"the unknown instruction {unknown[0]}" if unknown else "not one kwargs for each instruction"
            raise ValueError(f"Record {number} of '{path}' has {problem}; IFEval's verifiers need both.")


def prepare_ifeval() -> str:
    """IFEval's verifiers without a download, and the same ones every time. Returns what splits sentences.

    They want nltk's punkt_tab. Where this machine lacks it, Punkt splits untrained: it takes "Dr." for an end.
    """
    import nltk
    from langdetect import DetectorFactory
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    DetectorFactory.seed = 0  # without one it guesses languages anew each time
    try:
        nltk.data.find("tokenizers/punkt_tab")
        return "punkt_tab"
    except LookupError:
        pass
    find, nltk.data.find = nltk.data.find, lambda name: name  # else lm-eval's module downloads it on import
    try:
        from lm_eval.tasks.ifeval import instructions_util
    finally:
        nltk.data.find = find

    def words(text):
        return nltk.word_tokenize(text, preserve_line=True)

    instructions_util._get_sentence_tokenizer = PunktSentenceTokenizer
    instructions_util.nltk = SimpleNamespace(word_tokenize=words, tokenize=nltk.tokenize)
    return "punkt, untrained"


def _squad() -> dict:
    """SQuAD 1.1, asked as lm-eval asks SQuAD 2. Its own scorer for that one is downloaded; the official normalisation
    and F1 are in lm-eval itself, with another task."""
    from lm_eval.tasks.qasper.metrics import f1_abstractive, normalize_answer

    def scores(doc, results):
        golds, answer = doc["answers"]["text"], results[0]
        same = [normalize_answer(answer) == normalize_answer(gold) for gold in golds]
        return {"exact_match": float(any(same)), "f1": float(max(f1_abstractive([answer], [gold]) for gold in golds))}

    return _config("squad", scores, ("exact_match", "f1"), ["\n"]) | {
        "dataset_path": "rajpurkar/squad", "training_split": "train", "validation_split": "validation",
        "doc_to_text": "Title: {{title}}\n\nBackground: {{context}}\n\nQuestion: {{question}}\n\nAnswer:",
        "doc_to_target": "{{answers.text[0]}}",
    }  # fmt: skip


def _tinytown(task: str, limit: int | None) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(bundled()["tinytown-base"])
    made = instruct.test_examples(task, tokenizer, FITTING, 0, limit or PROMPTS)[: limit or PROMPTS]
    docs = [{"prompt": e.prompt, "response": e.response, "key": json.dumps(e.key)} for e in made]

    def scores(doc, results):
        example = tinytown.Example(task, doc["prompt"], doc["response"], json.loads(doc["key"]))
        return {"score": tinytown.score(example, results[0])}

    return _config(task, scores, ("score",), []) | {
        "custom_dataset": lambda **_: _splits(docs, docs), "test_split": "test", "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{response}}",
    }  # fmt: skip


def _config(task, scores, metrics, until) -> dict:
    return {
        "task": task, "output_type": "generate_until", "process_results": scores, "num_fewshot": 0,
        "generation_kwargs": {"until": until},
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics],
    }  # fmt: skip


def _splits(docs: list[dict], shots: list[dict]) -> dict:
    """What lm-eval takes for a dataset: shots in the split that is called train, the prompts in all others."""
    from datasets import Dataset

    return defaultdict(lambda: Dataset.from_list(docs), train=Dataset.from_list(shots))


def load_tasks(task: str, data=None, fewshot=None, shots: int | None = None, limit: int | None = None) -> list:
    """lm-eval's task objects of a name: one, or those of a group.

    data: a local file instead of the hub. fewshot: a second one to take worked examples from. shots: how many, if not
    as many as the task says. limit: of a Tinytown task's prompts.
    """
    try:
        import lm_eval.tasks as harness
    except ImportError:
        raise ValueError("Evaluation needs lm-eval: pip install 'tess2lite[eval]'.") from None
    if task in tinytown.TASKS:
        if any(given is not None for given in (data, fewshot, shots)):
            raise ValueError(f"{task} is Tinytown's and makes its own prompts; leave data, fewshot and shots out.")
        return list(harness.TaskManager(include_defaults=False).load([_tinytown(task, limit)])["tasks"].values())
    family = next((name for name in FIELDS if task.startswith(name) and task not in OTHERS), None)
    folder = Path(harness.__file__).parent / (family or "")  # to read all of them takes seconds
    manager = harness.TaskManager(include_path=str(folder), include_defaults=False)
    if task != "squad" and task not in manager.all_tasks:
        raise ValueError(
            f"There is no task '{task}'; give squad, one of Tinytown's ({', '.join(tinytown.TASKS)}), or one that "
            "`lm_eval ls tasks` lists, as gsm8k, ifeval, triviaqa or bbh_zeroshot_word_sorting."
        )
    if family == "ifeval":
        prepare_ifeval()
    spec = _squad() if task == "squad" else task
    if data is not None:
        spec = _local(manager, spec, task, family, data, fewshot, shots)
    elif fewshot is not None:
        raise ValueError("fewshot goes with data; from the hub a task has its own examples.")
    try:
        objects = list(manager.load([spec])["tasks"].values())
    except OSError as problem:  # datasets' words for no network and for no such data set
        raise ValueError(f"The data of '{task}' did not come from the hub ({problem}); give data=FILE.") from None
    for each in objects:
        if shots is not None:
            each.set_config("num_fewshot", shots)
    return objects


def _local(manager, spec, task, family, data, fewshot, shots):
    """The task with the splits of local files."""
    if family is None or task in manager.all_groups + manager.all_tags:
        raise ValueError(f"data is one file of a single task of {', '.join(FIELDS)}; '{task}' is none.")
    docs, config = read_records(data, family), spec if task == "squad" else manager.task_index[task].cfg
    shots = config.get("num_fewshot") or 0 if shots is None else shots
    if shots and not (config.get("fewshot_config") or {}).get("samples"):  # it brings no worked examples along
        if fewshot is None:
            raise ValueError(
                f"{task} shows {shots} worked examples and '{data}' has only what is asked; give a second file as "
                "fewshot, or shots=0."
            )
        if len(examples := read_records(fewshot, family)) < shots:
            raise ValueError(
                f"'{fewshot}' has {len(examples)} examples, {task} shows {shots}; give more, or fewer shots."
            )
    examples = docs if fewshot is None else read_records(fewshot, family)
    dataset = {"custom_dataset": lambda **_: _splits(docs, examples)}
    # lm-eval changes a task that it knows only as a member of a group.
    return spec | dataset if task == "squad" else {"group": "local", "task": [{"task": task, **dataset}]}


def evaluate(task, model, data=None, fewshot=None, shots=None, limit=None, seeds=(0,), out=None, **settings) -> dict:
    """A task's scores on a model, in `out` (by default runs/eval/TASK.json), and its answers in a log beside it.

    model: a name that `load` takes, or a model of lm-eval. data, fewshot, shots: as in `load_tasks`. limit: the first
    so many prompts. seeds: one run each; scores are means over them, intervals (95 %) over prompts. settings: of
    `harness.Denoiser`. An interrupted evaluation, started again, goes on from its answers.
    """
    limit = None if limit is None else inputs.whole("limit", limit, 1)
    shots = None if shots is None else inputs.whole("shots", shots, 0)
    seeds = [inputs.whole("seed", seed, 0) for seed in (seeds if isinstance(seeds, (list, tuple)) else [seeds])]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {seeds}; give different ones, as seeds=0,1,2.")
    out, start = Path(out or f"runs/eval/{task}.json"), time.monotonic()
    objects = load_tasks(task, data, fewshot, shots, limit)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from .harness import Denoiser

    if isinstance(model, (str, Path)):
        lm = Denoiser(model, answers=out.with_suffix(".answers.jsonl"), **settings)
    else:
        lm = model
    runs, manager = {}, TaskManager(include_defaults=False)
    for seed in seeds:
        lm.seed = seed
        runs[seed] = simple_evaluate(
            model=lm, tasks=objects, limit=limit, bootstrap_iters=0, task_manager=manager, log_samples=True
        )
    given = {"data": data, "fewshot": fewshot, "shots": shots, "limit": limit, **settings}
    given = {name: value for name, value in given.items() if value is not None}
    asked = [f"model={model}", f"seeds={','.join(map(str, seeds))}", *(f"{k}={v}" for k, v in given.items())]
    result = {
        "task": task, "model": str(model), "scores": {name: _scores(runs, name) for name in runs[seeds[0]]["results"]},
        "seeds": seeds, "settings": given | (lm.get_model_info() if hasattr(lm, "get_model_info") else {}),
        "sha256": {str(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in (data, fewshot) if path},
        "seconds": round(time.monotonic() - start, 1), "environment": stamp(),
        "command": shlex.join(["python", "-m", "tess2lite.evaluation.tasks", task, *asked, f"out={out}"]),
    }  # fmt: skip
    if task == "ifeval":
        result["settings"]["sentences"] = prepare_ifeval()
    write_json(out, result)
    return result


def _scores(runs: dict[int, dict], task: str) -> dict:
    """Of each metric: mean over seeds, 95 % interval over prompts, each seed's value, and how many were scored."""
    found = {"prompts": len({sample["doc_id"] for sample in next(iter(runs.values()))["samples"][task]})}
    for name in next(iter(runs.values()))["results"][task]:
        metric, _, filtered = name.partition(",")
        if not filtered or metric.endswith("_stderr"):
            continue
        values = {seed: run["results"][task][name] for seed, run in runs.items()}
        found[name] = {"mean": statistics.mean(values.values()), "seeds": values}
        samples = [[s[metric] for s in run["samples"][task] if s["filter"] == filtered] for run in runs.values()]
        if all(isinstance(value, list) for value in samples[0]):  # one score an instruction
            samples = [list(itertools.chain(*run)) for run in samples]
        if all(isinstance(value, (bool, int, float)) for value in samples[0]):
            _, low, high = bootstrap([statistics.mean(each) for each in zip(*samples, strict=True)])
            found[name] |= {"low": low, "high": high, "scored": len(samples[0])}
    return found


def main(arguments: list[str]) -> None:
    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        raise ValueError(
            "Give a task and a model: python -m tess2lite.evaluation.tasks gsm8k model=NAME [field=value …]."
        )
    fields = {}
    for field in arguments[1:]:
        name, equals, value = field.partition("=")
        if not equals or name in fields:
            raise ValueError(
                f"'{field}' says nothing new; write each field once, as field=value, for example limit=20."
            )
        fields[name] = value_of(value)
    if "model" not in fields:
        raise ValueError("Which model? Give model=NAME, for example model=tinytown-instruct.")
    if isinstance(fields.get("seeds"), str):
        fields["seeds"] = [value_of(seed) for seed in fields["seeds"].split(",")]
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for task, scores in evaluate(arguments[0], **fields)["scores"].items():
        for name, score in scores.items():
            if isinstance(score, dict):
                spread = f" ({score['low']:.3f} to {score['high']:.3f})" if "low" in score else ""
                print(f"{task}, {name}: {score['mean']:.3f}{spread}, {scores['prompts']} prompts")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit(130)
