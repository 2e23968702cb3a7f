"""Every exercise: the stub fails its check, the solution passes, and what is folded away is that solution."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tess2lite_course.tools import checks

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
CHECK = re.compile(r"^checks\.(\w+)\((\w+)\)$", re.MULTILINE)


def exercises(path):
    """name of the check → (source of the function, its name)."""
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    found = [(CHECK.search(source), source) for source in sources if CHECK.search(source)]
    return {match[1]: (source[: match.start()].strip(), match[2]) for match, source in found}


CHAPTERS = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if exercises(path)]
CASES = [(path, name) for path in CHAPTERS for name in exercises(path)]


def verdict(source, function, check):
    space = {"torch": torch, "F": F}
    exec(source, space)
    return getattr(checks, check)(space[function])


@pytest.mark.parametrize("path, check", CASES, ids=lambda case: getattr(case, "stem", case))
def test_stub_fails_and_solution_passes(path, check):
    stub, solution = exercises(path)[check], exercises(NOTEBOOKS / "solutions" / path.name)[check]
    assert not verdict(*stub, check).passed
    assert verdict(*solution, check).passed, verdict(*solution, check)
    chapter = "".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    assert solution[0] in chapter


def test_every_check_belongs_to_an_exercise():
    public = {name for name in vars(checks) if getattr(getattr(checks, name), "__module__", "") == checks.__name__}
    assert {name for _, name in CASES} == {name for name in public if name.islower() and not name.startswith("_")}
    assert {name for _, name in CASES} == set(checks.GUIDES)


WRONG = {
    "label_shift": lambda output, ids, mask: F.cross_entropy(output[mask], ids[mask]),
    "probe": lambda lm: True,
    "noise": lambda simplex, epsilon, level, k: level.sqrt() * simplex + (1 - level).sqrt() * epsilon,
    "k_for_mass": lambda V, mass: math.log((V - 1) * mass / (1 - mass)),
    "flips": lambda argmax: torch.tensor([len(set(column.tolist())) - 1 for column in argmax.T]),
    "commit_step": lambda argmax: (argmax == argmax[-1]).int().argmax(0),
    "steps_until_halt": lambda argmax, patience: len(argmax),
    "chat_text": lambda messages: "".join(f"<|{m['role']}|>\n{m['content']}\n" for m in messages) + "<|assistant|>",
    "chat_mask": lambda ids, known: (torch.arange(ids.shape[1]) >= known[:, None]) & (ids != 3),
    "first_kept": lambda lengths, room: next(
        (i for i in range(len(lengths)) if sum(lengths[i:]) <= room), len(lengths)
    ),
    "ascent": lambda logits, matrix, reward, scale: logits + scale * matrix.sum(1),
    "hacking_sets_in": lambda scales, predicted, true: scales[max(range(len(scales)), key=lambda i: true[i])],
    "preference_loss": lambda chosen, rejected: -torch.log(torch.sigmoid(chosen - rejected)).mean(),
    "dist": lambda texts, n: (lambda w: len({tuple(w[i : i + n]) for i in range(len(w) - n + 1)}) / len(w))(
        " ".join(texts).split()
    ),
    "win_share": lambda a, b: sum(x > y for x, y in zip(a, b, strict=True)) / len(a),
    "depends_on_batch": lambda score, prompts: sum(score(prompts, 1)) != sum(score(prompts, len(prompts))),
    "middle_95": lambda scores, drawn: torch.stack([scores[drawn].mean(1).min(), scores[drawn].mean(1).max()]),
    "nf4_round": lambda weights, levels: (
        levels[((weights / weights.abs().max())[..., None] - levels).abs().argmin(-1)] * weights.abs().max()
    ),
    "lora_weights": lambda shapes, rank: sum(rank * inputs for inputs, _ in shapes),
    "restored": lambda patched, target, source, a, b: (patched[..., a] - patched[..., b]) / (source[a] - source[b]),
    "silence": lambda mixed, head, width: mixed.index_fill(-1, torch.arange(head, mixed.shape[-1], width), 0),
    "self_conditioning": lambda simplex, previous, E: ((simplex + previous) / 2).softmax(-1) @ E,
}


@pytest.mark.parametrize("check", WRONG)
def test_likely_mistake_does_not_pass(check):
    assert not getattr(checks, check)(WRONG[check]).passed


def test_first_failure_asks_and_the_second_says_what_is_wrong():
    checks.win_share(lambda a, b: 0.5)
    guide = checks.GUIDES["win_share"]
    right = lambda a, b: sum((x > y) + (x == y) / 2 for x, y in zip(a, b, strict=True)) / len(a)  # noqa: E731
    assert guide.next_question in repr(checks.win_share(right))
    first, second = (repr(checks.win_share(WRONG["win_share"])) for _ in range(2))
    assert guide.question in first and guide.hint not in first and guide.hint in second
    checks.win_share(right)
    assert guide.question in repr(checks.win_share(WRONG["win_share"]))
    assert repr(checks.win_share(lambda a, b: None)) == "✗ not yet: your function returns nothing."


@pytest.mark.parametrize("wrong", ["a half", object(), {"share": 1}])
def test_a_wrong_type_gets_a_sentence(wrong):
    message = checks.win_share(lambda a, b: wrong).message
    assert message.startswith(f"your function returns {type(wrong).__name__}; it should return a number.")


def test_a_function_that_raises_gets_a_sentence():
    result = checks.probe(lambda lm: 1 / 0)
    assert not result.passed and "ZeroDivisionError" in repr(result)
