"""Any task on any denoiser: `python -m tess2lite.evaluation.tasks gsm8k model=NAME [data=FILE] [field=value …]`.

Tasks: lm-eval's by name (gsm8k, ifeval, triviaqa, bbh_zeroshot_word_sorting, …), from the hub or from a local file;
squad, with lm-eval's prompt and SQuAD's own scores; gsm8k_published, squad_published and triviaqa_published, asked and
scored as TESS 2's code does, whose scores alone compare with the paper's Table 3; Tinytown's six. Prompts and scorers
of other public tasks are lm-eval's. Fields: data, fewshot, shots, limit, seeds, out, and what the model accepts
(`lm_eval_adapter.Denoiser`): steps, top_p, chat, ….
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import re
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import AutoTokenizer

from .. import validation
from ..pretrained.sources import bundled
from ..tinytown import tasks as tinytown
from ..training.data import json_lines, read_text
from ..training.recipe import value_of
from ..validation import InputError, expand_path
from .intervals import mean_interval
from .lm_eval_adapter import Denoiser, command
from .results import stamp, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..model import SimplexDenoiser

# isort: split
from lm_eval import simple_evaluate  # after .lm_eval_adapter, which says what to install where it is missing
from lm_eval.tasks import TaskManager

# A record of each family of tasks as a local file has it. The first field names a record in messages.
FIELDS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "…", "answer": "…"},
    "bbh": {"input": "…", "target": "…"},
    "ifeval": {"key": 1, "prompt": "…", "instruction_id_list": ["…"], "kwargs": [{}]},
    "triviaqa": {"question_id": "…", "question": "…", "answer": {"aliases": ["…"]}},
    "squad": {"id": "…", "title": "…", "context": "…", "question": "…", "answers": {"text": ["…"]}},
}
UNIQUE = ("ifeval", "triviaqa", "squad")  # whose first field is an id; others may ask the same question again
PUBLISHED = "_published"  # how the tasks end that are asked as TESS 2's code asks them
TINYTOWN_PROMPTS = 200  # of a task, where no limit is given
TINYTOWN_MARGIN = 4  # tokens of the context that prompt and answer leave free


def read_records(path: str | Path, family: str) -> list[dict]:
    """Reads and checks a local task file.

    Args:
        path: JSON lines, a JSON list, or a JSON object with `examples`, as BIG-Bench Hard has.
        family: One of `FIELDS`.

    Returns:
        The records, with the fields of their family. Questions may repeat, as in official files; ids may not.

    Raises:
        InputError: For a file that cannot be read, or the first record that the family cannot use.
    """
    records = _json_lines(path) if Path(path).suffix == ".jsonl" else _json_examples(path)
    form = FIELDS[family]
    numbers: dict[str, int] = {}
    checked = []
    for number, unit, record in records:
        where = f"{unit} {number} of '{path}'"
        record = record if isinstance(record, dict) else {}
        wrong = [name for name in form if not _has_form(record.get(name), form[name])]
        if wrong:
            example = json.dumps(form, ensure_ascii=False)
            raise InputError(f"{where} has no {wrong[0]} as {family} needs it: {example}.")
        if family == "ifeval" and not _is_verifiable(record):
            names = f"{', '.join(record['instruction_id_list'])} with {len(record['kwargs'])} kwargs"
            raise InputError(f"{where} asks for {names}; give instructions that IFEval verifies, and kwargs for each.")
        name = next(iter(form))
        first = numbers.setdefault(record[name], number)
        if family in UNIQUE and first != number:
            raise InputError(f"{where} has the same {name} as {first}; leave one of them out.")
        checked.append({name: record[name] for name in form})
    return checked


def _json_lines(path) -> Iterable[tuple[int, str, object]]:
    for number, record in json_lines(path):
        yield number, "Line", record


def _json_examples(path) -> Iterable[tuple[int, str, object]]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as problem:
        raise InputError(f"'{path}' is not JSON ({problem.msg}, line {problem.lineno}); correct it.") from None
    if isinstance(content, dict):
        content = content.get("examples")
    if not isinstance(content, list) or not content:
        raise InputError(f"'{path}' holds no examples; give a list of records, or an object with it as 'examples'.")
    for number, record in enumerate(content, 1):
        yield number, "Example", record


def _has_form(value, form) -> bool:
    """Whether a value has the form of another: its type, not empty, and so have its fields or items."""
    if type(value) is not type(form) or value in ("", []):
        return False
    if isinstance(form, dict):
        return all(_has_form(value.get(name), part) for name, part in form.items())
    if isinstance(form, list):
        return all(_has_form(part, form[0]) for part in value)
    return True


def _is_verifiable(record: dict) -> bool:
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    names = record["instruction_id_list"]
    return set(names) <= set(INSTRUCTION_DICT) and len(names) == len(record["kwargs"])


def prepare_ifeval() -> str:
    """Makes IFEval's verifiers work without a download, and deterministic.

    They want nltk's punkt_tab. A machine that lacks it gets an empty one, beside this file, which is Punkt untrained:
    it ends a sentence at "Dr.".

    Returns:
        What splits sentences.
    """
    import nltk
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0  # without a seed it guesses languages differently each time
    empty = str(Path(__file__).with_name("nltk_data"))
    if empty not in nltk.data.path:
        nltk.data.path.append(empty)
    used = str(nltk.data.find("tokenizers/punkt_tab"))
    return "punkt, untrained" if empty in used else "punkt_tab"


def squad_scores(doc: dict, results: list[str]) -> dict[str, float]:
    """Returns SQuAD 1.1's scores. lm-eval downloads its scorer of SQuAD 2; the official one belongs to another task."""
    return _overlap(results[0], doc["answers"]["text"])


def _overlap(answer: str, golds: list[str]) -> dict[str, float]:
    from lm_eval.tasks.qasper.metrics import f1_abstractive, normalize_answer

    matches = [normalize_answer(answer) == normalize_answer(gold) for gold in golds]
    overlaps = [f1_abstractive([answer], [gold]) for gold in golds]
    return {"exact_match": float(any(matches)), "f1": float(max(overlaps))}


# ---------------------------------------------------------------- as TESS 2's code asks and scores


def published_gsm8k_prompt(doc: dict) -> str:
    """Returns the eight worked examples of lm-eval's gsm8k_cot, and the question."""
    folder = Path(inspect.getfile(TaskManager)).parent / "gsm8k"
    manager = TaskManager(include_path=folder, include_defaults=False)
    shots = manager.task_index["gsm8k_cot"].cfg["fewshot_config"]["samples"]
    worked = [f"Question: {shot['question']}\nAnswer: {shot['target']}\n\n" for shot in shots]
    return f"Answer the following questions.\n\n{''.join(worked)}Question: {doc['question'].strip()}"


def published_gsm8k_scores(doc: dict, results: list[str]) -> dict[str, float]:
    """Returns whether the last number of the answer is the right one."""
    text, target = (re.sub(r"(\d),(\d)", r"\1\2", text) for text in (results[0], doc["answer"]))
    numbers = re.findall(r"[-+]?\d*\.\d+|\d+", text)
    right = target.split("####")[-1].strip()
    return {"exact_match": float(bool(numbers) and _digits(numbers[-1]) == _digits(right))}


def _digits(number: str) -> str:
    """A number without signs and points, which the official comparison ignores as punctuation."""
    return re.sub(r"\D", "", number)


def published_triviaqa_scores(doc: dict, results: list[str]) -> dict[str, float]:
    """Returns SQuAD's scores of the whole answer against all aliases."""
    return _overlap(results[0], doc["answer"]["aliases"])


# ---------------------------------------------------------------- tasks


def _tinytown_task(task: str, number: int) -> dict:
    """lm-eval's configuration of a task of Tinytown's."""
    folder = bundled()["tinytown-base"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    context = json.loads((Path(folder) / "config.json").read_text())["max_position_embeddings"]
    examples = tinytown.examples(task, "test", 3 * number)
    examples = tinytown.fitting(examples, tokenizer, context - TINYTOWN_MARGIN)[:number]
    docs = [{"prompt": e.prompt, "response": e.response, "number": i} for i, e in enumerate(examples)]

    def scores(doc: dict, results: list[str]) -> dict[str, float]:
        return {"score": tinytown.score(examples[doc["number"]], results[0])}

    return {
        "task": task,
        "output_type": "generate_until",
        "custom_dataset": lambda **_: _splits(docs, docs),
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{response}}",
        "num_fewshot": 0,
        "generation_kwargs": {"until": []},
        "process_results": scores,
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
    }


def _splits(docs: list[dict], shots: list[dict]) -> dict:
    """A dataset as lm-eval accepts it: shots in the split that is called train, the prompts in all others."""
    return defaultdict(lambda: Dataset.from_list(docs), train=Dataset.from_list(shots))


def load_tasks(
    task: str,
    data: str | None = None,
    fewshot: str | None = None,
    shots: int | None = None,
    limit: int | None = None,
) -> list:
    """Returns lm-eval's task objects of a name: one, or those of a group.

    Args:
        task: A name, as listed above.
        data: A local file instead of the hub.
        fewshot: A second file that worked examples are taken from.
        shots: How many worked examples, by default as many as the task says.
        limit: Of a Tinytown task's prompts.

    Raises:
        InputError: For an unknown task, a file that cannot be used, or arguments that do not fit together.
    """
    if task in tinytown.TASKS:
        if any(value is not None for value in (data, fewshot, shots)):
            raise InputError(f"{task} is Tinytown's and makes its own prompts; leave data, fewshot and shots out.")
        manager = TaskManager(include_defaults=False)
        spec: str | dict = _tinytown_task(task, limit or TINYTOWN_PROMPTS)
    else:
        manager, family = _manager(task)
        spec = task if data is None else _local_task(manager, task, family, data, fewshot, shots)
        if data is None and fewshot is not None:
            raise InputError("fewshot goes with data; from the hub a task has its own examples.")
    try:
        objects = list(manager.load([spec])["tasks"].values())
    except OSError as problem:  # datasets' words for no network and for no such data set
        raise InputError(f"The data of '{task}' did not come from the hub ({problem}); give data=FILE.") from None
    if shots is not None:
        for each in objects:
            each.set_config("num_fewshot", shots)
    return objects


def _manager(task: str) -> tuple[TaskManager, str | None]:
    """lm-eval's manager that knows a task, and the task's family; reading all of lm-eval's tasks takes seconds."""
    family = next((name for name in FIELDS if task.startswith(name)), None)
    if family == "ifeval":
        prepare_ifeval()
    is_ours = family == "squad" or task.endswith(PUBLISHED)
    folder = Path(__file__).parent if is_ours else Path(inspect.getfile(TaskManager)).parent / str(family)
    manager = TaskManager(include_path=folder, include_defaults=False)
    if task not in manager.all_tasks:
        manager = TaskManager()
        family = None
    if task not in manager.all_tasks:
        raise InputError(
            f"There is no task '{task}'; give squad, one of Tinytown's ({', '.join(tinytown.TASKS)}), or one that "
            "`lm_eval ls tasks` lists, such as gsm8k, ifeval, triviaqa or bbh_zeroshot_word_sorting."
        )
    return manager, family


def _local_task(manager, task, family, data, fewshot, shots) -> dict:
    """The task with the splits of local files."""
    if family is None or task not in manager.all_subtasks:
        raise InputError(f"data is one file of a single task of {', '.join(FIELDS)}; '{task}' is not one.")
    docs = read_records(data, family)
    examples = docs if fewshot is None else read_records(fewshot, family)
    config = manager.task_index[task].cfg
    if shots is None:
        shots = config.get("num_fewshot") or 0
    has_samples = (config.get("fewshot_config") or {}).get("samples")
    if not has_samples and shots > (len(examples) if fewshot else 0):
        source = f"'{fewshot}' has {len(examples)}" if fewshot else f"'{data}' has only what is asked"
        raise InputError(f"{task} shows {shots} worked examples, {source}; give a file of more as fewshot, or shots=0.")
    # lm-eval changes a task that it knows only as a member of a group.
    return {"group": "local", "task": [{"task": task, "custom_dataset": lambda **_: _splits(docs, examples)}]}


def evaluate(
    task: str,
    model: str | SimplexDenoiser | PreTrainedModel,
    data: str | None = None,
    fewshot: str | None = None,
    shots: int | None = None,
    limit: int | None = None,
    seeds: int | Iterable[int] = (0,),
    out: str | Path | None = None,
    **settings,
) -> dict:
    """Scores a model on a task. An interrupted evaluation, started again, resumes from its answers.

    Args:
        task: As in `load_tasks`, as are data, fewshot and shots.
        model: A name that `load` accepts, or a model of lm-eval.
        limit: Ask the first so many prompts.
        seeds: Of sampling, one run each; scores are means over them, 95 % intervals resample prompts.
        out: JSON file of the result, by default runs/eval/TASK.json; the answers are kept in a log beside it.
        settings: Of `lm_eval_adapter.Denoiser`.

    Returns:
        The result as `out` has it: scores by task and metric, settings, command and environment.

    Raises:
        InputError: Before the model is loaded, for arguments that do not fit together.
    """
    limit = None if limit is None else validation.check_int("limit", limit, 1)
    shots = None if shots is None else validation.check_int("shots", shots, 0)
    seeds = [seeds] if isinstance(seeds, int) else seeds
    seeds = [validation.check_int("seed", seed, 0) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are {seeds}; give different ones, as seeds=0,1,2.")
    if own := sorted({"pretrained", "seed", "answers"} & settings.keys()):
        raise InputError(f"An evaluation sets {', '.join(own)} itself; give model, seeds and out.")
    is_loaded = not isinstance(model, (str, Path))
    if is_loaded and settings:
        raise InputError(f"The model is loaded already; give it {', '.join(settings)} yourself, or give its name.")
    out = Path(expand_path(out or f"runs/eval/{task}.json"))
    data = data and expand_path(data)
    fewshot = fewshot and expand_path(fewshot)
    start = time.monotonic()
    objects = load_tasks(task, data, fewshot, shots, limit)
    lm: Any = model if is_loaded else Denoiser(model, answers=out.with_suffix(".answers.jsonl"), **settings)
    runs = {}
    for seed in seeds:
        lm.seed = seed
        runs[seed] = simple_evaluate(
            lm,
            tasks=objects,
            limit=limit,
            bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False),
            apply_chat_template=task.endswith(PUBLISHED),
            fewshot_as_multiturn=False,
        )
    arguments = {"data": data, "fewshot": fewshot, "shots": shots, "limit": limit, **settings}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    fields = [f"model={model}", f"seeds={','.join(map(str, seeds))}", *(f"{k}={v}" for k, v in arguments.items())]
    files = [path for path in (data, fewshot) if path]
    result: dict[str, Any] = {
        "task": task,
        "model": str(model),
        "scores": {name: _scores(runs, name) for name in runs[seeds[0]]["results"]},
        "seeds": seeds,
        "settings": arguments | getattr(lm, "get_model_info", dict)(),
        "sha256": {str(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files},
        "seconds": round(time.monotonic() - start, 1),
        "environment": stamp(),
        "command": shlex.join(["python", "-m", "tess2lite.evaluation.tasks", task, *fields, f"out={out}"]),
    }
    if task == "ifeval":
        result["settings"]["sentences"] = prepare_ifeval()
    write_json(out, result)
    return result


def _scores(runs: dict[int, dict], task: str) -> dict:
    """Of each metric: mean over seeds, 95 % interval over prompts, each seed's value, and how many were scored."""
    first = next(iter(runs.values()))
    scored: dict[str, Any] = {"prompts": len({sample["doc_id"] for sample in first["samples"][task]})}
    metrics = [name for name in first["results"][task] if "," in name and "_stderr," not in name]
    for name in metrics:
        values = {seed: run["results"][task][name] for seed, run in runs.items()}
        scored[name] = {"mean": statistics.mean(values.values()), "seeds": values}
        metric, _, kind = name.partition(",")
        scores: list[float] = []
        prompts = []
        for run in runs.values():
            for sample in run["samples"][task]:
                if sample["filter"] == kind:
                    own = sample[metric] if isinstance(sample[metric], list) else [sample[metric]]
                    scores += own  # IFEval has one score per instruction
                    prompts += [sample["prompt_hash"]] * len(own)
        if all(isinstance(score, (bool, int, float)) for score in scores):
            bounds = (0, 1) if all(0 <= score <= 1 for score in scores) else None
            interval = mean_interval(scores, prompts, bounds=bounds)
            scored[name] |= {"low": interval.low, "high": interval.high, "scored": len(scores) // len(runs)}
    return scored


def main(arguments: list[str]) -> None:
    """Runs the command line above and prints the scores."""
    task, *rest = arguments or [""]
    fields = dict(field.split("=", 1) for field in rest if "=" in field)
    is_name = "=" not in task and task[:1] not in ("", "-")
    if not is_name or len(fields) < len(rest) or "model" not in fields:
        raise InputError(
            "Give a task, a model and each field once: python -m tess2lite.evaluation.tasks gsm8k model=NAME "
            f"[field=value …]; this is {' '.join(arguments) or 'nothing'}."
        )
    options: dict[str, Any] = {
        name: value_of(f"[{value}]" if name == "seeds" else value) for name, value in fields.items()
    }
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for name, scores in evaluate(task, **options)["scores"].items():
        for metric, score in scores.items():
            if metric == "prompts":
                continue
            spread = f" ({score['low']:.3f} to {score['high']:.3f})" if "low" in score else ""
            print(f"{name}, {metric}: {score['mean']:.3f}{spread}, {scores['prompts']} prompts")


if __name__ == "__main__":
    command(main, sys.argv[1:])
