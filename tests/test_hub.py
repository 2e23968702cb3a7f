"""From the hub and to it, by the real client against a hub on this machine (`fake_hub.py`)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fake_hub import TOKEN, Hub

from tess2lite.training import build, recipe
from tess2lite.training import run as training_run
from tess2lite.validation import InputError

ROOT = Path(__file__).parent.parent
# What somebody else does with what was pushed: plain PEFT and tess2lite, from an empty cache.
OPEN = """
import torch
import tess2lite as t2
from peft import AutoPeftModelForCausalLM
from tess2lite.pretrained.probes import causal

plain = AutoPeftModelForCausalLM.from_pretrained("me/mine")
lm = t2.load("me/mine")
ids = torch.tensor([[1, 5, 17, 40, 9]])
with torch.no_grad(), causal(lm):
    expected = plain(input_ids=ids, use_cache=False).logits[0]
    logits = lm.head(lm.hidden_states(lm.embedding_matrix()[ids], None)[0])
    with plain.disable_adapter():
        base = plain(input_ids=ids, use_cache=False).logits[0]
assert torch.allclose(logits[:, : expected.shape[1]], expected, atol=1e-4)
assert (expected - base).abs().max() > 1e-2
assert t2.generate(lm, "The cat", steps=2, length=4, progress=False).token_ids
"""


@pytest.fixture
def hub(own, tmp_path):
    """A hub that has the AR model as someone/base."""
    with Hub(tmp_path / "cache") as hub:
        base = tmp_path / "ar"
        hub.repos["someone/base"] = {file.name: file.read_bytes() for file in base.iterdir()}
        yield hub


def run(hub, *arguments, **environment):
    """A process that takes the hub for the real one; what it prints."""
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | quiet | hub.environment | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_a_run_from_the_hub_is_pushed_to_it(own, tmp_path, hub):
    """First the hub has no room for it; the next morning it has. Then somebody else opens it."""
    fields = own(model="someone/base", lora_rank=4, learning_rate=3e-2, push_to_hub="me/mine")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    hub.is_full = True
    status, printed = run(hub, "-m", "tess2lite.train", str(path))
    last = printed.strip().splitlines()[-1]
    assert status == 1 and "Traceback" not in printed
    assert last.startswith(f"The model is finished in '{fields['output']}', but it was not pushed to 'me/mine': ")
    assert "403" in last and last.endswith("run it again to push it.") and not hub.repos["me/mine"]

    hub.is_full = False
    status, printed = run(hub, "-m", "tess2lite.train", str(path))
    assert status == 0, printed
    assert "already reached step 20" in printed and f"pushed to {hub.address}/me/mine" in printed
    files = hub.repos["me/mine"]
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    model = {"adapter_config.json", "adapter_model.safetensors", "diffusion.json"}
    assert {*files} == model | tokenizer | {"README.md", "log.jsonl"}
    for name in model:
        assert files[name] == (tmp_path / "run" / name).read_bytes()
    assert "me/mine" in hub.private
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "someone/base"

    card = files["README.md"].decode()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["base_model"] == "someone/base"
    assert "from someone/base as a LoRA adapter" in text and "t2.load('me/mine')" in text
    shown = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    kept = {"model", "steps", "lora_rank", "learning_rate", "length", "batch_size", "push_to_hub"}
    assert {name: shown[name] for name in kept} == {name: fields[name] for name in kept}
    logged = [json.loads(line) for line in files["log.jsonl"].decode().splitlines()]
    (evaluated,) = [entry for entry in logged if "eval_loss" in entry]
    assert f"| 20 | {evaluated['eval_loss']:.4f} |" in text and f"{evaluated['eval_loss_at_250']:.3f}" in text

    status, printed = run(hub, "-c", OPEN, HF_HOME=str(tmp_path / "elsewhere"))
    assert status == 0, printed


REHEARSE = """
import os
import sys
from tess2lite.training import rehearsal
from tess2lite.validation import InputError

for token, name in zip(sys.argv[1::2], sys.argv[2::2]):
    os.environ["HF_TOKEN"] = token
    try:
        rehearsal._require_hub(name)
        print("good")
    except InputError as problem:
        print(problem)
"""


def test_a_rehearsal_asks_whether_it_may_push(hub):
    tries = [
        (TOKEN, "me/mine", "^good$"),
        (TOKEN, "lab/ours", "^good$"),
        (TOKEN, "someone/base", "^'me' may not push to 'someone/base'; give a name in me or lab.$"),
        ("hf_expired", "me/mine", "^Nothing can be pushed to the hub: .*; log in, or leave push_to_hub out.$"),
        ("hf_reading", "me/mine", "the token of 'me' may only read; log in with one that may write"),
    ]
    arguments = [argument for token, name, _ in tries for argument in (token, name)]
    _, printed = run(hub, "-c", REHEARSE, *arguments)
    lines = printed.splitlines()
    assert len(lines) == len(tries)
    for line, (_, _, sentence) in zip(lines, tries, strict=True):
        assert re.search(sentence, line), line


def test_a_hub_that_is_down_is_found_by_a_rehearsal(own, tmp_path, hub):
    """By the command, before anything is trained."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(own(push_to_hub="me/mine", rehearse=True)))
    hub.shutdown()
    hub.server_close()
    status, printed = run(hub, "-m", "tess2lite.train", str(path))
    assert status == 1 and "Traceback" not in printed
    assert "Nothing can be pushed to the hub: " in printed and "log in, or leave push_to_hub out" in printed
    assert not list(tmp_path.glob("run*"))


FIND = """
import sys
from tess2lite.pretrained.sources import find_source
from tess2lite.validation import InputError

for name in sys.argv[1:]:
    try:
        print(find_source(name))
    except InputError as problem:
        print(problem)
"""


def test_a_repository_of_one_gguf_file_is_read_by_its_name(hub):
    hub.repos["someone/packed"] = {"README.md": b"", "model.gguf": b"GGUF"}
    hub.repos["someone/many"] = {"a-Q4_0.gguf": b"GGUF", "b-Q8_0.gguf": b"GGUF"}
    hub.repos["someone/both"] = {"config.json": b"{}", "model.gguf": b"GGUF"}
    names = ["someone/packed", "someone/many", "someone/both", "nobody/nothing"]
    _, printed = run(hub, "-c", FIND, *names)
    packed, many, both, nothing = printed.splitlines()
    assert packed == "someone/packed/model.gguf"
    assert "holds 2 GGUF files; name one of them, say 'someone/many/a-Q4_0.gguf'" in many
    assert (both, nothing) == ("someone/both", "nobody/nothing")


@pytest.mark.parametrize("name", ["mine", "me/mine/too", "me/", "https://huggingface.co/me/mine"])
def test_a_repository_has_an_owner_and_a_name(own, name):
    with pytest.raises(InputError, match=r"push_to_hub is .*; give a repository as owner/name"):
        build.check_run(recipe.Recipe(**own(push_to_hub=name)))


def test_an_adapter_of_a_local_base_is_said_to_be_of_no_use_to_others(own, capsys, monkeypatch):
    """It names its base, and a name of the hub is all that another computer can find."""
    monkeypatch.setattr(training_run, "push", lambda recipe: "there")
    for fields, is_said in (({"lora_rank": 2}, True), ({}, False), ({"lora_rank": 2, "push_to_hub": ""}, False)):
        output = own()["output"] + str(len(fields))
        settings = own(
            **{"push_to_hub": "me/mine", "steps": 2, "evaluate_every": 2, "warmup": 0} | fields | {"output": output}
        )
        training_run.train(recipe.Recipe(**settings))
        assert ("nobody else can open an adapter of it" in capsys.readouterr().out) == is_said
