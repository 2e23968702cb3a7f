"""`~` and $VARIABLES mean the same at every door: each function that takes a path reads and writes the folder meant."""

import importlib
import inspect
import json
import pkgutil
import shutil

import pytest
import yaml
from conftest import GOLDEN
from peft import LoraConfig, get_peft_model
from test_explorer import trajectory
from test_external_tasks import GSM8K, Said

import tess2lite as t2
from tess2lite import validation
from tess2lite.evaluation import results, tasks
from tess2lite.evaluation.lm_eval_adapter import Denoiser
from tess2lite.training import merge, recipe, sources
from tess2lite.training.data import read_chats
from tess2lite.trajectory import Trajectory
from tess2lite.validation import InputError
from tess2lite.viz.export import export
from tess2lite.viz.live import page
from tess2lite_course.experiments import runner

DOORS = {}


def door(function):
    """Keeps a check of one door: of a folder as a user writes it, and of the room that it means."""
    DOORS[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def furniture(tmp_path_factory):
    """A folder with a file for every door that reads."""
    room = tmp_path_factory.mktemp("furniture")
    shutil.copytree(GOLDEN / "checkpoint", room / "checkpoint")
    shutil.copytree(GOLDEN / "reward", room / "judge")
    adapter = get_peft_model(t2.load(room / "checkpoint"), LoraConfig(target_modules=["q_proj"], r=2))
    adapter.save_pretrained(room / "adapter")
    trajectory(["a", "b"]).save(room / "run.safetensors")
    (room / "own.txt").write_text("The cat sat.")
    chat = [{"role": "user", "content": "A word?"}, {"role": "assistant", "content": "Cat."}]
    (room / "chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    (room / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    fields = {"model": "tinytown-base", "data": "tinytown", "output": "run", "steps": 3, "warmup": 1}
    (room / "recipe.yaml").write_text(yaml.safe_dump(fields))
    shutil.copy(runner.RECIPES / "09.yaml", room / "own-experiment.yaml")
    return room


@door
def load(folder, room):
    return t2.load(f"{folder}/checkpoint").name_or_path == str(room / "checkpoint")


@door
def load_reward(folder, room):
    return t2.load_reward(f"{folder}/judge").config.num_labels == 1


@door
def load_an_adapter(folder, room):
    path = room / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": f"{folder}/checkpoint"}))
    return t2.load(f"{folder}/adapter").name_or_path == str(room / "adapter")


@door
def save_pretrained(folder, room):
    t2.load(GOLDEN / "checkpoint").save_pretrained(f"{folder}/saved")
    return (room / "saved" / "model.safetensors").is_file()


@door
def trajectory_save(folder, room):
    trajectory(["a", "b"]).save(f"{folder}/saved.safetensors")
    return (room / "saved.safetensors").is_file()


@door
def trajectory_load(folder, room):
    return len(Trajectory.load(f"{folder}/run.safetensors")) == 2


@door
def export_a_page(folder, room):
    return export(trajectory(["a", "b"]), f"{folder}/run.html") == room / "run.html" and (room / "run.html").is_file()


@door
def export_a_picture(folder, room):
    return export(trajectory(["a", "b"]), f"{folder}/run.png") == room / "run.png" and (room / "run.png").is_file()


@door
def write_page(folder, room):
    lm = t2.load("tinytown-base", dtype="float32", device="cpu")
    return page.write_page(f"{folder}/live.html", lm) == (room / "live.html").stat().st_size


@door
def merge_reads_and_writes(folder, room):
    merge.merge(f"{folder}/adapter", f"{folder}/merged")
    return (room / "merged" / "model.safetensors").is_file()


@door
def read_recipe(folder, room):
    made = recipe.read_recipe(f"{folder}/recipe.yaml", output=f"{folder}/run", model=f"{folder}/checkpoint")
    return (made.output, made.model) == (str(room / "run"), str(room / "checkpoint"))


@door
def data_of_a_recipe(folder, room):
    named = sources.parse_sources([f"{folder}/chats.jsonl", {"path": f"{folder}/own.txt"}])
    return [source.path for source in named] == [str(room / "chats.jsonl"), str(room / "own.txt")]


@door
def read_text(folder, room):
    return sources.read_text(f"{folder}/own.txt") == "The cat sat."


@door
def json_lines(folder, room):
    return len(list(sources.json_lines(f"{folder}/gsm8k.jsonl"))) == len(GSM8K)


@door
def chats(folder, room):
    return len(list(read_chats(f"{folder}/chats.jsonl")["messages"])) == 1


@door
def read_records(folder, room):
    return len(tasks.read_records(f"{folder}/gsm8k.jsonl", "gsm8k")) == len(GSM8K)


@door
def evaluate(folder, room):
    files = {"data": f"{folder}/gsm8k.jsonl", "fewshot": f"{folder}/gsm8k.jsonl", "out": f"{folder}/out.json"}
    result = tasks.evaluate("gsm8k", Said(lambda doc: doc["answer"]), shots=1, limit=2, **files)
    return result == json.loads((room / "out.json").read_text()) or (room / "out.json").is_file()


@door
def a_log_of_answers(folder, room):
    results.Log(f"{folder}/answers.jsonl").add("key", 1)
    return results.Log(room / "answers.jsonl").records == {"key": 1}


@door
def lm_eval_adapter(folder, room):
    Denoiser(f"{folder}/checkpoint", answers=f"{folder}/lm-eval.jsonl", length=4)
    return (room / "lm-eval.jsonl").is_file()


@door
def experiments(folder, room):
    return runner.read_experiment(f"{folder}/own-experiment.yaml")["name"] == "own-experiment"


@pytest.mark.parametrize("written", ["~", "$ROOM", "${ROOM}"])
@pytest.mark.parametrize("check", DOORS.values(), ids=DOORS)
def test_home_and_variables_are_expanded(check, written, furniture, tmp_path, monkeypatch):
    room = tmp_path / "room"
    shutil.copytree(furniture, room)
    monkeypatch.setenv("HOME", str(room))
    monkeypatch.setenv("ROOM", str(room))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert check(written, room)
    assert not list((tmp_path / "elsewhere").iterdir())  # nothing is called "~" or "$ROOM"


def test_an_unset_variable_is_a_mistake_not_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOWHERE", raising=False)
    for path in ("$NOWHERE/run.html", "${NOWHERE}/run.html", "~nobody-of-that-name/run.html"):
        with pytest.raises(InputError, match="is not set"):
            export(trajectory(["a"]), path)
    with pytest.raises(InputError, match="The path is None"):
        export(trajectory(["a"]), None)
    (tmp_path / "cost in $US").mkdir()
    assert validation.expand_path(tmp_path / "cost in $US") == str(tmp_path / "cost in $US")
    assert not list(tmp_path.glob("*NOWHERE*"))


# Functions with a path among their parameters that get it from one of the doors above, expanded.
BEHIND_THE_DOORS = {
    "tess2lite.pretrained.shared_base": {"model_on_base"},
    "tess2lite.pretrained.sources": {"find_source", "plain_errors"},  # `load` hands on what it is given
    "tess2lite.evaluation.results": {"writing", "write_json", "write_text"},
    "tess2lite.recording.files": {"read_fields", "write_fields"},  # of Trajectory
    "tess2lite.training.checkpoints": {"last_checkpoint", "write_atomically"},
    "tess2lite.training.merge": {"merged_model"},  # as `load`
    "tess2lite.training.progress": {"Progress"},
    "tess2lite.training.sources": {"suffix_of"},
    "tess2lite.training.trainer": {"save_diffusion_config"},
    "tess2lite.validation": {"expand_path"},
}


def test_no_function_that_takes_a_path_is_forgotten():
    called = "".join(inspect.getsource(check) for check in DOORS.values())
    forgotten = []
    for module in modules():
        for name, member in inspect.getmembers(module):
            is_ours = getattr(member, "__module__", "") == module.__name__ and not name.startswith("_")
            if not is_ours or not (inspect.isfunction(member) or inspect.isclass(member)):
                continue
            takes_path = any("Path" in str(p.annotation) for p in signature(member).parameters.values())
            if takes_path and f"{name}(" not in called and name not in BEHIND_THE_DOORS.get(module.__name__, ()):
                forgotten.append(f"{module.__name__}.{name}")
    assert forgotten == []


def modules():
    found = pkgutil.walk_packages(t2.__path__, "tess2lite.")
    return [importlib.import_module(info.name) for info in found if not info.name.endswith(("__main__", ".train"))]


def signature(member):
    try:
        return inspect.signature(member)
    except ValueError:
        return inspect.Signature()
