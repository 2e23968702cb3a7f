"""The explorer with a kernel: a wish gives exactly the run that `replay` gives, and says what goes wrong."""

import time

import pytest
import torch

import tess2lite as t2
from tess2lite.hooks import Halt, Pin
from tess2lite.tokens import encode
from tess2lite.viz.explorer import run_data
from tess2lite.viz.widget import Explorer

STEPS = 8


@pytest.fixture(scope="module")
def lm():
    return t2.load("tinytown-base")


@pytest.fixture(scope="module")
def written(lm):
    return t2.generate(lm, "Tom had a drum.", steps=STEPS, length=20, seed=1, progress=False)


@pytest.fixture
def opened(lm, written):
    """An explorer whose messages to the front end are kept in a list."""

    def make(run=written, **more):
        explorer = Explorer(lm, run, **more)
        sent = []
        explorer.send = sent.append
        return explorer, sent

    return make


def wish(explorer, **message):
    explorer._answer(None, {"type": "what if", "run": 0} | message, None)
    explorer.thread.join()


def place(run, m):
    return int(run.span_mask.nonzero()[m, 0])


def same(one, other):
    tensors = ("tokens", "top_ids", "top_p", "entropy", "alpha_bar")
    records = one.records.keys() == other.records.keys()
    records = records and all(torch.equal(values, other.records[name]) for name, values in one.records.items())
    return records and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)


def test_a_run_has_every_end_of_the_model(lm, written, opened, monkeypatch):
    own = lm.tokenizer.eos_token_id
    monkeypatch.setattr(lm.config, "eos_token_id", [own, 9])
    explorer, sent = opened()
    position = place(written.trajectory, 5)
    wish(explorer, step=3, position=position, token=0)
    run = next(message["run"] for message in sent if message["type"] == "run")
    assert len(set(run["end"])) == 2


@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
def test_a_chosen_alternative_gives_the_run_of_replay_with_pin(lm, written, opened, step):
    run = written.trajectory
    explorer, sent = opened()
    position, token = place(run, 5), int(run.top_ids[step, place(run, 5), 1])
    wish(explorer, step=step, position=position, token=sorted(run.token_strings).index(token))
    expected = t2.replay(lm, run, [Pin({position: token}, start=step)], progress=False).trajectory
    assert same(explorer.runs[1], expected)
    assert (explorer.runs[1].settings, explorer.runs[1].texts) == (expected.settings, expected.texts)
    assert [message["type"] for message in sent] == ["say", "run", *["step"] * (STEPS - step), "end", "say"]


@pytest.mark.parametrize("step", [0, 1, 60, 118])
def test_the_first_new_step_comes_within_a_second_whatever_the_step(lm, opened, step):
    """Processor time of the process, from the wish to the first step that is sent: another program cannot fail it."""
    out = t2.generate(lm, "Tom had a drum.", steps=120, length=100, seed=1, progress=False)
    explorer, sent = opened(out)
    explorer.futures[0].fill(lm)  # what the kernel does in the background once a run is shown
    calls = []
    handle = lm.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    times = []

    def send(message):
        if message["type"] == "step" and not times:
            times.append((time.process_time() - begin, len(calls)))
            explorer._stopped.set()

    explorer.send = send
    begin = time.process_time()
    wish(explorer, step=step, position=place(out.trajectory, 40), text="kite")
    handle.remove()
    seconds, passes = times[0]
    assert passes == 1  # the step itself: nothing before it is computed again
    assert seconds < 1


def test_what_streams_is_what_is_recorded(written, opened):
    """The columns that the front end gets step by step, against those of the whole run's page."""
    run, step = written.trajectory, 3
    explorer, sent = opened()
    wish(explorer, step=step, position=place(run, 5), text="kite")
    header, frames = sent[1]["run"], [message["step"] for message in sent if message["type"] == "step"]
    pieces = list(header["pieces"])
    whole = explorer.runs[1]
    for i, frame in enumerate(frames):
        pieces += frame["pieces"]
        at = step + i
        ids = whole.tokens[at, whole.span_mask].tolist()
        names = run_data(whole)["pieces"]
        index = {token: j for j, token in enumerate(sorted(whole.token_strings))}
        assert [pieces[j] for j in frame["tokens"]] == [names[index[token]] for token in ids]
        assert frame["sure"] == (whole.top_p[at, whole.span_mask, 0] * 255).round().int().tolist()
        assert frame["drawn"] == (whole.records["token_p"][at, whole.span_mask] * 255).round().int().tolist()
        noisy = whole.records["noisy_tokens"][at, whole.span_mask].tolist()
        assert [pieces[j] for j in frame["noisy"]] == [names[index[token]] for token in noisy]
        assert sum(frame["counts"]) == len(frame["top"]) == len(frame["p"])
    assert len(header["alpha_bar"]) == step and header["pins"][0]["step"] == step


def test_a_future_of_a_future_keeps_both_words(lm, written, opened):
    run = written.trajectory
    explorer, _ = opened()
    one, other = place(run, 4), place(run, 9)
    wish(explorer, step=2, position=one, text="kite")
    wish(explorer, run=1, step=5, position=other, text="drum")
    pins = explorer.runs[2].settings["pins"]
    expected = t2.replay(lm, run, [Pin({p["position"]: p["token"]}, start=p["step"]) for p in pins], progress=False)
    assert [(pin["position"], pin["step"]) for pin in pins] == [(one, 2), (other, 5)]
    assert same(explorer.runs[2], expected.trajectory)
    assert len(explorer.data["runs"]) == 3


def test_a_long_word_fills_the_next_places(lm, written, opened):
    run = written.trajectory
    explorer, _ = opened()
    position = place(run, 3)
    wish(explorer, step=2, position=position, text="Mädchen")
    pins = explorer.runs[1].settings["pins"]
    assert [pin["position"] for pin in pins] == list(range(position, position + len(pins))) and len(pins) > 1
    assert lm.tokenizer.decode([pin["token"] for pin in pins]).strip() == "Mädchen"


def test_hooks_with_a_memory_are_run_from_the_start(lm, opened):
    """Halt counts steps: a run that began in its middle would stop later."""
    hooks = [Halt(patience=2, entropy=9.0)]
    out = t2.generate(lm, "Tom had a drum.", steps=30, length=12, hooks=hooks, progress=False)
    explorer, _ = opened(out, hooks=[Halt(patience=2, entropy=9.0)])
    position = place(out.trajectory, 2)
    wish(explorer, step=1, position=position, text="kite")
    pin = explorer.runs[1].settings["pins"][0]
    pinned = [Halt(patience=2, entropy=9.0), Pin({position: pin["token"]}, start=1)]
    assert same(explorer.runs[1], t2.replay(lm, out, pinned, progress=False).trajectory)


@pytest.mark.parametrize(
    "message, sentence",
    [
        ({"text": " "}, "No word is given"),
        ({"text": "\ud800"}, "contains an unpaired surrogate"),
        ({"text": "hippopotamus " * 9}, "does not fit here"),
    ],
)
def test_a_mistake_is_a_sentence_and_it_goes_on(written, opened, message, sentence):
    explorer, sent = opened()
    position = place(written.trajectory, 15)
    wish(explorer, step=2, position=position, **message)
    assert sent[-1]["type"] == "say" and sentence in sent[-1]["sentence"] and not sent[-1]["busy"]
    assert len(explorer.runs) == 1
    wish(explorer, step=2, position=position, text="kite")
    assert len(explorer.runs) == 2


def test_stop_keeps_what_there_is(lm, opened):
    out = t2.generate(lm, "Tom had a drum.", steps=150, length=20, progress=False)
    explorer, sent = opened(out)
    explorer.futures[0].fill(lm)
    explorer._answer(
        None, {"type": "what if", "run": 0, "step": 1, "position": place(out.trajectory, 2), "text": "kite"}, None
    )
    while not any(message["type"] == "step" for message in sent):
        explorer.thread.join(0.005)
    explorer._answer(None, {"type": "what if", "run": 0}, None)  # a second wish meanwhile
    explorer._answer(None, {"type": "stop"}, None)
    explorer.thread.join()
    assert 2 <= len(explorer.runs[1]) < 150 and len(explorer.runs) == 2
    assert any("One thing at a time" in message.get("sentence", "") for message in sent)


def test_an_empty_explorer_takes_a_run_as_it_comes(lm, opened):
    explorer, sent = opened(None)
    made = {"steps": 4, "length": 10, "seed": 3, "progress": False}
    explorer.stream("mine", lambda hooks: t2.generate(lm, "Anna ran.", hooks=hooks, **made))
    assert [message["type"] for message in sent] == ["run", *["step"] * 4, "end"]
    assert "".join(sent[0]["run"]["known"]).strip() == "Anna ran."
    assert same(explorer.runs[0], t2.generate(lm, "Anna ran.", **made).trajectory)


def test_what_it_is_made_of_is_checked(lm):
    with pytest.raises(ValueError, match="The run is a str"):
        Explorer(lm, "x")
    with pytest.raises(ValueError, match="lm is a NoneType"):
        Explorer(None, None)


def test_the_words_of_a_typed_token_follow_the_old_one(lm, written):
    explorer = Explorer(lm, written)
    assert explorer.token_ids(written.trajectory, place(written.trajectory, 0), "kite") == encode(lm.tokenizer, " kite")
