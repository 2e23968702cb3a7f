"""`python -m tess2lite.merge ADAPTER OUTPUT`: an adapter and its base as one whole model, which `load` takes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..pretrained.full_models import load_base, read_config
from ..pretrained.sources import adapter_base, find_source, plain_errors
from ..validation import InputError, expand_path
from .checkpoints import cannot_write


def merge(adapter: str | Path, output: str | Path) -> None:
    """Add a PEFT adapter into its base and save the whole in a new folder, in the precision of the base's files.

    Of a change smaller than a 500th of a weight bfloat16 keeps nothing; that matters after a very short training only.

    Raises:
        InputError: There is nothing to merge, or the folder cannot be written.
    """
    output = Path(expand_path(output))
    if output.exists():
        raise InputError(f"'{output}' exists already; give a folder that does not.")
    merged = merged_model(adapter)
    part = Path(f"{output}.part")
    try:
        merged.save_pretrained(part)
        part.rename(output)
    except Exception as problem:
        if not isinstance(problem, OSError) and not cannot_write(problem):
            raise
        raise InputError(f"Nothing can be written to '{output}' ({problem}); choose another folder.") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def merged_model(adapter: str | Path) -> PreTrainedModel:
    """An adapter's base with the adapter added into its weights, in memory."""
    source = find_source(adapter)
    with plain_errors(adapter):
        base = adapter_base(source)
        if base is None:
            raise InputError(f"'{adapter}' is a whole model, not an adapter; there is nothing to merge.")
        stored = read_config(find_source(base)).dtype
        parts: Any
        lm, parts = load_base(source, base, False, stored or "float32", "cpu")
        if lm.config.tie_word_embeddings:  # E and the head have each learned something of their own
            lm.config.tie_word_embeddings = False
            lm.get_output_embeddings().weight = torch.nn.Parameter(lm.get_output_embeddings().weight.detach().clone())
        merged = parts.attach(lm, trained_precision=True).merge_and_unload()
        merged._hf_peft_config_loaded = False  # it is a whole model again
        return merged


def command() -> None:
    """The command line; a user's mistake is one sentence."""
    if len(sys.argv) != 3:
        sys.exit("Give an adapter and a new folder: python -m tess2lite.merge runs/my-adapter runs/my-model.")
    try:
        merge(*sys.argv[1:])
    except InputError as problem:
        sys.exit(str(problem))
