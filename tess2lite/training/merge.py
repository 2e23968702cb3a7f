"""`python -m tess2lite.merge ADAPTER OUTPUT`: an adapter and its base as one whole model, which `load` takes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig

from ..loading import adapter_base, adapter_tokenizer, check_adapter, find_source, load, plain_errors


def merge(adapter, output) -> None:
    """Adds a PEFT adapter into its base and saves the whole in a new folder, in the precision of the base's files.

    Of a change smaller than a 500th of a weight bfloat16 keeps nothing; that matters after a very short training only.
    """
    if Path(output).exists():
        raise ValueError(f"'{output}' exists already; give a folder that does not.")
    source = find_source(adapter)
    with plain_errors(adapter):
        base = adapter_base(source)
        if base is None:
            raise ValueError(f"'{adapter}' is a whole model, not an adapter; there is nothing to merge.")
        stored = AutoConfig.from_pretrained(find_source(base), trust_remote_code=False).dtype
        lm = load(base, dtype=stored or "float32", device="cpu")
        if lm.config.tie_word_embeddings:  # E and the head have each learned something of their own
            lm.config.tie_word_embeddings = False
            lm.lm_head.weight = torch.nn.Parameter(lm.lm_head.weight.detach().clone())
        check_adapter(source, lm)
        lm.tokenizer = adapter_tokenizer(source, lm)
        merged = PeftModel.from_pretrained(lm, source).merge_and_unload()
    part = Path(f"{output}.part")
    try:
        merged.save_pretrained(part)
        part.rename(output)
    except (OSError, SafetensorError) as problem:
        shutil.rmtree(part, ignore_errors=True)
        raise ValueError(f"Nothing can be written to '{output}' ({problem}); choose another folder.") from None


def command() -> None:
    """The command line; a user's mistake is one sentence."""
    if len(sys.argv) != 3:
        sys.exit("Give an adapter and a new folder: python -m tess2lite.merge runs/my-adapter runs/my-model.")
    try:
        merge(*sys.argv[1:])
    except ValueError as problem:
        sys.exit(str(problem))
