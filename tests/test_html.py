"""The viewer shows what a model wrote and never runs it."""

import json
import re
from html.parser import HTMLParser

import torch

from tess2lite.trajectory import Trajectory
from tess2lite.viz.html import scrubber

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</textarea></script>", "\"quotes' & more", "שלום 🙂"
]  # fmt: skip


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.attributes = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data if self.tags[-1] != "script" else ""


def trajectory(texts):
    steps = len(texts)
    return Trajectory(
        tokens=torch.zeros(steps, 4, dtype=torch.long), confidence=torch.full((steps, 4), 0.5),
        entropy=torch.ones(steps, 4), alpha_bar=torch.linspace(0, 1, steps),
        span_mask=torch.tensor([False, True, True, True]), texts=texts,
    )  # fmt: skip


def read(html):
    reader = Reader()
    reader.feed(html)
    return reader


def test_every_step_is_there_with_and_without_scripts():
    html = scrubber(trajectory(["one", "two", "three"]))
    frames = json.loads(re.search(r"frames = (\[.*?\]), range", html).group(1))
    assert [frame["text"] for frame in frames] == ["one", "two", "three"]
    assert "step 2 of 3 · ᾱ read 0.500 · mean entropy 1.00 nats" in frames[1]["label"]
    text = read(html).text
    assert text.index("three") < text.index("one")  # the final text first


def test_hostile_text_is_text():
    reader = read(scrubber(trajectory(HOSTILE), note=HOSTILE[0]))
    assert reader.tags.count("script") == 1 and "img" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    for text in HOSTILE:
        assert text in reader.text


def test_nothing_is_fetched_and_two_viewers_do_not_meet():
    one, two = scrubber(trajectory(["a"])), scrubber(trajectory(["a"]))
    assert "http" not in one and "src=" not in one
    identity = re.compile(r'id="(t2-\w+)"')
    assert identity.search(one).group(1) != identity.search(two).group(1)


def test_the_focusable_parts_keep_their_keys():
    """JupyterLab takes arrow keys from outputs unless each focusable element says otherwise."""
    html = scrubber(trajectory(["a", "b"]))
    for element in re.findall(r"<(?:input|button)[^>]*>", html):
        assert 'data-lm-suppress-shortcuts="true"' in element
