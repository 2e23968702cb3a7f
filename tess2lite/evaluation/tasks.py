"""Any task on any denoiser: `python -m tess2lite.evaluation.tasks gsm8k model=NAME [data=FILE] [field=value …]`.

Tasks: lm-eval's by name (gsm8k, ifeval, triviaqa, bbh_zeroshot_word_sorting, …), from the hub or from a local file;
squad, with lm-eval's prompt and SQuAD's own scores; Tinytown's six. Prompts and scorers of public tasks are lm-eval's.
Fields: data, fewshot, shots, limit, seeds, out, and what the model takes (`harness.Denoiser`): steps, top_p, chat, ….
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import shlex
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer

from .. import validation
from ..loading import bundled
from ..tinytown import tasks as tinytown
from ..training.data import json_lines, read_text
from ..training.recipe import value_of
from .intervals import bootstrap
from .lm_eval_adapter import Denoiser, command
from .results import stamp, write_json

# isort: split
from lm_eval import simple_evaluate  # after .harness, which says what to install where it is missing
from lm_eval.tasks import TaskManager

# A record of each family of tasks as a local file has it; no two may share their first field.
FIELDS = {
    "gsm8k": {"question": "…", "answer": "…"},
    "bbh": {"input": "…", "target": "…"},
    "ifeval": {"key": 1, "prompt": "…", "instruction_id_list": ["…"], "kwargs": [{}]},
    "triviaqa": {"question_id": "…", "question": "…", "answer": {"aliases": ["…"]}},
    "squad": {"id": "…", "title": "…", "context": "…", "question": "…", "answers": {"text": ["…"]}},
}
PROMPTS, FITTING = 200, 124  # of a Tinytown task, where no limit is given; tokens of prompt and answer, of 128


def read_records(path, family: str) -> list[dict]:
    """A local task file, checked: JSON lines, a JSON list, or a JSON object with `examples` as BIG-Bench Hard has."""
    if Path(path).suffix == ".jsonl":
        unit, records = "Line", json_lines(path)
    else:
        try:
            content = json.loads(read_text(path))
        except json.JSONDecodeError as problem:
            raise ValueError(f"'{path}' is not JSON ({problem.msg}, line {problem.lineno}); mend it.") from None
        content = content.get("examples") if isinstance(content, dict) else content
        if not isinstance(content, list) or not content:
            raise ValueError(f"'{path}' holds no examples; give a list of records, or an object with it as 'examples'.")
        unit, records = "Example", enumerate(content, 1)
    form, seen, kept = FIELDS[family], {}, []
    for number, record in records:
        where, record = f"{unit} {number} of '{path}'", record if isinstance(record, dict) else {}
        if wrong := [name for name in form if not _like(record.get(name), form[name])]:
            raise ValueError(f"{where} has no {wrong[0]} as {family} needs it: {json.dumps(form, ensure_ascii=False)}.")
        if family == "ifeval" and not _verifiable(record):
            asked = f"{', '.join(record['instruction_id_list'])} with {len(record['kwargs'])} kwargs"
            raise ValueError(f"{where} asks for {asked}; give instructions that IFEval verifies, and kwargs for each.")
        if (before := seen.setdefault(record[next(iter(form))], number)) != number:
            raise ValueError(f"{where} has the same {next(iter(form))} as {before}; leave one of them out.")
        kept.append({name: record[name] for name in form})
    return kept


def _like(value, form) -> bool:
    """Whether a value has the form of another: its type, not empty, and so have its fields or items."""
    if type(value) is not type(form) or value in ("", []):
        return False
    if isinstance(form, dict):
        return all(_like(value.get(name), part) for name, part in form.items())
    return not isinstance(form, list) or all(_like(part, form[0]) for part in value)


def _verifiable(record: dict) -> bool:
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    names = record["instruction_id_list"]
    return set(names) <= set(INSTRUCTION_DICT) and len(names) == len(record["kwargs"])


def prepare_ifeval() -> str:
    """IFEval's verifiers without a download, and the same ones every time. Returns what splits sentences.

    They want nltk's punkt_tab. Where this machine lacks it they get an empty one, beside this file, which is Punkt
    untrained: it takes "Dr." for an end.
    """
    import nltk
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0  # without one it guesses languages anew each time
    empty = str(Path(__file__).with_name("nltk_data"))
    nltk.data.path += [] if empty in nltk.data.path else [empty]
    return "punkt, untrained" if empty in str(nltk.data.find("tokenizers/punkt_tab")) else "punkt_tab"


def squad_scores(doc: dict, results: list[str]) -> dict[str, float]:
    """SQuAD 1.1's scores. lm-eval downloads its scorer of SQuAD 2, and has the official one with another task."""
    from lm_eval.tasks.qasper.metrics import f1_abstractive, normalize_answer

    golds, answer = doc["answers"]["text"], results[0]
    same = any(normalize_answer(answer) == normalize_answer(gold) for gold in golds)
    return {"exact_match": float(same), "f1": float(max(f1_abstractive([answer], [gold]) for gold in golds))}


def _tinytown(task: str, number: int) -> dict:
    """lm-eval's configuration of a task of Tinytown's."""
    tokenizer = AutoTokenizer.from_pretrained(bundled()["tinytown-base"])
    made = tinytown.fitting(tinytown.examples(task, "test", 3 * number), tokenizer, FITTING)[:number]
    docs = [{"prompt": e.prompt, "response": e.response, "number": i} for i, e in enumerate(made)]
    return {
        "task": task, "output_type": "generate_until", "custom_dataset": lambda **_: _splits(docs, docs),
        "test_split": "test", "doc_to_text": "{{prompt}}", "doc_to_target": "{{response}}", "num_fewshot": 0,
        "generation_kwargs": {"until": []},
        "process_results": lambda doc, results: {"score": tinytown.score(made[doc["number"]], results[0])},
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip


def _splits(docs: list[dict], shots: list[dict]) -> dict:
    """What lm-eval takes for a dataset: shots in the split that is called train, the prompts in all others."""
    return defaultdict(lambda: Dataset.from_list(docs), train=Dataset.from_list(shots))


def load_tasks(task: str, data=None, fewshot=None, shots: int | None = None, limit: int | None = None) -> list:
    """lm-eval's task objects of a name: one, or those of a group.

    data: a local file instead of the hub. fewshot: a second one to take worked examples from. shots: how many, if not
    as many as the task says. limit: of a Tinytown task's prompts.
    """
    if task in tinytown.TASKS:
        if any(given is not None for given in (data, fewshot, shots)):
            raise ValueError(f"{task} is Tinytown's and makes its own prompts; leave data, fewshot and shots out.")
        manager, spec = TaskManager(include_defaults=False), _tinytown(task, limit or PROMPTS)
    else:
        manager, family = _manager(task)
        spec = task if data is None else _local(manager, task, family, data, fewshot, shots)
        if data is None and fewshot is not None:
            raise ValueError("fewshot goes with data; from the hub a task has its own examples.")
    try:
        objects = list(manager.load([spec])["tasks"].values())
    except OSError as problem:  # datasets' words for no network and for no such data set
        raise ValueError(f"The data of '{task}' did not come from the hub ({problem}); give data=FILE.") from None
    if shots is not None:
        for each in objects:
            each.set_config("num_fewshot", shots)
    return objects


def _manager(task: str) -> tuple[TaskManager, str | None]:
    """lm-eval's manager that knows a task, and the task's family; to read all of lm-eval's tasks takes seconds."""
    family = next((name for name in FIELDS if task.startswith(name)), None)
    if family == "ifeval":
        prepare_ifeval()
    folder = Path(__file__).parent if family == "squad" else Path(inspect.getfile(TaskManager)).parent / str(family)
    manager = TaskManager(include_path=folder, include_defaults=False)
    if task not in manager.all_tasks:
        manager, family = TaskManager(), None
    if task not in manager.all_tasks:
        raise ValueError(
            f"There is no task '{task}'; give squad, one of Tinytown's ({', '.join(tinytown.TASKS)}), or one that "
            "`lm_eval ls tasks` lists, as gsm8k, ifeval, triviaqa or bbh_zeroshot_word_sorting."
        )
    return manager, family


def _local(manager, task, family, data, fewshot, shots) -> dict:
    """The task with the splits of local files."""
    if family is None or task not in manager.all_subtasks:
        raise ValueError(f"data is one file of a single task of {', '.join(FIELDS)}; '{task}' is none.")
    docs, config = read_records(data, family), manager.task_index[task].cfg
    examples = docs if fewshot is None else read_records(fewshot, family)
    shots = config.get("num_fewshot") or 0 if shots is None else shots
    brought = (config.get("fewshot_config") or {}).get("samples")
    if not brought and shots > (len(examples) if fewshot else 0):
        found = f"'{fewshot}' has {len(examples)}" if fewshot else f"'{data}' has only what is asked"
        raise ValueError(f"{task} shows {shots} worked examples, {found}; give a file of more as fewshot, or shots=0.")
    # lm-eval changes a task that it knows only as a member of a group.
    return {"group": "local", "task": [{"task": task, "custom_dataset": lambda **_: _splits(docs, examples)}]}


def evaluate(task, model, data=None, fewshot=None, shots=None, limit=None, seeds=(0,), out=None, **settings) -> dict:
    """A task's scores on a model, in `out` (by default runs/eval/TASK.json), and its answers in a log beside it.

    model: a name that `load` takes, or a model of lm-eval. data, fewshot, shots: as in `load_tasks`. limit: the first
    so many prompts. seeds: one run each; scores are means over them, intervals (95 %) over prompts. settings: of
    `harness.Denoiser`. An interrupted evaluation, started again, goes on from its answers.
    """
    limit = None if limit is None else validation.check_int("limit", limit, 1)
    shots = None if shots is None else validation.check_int("shots", shots, 0)
    seeds, made = [seeds] if isinstance(seeds, int) else seeds, not isinstance(model, (str, Path))
    seeds = [validation.check_int("seed", seed, 0) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {seeds}; give different ones, as seeds=0,1,2.")
    if own := sorted({"pretrained", "seed", "answers"} & settings.keys()):
        raise ValueError(f"An evaluation sets {', '.join(own)} itself; give model, seeds and out.")
    if made and settings:
        raise ValueError(f"The model is made already; give it {', '.join(settings)} yourself, or give its name.")
    out, start = Path(out or f"runs/eval/{task}.json"), time.monotonic()
    objects = load_tasks(task, data, fewshot, shots, limit)
    lm = model if made else Denoiser(model, answers=out.with_suffix(".answers.jsonl"), **settings)
    runs, manager = {}, TaskManager(include_defaults=False)
    for seed in seeds:
        lm.seed = seed
        runs[seed] = simple_evaluate(lm, tasks=objects, limit=limit, bootstrap_iters=0, task_manager=manager)
    given = {"data": data, "fewshot": fewshot, "shots": shots, "limit": limit, **settings}
    given = {name: value for name, value in given.items() if value is not None}
    asked = [f"model={model}", f"seeds={','.join(map(str, seeds))}", *(f"{k}={v}" for k, v in given.items())]
    result = {
        "task": task, "model": str(model), "scores": {name: _scores(runs, name) for name in runs[seeds[0]]["results"]},
        "seeds": seeds, "settings": given | getattr(lm, "get_model_info", dict)(),
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
    first = next(iter(runs.values()))
    found = {"prompts": len({sample["doc_id"] for sample in first["samples"][task]})}
    for name in [name for name in first["results"][task] if "," in name and "_stderr," not in name]:
        metric, _, filtered = name.partition(",")
        values = {seed: run["results"][task][name] for seed, run in runs.items()}
        found[name] = {"mean": statistics.mean(values.values()), "seeds": values}
        samples = [[s[metric] for s in run["samples"][task] if s["filter"] == filtered] for run in runs.values()]
        if all(isinstance(value, list) for value in samples[0]):  # one score an instruction
            samples = [[value for values in run for value in values] for run in samples]
        if all(isinstance(value, (bool, int, float)) for value in samples[0]):
            _, low, high = bootstrap([statistics.mean(each) for each in zip(*samples, strict=True)])
            found[name] |= {"low": low, "high": high, "scored": len(samples[0])}
    return found


def main(arguments: list[str]) -> None:
    task, *given = arguments or [""]
    fields = dict(field.split("=", 1) for field in given if "=" in field)
    if "=" in task or task[:1] in ("", "-") or len(fields) < len(given) or "model" not in fields:
        raise ValueError(
            "Give a task, a model and each field once: python -m tess2lite.evaluation.tasks gsm8k model=NAME "
            f"[field=value …]; this is {' '.join(arguments) or 'nothing'}."
        )
    fields = {name: value_of(f"[{value}]" if name == "seeds" else value) for name, value in fields.items()}
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for name, scores in evaluate(task, **fields)["scores"].items():
        for metric, score in scores.items():
            if metric != "prompts":
                spread = f" ({score['low']:.3f} to {score['high']:.3f})" if "low" in score else ""
                print(f"{name}, {metric}: {score['mean']:.3f}{spread}, {scores['prompts']} prompts")


if __name__ == "__main__":
    command(main, sys.argv[1:])
