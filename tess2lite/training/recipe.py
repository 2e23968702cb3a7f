"""A recipe: what is trained on what, and how. The same one in a notebook, a YAML file and on several GPUs.

`Recipe` holds the paper's values as defaults; `build.build_trainer(recipe)` turns one into a trainer.
"""

from __future__ import annotations

import dataclasses
import types
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from transformers.training_args import OptimizerNames

from ..validation import InputError, expand_path
from .sources import parse_sources

NAMED = Path(__file__).parent / "recipes"
Masking = Literal["ul2", "prefix", "response", "all"]
Scheduler = Literal["constant", "constant_with_warmup", "linear", "cosine"]
MUON = "muon"
CONSTANT = ("constant", "constant_with_warmup")  # runs of these may be extended

LEAST = {
    "length": 2,  # a row's first token is never masked
    "batch_size": 1,
    "micro_batch_size": 1,
    "steps": 1,
    "num_eval_examples": 1,
    "evaluate_every": 1,
    "save_every": 1,
    "epochs": 0,
    "warmup": 0,
    "lora_rank": 0,
    "lora_dropout": 0,
    "seed": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "early_stopping_patience": 0,
    "pad_weight": 0,
}


def option(default: Any, text: str) -> Any:
    """A field of a recipe with its default and what `--help` says of it."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


def required(text: str) -> Any:
    """A field of a recipe that has to be given."""
    return dataclasses.field(metadata={"help": text})


@dataclass
class Training:
    """What every training needs to know."""

    DEFAULT_STEPS: ClassVar[int] = 200_000  # the paper's, for adaptation

    model: str = required("what `tess2lite.load` takes")
    data: str | list = required(
        "a file, folder, hub dataset or 'tinytown', or a list of them: [{path: a.jsonl, weight: 3}, {path: owner/set, "
        "weight: 1, split: train, column: text}]"
    )
    output: str = required("folder of checkpoints and of the finished model")
    length: int = option(2048, "tokens per row; the paper's")
    batch_size: int = option(112, "rows per step, over all processes; the paper's")
    micro_batch_size: int = option(1, "rows per forward pass, on each process; the rest is accumulated")
    steps: int = option(0, "optimizer steps; 0 for the default, 200,000 (the paper's, for adaptation)")
    epochs: float = option(0.0, "passes over the data, in place of steps")
    learning_rate: float = option(1e-5, "the paper's, for full tuning; LoRA wants about ten times as much")
    scheduler: Scheduler = option("constant_with_warmup", "of the learning rate; the paper's, for adaptation")
    warmup: float = option(5_000, "steps, or a share of them below 1; the paper's, for adaptation")
    optim: str = option(
        "",
        "transformers' name of an optimizer, or 'muon', for full tuning: Muon for the layers' matrices, AdamW at a "
        "quarter of the rate for the rest; by default AdamW, paged in 8 bit for 4-bit weights",
    )
    weight_decay: float = option(0.0, "of AdamW and Muon")
    max_grad_norm: float = option(1.0, "to which gradients are clipped; 0 for no clipping")
    lora_rank: int = option(0, "0: full tuning, as in the paper")
    lora_alpha: int = option(0, "LoRA's scale times its rank; 0 for the rank")
    lora_dropout: float = option(0.0, "share of LoRA's inputs that is dropped")
    lora_targets: list = option([], "names of the layers that get LoRA; by default all linear ones inside the backbone")
    load_in_4bit: bool = option(False, "nf4; needs lora_rank")
    gradient_checkpointing: bool = option(False, "less memory for about a third more time")
    dtype: str | None = option(None, "of frozen weights; by default as `tess2lite.load` chooses")
    bf16: bool | None = option(
        None, "multiply in bfloat16; by default on GPUs that have it, else float16, float32 on a CPU"
    )
    attn_implementation: str | None = option(None, "sdpa, eager or flash_attention_2; by default the library's choice")
    seed: int = option(0, "of everything that is random")
    num_eval_examples: int = option(64, "rows for evaluation, never trained on")
    evaluate_every: int = option(1_000, "steps")
    save_every: int = option(1_000, "steps")
    load_best_model_at_end: bool = option(False, "finish with the checkpoint of the lowest held-out loss")
    early_stopping_patience: int = option(0, "evaluations without improvement after which to stop; 0: never")
    report_to: str = option("none", "tensorboard, wandb, …; losses are in log.jsonl in any case")
    push_to_hub: str = option("", "hub repository, owner/name, for the finished model and its card")
    rehearse: bool = option(False, "three steps, save, kill, resume, merge, load, write; then stop")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if name != "DEFAULT_STEPS":
                self._check_type(name, kind)
        self.output = expand_path(self.output)
        self.model = expand_path(self.model)
        self._resolve_steps()
        for name, least in LEAST.items():
            if hasattr(self, name) and not self._is_in_range(name, least):
                raise InputError(f"{name} is {getattr(self, name)}; give {least} or more, and less than 2**32.")
        parse_sources(self.data)
        self._check_consistency()

    def _resolve_steps(self) -> None:
        if self.steps and self.epochs:
            raise InputError(
                f"steps is {self.steps} and epochs is {self.epochs}; give one of them, and 0 for the other."
            )
        if not self.steps and not self.epochs:
            self.steps = self.DEFAULT_STEPS

    def _is_in_range(self, name: str, least: float) -> bool:
        value = getattr(self, name)
        if name == "steps" and self.epochs:
            return True  # follows from the data
        return least <= value < 2**32

    def _check_consistency(self) -> None:
        if self.load_in_4bit and not self.lora_rank:
            raise InputError("load_in_4bit needs LoRA: 4-bit weights cannot be tuned; set lora_rank, say 64.")
        if self.steps and self.warmup >= self.steps:
            raise InputError(f"warmup is {self.warmup} of {self.steps} steps; give a smaller warmup or more steps.")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate is {self.learning_rate}; give a number above 0.")
        if self.optim not in ("", MUON, *OptimizerNames):
            raise InputError(
                f"optim is {self.optim!r}; give '{MUON}' or transformers' name of an optimizer, such as adamw_torch."
            )
        if self.optim == MUON and self.lora_rank:
            raise InputError(
                f"optim is '{MUON}', which trains whole matrices, and lora_rank is {self.lora_rank}; "
                "leave optim out, or set lora_rank: 0."
            )
        if not self.lora_rank:
            for name in ("lora_alpha", "lora_dropout", "lora_targets"):
                if getattr(self, name):
                    raise InputError(f"{name} is {getattr(self, name)}, but lora_rank is 0; set lora_rank, say 64.")
        keeps_best = self.load_best_model_at_end or self.early_stopping_patience
        if keeps_best and self.save_every % self.evaluate_every:
            raise InputError(
                f"save_every is {self.save_every} and evaluate_every {self.evaluate_every}; for the best checkpoint "
                "give a save_every that is a multiple of evaluate_every."
            )
        if self.lora_dropout >= 1:
            raise InputError(f"lora_dropout is {self.lora_dropout}; give a share below 1.")

    def _check_type(self, name: str, kind: Any) -> None:
        value = getattr(self, name)
        if kind is float and isinstance(value, str):  # YAML parses 1e-4 as a string
            with suppress(ValueError):
                value = float(value)
                setattr(self, name, value)
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise InputError(f"{name} is {value!r}; choose one of {', '.join(get_args(kind))}.")
            return
        accepted = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
        if float in accepted:
            accepted = (*accepted, int)
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
            kinds = " or ".join(getattr(one, "__name__", str(one)) for one in accepted if one is not type(None))
            raise InputError(f"{name} is {value!r}; a recipe wants {kinds} there.")


@dataclass
class Recipe(Training):
    """Adaptation of an AR model to diffusion, and instruction tuning of a denoiser.

    `data` of texts: "tinytown"; .txt, .jsonl, .json, .csv, .parquet files and folders of them; hub datasets, which are
    streamed. With masking "response" it is chats: "tinytown", "tinytown:arithmetic" (one of its tasks), or a file,
    folder or hub dataset in any form that `forms.messages_of` reads.
    """

    column: str = option("text", "of texts in files and hub datasets; Dolma's name")
    masking: Masking = option("ul2", "the paper's, for adaptation: a third each of short spans, long spans, prefix")
    chat_turns: Literal["all", "first"] = option(
        "all", "of a chat; 'first': its first question and answer without a system prompt, as in the official code"
    )
    loss_weighting: Literal["token", "sqrt", "row"] = option(
        "token", "'row': each row counts alike, as in the official code; 'sqrt': by the root of its length"
    )
    pad_weight: float = option(1.0, "of PAD after an answer in the loss; the official code's")
    pad_to: Literal["length", "longest"] = option(
        "length", "'length': the official code's; 'longest': a few PAD after an answer, all of them in each fifth step"
    )
    timestep_sampling: Literal["uniform", "informative"] = option(
        "uniform", "the paper's; 'informative': 85 % where the loss changes, the rest uniform"
    )
    self_conditioning: float = option(0.5, "share of steps; the paper's (and TESS's)")
    embeddings: Literal["lora", "trained", "frozen"] = option(
        "lora", "of E and the head, under LoRA; 'trained': whole copies"
    )
    center_embeddings: bool = option(
        False, "subtract E's mean row at the start and, without LoRA, lengthen the rest: a large V hides the tokens"
    )
    clip_per_group: bool = option(
        False, "clip E, head, timestep embedding and layers apart: early on, E's gradients are far larger"
    )

    def _check_consistency(self) -> None:
        super()._check_consistency()
        if not 0 <= self.self_conditioning <= 1:
            raise InputError(f"self_conditioning is {self.self_conditioning}; give a share from 0 to 1.")
        if self.embeddings != "lora" and not self.lora_rank:
            raise InputError(f"embeddings is {self.embeddings!r}, but without LoRA all is trained; set lora_rank.")
        if self.embeddings == "frozen" and self.center_embeddings:
            raise InputError("center_embeddings changes E, but embeddings is 'frozen'; choose 'lora' or 'trained'.")
        if self.masking == "all" and not isinstance(self, MaskedRecipe):
            raise InputError("masking is 'all'; choose one of ul2, prefix, response.")
        if self.masking != "response":
            official = {"chat_turns": "all", "pad_weight": 1.0, "pad_to": "length"}
            for name, value in official.items():
                if getattr(self, name) != value:
                    raise InputError(
                        f"{name} is {getattr(self, name)!r}, but the data are texts; set masking: response."
                    )


@dataclass
class MaskedRecipe(Recipe):
    """The same as masked diffusion with a mask token (LLaDA), to compare with; `mask_diffusion.py`.

    masking: which positions may be masked; "all" but the first is LLaDA's, "response" for chats.
    """

    masking: Masking = option("all", "which positions may be masked; LLaDA's")
    self_conditioning: float = option(0.0, "there is none")

    def _check_consistency(self) -> None:
        super()._check_consistency()
        if self.self_conditioning:
            raise InputError(f"self_conditioning is {self.self_conditioning}; masked diffusion has none: leave it out.")
        plain = {"timestep_sampling": "uniform", "loss_weighting": "token", "pad_weight": 1.0, "pad_to": "length"}
        for name, value in plain.items():
            if getattr(self, name) != value:
                raise InputError(f"{name} is {getattr(self, name)!r}; masked diffusion has {value!r}: leave it out.")


@dataclass
class PretrainingRecipe(Training):
    """An AR model, further trained or made from nothing: a baseline or a base (`autoregressive.py`).

    model: whose architecture, tokenizer and (unless `weights` is "random") weights it starts from. data: as in
    `Recipe`. All weights are trained, and the result is a plain transformers model.
    """

    column: str = option("text", "of texts in files and hub datasets")
    masking: Literal["none", "response"] = option("none", "'response': chats, loss on answers and their EOS")
    chat_turns: Literal["all", "first"] = option("all", "of a chat, as in a denoiser's recipe")
    objective: Literal["causal", "prefix", "masked"] = option(
        "causal", "'prefix': in half of the rows; 'masked': BERT's"
    )
    weights: Literal["pretrained", "random"] = option("pretrained", "'random': drawn from seed")

    def _check_consistency(self) -> None:
        super()._check_consistency()
        if self.masking == "response" and self.objective != "causal":
            raise InputError(f"objective is {self.objective!r}; responses are learned with objective 'causal'.")
        for name in ("lora_rank", "dtype"):
            if value := getattr(self, name):
                raise InputError(f"{name} is {value!r}; an AR model is trained whole, in float32: drop it.")


@dataclass
class RewardRecipe(Training):
    """A reward model from preference pairs; with lora_rank an adapter on the base that a denoiser stands on.

    data: "tinytown:cheerful", "tinytown:brief", or files, folders or hub datasets of `chosen` and `rejected`.
    """

    DEFAULT_STEPS: ClassVar[int] = 1_000

    length: int = option(512, "tokens per text")
    batch_size: int = option(32, "pairs per step, over all processes")
    warmup: float = option(30, "steps, or a share of them below 1")
    steps: int = option(0, "optimizer steps; 0 for the default, 1,000")


# By a recipe file's field `kind`.
TRAININGS: dict[str, type[Training]] = {
    "denoiser": Recipe,
    "masked": MaskedRecipe,
    "ar": PretrainingRecipe,
    "reward": RewardRecipe,
}


def read_recipe(source: str | Path, /, **changes: Any) -> Training:
    """Reads a recipe from a YAML file, or by the name of one that comes with the package.

    Args:
        source: A path or a name. The file's field `kind` says what is trained: a "denoiser", as by default, a
            "masked" or "ar" baseline, or a "reward" model.
        **changes: Fields that win over the file's.
    """
    path = _recipe_path(source)
    try:
        values = dict(yaml.safe_load(path.read_text(encoding="utf-8-sig")))
    except (yaml.YAMLError, TypeError, ValueError) as problem:
        raise InputError(f"'{path}' holds no recipe; write YAML, lines of `field: value`.") from problem
    kind = str(values.pop("kind", "denoiser"))
    if kind not in TRAININGS:
        raise InputError(f"'{source}' has kind {kind!r}; a recipe has one of {', '.join(TRAININGS)}.")
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if one in changes:
            values.pop(other, None)
    values |= changes
    names = [field.name for field in fields(TRAININGS[kind])]
    wrong = [f"knows no field '{name}'" for name in values if name not in names]
    wrong += [f"lacks '{name}'" for name in ("model", "data", "output") if name not in values]
    if wrong:
        raise InputError(f"'{source}' {wrong[0]}; fields are {', '.join(names)}.")
    return TRAININGS[kind](**values)


def _recipe_path(source: str | Path) -> Path:
    named = NAMED / f"{source}.yaml"
    path = named if named.exists() else Path(expand_path(str(source)))
    if not path.is_file():
        names = ", ".join(sorted(recipe.stem for recipe in NAMED.glob("*.yaml")))
        raise InputError(f"There is no recipe '{source}'; give a YAML file or one of {names}.")
    return path


def value_of(text: str) -> Any:
    """A field's value on a command line: as in a YAML file; what is not YAML is a word."""
    with suppress(yaml.YAMLError):
        return yaml.safe_load(text)
    return text


def help_text() -> str:
    """All kinds of recipe, their fields, defaults and what they mean."""
    lines = ["python -m tess2lite.train recipe.yaml [field=value …]", ""]
    names = sorted(recipe.stem for recipe in NAMED.glob("*.yaml"))
    lines += [f"recipe.yaml: a file of yours, or one of {', '.join(names)}.", ""]
    common = {field.name for field in fields(Training)}
    lines += ["Fields of every recipe:", *_field_lines(Training, set()), ""]
    for kind, training in TRAININGS.items():
        summary = (training.__doc__ or "").splitlines()[0]
        changed = {name for name in common if _default(training, name) == _default(Training, name)}
        lines += [f"kind: {kind}. {summary}", *_field_lines(training, changed), ""]
    return "\n".join(lines)


def _default(training: type[Training], name: str) -> Any:
    return training.__dataclass_fields__[name].default


def _field_lines(training: type[Training], hidden: set[str]) -> list[str]:
    shown = [field for field in fields(training) if field.name not in hidden]
    kinds = get_type_hints(training)
    return [f"  {field.name:24} {_shown_default(field):22} {_help_of(field, kinds[field.name])}" for field in shown]


def _help_of(field: dataclasses.Field, kind: Any) -> str:
    """What a field means, and what it accepts where that is one of a few words."""
    text = field.metadata["help"]
    return f"{text}; one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else text


def _shown_default(field: dataclasses.Field) -> str:
    is_required = field.default is dataclasses.MISSING
    if is_required and field.default_factory is dataclasses.MISSING:
        return "(required)"
    value = [] if is_required else field.default
    return yaml.safe_dump(value).removesuffix("...\n").strip()
