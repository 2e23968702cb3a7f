"""What earlier commits made still loads, and does what it did then; `earlier/README.md` says which made what."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from earlier.make import MAKES, TEXT, said
from parity import close
from safetensors import safe_open

import tess2lite as t2
from tess2lite import train
from tess2lite.merge import merge
from tess2lite.recipe import Recipe
from tess2lite.trajectory import Trajectory

EARLIER = Path(__file__).parent / "earlier"
EXPECTED = {commit: json.loads((EARLIER / commit / "expected.json").read_text()) for commit in MAKES}
ADAPTERS = ["dc50fd6/lora", "dc50fd6/trained", "2740e51/lora", "4cf6c2e/masked"]
TRAJECTORIES = [str(path.relative_to(EARLIER))[:-12] for path in sorted(EARLIER.glob("*/*.safetensors"))]
TRAJECTORIES = [name for name in TRAJECTORIES if not name.startswith("base/")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A copy in which every folder has its tokenizer, which is stored only once, and adapters know where their base
    lies."""
    folder = tmp_path_factory.mktemp("made") / "earlier"
    shutil.copytree(EARLIER, folder)
    for path in folder.glob("*/*/**/tokenizer_config.json"):
        shutil.copy(folder / "base/tokenizer.json", path.parent)
    for path in folder.rglob("adapter_config.json"):
        path.write_text(path.read_text().replace('"base"', json.dumps(str(folder / "base"))))
    return folder


def expected(name):
    commit, artifact = name.split("/")
    return EXPECTED[commit][artifact]


def check_said(lm, name):
    ours, theirs = said(lm), expected(name)
    close(torch.tensor(ours["logits"]), torch.tensor(theirs["logits"]))
    assert ours["tokens"] == theirs["tokens"]


@pytest.mark.parametrize("name", [*ADAPTERS, "b7975b7/merged"])
def test_adapters_and_merged_models_speak_as_they_did(made, name):
    lm = t2.load(made / name)
    check_said(lm, name)
    assert said(lm)["logits"] != said(t2.load(made / "base"))["logits"]  # there was something to load
    assert getattr(lm.config, "diffusion", "simplex") == ("masked" if "masked" in name else "simplex")


def test_an_adapter_on_a_base_in_four_bits(made):
    check_said(t2.load(made / "dc50fd6/nf4", load_in_4bit=True), "dc50fd6/nf4")


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_merged_now(made, tmp_path, name):
    merge(made / name, tmp_path / "whole")
    check_said(t2.load(tmp_path / "whole"), name)


def test_a_reward_adapter_judges_as_it_did(made):
    name, ids = "2f28954/reward", torch.arange(40, 60).view(2, 10)
    for base in (None, t2.load(made / "base")):
        close(t2.load_reward(made / name, base=base).score_ids(ids), torch.tensor(expected(name)))


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectories_show_what_they_showed(made, tmp_path, name):
    run, record = Trajectory.load(made / f"{name}.safetensors"), expected(name)
    assert run.texts == record["texts"] and run.tokens.tolist() == record["tokens"]
    assert run.flips().tolist() == record["flips"]
    assert ([] if run.reward is None else run.reward.tolist()) == record["rewards"]
    assert "".join(run.known) == ("" if name.startswith("dab39e0") else "<s>The cat")  # not kept at first
    page = run._repr_html_()
    assert "step 6 of 6" in page and all(f"reward {reward:.2f}" in page for reward in record["rewards"])
    run.save(tmp_path / "again.safetensors")
    assert Trajectory.load(tmp_path / "again.safetensors").tokens.tolist() == record["tokens"]


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectories_are_written_again(made, name):
    run = Trajectory.load(made / f"{name}.safetensors")
    lm = t2.load(made / ("4cf6c2e/masked" if "4cf6c2e" in name else "base"))
    judge = t2.load_reward(made / "2f28954/reward")
    hooks = [t2.RewardGuidance(judge, scale=5)] if run.reward is not None else []
    if name.startswith("dab39e0"):  # these do not say all that a replay needs
        with pytest.raises(ValueError, match="does not say its"):
            t2.replay(lm, run, progress=False)
        if run.reward is not None:
            return  # its judge is not kept
        again = t2.generate(lm, "The cat", steps=6, length=8, progress=False).trajectory
    else:
        again = t2.replay(lm, run, hooks, progress=False).trajectory
    assert torch.equal(again.tokens, run.tokens)
    close(again.top_p, run.top_p)
    close(again.entropy, run.entropy)
    if hooks:
        close(again.reward, run.reward)


def test_a_run_goes_on(made, monkeypatch):
    """Two steps of four were made; pickles of the optimizer and the scheduler are made of what is stored."""
    monkeypatch.chdir(made / "2740e51")
    shutil.copytree(made / "base", "base")
    Path("own.txt").write_text(TEXT)
    state, checkpoint = {}, Path("run/checkpoint-2")
    with safe_open(checkpoint / "optimizer.safetensors", "pt") as file:
        rest = json.loads(file.metadata()["rest"])
        for name in file.keys():  # noqa: SIM118
            i, _, part = name.partition(".")
            state.setdefault(int(i), {})[part] = file.get_tensor(name)
    torch.save({"state": state, "param_groups": rest["param_groups"]}, checkpoint / "optimizer.pt")
    torch.save(rest["scheduler"], checkpoint / "scheduler.pt")
    fields = yaml.safe_load(Path("run/recipe.yaml").read_text())
    del fields["data_sha256"]  # which is of the data, no field
    trained = train.train(Recipe(**fields))
    assert trained.state.global_step == 4 and trained.state.log_history[0]["step"] == 1
    check_said(t2.load("run"), "2740e51/run")
