"""Bad input in the notebooks' own cells, in a real kernel: one sentence, a short traceback, and the kernel goes on."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from jupyter_client.manager import start_new_kernel
from transformers import LlamaConfig

import tess2lite as t2
from tess2lite.reward import classifier

ROOT = Path(__file__).parent.parent
LINES = 25
STORY = '"Once there was a girl named Anna. Anna lost her red kite in the forest."'
DENOISED = '{"input_ids": page, "span_mask": writable}'


# Of each notebook the cells that are run, named by something in them, and what is changed in one: (old, new, what the
# sentence holds, or None where nothing is wrong). After that a cell is run as it stands; where None ends the list, it
# is not: it would take long, or needs cells that would.
CASES = {
    "00_quickstart": {
        't2.load("tinytown-base")': [
            ('"tinytown-base"', '"tinytown-bse"', "no model 'tinytown-bse': give a bundled name"),
            ('"tinytown-base"', '"someone/model"', "'someone/model'"),
            ('"tinytown-base"', '"no/such/folder"', "'no/such/folder'"),
            ('"tinytown-base"', '""', "''"),
            ('"tinytown-base"', '"foreign"', "model is a bert"),
            ('"tinytown-base"', '"corrupt"', "corrupt' could not be loaded: .*header"),
            ('"tinytown-base"', '"pickled"', "pickled' .*pickled weights .* are not read"),
            ('"tinytown-base"', '"stacked"', "stacked' is an adapter on .*tinytown-reward"),
            ('"tinytown-base"', '"tinytown-reward"', "reward model"),
            ('"tinytown-base"', '"tinytown-base", device="cuda"', "device is 'cuda'.*PyTorch sees no GPU"),
        ],
        "STEPS = pick": [
            ("STEPS = ", "%env TESS2LITE_PROFILE=foo\nSTEPS = ", "TESS2LITE_PROFILE is 'foo'"),
            ("STEPS = ", "%env TESS2LITE_PROFILE=smoke\nSTEPS = ", None),
            (STORY, '""', "prompt is empty"),
            (STORY, '"word " * 500', "505 tokens long and fills this model's context of 256"),
            (STORY, "5", "prompt is int"),
            (STORY, '"\\ud800"', "contains an unpaired surrogate"),
            (STORY, '[{"role": "robot", "content": "Hi"}]', "role 'robot'"),
            ("lm, ", '"tinytown-base", ', "lm is a str"),
            ("steps=STEPS", "steps=0", "steps is 0"),
            ("steps=STEPS", "steps=2.5", "steps is 2.5"),
            ("seed=0", "seed='a'", "seed is 'a'"),
            ("seed=0", "top_p=2", "top_p is 2"),
            ("seed=0", "temperature=-1", "temperature is -1"),
            ("length=72, seed=0", "length=500", "length is 500.* only \\d+ of 256 are left"),
            ("seed=0", "hooks=[t2.RewardGuidance]", "hooks holds <class .*RewardGuidance"),
        ],
        "trajectory_map(out": [("out.trajectory", "lm", "run is a MistralForDiffusionLM")],
        "run_panel(lm": [("steps=STEPS", "steps=0", "steps is 0"), ("lm, ", "None, ", "lm is a NoneType")],
        "t2.infill(lm, story": [("lm, story", "lm, 'Anna ran.'", "'Anna ran.' has no blanks")],
        "MY_FILE": [
            ("MY_FILE = None", "MY_FILE = 'none.txt'", "no text file 'none.txt'"),
            ("MY_FILE = None", "MY_FILE = 'empty.txt'", "'empty.txt' holds no text"),
            ("MY_FILE = None", "MY_FILE = 'binary.txt'", "'binary.txt' is not UTF-8 text"),
        ],
        "t2.denoise(lm": [
            ("steps=STEPS", "steps=0", "steps is 0"),
            ("[lm.tokenizer.bos_token_id]", "[9999]", "Token id 9999 is outside this model's vocabulary of 1359"),
            ("[None] > 0", "[None] > 99", "span_mask has a row with nothing to denoise"),
            ("[None] > 0", "[None] < 9", "span_mask covers a row's first token"),
            (DENOISED, "page", "batch is a Tensor"),
        ],
    },
    "01_simplex_noising": {
        "K = 5.0": [],
        "kite = torch.tensor": [],
        "levels = [1.0, 0.7": [],
        "from tess2lite.simplex import": [],
        "schedules(T)": [("T = 5000", "T = 0", "timesteps is 0"), ("T = 5000", "T = 2.5", "timesteps is 2.5")],
        "DRAWS =": [],
        "curve, times = ": [("alpha_bar(T)", 'alpha_bar(T, "cosine")', "schedule is 'cosine'")],
        "KNOWN =": [],
        "noise_panel(lm": [("KNOWN + SENTENCE", "None", "text is None"), ("lm, ", "None, ", "lm is a NoneType")],
    },
    "02_ar_to_diffusion": {
        "AR = ": [],
        "base = t2.load": [("tokenizer, 64", "tokenizer, 0", "length is 0"), None],
        "STEPS = pick": [],
        'adapt("lora")': [
            ('"lora"', '"lora", lenght=64', "'lenght'"),
            ('"lora"', '"lora", warmup="soon"', "warmup is 'soon'"),
            ('"lora"', '"lora", embeddings="all"', "embeddings is 'all'"),
            ('"lora"', '"lora", output="empty.txt/x"', "Nothing can be written to 'empty.txt/x'"),
            ('adapt("lora")', "build_trainer('mistral-7b-nf4')", "recipe is 'mistral-7b-nf4'"),
            ('adapt("lora")', "read_recipe('mistral')", "no recipe 'mistral'"),
            ('adapt("lora")', "read_recipe('mistral-7b-nf4', lenght=64)", "no field 'lenght'"),
            *[
                ('adapt("lora")', f"build_trainer(Recipe(**(SMALL | SIZES | dict(output='x', {field}))))", sentence)
                for field, sentence in (
                    ("data='none.txt'", "'none.txt'"),
                    ("data='binary.txt'", "'binary.txt' is not UTF-8 text"),
                    ("data='broken.jsonl'", "'broken.jsonl' gives 0 rows of 64 tokens"),
                    ("data='someone/set'", "hub dataset 'someone/set'"),
                    ("batch_size=5", "batch_size is 5"),
                    ("length=4096", "length is 4096"),
                    ("model='tinytown-reward'", "'tinytown-reward' is an adapter"),
                )
            ],
            None,
        ],
        'adapted = t2.load("runs/02-lora")': [("02-lora", "02-lara", "runs/02-lara"), None],
    },
    "03_instruction_tuning": {
        "BASE = ": [],
        "question, answer = ": [
            ('"role": "user"', '"role": "usr"', "role 'usr'"),
            ('"content": answer', '"content": ""', "assistant's message has no content"),
            ("tokenizer, messages", "tokenizer, 'Hi'", "A chat has no messages"),
        ],
        "for record in (": [("except ValueError", "except KeyError", "no chat in the columns text")],
        "chat = t2.Chat(instruct": [
            ("t2.Chat(instruct", "t2.Chat(None", "lm is a NoneType"),
        ],
        "TUNE = ": [],
        "from tess2lite.training.run import train": [],
        "OWN = {": [],
        "SMALLEST = dict(": [("steps=pick(smoke=2, cpu=60, gpu=60)", "steps=-1", "steps is -1"), None],
    },
    "04_denoising_trajectory": {
        "PROMPT = ": [],
        "run.save(": [
            ('run.save("runs/', 'run.save("nowhere/', "'nowhere/04-run.safetensors' could not be written"),
            ('load("runs/04-run.safetensors")', 'load("broken.jsonl")', "'broken.jsonl' is not a complete trajectory"),
        ],
        "def token(word)": [
            ("{spot:", "{0:", "Position 0 is not written"),
            ("{spot:", "{500:", "Position 500 is not written"),
            ('token("Max")}', "99999}", "token is 99999"),
            ("start=where", "start=400", "start is 400; this run has steps 0 to 9"),
        ],
        "Branch(at, seed=9)": [("Branch(at", "Branch(at + 100", "step is 100; this run has steps 0 to 9")],
        "eight words sampled again": [("[8:16]", "[:0]", "span_mask has a row with nothing"), None],
        "intervention_panel(lm": [("lm, out", "lm, None", "run is a NoneType")],
        "halted = ": [
            ("Halt()", "Halt(patience=0)", "patience is 0"),
            ("Halt()", "Halt", "hooks holds <class .*Halt"),
        ],
    },
    "05_reward_guidance": {
        "cheerful = ": [
            ('"tinytown-reward", base=lm', '"foreign-judge", base=lm', "'foreign-judge' is a whole model"),
            ('"tinytown-reward", base=lm', '"tinytown-base"', "is not a reward model"),
            ('"tinytown-reward", base=lm', '"tinytown-reward", base=t2.load("tinytown-ar")', "on 'tinytown-ar'"),
        ],
        "asked = next": [("cheerful, written)", "cheerful, written[0])", "generations holds no texts")],
        "def steered(": [
            ("steered(10", "steered(-1", "scale is -1"),
            ("steered(10", "steered(float('nan')", "scale is nan"),
            ("(cheerful, scale)", "(cheerful, scale, inner_steps=0)", "inner_steps is 0"),
            ("(cheerful, scale)", "(cheerful, scale, weights=[1, 2])", "1 reward models and 2 weights"),
            ("(cheerful, scale)", "(lm, scale)", "reward model is a MistralForDiffusionLM"),
            ("(cheerful, scale)", "(t2.load_reward('foreign-judge'), scale)", "reads 64 tokens, the denoiser .* 1359"),
            None,
        ],
        "guidance_panel(lm": [
            ('{"cheerful": cheerful, "brief": brief}', "{}", "rewards is dict"),
            ('{"cheerful": cheerful, "brief": brief}', "{'cheerful': lm}", "reward model is a MistralForDiffusionLM"),
        ],
        "judge_trainer = ": [
            ('"tinytown:cheerful"', '"tinytown:gloomy"', "'tinytown:gloomy' is not a preference"),
            ("lora_rank=8", "lora_rank='8'", "lora_rank is '8'"),
            None,
        ],
    },
    "06_evaluation": {
        "judge.tokenizer = ": [],
        "import evaluate": [
            ('evaluate("arithmetic"', 'evaluate("arithmetics"', "no task 'arithmetics'"),
            ('"tinytown-instruct", **settings, out', '"tinytown", **settings, out', "no model 'tinytown'"),
            ('"limit": ASKED', '"limit": 0', "limit is 0"),
            ("data=str(file)", "data='broken.jsonl'", "broken.jsonl"),
            ('out="runs/06-arithmetic.json"', 'out="empty.txt/x.json"', "Nothing can be written to 'empty.txt/x"),
            None,
        ],
    },
    "07_mistral_on_one_gpu": {
        "import gc": [],
        "MISTRAL = ": [],
        "SEVEN_B = ": [("FULL = ", "read_recipe('mistral-7b-nf4', steps=-1)\nFULL = ", "steps is -1")],
        "def random_mistral": [],
        "scratch = tempfile": [
            ("load_in_4bit=True", 'load_in_4bit=True, device="cuda"', "device is 'cuda'.*PyTorch sees no GPU"),
            None,
        ],
    },
}


class Kernel:
    """A real one, as JupyterLab starts it."""

    def __init__(self, folder):
        env = os.environ | {"TESS2LITE_PROFILE": "smoke", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder), env=env)

    def run(self, source):
        """(what the cell printed, the lines of its error); none where it went well."""
        printed, error = [], []

        def heard(message):
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                printed.append(content["text"])
            elif kind == "error":
                text = "\n".join(content["traceback"])
                error.extend(re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())

        self.client.execute_interactive(source, timeout=120, allow_stdin=False, output_hook=heard)
        return "".join(printed), error

    def stop(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as `notebooks` is, with what a reader may have lying about."""
    root = tmp_path_factory.mktemp("reader")
    (root / "assets").symlink_to(ROOT / "assets")
    (root / "tests").symlink_to(ROOT / "tests")
    here = root / "notebooks"
    here.mkdir()
    (here / "empty.txt").write_text("")
    (here / "binary.txt").write_bytes(bytes(range(256)))
    (here / "broken.jsonl").write_text('{"text": "One line."}\nanother\n')
    for name in ("corrupt", "pickled", "foreign"):
        shutil.copytree(GOLDEN / "checkpoint", here / name)
    weights = here / "corrupt" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (here / "pickled" / "model.safetensors").unlink()
    torch.save({}, here / "pickled" / "pytorch_model.bin")
    (here / "foreign" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    shutil.copytree(t2.bundled()["tinytown-reward"], here / "stacked")
    stacked = here / "stacked" / "adapter_config.json"
    named = json.loads(stacked.read_text()) | {"base_model_name_or_path": str(t2.bundled()["tinytown-reward"])}
    stacked.write_text(json.dumps(named))
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
    config = LlamaConfig(vocab_size=64, **sizes)
    classifier(config)(config).save_pretrained(here / "foreign-judge")
    return here


@pytest.fixture(scope="module")
def kernel(folder):
    kernel = Kernel(folder)
    yield kernel
    kernel.stop()


def cells(name):
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_sentence_and_the_kernel_goes_on(kernel, name):
    kernel.run("%reset -f")
    for marker, changes in CASES[name].items():
        cell = next(source for source in cells(name) if marker in source)
        for old, new, sentence in filter(None, changes):
            assert old in cell, f"the cell with {marker!r} has no {old!r} any more"
            _, error = kernel.run(cell.replace(old, new, 1))
            shown = "\n".join([f"{old} → {new}", *error])
            if sentence is None:
                assert not error, shown
                continue
            assert error and re.search(f"^(InputError|ValueError|TypeError|OSError): .*{sentence}", error[-1]), shown
            assert len(error) == 1 or not error[-1].startswith("InputError"), shown
            assert kernel.run("print(1 + 1)") == ("2\n", []), shown
        if None not in changes:
            assert kernel.run(cell)[1] == [], marker


@pytest.fixture
def ready(kernel):
    kernel.run("import tess2lite as t2\nlm = t2.load('tinytown-base')")
    yield kernel
    kernel.run("%xmode Context")


@pytest.mark.parametrize("look", ["%tb", "%xmode Verbose\nt2.load('corrupt')"])
def test_nothing_is_lost_for_who_looks_closer(ready, look):
    """All frames and the cause, which the short form leaves out."""
    _, short = ready.run("t2.load('corrupt')")
    assert len(short) == 1 and short[0].startswith("InputError: ")
    _, whole = ready.run(look)
    assert any("loading.py" in line for line in whole) and any("SafetensorError" in line for line in whole)
    assert whole[-1] == short[-1]


def test_the_cause_is_kept(ready):
    printed, _ = ready.run(
        "try:\n    t2.load('corrupt')\nexcept ValueError as problem:\n    print(repr(problem.__cause__))"
    )
    assert printed.startswith("SafetensorError")


@pytest.mark.parametrize(
    "source, last",
    [
        ("t2.generate(lm, 'Anna', hooks=[lambda step: 1 / 0])", "ZeroDivisionError: division by zero"),
        ("lm.config = None\nt2.generate(lm, 'Anna')", "AttributeError: 'NoneType' object has no attribute"),
        ("t2.generate(lm, 'Anna', hooks=[lambda step: int('x')])", "ValueError: invalid literal for int()"),
    ],
)
def test_what_the_package_did_not_say_is_shown_whole(ready, source, last):
    _, error = ready.run(source)
    assert error[-1].startswith(last) and any("generation.py" in line for line in error)
