"""The viewer shows what a model wrote and never runs it."""

import base64
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

import tess2lite as t2
import tess2lite.hooks
from tess2lite.trajectory import Trajectory
from tess2lite.viz.explorer import comparison, explorer

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</textarea></script>",
    "\"quotes' & more",
    "zero\u200bwidth\nline",
    "שלום 🙂",
]


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.attributes = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data if self.tags[-1] not in ("script", "style") else ""


def trajectory(texts):
    """S steps of 4 positions, the last three written; position 2 changes its mind at every step."""
    steps = len(texts)
    tokens = torch.zeros(steps, 4, dtype=torch.int)
    tokens[:, 2] = torch.arange(steps) % 2
    return Trajectory(
        tokens=tokens,
        top_ids=torch.stack([tokens, 1 - tokens], -1),
        top_p=torch.tensor([0.5, 0.25]).expand(steps, 4, 2),
        entropy=torch.ones(steps, 4),
        alpha_bar=torch.linspace(0, 1, steps),
        token_strings={0: HOSTILE[0], 1: " b"},
        span_mask=torch.tensor([False, True, True, True]),
        texts=texts,
    )


def read(html):
    reader = Reader()
    reader.feed(html)
    return reader


def data(html):
    """What a page's script draws."""
    start = re.search(r"explore\(document.getElementById\(\"t2-\w+\"\), ", html).end()
    return json.JSONDecoder().raw_decode(html, start)[0]


def run_of(html):
    (run,) = data(html)["runs"]
    return run


def unpacked(text, dtype):
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype).tolist()


def test_every_step_is_there_with_and_without_scripts():
    html = explorer(trajectory(["one", "two", "three"]), note="A note.")
    shown = run_of(html)
    assert shown["positions"] == [1, 2, 3] and shown["steps"] == 3 and shown["first"] == 0
    assert unpacked(shown["tokens"], torch.uint16) == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert unpacked(shown["p"], torch.uint8) == [128, 64] * 9
    assert unpacked(shown["counts"], torch.uint8) == [2] * 9
    assert unpacked(shown["sure"], torch.uint8) == [128] * 9
    assert unpacked(shown["entropy"], torch.uint8) == [16] * 9
    assert shown["alpha_bar"] == [0, 0.5, 1] and shown["reward"] is None and shown["note"] == "A note."
    assert "detailed" not in shown  # nothing is left out
    text = read(html).text
    assert text.index("three") < text.index("one")  # the final text first
    assert "step 2 of 3, 50% signal" in text and "A note." in text


def test_hostile_text_is_text():
    reader = read(explorer(trajectory(HOSTILE), note=HOSTILE[0]))
    assert reader.tags.count("script") == 1 and "img" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    for text in HOSTILE:
        assert text in reader.text


def undecided(steps, places):
    """As many steps and positions as asked, nothing of it compressible."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2000, (steps, places, 5), generator=generator).int()
    return Trajectory(
        tokens=ids[..., 0],
        top_ids=ids,
        top_p=torch.full((steps, places, 5), 0.2),
        entropy=torch.ones(steps, places),
        alpha_bar=torch.linspace(0, 1, steps),
        span_mask=torch.ones(places, dtype=torch.bool),
        texts=["word " * places] * steps,
        token_strings={i: f" word{i}" for i in range(2000)},
    )


def test_what_does_not_fit_is_left_out_and_said():
    html = explorer(undecided(500, 2048))
    shown = run_of(html)
    assert len(html) < 5e6
    assert len(unpacked(shown["tokens"], torch.uint16)) == 500 * 2048  # every step's text is there
    kept = shown["detailed"]
    assert 2 <= len(kept) < 500 and kept[0] == 0 and kept[-1] == 499
    assert len(unpacked(shown["counts"], torch.uint8)) == len(kept) * 2048
    assert f"candidates are kept for {len(kept)} of 500 steps" in shown["note"]
    assert "detailed" not in run_of(explorer(undecided(100, 128)))


def test_as_many_likely_tokens_as_a_byte_counts():
    run = trajectory(["x"])
    run.top_ids, run.token_strings = (
        torch.arange(300, dtype=torch.int).expand(1, 4, 300),
        {i: f" {i}" for i in range(300)},
    )
    run.top_p = torch.full((1, 4, 300), 1 / 300)
    shown = run_of(explorer(run))
    assert unpacked(shown["counts"], torch.uint8) == [255] * 3 and len(unpacked(shown["p"], torch.uint8)) == 3 * 255


def test_what_guidance_changed_is_data_of_the_viewer():
    run = trajectory(["a", "b"])
    assert run_of(explorer(run))["gain"] == run_of(explorer(run))["before"] == ""
    run.records["argmax_before_guidance"] = run.argmax.clone()
    run.records["argmax_before_guidance"][1, 2] = 0
    run.records["logprob_gain"] = torch.zeros(2, 4)
    run.records["logprob_gain"][1, 2] = 1.234
    run.records["logprob_gain"][0, 1] = -0.5
    run.records["logprob_gain"][0, 3] = -1e9
    drawn = run_of(explorer(run))
    assert unpacked(drawn["gain"], torch.int16) == [-50, 0, -32767, 0, 123, 0]
    assert unpacked(drawn["before"], torch.uint16) == [0, 0, 0, 0, 0, 0]
    assert unpacked(drawn["top"], torch.uint16)[6] == 0


def test_runs_side_by_side_are_compared_with_the_first():
    one, other = trajectory(["a", "b", "c"]), trajectory(["a", "b"])
    other.settings = {"start": 1, "steps": 3}  # began at the first run's second step
    html = comparison({"<b>one": one, "two": other})
    drawn = data(html)
    assert drawn["beside"] == [0, 1] and [run["name"] for run in drawn["runs"]] == ["<b>one", "two"]
    assert drawn["runs"][1]["first"] == 1 and drawn["runs"][1]["steps"] == 3
    assert "&lt;b&gt;one" in html and "<b>one" not in html and "step 2 of 3" in html
    assert "beside" not in data(comparison({"alone": one}))


def test_ends_pads_and_beginnings_are_named():
    run = trajectory(["a", "b"])
    run.token_strings = {0: "<s>", 1: "</s>"}
    assert run_of(explorer(run))["end"] == [1] and run_of(explorer(run))["known"] == [""] * 4
    run.settings = {"eos_token_id": 0, "pad_token_id": 7}
    assert run_of(explorer(run))["end"] == [0] and run_of(explorer(run))["pad"] == []


def test_bytes_of_one_character_reach_the_viewer(tiny):
    lm = tiny()
    text = "Mädchen 🙂"
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    out = t2.generate(lm, "The cat", steps=2, length=len(ids) + 2, progress=False)
    first = int(out.trajectory.span_mask.nonzero()[0, 0])
    pin = t2.hooks.Pin({first + i: token for i, token in enumerate(ids)})
    run = t2.replay(lm, out, [pin], progress=False).trajectory
    shown = run_of(explorer(run))
    spelled = "".join(pin["token"] for pin in shown["pins"])
    assert "\ufffd" not in spelled
    assert spelled.encode("utf-8", "surrogateescape").decode() == lm.tokenizer.decode(ids)
    assert {(pin["position"], pin["step"]) for pin in shown["pins"]} == {(first + i, 0) for i in range(len(ids))}


@pytest.mark.parametrize("pins", ["x", ["x"], [{"token": 1}], [{"token": 99, "position": 1, "step": 0}]])
def test_a_file_may_say_anything_of_its_pins(pins):
    run = trajectory(["a", "b"])
    run.settings = {"pins": pins}
    assert run_of(explorer(run))["pins"] == []


def test_a_generation_will_do_and_no_runs_will_not():
    one = trajectory(["a", "b"])
    strip = lambda page: re.sub(r"t2-\w+", "", page)  # noqa: E731
    assert strip(explorer(SimpleNamespace(trajectory=one))) == strip(explorer(one))
    for nothing in ({}, [one]):
        with pytest.raises(ValueError, match="give a dict of one or more trajectories by name"):
            comparison(nothing)
