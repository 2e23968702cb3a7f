"""The viewer shows what a model wrote and never runs it."""

import base64
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

from tess2lite.trajectory import Trajectory
from tess2lite.viz.explorer import comparison, explorer

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</textarea></script>", "\"quotes' & more",
    "zero\u200bwidth\nline", "שלום 🙂",
]  # fmt: skip


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
        tokens=tokens, top_ids=torch.stack([tokens, 1 - tokens], -1),
        top_p=torch.tensor([0.5, 0.25]).expand(steps, 4, 2),
        entropy=torch.ones(steps, 4), alpha_bar=torch.linspace(0, 1, steps), token_strings={0: HOSTILE[0], 1: " b"},
        span_mask=torch.tensor([False, True, True, True]), texts=texts,
    )  # fmt: skip


def read(html):
    reader = Reader()
    reader.feed(html)
    return reader


def data(html):
    """What each script of a page draws; the only one's where there is one."""
    starts = [match.end() for match in re.finditer(r"getElementById\(\"t2-\w+\"\), ", html)]
    found = [json.JSONDecoder().raw_decode(html, start)[0] for start in starts]
    return found[0] if len(found) == 1 else found


def unpacked(text, dtype):
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype).tolist()


def test_every_step_is_there_with_and_without_scripts():
    html = explorer(trajectory(["one", "two", "three"]))
    shown = data(html)
    assert len(shown["labels"]) == 3 and shown["written"] == [1, 2, 3]
    assert unpacked(shown["tokens"], torch.uint16) == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert unpacked(shown["p"], torch.uint8) == [128, 64] * 9 and unpacked(shown["counts"], torch.uint8) == [2] * 9
    assert "step 2 of 3 · ᾱ read 0.500 · mean entropy 1.00 nats" in shown["labels"][1]
    text = read(html).text
    assert text.index("three") < text.index("one")  # the final text first


def test_hostile_text_is_text():
    reader = read(explorer(trajectory(HOSTILE), note=HOSTILE[0]))
    assert reader.tags.count("script") == 1 and "img" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    for text in HOSTILE:
        assert text in reader.text


def test_a_long_run_stays_small():
    """200 steps of 512 tokens, as undecided as can be."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2000, (200, 512, 5), generator=generator).int()
    long = Trajectory(
        tokens=ids[..., 0], top_ids=ids, top_p=torch.full((200, 512, 5), 0.2), entropy=torch.ones(200, 512),
        alpha_bar=torch.linspace(0, 1, 200), span_mask=torch.ones(512, dtype=torch.bool), texts=["word " * 512] * 200,
        token_strings={i: f" word{i}" for i in range(2000)},
    )  # fmt: skip
    assert len(explorer(long)) < 3e6


def test_as_many_likely_tokens_as_a_byte_counts():
    run = trajectory(["x"])
    run.top_ids, run.token_strings = (
        torch.arange(300, dtype=torch.int).expand(1, 4, 300),
        {i: f" {i}" for i in range(300)},
    )
    run.top_p = torch.full((1, 4, 300), 1 / 300)
    shown = data(explorer(run))
    assert unpacked(shown["counts"], torch.uint8) == [255] * 3 and len(unpacked(shown["p"], torch.uint8)) == 3 * 255


def test_what_guidance_changed_is_data_of_the_viewer():
    run = trajectory(["a", "b"])
    assert data(explorer(run))["push"] == data(explorer(run))["unguided"] == ""
    run.argmax_before_guidance, run.logprob_gain = run.argmax.clone(), torch.zeros(2, 4)
    run.argmax_before_guidance[1, 2], run.logprob_gain[1, 2], run.logprob_gain[0, 1], run.logprob_gain[0, 3] = (
        0,
        1.234,
        -0.5,
        -1e9,
    )
    drawn = data(explorer(run))
    assert unpacked(drawn["push"], torch.int16) == [-50, 0, -32767, 0, 123, 0]
    assert unpacked(drawn["unguided"], torch.uint16) == [0, 0, 0, 0, 0, 0]
    assert unpacked(drawn["top"], torch.uint16)[6] == 0


def test_runs_side_by_side_mark_what_differs():
    one, other = trajectory(["a", "b", "c"]), trajectory(["a", "b"])
    other.settings = {"start": 1, "steps": 3}  # began at the first run's second step
    other.tokens[1, 3] = 1
    html = comparison({"<b>one": one, "two": other})
    first, second = data(html)
    assert "&lt;b&gt;one" in html and second["first"] == 1 and "step 2 of 3" in html
    assert sum(unpacked(first["differs"], torch.uint8)) == 0
    # position 2 is (step mod 2): 1, 0 in the first run's last steps, 0, 1 here
    assert unpacked(second["differs"], torch.uint8) == [0, 1, 0, 0, 1, 1]
    assert unpacked(data(explorer(one, beside=other))["differs"], torch.uint8) == [0, 0, 0, 0, 1, 0, 0, 1, 1]


def test_a_generation_will_do_and_no_runs_will_not():
    one = trajectory(["a", "b"])
    strip = lambda page: re.sub(r"t2-\w+", "", page)  # noqa: E731
    assert strip(explorer(SimpleNamespace(trajectory=one))) == strip(explorer(one))
    for nothing in ({}, [one]):
        with pytest.raises(ValueError, match="give a dict of one or more trajectories by name"):
            comparison(nothing)
