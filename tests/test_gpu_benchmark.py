"""The GPU benchmark runs from end to end, says what went wrong where something does, and measures what it says."""

import json
import re
from pathlib import Path

import pytest
import torch
from benchmarks import gpu
from peft.tuners.lora import bnb as four_bit

from tess2lite.training.recipe import read_recipe

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench():
    return gpu.Bench(gpu.TINY, CPU)


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    return tmp_path


def test_tiny_measures_every_row_and_keeps_nothing(results, capsys):
    gpu.main(["--tiny"])
    said = capsys.readouterr().out
    assert "these numbers say nothing" in said
    table = said.split("these numbers say nothing")[1]
    assert all(row.what in table for row in gpu.rows_of(gpu.TINY))
    assert "failed" not in said and "out of memory" not in said and "no time left" not in said
    assert not [*results.iterdir()]


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):  # a sentence as the code: exit status 1
        gpu.main([])
    with pytest.raises(SystemExit, match="there is only --tiny"):
        gpu.main(["--fast"])


def test_all_rows_of_the_real_run_are_asked_for():
    rows = [row.what for row in gpu.rows_of(gpu.REAL)]
    assert len(rows) == len(set(rows)) == 15
    assert gpu.rows_of(gpu.REAL)[2].what == "sampling, nf4, L=2048: peak"


def test_it_measures_the_vocabulary_that_runs_have():
    """Mistral's 32,000 tokens and [PAD]; an odd width in the small model, too."""
    recipe = read_recipe("mistral-7b-nf4")
    assert recipe.model == "mistralai/Mistral-7B-v0.1"
    assert gpu.REAL.shape["vocab_size"] == 32_000 + 1
    assert gpu.TINY.shape["vocab_size"] % 2 == 1


def raises(problem):
    def measure(bench):
        raise problem

    return gpu.Row("a row", "GB", 1.0, measure)


def test_a_row_that_cannot_be_measured_says_why_and_the_others_go_on(bench):
    assert gpu.measured(raises(torch.OutOfMemoryError("CUDA out of memory.")), bench, 0)["problem"] == "out of memory"
    assert gpu.measured(raises(RuntimeError("no compiler\nin detail")), bench, 0)["problem"] == "failed: no compiler"
    late = gpu.measured(raises(RuntimeError()), bench, gpu.LAST_START + 1)
    assert late["problem"] == "no time left" and late["value"] is None
    assert "no time left" in gpu.table([late], judged=True)


def test_the_table_says_what_was_reached():
    row = {"what": "a row", "unit": "GB", "aim": 2.0, "value": 1.5}
    assert "reached" in gpu.table([row], judged=True) and "missed" in gpu.table([row | {"value": 2.5}], judged=True)
    assert "reached" not in gpu.table([row], judged=False)


def test_results_are_written_row_by_row(results, monkeypatch):
    """As on a GPU, with this CPU in its place."""
    rows = [gpu.Row("one", "GB", 2.0, lambda bench: (1.5, {})), raises(torch.OutOfMemoryError())]
    monkeypatch.setattr(gpu, "rows_of", lambda sizes: rows)
    monkeypatch.setattr(gpu, "environment", lambda device: {"device": "a GPU", "driver": "1"})
    monkeypatch.setattr(gpu.Bench, "tidy", lambda self: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu.main([])
    (file,) = results.iterdir()
    kept = json.loads(file.read_text())
    assert [row["value"] for row in kept["rows"]] == [1.5, None]
    assert kept["environment"]["driver"] == "1" and kept["date"] in file.name


def test_the_twin_is_autoregressive_on_the_very_weights(bench):
    lm = bench.model("float32")
    ar = gpu.autoregressive_twin(lm, gpu.TINY)
    assert ar.lm_head.weight.data_ptr() == lm.lm_head.weight.data_ptr()
    ids = bench.batch(8, 0)["input_ids"]
    other = ids.clone()
    other[0, -1] += 1
    with torch.no_grad():
        one, two = (ar(input_ids=x).logits[0, :-1] for x in (ids, other))
        assert torch.equal(one, two)
        one, two = (lm.model(input_ids=x).last_hidden_state[0, :-1] for x in (ids, other))
        assert (one != two).any(-1).all()


def test_qlora_stands_on_4_bits_and_its_two_kinds_of_step_see_what_they_should(bench, monkeypatch):
    seen = []
    forward = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, is_causal=False, **kwargs):
        seen.append(is_causal)
        return forward(*args, is_causal=is_causal, **kwargs)

    model = bench.model("qlora")
    assert sum(isinstance(module, four_bit.Linear4bit) for module in model.modules()) == 7 * 2  # of two layers
    steps = gpu.training_steps(bench, 8)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    passes = {}
    for name, step in steps.items():
        seen.clear()
        step()
        passes[name] = list(seen)
    # Two layers, each run again in the backward pass; self-conditioning adds a pass without one.
    assert passes["autoregressive"] == [True] * 4
    assert passes["first_pass_only"] == [False] * 4 and passes["self_conditioned"] == [False] * 6


def test_the_judge_shares_the_4_bit_base(bench):
    lm = bench.model("nf4")
    model = gpu.judge(bench, lm)
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, four_bit.Linear4bit) and layer.base_layer is lm.model.layers[0].self_attn.q_proj
    assert not [name for name, _ in lm.named_modules() if "lora" in name]


def test_a_4_bit_model_is_as_small_as_it_should_be(bench):
    """Half a byte a weight, its scales apart."""
    layer = bench.model("nf4").model.layers[1].mlp.up_proj
    assert layer.weight.numel() * layer.weight.itemsize == layer.in_features * layer.out_features / 2


# Rows of the results in the order of the table in benchmarks/README.md; two where one line gives two figures.
IN_THE_TABLE = [
    ["denoising step, nf4, to a bare pass"],
    ["denoising step, bf16, to a bare pass"],
    ["QLoRA step, L=512, to an AR one"],
    ["QLoRA step, L=2048, to an AR one"],
    ["QLoRA step, L=512: peak", "QLoRA step, L=2048: peak"],
    ["sampling, nf4, L=2048: peak"],
    ["guidance, nf4: memory added"],
    ["guided step, nf4, to an unguided one"],
    ["100 steps against AR, eager, 2048 tokens, B=1, bf16"],
    ["100 steps against AR, eager, 2048 tokens, B=8, bf16"],
    ["100 steps against AR, static cache compiled, 2048 tokens, B=1, bf16"],
]


def test_the_readme_says_what_was_measured():
    """Every figure as rounded there, what missed its aim, the card and the day; nothing measured is left out."""
    (path,) = (ROOT / "tests" / "benchmarks" / "results").glob("gpu-*.json")
    result = json.loads(path.read_text())
    measured = {row["what"]: row for row in result["rows"] if row["value"] is not None}
    text = (ROOT / "tests" / "benchmarks" / "README.md").read_text()
    head, _, rest = text.partition("**Measured** on ")[2].partition("\n\n| measured")
    assert result["environment"]["device"] in head and result["date"] in head and path.name in head
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    assert {name for names in IN_THE_TABLE for name in names} == {*measured}
    for names, line in zip(IN_THE_TABLE, lines, strict=True):
        _, said, aim = line.strip("|").split("|")
        figures = re.findall(r"[\d.]+", said.partition("(")[0])
        for name, figure in zip(names, figures, strict=True):
            places = len(figure.partition(".")[2])
            assert float(figure) == round(measured[name]["value"], places), line
        is_missed = any(measured[name]["aim"] and measured[name]["value"] > measured[name]["aim"] for name in names)
        assert ("missed" in aim) == is_missed, line
