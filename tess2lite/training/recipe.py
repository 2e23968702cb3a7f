"""A recipe: what is trained on what, and how. The same one in a notebook, a YAML file and on several GPUs.

`Recipe` holds the paper's values as defaults; `build.build_trainer(recipe)` turns one into a trainer.
"""

from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_origin

import yaml

NAMED = Path(__file__).parent / "recipes"
Masking = Literal["ul2", "prefix", "response"]  # "ul2": a third each of short spans, long spans and prefix
LEAST = dict.fromkeys(
    ("batch_size", "micro_batch_size", "steps", "num_eval_examples", "evaluate_every", "save_every"), 1
)
LEAST |= {"length": 2, "warmup": 0, "lora_rank": 0, "seed": 0}  # 2, as a row's first token is never masked


@dataclass
class Training:
    """What every training needs to know. Comments say where a default comes from."""

    model: str  # as for `tess2lite.load`
    data: str
    output: str  # folder of checkpoints and of the finished model
    length: int = 2048  # tokens a row; the paper's
    batch_size: int = 112  # rows a step, over all processes; the paper's
    micro_batch_size: int = 1  # rows a forward pass, on each process; the rest is accumulated
    steps: int = 200_000  # the paper's, for adaptation
    learning_rate: float = 1e-5  # the paper's, for full tuning
    warmup: int = 5_000  # steps; the paper's, constant afterwards
    lora_rank: int = 0  # 0: full tuning, as in the paper
    load_in_4bit: bool = False  # nf4; needs lora_rank
    gradient_checkpointing: bool = False
    dtype: str | None = None  # of weights; None as in `tess2lite.load`
    seed: int = 0
    num_eval_examples: int = 64  # rows for evaluation, never trained on
    evaluate_every: int = 1_000  # steps
    save_every: int = 1_000  # steps

    def __post_init__(self):
        for field in fields(self):
            self._check_type(field.name, field.type)
        for name, least in LEAST.items():
            if not least <= getattr(self, name) < 2**32:
                raise ValueError(f"{name} is {getattr(self, name)}; give {least} or more, and less than 2**32.")
        if self.load_in_4bit and not self.lora_rank:
            raise ValueError("load_in_4bit needs LoRA: 4-bit weights cannot be tuned; set lora_rank, say 64.")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup is {self.warmup} of {self.steps} steps; give a smaller warmup or more steps.")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate is {self.learning_rate}; give a number above 0.")

    def _check_type(self, name: str, wanted) -> None:
        value = getattr(self, name)
        if wanted is float and not isinstance(value, bool):  # YAML takes 1e-4 for a word
            with suppress(TypeError, ValueError):
                value = float(value)
                setattr(self, name, value)
        if get_origin(wanted) is Literal:
            if value not in get_args(wanted):
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(get_args(wanted))}.")
        elif not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
            raise ValueError(f"{name} is {value!r}; a recipe wants {getattr(wanted, '__name__', wanted)} there.")


@dataclass
class Recipe(Training):
    """Adaptation of a left-to-right model to diffusion, and instruction tuning of a denoiser.

    data: "tinytown", a .txt or .jsonl file, or a hub dataset, streamed. With masking "response" it is a set of chats:
    "tinytown", "tinytown:arithmetic" (one of its tasks), a .jsonl file or a hub dataset, in any form that
    `chats.messages_of` reads.
    """

    column: str = "text"  # of .jsonl and hub datasets; Dolma's name
    masking: Masking = "ul2"  # the paper's, for adaptation; "response" for chats
    self_conditioning: float = 0.5  # share of steps; the paper's (and TESS's)
    embeddings: Literal["lora", "trained", "frozen"] = "lora"  # of E and the head, under LoRA; "trained": whole copies

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.self_conditioning <= 1:
            raise ValueError(f"self_conditioning is {self.self_conditioning}; give a share from 0 to 1.")
        if self.embeddings != "lora" and not self.lora_rank:
            raise ValueError(f"embeddings is {self.embeddings!r}, but without LoRA all is trained; set lora_rank.")


@dataclass
class MaskedRecipe(Recipe):
    """The same as masked diffusion with an absorbing token (LLaDA), to compare with; `mask_diffusion.py`.

    masking: which positions may be absorbed; "all" but the first is LLaDA's, "response" for chats.
    """

    masking: Literal["all", Masking] = "all"
    self_conditioning: float = 0.0  # there is none

    def __post_init__(self):
        super().__post_init__()
        if self.self_conditioning:
            raise ValueError(f"self_conditioning is {self.self_conditioning}; masked diffusion has none: leave it out.")


@dataclass
class PretrainingRecipe(Training):
    """A left-to-right model, further trained or made from nothing: a baseline or a base (`autoregressive.py`).

    model: whose architecture, tokenizer and (unless `weights` is "random") weights it starts from. data: as in
    `Recipe`. All weights are trained, and the result is a plain transformers model.
    """

    column: str = "text"  # of .jsonl and hub datasets
    masking: Literal["none", "response"] = "none"  # loss on every token; "response": chats, loss on answers and EOS
    objective: Literal["causal", "prefix", "masked"] = "causal"  # "prefix": in half of the rows; "masked": as BERT's
    weights: Literal["pretrained", "random"] = "pretrained"  # "random": drawn from `seed`

    def __post_init__(self):
        super().__post_init__()
        if self.masking == "response" and self.objective != "causal":
            raise ValueError(f"objective is {self.objective!r}; responses are learned with objective 'causal'.")
        for name in ("lora_rank", "dtype"):
            if value := getattr(self, name):
                raise ValueError(f"{name} is {value!r}; a left-to-right model is trained whole, in float32: drop it.")


@dataclass
class RewardRecipe(Training):
    """A reward model from preference pairs; with lora_rank an adapter on the base that a denoiser stands on.

    data: "tinytown:cheerful", "tinytown:brief", a .jsonl file or a hub dataset of `chosen` and `rejected`.
    """

    length: int = 512
    batch_size: int = 32
    steps: int = 1_000
    warmup: int = 30


# By a recipe file's field `kind`.
TRAININGS = {"denoiser": Recipe, "masked": MaskedRecipe, "ar": PretrainingRecipe, "reward": RewardRecipe}


def read_recipe(source: str | Path, /, **changes) -> Training:
    """A recipe from a YAML file or the name of one that comes with the package; `changes` win over its fields.

    The file's field `kind` says what: a "denoiser", as by default, a "masked" or "ar" baseline, or a "reward" model.
    """
    path = NAMED / f"{source}.yaml" if (NAMED / f"{source}.yaml").exists() else Path(str(source))
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in NAMED.glob("*.yaml")))
        raise ValueError(f"There is no recipe '{source}'; give a YAML file or one of {names}.")
    try:
        given = dict(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, TypeError, ValueError) as problem:
        raise ValueError(f"'{path}' holds no recipe; write YAML, lines of `field: value`.") from problem
    kind = str(given.pop("kind", "denoiser"))
    if kind not in TRAININGS:
        raise ValueError(f"'{source}' has kind {kind!r}; a recipe has one of {', '.join(TRAININGS)}.")
    given |= changes
    known = [field.name for field in fields(TRAININGS[kind])]
    wrong = [f"knows no field '{name}'" for name in given if name not in known]
    wrong += [f"lacks '{name}'" for name in ("model", "data", "output") if name not in given]
    if wrong:
        raise ValueError(f"'{source}' {wrong[0]}; fields are {', '.join(known)}.")
    return TRAININGS[kind](**given)


def value_of(text: str):
    """A field's value on a command line: as in a YAML file; what is no YAML is a word."""
    with suppress(yaml.YAMLError):
        return yaml.safe_load(text)
    return text
