"""What a commit of this project writes, small, into a folder named after it. README.md says how to run this."""

import json
import os
import sys
import tempfile
from pathlib import Path
from shutil import copytree, rmtree

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, MistralForSequenceClassification

import tess2lite as t2
from tess2lite import recipe, train

HERE = Path(__file__).resolve().parent
KEPT = (".safetensors", ".json", ".yaml", "")  # no pickles; "" is the mark of a whole checkpoint
FIELDS = dict(
    model="base", data="own.txt", length=24, batch=4, rows_at_once=4, steps=2, learning_rate=0.05, warmup=0,
    lora_rank=1, held_out=2, evaluate_every=9, save_every=2,
)  # fmt: skip
TEXT = "The cat sat on the mat. The dog saw a red ball in the barn. " * 20
PAIRS = [{"prompt": "Say a word.", "chosen": f"happy {word}", "rejected": f"sad {word}"} for word in TEXT.split()[:20]]


def said(lm) -> dict:
    """Every 16th logit of six unknown tokens, from a simplex that needs no random numbers, and a text."""
    simplex, unknown = 5 * torch.sin(torch.arange(12.0 * 326)).view(1, 12, 326), torch.arange(12)[None] >= 6
    with torch.no_grad():
        logits = lm.logits_from_simplex(simplex, torch.full((1, 12), 0.5), torch.arange(40, 52)[None], unknown)
    rows = [[round(z, 6) for z in row] for row in logits[0, 6:, ::16].tolist()]
    return {"logits": rows, "tokens": t2.generate(lm, "The cat", 6, length=8).token_ids}


def adapter(name, kind="Recipe", **changes):
    run = train.train(getattr(recipe, kind)(**FIELDS | {"output": name} | changes))
    rmtree(Path(name, f"checkpoint-{run.state.max_steps}"))
    return kind == "RewardRecipe" or said(t2.load(name, load_in_4bit=changes.get("load_in_4bit", False)))


def merged(name):
    from tess2lite.merge import merge

    adapter("unmerged")
    merge("unmerged", name)
    return said(t2.load(name))


def reward(name):
    adapter(name, "RewardRecipe", data="pairs.jsonl", length=48)
    return t2.load_reward(name).score_ids(torch.arange(40, 60).view(2, 10)).tolist()


def trajectory(name, model="base", judge=None):
    lm = t2.load(model)
    lm.name_or_path = model  # which the trajectory tells: no folder of this machine
    hooks = [t2.RewardGuidance(t2.load_reward(judge), scale=5)] if judge else []
    run = t2.generate(lm, "The cat", 6, length=8, hooks=hooks).trajectory
    run.save(f"{name}.safetensors")
    rewards = [] if run.reward is None else run.reward.tolist()
    return {"texts": run.texts, "tokens": run.tokens.tolist(), "flips": run.flips().tolist(), "rewards": rewards}


def guided(name):
    """By a whole classifier: reward models were nothing else at first."""
    torch.manual_seed(0)
    MistralForSequenceClassification(AutoConfig.from_pretrained("base", num_labels=1)).save_pretrained("judge")
    return trajectory(name, judge="judge")


def checkpoint(name):
    """After two steps of four. Torch's pickles of optimizer and scheduler are kept as safetensors."""
    whole, folder = adapter(name, steps=4, embeddings="frozen"), Path(name, "checkpoint-2")
    optimizer, scheduler = (torch.load(folder / f"{part}.pt") for part in ("optimizer", "scheduler"))
    tensors = {f"{i}.{key}": value for i, state in optimizer["state"].items() for key, value in state.items()}
    rest = {"param_groups": optimizer["param_groups"], "scheduler": scheduler}
    save_file(tensors, folder / "optimizer.safetensors", {"rest": json.dumps(rest)})
    Path(name, "adapter_model.safetensors").unlink()  # of the finished run
    return whole


MAKES = {
    "dc50fd6": {
        "lora": adapter,
        "trained": lambda name: adapter(name, embeddings="trained"),
        "nf4": lambda name: adapter(name, load_in_4bit=True),
    },
    "b7975b7": {"merged": merged},
    "dab39e0": {"plain": trajectory, "guided": guided},
    "2740e51": {"lora": adapter, "plain": trajectory, "run": checkpoint},
    "2f28954": {"reward": reward, "guided": lambda name: trajectory(name, judge="reward")},
    "96cbad8": {"guided": lambda name: trajectory(name, judge=str(HERE / "2f28954/reward"))},
    "4cf6c2e": {
        "masked": lambda name: adapter(name, "MaskedRecipe", embeddings="frozen"),
        "plain": lambda name: trajectory(name, "masked"),
    },
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        copytree(HERE / "base", "base")
        Path("own.txt").write_text(TEXT)
        Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
        expected = {name: make(name) for name, make in MAKES[sys.argv[1]].items()}
        out = HERE / sys.argv[1]
        out.mkdir()
        (out / "expected.json").write_text(json.dumps(expected) + "\n")
        known = {path.read_bytes() for path in Path("base").iterdir()}  # a tokenizer once is enough
        for path in [path for name in expected for path in [Path(f"{name}.safetensors"), *Path(name).rglob("*")]]:
            if path.suffix in KEPT and path.is_file() and path.read_bytes() not in known:
                (out / path).parent.mkdir(parents=True, exist_ok=True)
                (out / path).write_bytes(path.read_bytes().replace(f"{folder}/".encode(), b""))
