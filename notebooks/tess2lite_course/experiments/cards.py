"""README.md of each bundled model and of all together, from the facts in their card.json.

`python -m tess2lite_course.experiments.cards [FOLDER]` writes them; FOLDER is assets/models unless given.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

from safetensors import safe_open

MAKE = "`python -m tess2lite_course.experiments.build` makes it again."
LAST_WORDS = "It knows nothing but Tinytown. For learning and experiments; not for use."
TESS = "[TESS 2](https://arxiv.org/abs/2502.13917)"

# Names of the tasks, as a table says them.
TASK_NAMES = {
    "reading": "question about a passage",
    "knowledge": "fact of the world, closed book",
    "constraints": "story under constraints",
    "arithmetic": "word problem, worked",
    "counting": "puzzle: counting",
    "sorting": "puzzle: sorting",
    "tracking": "puzzle: who has what after swaps",
    "boolean": "puzzle: boolean expressions",
    "request": "open request",
}

LINE = 140  # characters
TEMPLATES = Path(__file__).parent / "card_templates"

TRUE_REWARDS = {
    "cheerful": "glad words minus sad ones, staying on the topic, no broken sentence",
    "brief": "about twelve words, staying on the topic, no broken sentence",
}


def write_cards(folder: Path) -> None:
    """Write the README.md of each model in a folder, and that of the folder."""
    cards = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/card.json"))}
    cards.pop("tinytown-ar-instruct", None)  # to compare with; not bundled
    for name, card in cards.items():
        (folder / name / "README.md").write_text(_readme(folder / name, card))
    (folder / "README.md").write_text(_overview(folder, cards))


def _fill(template: str, **facts) -> str:
    """A template with its {facts} filled in."""
    return (TEMPLATES / f"{template}.md").read_text().format(**facts)


def _readme(folder: Path, card: dict) -> str:
    name = folder.name
    is_reward = "preference" in card
    tags = {
        "tinytown-ar": "mistral",
        "tinytown-base": "mistral, diffusion, text-diffusion",
        "tinytown-instruct": "mistral, diffusion, text-diffusion, conversational",
    }
    front = _fill(
        "front-matter",
        library="peft" if is_reward else "transformers",
        pipeline="text-classification" if is_reward else "text-generation",
        base="" if card["trained_from"] == "nothing" else f"base_model: {card['trained_from']}\n",
        tags=f"tess2lite, tinytown, {tags.get(name, 'lora, reward-model')}",
        name=name,
    )
    return front + (_reward(folder, card) if is_reward else _model(folder, card))


def _reward(folder: Path, card: dict) -> str:
    size = (folder / "adapter_model.safetensors").stat().st_size
    return _fill(
        "reward",
        name=folder.name,
        rank=card["lora_rank"],
        preference=card["preference"],
        true=TRUE_REWARDS[card["preference"]],
        size=f"{size / 1e6:.1f} MB",
        pairs=card["pairs"],
        test_pairs=card["test_pairs"],
        accuracy=card["accuracy"],
        correlation=card["correlation"],
        tess=TESS,
        make=MAKE,
    )


def _model(folder: Path, card: dict) -> str:
    config = json.loads((folder / "config.json").read_text())
    return _fill(
        folder.name,
        parameters=_parameters(folder),
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        context=config["max_position_embeddings"],
        vocabulary=f"{config['vocab_size']:,}",
        documents="stories, facts, passages with questions and chats",
        phases=_phases(card),
        training=f"Last training loss {card['final_loss']}; {card['device']}. {MAKE}",
        stories=_stories(card),
        scored=card.get("scored", ""),
        table=_table(card),
        turns=_turns(card),
        limits=_limits(card),
        curve=_learning_curve(card),
        last=LAST_WORDS,
        tess=TESS,
    )


def _parameters(folder: Path) -> str:
    """Number of weights, such as "2.9 M"."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    total = 0
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        total += size
    return f"{total / 1e6:.1f} M"


def _phases(card: dict) -> str:
    steps = sum(phase["steps"] for phase in card["phases"])
    return f"{steps:,} steps, {card['tokens'] / 1e6:.1f} M tokens, Muon with AdamW"


def _stories(card: dict) -> str:
    if "stories_valid" not in card:
        return ""
    few = ""
    if "few_steps" in card:
        few = f" In {card['few_steps']} steps {card['stories_valid_in_few_steps']:.1%} of the ordinary ones are."
    return _fill("stories", **card) + few


def _limits(card: dict) -> str:
    tried = card.get("tried_to_reach_the_aim", "")
    return f"{textwrap.fill(tried, LINE, break_on_hyphens=False)}\n" if tried else ""


def _learning_curve(card: dict) -> str:
    """How many of the first test stories were valid at the end of each stretch of training."""
    if "learning_curve" not in card:
        return ""
    lines = ["| M tokens | the last of them | valid in 100 steps | in 25 |", "| --- | --- | --- | --- |"]
    for point in card["learning_curve"]:
        stories = point["stories"]
        shares = [point.get(f"valid_in_{steps}_steps") for steps in (100, 25)]
        cells = ["" if share is None else f"{share:.0%} of {stories}" for share in shares]
        lines.append(f"| {point['million_tokens']} | {point['reads']} | {' | '.join(cells)} |")
    return "\n" + "\n".join(lines) + "\n"


def _table(card: dict) -> str:
    if "scores" not in card:
        return ""
    lines = [
        "| right, with 95 % interval | `tinytown-instruct` | AR | aim | questions |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task, name in TASK_NAMES.items():
        scores = card["scores"].get(task)
        if scores is None:
            continue
        aim = card["aims"].get(task)
        cells = [name, _percent(scores["diffusion"]), _percent(scores.get("ar")), f"{aim:.0%}" if aim else ""]
        lines.append("| " + " | ".join([*cells, str(scores["diffusion"]["questions"])]) + " |")
    return "\n".join(lines)


def _percent(score: dict | None) -> str:
    if score is None:
        return "not scored"
    return f"{score['score']:.0%} [{score['low']:.0%} to {score['high']:.0%}]"


def _turns(card: dict) -> str:
    shares = card.get("right_by_turn", {}).get("diffusion")
    if not shares:
        return ""
    listed = ", ".join(f"{share:.0%}" for share in shares)
    asked = "In chats about passages with several people and things, the first, second and third question"
    return f"{asked} are answered right in {listed}."


def _overview(folder: Path, cards: dict[str, dict]) -> str:
    instruct = cards["tinytown-instruct"]
    return _fill(
        "models",
        parameters=_parameters(folder / "tinytown-ar"),
        ar=cards["tinytown-ar"],
        base=cards["tinytown-base"],
        reward=cards["tinytown-reward"],
        brief=cards["tinytown-reward-brief"],
        limits=_limits(cards["tinytown-base"]).strip(),
        table=_table(instruct),
        turns=_turns(instruct),
    )


if __name__ == "__main__":
    write_cards(Path(sys.argv[1] if len(sys.argv) > 1 else "assets/models"))
