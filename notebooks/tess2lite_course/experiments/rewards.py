"""The bundled reward models: adapters on tinytown-instruct, trained on preference pairs by TRL's RewardTrainer."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import torch

from tess2lite.chat_template import encode_chat
from tess2lite.pretrained.reward_models import load_reward
from tess2lite.tinytown.tasks import preferences
from tess2lite.training.recipe import RewardRecipe
from tess2lite.training.reward import pair_of
from tess2lite.training.run import train

from .guidance_sweep import KINDS

BUNDLED_FILES = ("adapter_config.json", "adapter_model.safetensors", "reward.json")
STEPS = 150
BATCH = 32
SCORED = 400  # test pairs


def build_reward(out: Path, name: str, length: int) -> Path:
    """One reward model, skipped where it is there, with a card."""
    folder = out / name
    if folder.exists():
        return folder
    recipe = RewardRecipe(
        model=str(out / "tinytown-instruct"),
        data=f"tinytown:{KINDS[name]}",
        output=str(out / f"{name}-training"),
        lora_rank=8,
        learning_rate=2e-3,
        length=length,
        batch_size=BATCH,
        micro_batch_size=BATCH,
        steps=STEPS,
        warmup=STEPS // 8,
        evaluate_every=50,
        save_every=50,
    )
    train(recipe)
    complete = Path(recipe.output) / "complete"
    complete.mkdir(exist_ok=True)
    for file in BUNDLED_FILES:
        shutil.copy(Path(recipe.output) / file, complete)
    settings = json.loads((complete / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "tinytown-instruct"  # wherever it was trained, it is bundled by that name
    (complete / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    card = {
        "model": name,
        "trained_from": "tinytown-instruct",
        "preference": KINDS[name],
        "lora_rank": recipe.lora_rank,
        "pairs": recipe.steps * recipe.batch_size,
        "device": f"{platform.machine()} CPU",
        **accuracy(recipe.output, KINDS[name], length),
    }
    (complete / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    complete.rename(folder)
    return folder


def accuracy(folder: str, kind: str, length: int) -> dict[str, float]:
    """On test pairs: how often the truly better answer is preferred, and how predicted and true reward correlate."""
    model = load_reward(folder)
    predicted = []
    true = []
    for pair in preferences("test", SCORED, kind):
        for side, chat in zip(("chosen", "rejected"), pair_of(pair), strict=True):
            row = encode_chat(model.tokenizer, chat, length)[0]
            predicted.append(float(model.score_ids(torch.tensor([row["input_ids"]]))[0]))
            true.append(pair[f"{side}_reward"])
    right = [better > worse for better, worse in zip(predicted[::2], predicted[1::2], strict=True)]
    together = torch.corrcoef(torch.tensor([predicted, true]))[0, 1]
    return {"test_pairs": SCORED, "accuracy": sum(right) / SCORED, "correlation": round(float(together), 3)}
