"""A recipe: what is trained on what, and how. The same one in a notebook, a YAML file and on several GPUs.

`Recipe` holds the paper's values as defaults; `preparation.prepare(recipe)` turns one into a trainer.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

NAMED = Path(__file__).parent / "recipes"


@dataclass
class Training:
    """What every training needs to know. Comments say where a default comes from."""

    model: str  # as for `tess2lite.load`
    data: str
    output: str  # folder of checkpoints and of the finished model
    length: int = 2048  # tokens a row; the paper's
    batch: int = 112  # rows a step, over all processes; the paper's
    rows_at_once: int = 1  # rows a forward pass, on each process; the rest is accumulated
    steps: int = 200_000  # the paper's, for adaptation
    learning_rate: float = 1e-5  # the paper's, for full tuning
    warmup: int = 5_000  # steps; the paper's, constant afterwards
    lora_rank: int = 0  # 0: full tuning, as in the paper
    load_in_4bit: bool = False  # nf4; needs lora_rank
    gradient_checkpointing: bool = False
    dtype: str | None = None  # of weights; None as in `tess2lite.load`
    seed: int = 0
    held_out: int = 64  # rows for evaluation, never trained on
    evaluate_every: int = 1_000  # steps
    save_every: int = 1_000  # steps

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, wanted = getattr(self, field.name), hints[field.name]
            if wanted is float and _reads_as_float(value):  # YAML takes 1e-4 for a word
                setattr(self, field.name, float(value))
            elif not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
                name = getattr(wanted, "__name__", str(wanted))
                raise ValueError(f"{field.name} is {value!r}; a recipe wants {name} there.")
        self._check()

    def _check(self) -> None:
        for name in ("length", "batch", "rows_at_once", "steps", "evaluate_every", "save_every", "held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more.")
        for name in ("lora_rank", "warmup", "seed"):
            if not 0 <= getattr(self, name) < 2**32:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more.")
        if self.length < 2:
            raise ValueError(f"length is {self.length}; give 2 or more: the first token of a row is never masked.")
        if self.load_in_4bit and not self.lora_rank:
            raise ValueError("load_in_4bit needs LoRA: 4-bit weights cannot be tuned; set lora_rank, say 64.")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup is {self.warmup} of {self.steps} steps; give fewer, or more steps.")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; give a number above 0.")


@dataclass
class Recipe(Training):
    """Adaptation of a left-to-right model to diffusion, and instruction tuning of a denoiser.

    data: "tinytown", a .txt or .jsonl file, or a hub dataset, streamed. With masking "response" it is a set of chats:
    "tinytown", "tinytown:arithmetic" (one of its tasks), a .jsonl file or a hub dataset, in any form that
    `chats.messages_of` reads.
    """

    column: str = "text"  # of .jsonl and hub datasets; Dolma's name
    masking: str = "ul2"  # the paper's: a third each of short spans, long spans, prefix; "prefix"; "response": chats
    self_conditioning: float = 0.5  # share of steps; the paper's (and TESS's)
    embeddings: str = "lora"  # under LoRA, of E and the head: "lora", "trained" (whole copies) or "frozen"

    maskings = ("ul2", "prefix", "response")

    def _check(self) -> None:
        super()._check()
        _one_of(self, "masking", self.maskings)
        _one_of(self, "embeddings", ("lora", "trained", "frozen"))
        if not 0 <= self.self_conditioning <= 1:
            raise ValueError(f"self_conditioning is {self.self_conditioning}; give a share from 0 to 1.")


@dataclass
class MaskedRecipe(Recipe):
    """The same as masked diffusion with an absorbing token (LLaDA), to compare with; `masked.py`.

    masking: which positions may be absorbed; "all" but the first is LLaDA's, "response" for chats.
    """

    masking: str = "all"
    self_conditioning: float = 0.0  # there is none

    maskings = ("all", *Recipe.maskings)

    def _check(self) -> None:
        super()._check()
        if self.self_conditioning:
            raise ValueError(f"self_conditioning is {self.self_conditioning}; masked diffusion has none: leave it out.")


@dataclass
class PretrainingRecipe(Training):
    """A left-to-right model, further trained or made from nothing: a baseline, or a base to adapt; `pretraining.py`.

    model: whose architecture, tokenizer and (unless `weights` is "random") weights it starts from. data: as in
    `Recipe`. All weights are trained, and the result is a plain transformers model.
    """

    column: str = "text"  # of .jsonl and hub datasets
    masking: str = "none"  # loss on every token; "response": chats, loss on the response and its EOS
    objective: str = "causal"  # "prefix": half of the rows bidirectional in a prefix; "masked": as BERT's
    weights: str = "pretrained"  # or "random", drawn from `seed`

    def _check(self) -> None:
        super()._check()
        _one_of(self, "masking", ("none", "response"))
        _one_of(self, "objective", ("causal", "prefix", "masked"))
        _one_of(self, "weights", ("pretrained", "random"))
        if self.masking == "response" and self.objective != "causal":
            raise ValueError(f"objective is {self.objective!r}; responses are learned with objective 'causal'.")
        if self.lora_rank:
            raise ValueError(f"lora_rank is {self.lora_rank}; a left-to-right model is trained whole: leave it out.")


@dataclass
class RewardRecipe(Training):
    """A reward model from preference pairs; with lora_rank an adapter on the base that a denoiser stands on.

    data: "tinytown:cheerful", "tinytown:brief", a .jsonl file or a hub dataset of `chosen` and `rejected`.
    """

    length: int = 512
    batch: int = 32
    steps: int = 1_000
    warmup: int = 30


# By a recipe file's field `trains`.
TRAININGS = {"denoiser": Recipe, "masked": MaskedRecipe, "ar": PretrainingRecipe, "reward": RewardRecipe}


def _one_of(recipe: Training, name: str, accepted: tuple[str, ...]) -> None:
    if getattr(recipe, name) not in accepted:
        raise ValueError(f"{name} is {getattr(recipe, name)!r}; choose one of {', '.join(accepted)}.")


def _reads_as_float(value) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def read_recipe(source: str | Path, **changes) -> Training:
    """A recipe from a YAML file or the name of one that comes with the package; `changes` win over its fields.

    The file's field `trains` says what: a "denoiser", as by default, a "masked" or "ar" baseline, or a "reward" model.
    """
    path = NAMED / f"{source}.yaml" if (NAMED / f"{source}.yaml").exists() else Path(source)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in NAMED.glob("*.yaml")))
        raise ValueError(f"There is no recipe '{source}'; give a YAML file or one of {names}.")
    try:
        fields = yaml.safe_load(path.read_text())
    except yaml.YAMLError as problem:
        raise ValueError(f"'{path}' is not YAML: {str(problem).splitlines()[0]}.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"'{path}' holds no recipe; write lines of `field: value`.")
    kind = fields.pop("trains", "denoiser")
    if kind not in TRAININGS:
        raise ValueError(f"'{source}' trains {kind!r}; a recipe trains one of {', '.join(TRAININGS)}.")
    fields |= changes
    known = [field.name for field in dataclasses.fields(TRAININGS[kind])]
    unknown = [name for name in fields if name not in known]
    missing = [name for name in ("model", "data", "output") if name not in fields]
    if unknown or missing:
        what = f"knows no field '{unknown[0]}'" if unknown else f"lacks '{missing[0]}'"
        raise ValueError(f"'{source}' {what}; fields are {', '.join(known)}.")
    return TRAININGS[kind](**fields)


def value_of(text: str):
    """A field's value on a command line: as in a YAML file; what is no YAML is a word."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
