"""Every control of every panel changes what is computed, and says what is wrong with what it was given."""

import time

import pytest
import torch
from test_guidance import small_judge

import tess2lite as t2
from tess2lite.hooks import Pin
from tess2lite.tokens import encode
from tess2lite.viz import panels


@pytest.fixture(scope="module")
def lm():
    return t2.load("tinytown-base")


def go(panel, **values):
    for name, value in values.items():
        panel.controls[name].value = value
    panel.controls["go"].click()
    panel.thread.join()
    return panel


@pytest.mark.parametrize(
    "change",
    [{"time": 0.6}, {"k": 2.0}, {"schedule": "linear"}, {"seed": 3}, {"position": 4}, {"sentence": "Tom sat."}],
    ids=lambda change: [*change][0],
)  # fmt: skip
def test_noise_lab(lm, change):
    lab = panels.noise_panel(lm)
    _, image, text = lab.children
    before = image.value, text.value
    for name, value in change.items():
        lab.controls[name].value = value
    assert image.value != before[0]
    # k moves probability, not order, and the position only says where to look; all else changes what is read
    assert (text.value != before[1]) or "position" in change or "k" in change


def test_noise_lab_says_what_is_wrong(lm):
    lab = panels.noise_panel(lm)
    lab.controls["sentence"].value = ""
    assert "The sentence is empty" in lab.children[2].value
    lab.controls["time"].value, lab.controls["sentence"].value = 0, "<b>Tom"
    assert "<b>Tom" not in lab.children[2].value and "&lt;" in lab.children[2].value
    lab.controls["sentence"].value = "Tom sat. " * 200
    assert "context of 128" in lab.children[2].value


HALF, LONG, NAN = "\ud800", "Tom sat. " * 200, float("nan")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    "change, sentence",
    [({"sentence": " "}, "The sentence is empty"), ({"sentence": HALF}, "has half a sign in it"),
     ({"sentence": LONG}, "context of 128"), ({"sentence": 40 * HOSTILE}, "context of 128"),
     ({"position": None}, "position is None"), ({"k": NAN}, "k is nan"), ({"time": NAN}, "t/T is nan")],
)  # fmt: skip
def test_the_noise_lab_goes_on_after_a_mistake(lm, change, sentence):
    lab = panels.noise_panel(lm)
    (name, value), text = *change.items(), lab.children[2]
    before, good = text.value, lab.controls[name].value
    lab.controls[name].value = value
    assert text.value.startswith('<p role="alert">') and sentence in text.value and "<img" not in text.value
    lab.controls[name].value = good
    assert text.value == before


RUN = {"prompt": "Tom had a drum.", "steps": 5, "length": 20}


@pytest.fixture(scope="module")
def plain(lm):
    return go(panels.run_panel(lm, ""), **RUN).result


def test_the_run_panel_runs_what_it_shows(lm, plain):
    expected = t2.generate(lm, "Tom had a drum.", steps=5, length=20, seed=0, progress=False)
    assert plain.token_ids == expected.token_ids


@pytest.mark.parametrize(
    "change",
    [{"prompt": "Anna ran."}, {"steps": 6}, {"length": 21}, {"top_p": 0.1}, {"temperature": 0.2}, {"seed": 1}],
    ids=lambda change: [*change][0],
)  # fmt: skip
def test_run_panel(lm, plain, change):
    panel = go(panels.run_panel(lm, ""), **RUN | change)
    assert panel.result.trajectory.tokens.tolist() != plain.trajectory.tokens.tolist()
    (page,) = panel.children[-1].outputs
    assert "t2-explorer" in page["data"]["text/html"]


LAB = {"prompt": "Tell me something about the barn.", "steps": 6, "scale": 1e3, "reward": "one"}


@pytest.fixture(scope="module")
def judges(lm):
    one, two = small_judge(lm), small_judge(lm)
    with torch.no_grad():
        two.score.weight.neg_()
    return {"one": one, "two": two}


@pytest.fixture(scope="module")
def guided(lm, judges):
    return go(panels.guidance_panel(lm, judges, "")), go(panels.guidance_panel(lm, judges, ""), **LAB)


def test_the_guidance_lab_runs_what_it_shows(lm, judges, guided):
    refused, lab = guided
    assert "The user&#x27;s message has no content" in refused.children[1].value
    asked = [{"role": "user", "content": LAB["prompt"]}]
    hook = t2.RewardGuidance(judges["one"], 1e3)
    expected = t2.generate(lm, asked, steps=6, hooks=[hook], progress=False)
    assert lab.result.token_ids == expected.token_ids
    (page,) = lab.children[-1].outputs
    html = page["data"]["text/html"]
    assert ">unguided<" in html and ">guided<" in html and 'alt="Predicted reward by step"' in html


@pytest.mark.parametrize(
    "change",
    [{"prompt": "Who is Tom?"}, {"reward": "two"}, {"scale": 10}, {"inner_steps": 2}, {"part": (0, 0.5)},
     {"steps": 7}, {"seed": 1}],
    ids=lambda change: [*change][0],
)  # fmt: skip
def test_guidance_lab(lm, judges, guided, change):
    panel = go(panels.guidance_panel(lm, judges, ""), **LAB | change)
    ours, theirs = panel.result.trajectory, guided[1].result.trajectory
    assert ours.top_p.shape != theirs.top_p.shape or not torch.equal(ours.top_p, theirs.top_p)


def goes_on_after(panel, mistake, sentence, good):
    """Whether a mistake is shown as its sentence alone, and a run after it goes well."""
    shown = go(panel, **good | mistake).children[-2].value
    assert shown.startswith('<p role="alert">') and sentence in shown and "<img" not in shown
    assert panel.result is None and not panel.children[-1].outputs
    assert not panel.controls["go"].disabled and panel.controls["stop"].disabled
    assert go(panel, **good).children[-2].value == "" and panel.result.token_ids


@pytest.mark.parametrize(
    "mistake, sentence",
    [({"prompt": ""}, "prompt is empty"), ({"prompt": " \n"}, "prompt is empty"), ({"prompt": HALF}, "half a sign"),
     ({"prompt": LONG}, "context of 128; shorten it"), ({"prompt": 40 * HOSTILE}, "context of 128"),
     ({"length": 127}, "length is 127"), ({"top_p": NAN}, "top_p is nan"),
     ({"temperature": NAN}, "temperature is nan")],
)  # fmt: skip
def test_the_run_panel_goes_on_after_a_mistake(lm, mistake, sentence):
    goes_on_after(panels.run_panel(lm, ""), mistake, sentence, RUN | {"top_p": 0.99, "temperature": 1})


@pytest.mark.parametrize(
    "mistake, sentence",
    [({"prompt": ""}, "message has no content"), ({"prompt": LONG}, "context of 128"), ({"prompt": HALF}, "half a"),
     ({"scale": NAN}, "scale is nan"), ({"part": (NAN, 1)}, "start is nan"),
     ({"reward": None}, "reward model is None")],
)  # fmt: skip
def test_the_guidance_lab_goes_on_after_a_mistake(lm, judges, mistake, sentence):
    goes_on_after(panels.guidance_panel(lm, judges, ""), mistake, sentence, LAB | {"steps": 2, "part": (0, 1)})


def test_a_hostile_prompt_is_text(lm, judges):
    panel = go(panels.run_panel(lm, HOSTILE), steps=2)
    (page,) = panel.children[-1].outputs
    assert panel.result.prompt == HOSTILE and HOSTILE not in page["data"]["text/html"]
    lab = go(panels.guidance_panel(lm, {HOSTILE: judges["one"]}, HOSTILE), steps=2)
    assert lab.result and HOSTILE not in lab.children[-1].outputs[0]["data"]["text/html"]


@pytest.mark.parametrize(
    "name, given, kept", [("steps", 0, 1), ("length", 10_000, 127), ("top_p", 2, 1), ("top_p", 0, 0.01)]
)
def test_a_slider_holds_what_it_can(lm, name, given, kept):
    control = panels.run_panel(lm, "").controls[name]
    control.value = given
    assert control.value == kept


MADE_OF = [
    (lambda lm, judges: panels.noise_panel(None), "lm is a NoneType"),
    (lambda lm, judges: panels.noise_panel(lm, None), "text is None"),
    (lambda lm, judges: panels.run_panel(judges["one"], ""), "lm is a MistralRewardModel"),
    (lambda lm, judges: panels.run_panel(lm, "", steps=0), "steps is 0"),
    (lambda lm, judges: panels.run_panel(lm, 5), "text is 5"),
    (lambda lm, judges: panels.guidance_panel(lm, {}, ""), "rewards is dict"),
    (lambda lm, judges: panels.guidance_panel(lm, judges["one"], ""), "rewards is MistralRewardModel"),
    (lambda lm, judges: panels.guidance_panel(lm, {"one": lm}, ""), "The reward model is a MistralForDiffusionLM"),
    (lambda lm, judges: panels.guidance_panel(lm, judges, "", steps=2.5), "steps is 2.5"),
    (lambda lm, judges: panels.intervention_panel(lm, None), "run is a NoneType"),
    (lambda lm, judges: panels.intervention_panel(None, None), "lm is a NoneType"),
]


@pytest.mark.parametrize("made, sentence", MADE_OF, ids=lambda part: part if isinstance(part, str) else "")
def test_what_a_panel_is_made_of_is_checked_at_once(lm, judges, made, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        made(lm, judges)


def test_stop_keeps_what_there_is(lm):
    panel = panels.run_panel(lm, "Tom had a drum.", steps=200)
    panel.controls["go"].click()
    while "step" not in panel.children[-2].value:  # streams while it runs
        time.sleep(0.01)
    assert panel.controls["go"].disabled and not panel.controls["stop"].disabled
    panel.controls["stop"].click()
    panel.thread.join()
    assert 1 <= len(panel.result.trajectory) < 200
    assert "of 200 steps." in panel.children[-1].outputs[0]["data"]["text/html"]


@pytest.fixture
def written(lm):
    return t2.generate(lm, "Tom had a drum.", steps=8, length=30, progress=False)


def shown(panel):
    return panel.result.trajectory.tokens


def test_pin_and_replace(lm, written):
    panel = go(panels.intervention_panel(lm, written), step=4, position=20, token="kite", action="pin")
    (kite,) = encode(lm.tokenizer, " kite")
    old, pinned = written.trajectory.tokens, shown(panel)
    assert (pinned[:3] == old[:3]).all() and (pinned[3:, 20] == kite).all()
    replaced = shown(go(panel, action="replace"))
    assert replaced[3, 20] == kite and (replaced[4:] != pinned[4:]).any()
    assert (shown(go(panel, token="drum")) != replaced).any()
    assert (shown(go(panel, position=21)) != replaced).any() and (shown(go(panel, step=5))[3] == old[3]).all()


def test_branch_noise_and_rewrite(lm, written):
    panel, old = panels.intervention_panel(lm, written), written.trajectory.tokens
    branched = shown(go(panel, action="branch", step=4, seed=5))
    assert (branched[:3] == old[:3]).all() and (branched != old).any()
    assert (shown(go(panel, seed=6)) != branched).any()
    noised = shown(go(panel, action="noise", step=6))
    assert len(noised) == 3 and (shown(go(panel, seed=7)) != noised).any()
    place = panel.controls["words"].options[1][1]
    rewritten = shown(go(panel, action="rewrite", words=(place,)))[-1]
    elsewhere = [i for i in range(len(rewritten)) if not place[0] <= i < place[1]]
    assert (rewritten[elsewhere] == old[-1][elsewhere]).all() and panel.result.text.startswith("Tom had a drum.")


GOOD = {"action": "pin", "token": "kite", "position": 12, "step": 4}


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"action": "pin", "token": "hippopotamus"}, "tokens, not one"),
        ({"action": "pin", "token": " "}, "token is empty"),
        ({"action": "pin", "token": HALF}, "half a sign"),
        ({"action": "replace", "token": HOSTILE}, "tokens, not one"),
        ({"action": "pin", "position": None}, "position is None"),
        ({"action": "rewrite", "words": ()}, "No word is chosen"),
        ({"action": "noise", "step": 1}, "step is 1; give a whole number"),
    ],
)
def test_interventions_say_what_is_wrong(lm, written, values, sentence):
    goes_on_after(panels.intervention_panel(lm, written), values, sentence, GOOD)


def test_the_pause_shows_the_step_and_the_alternatives(lm, written):
    panel = panels.intervention_panel(lm, written)
    paused, run = panel.children[1], written.trajectory
    panel.controls["step"].value, panel.controls["position"].value = 2, 12
    assert "step 2:" in paused.value and f"{float(run.top_p[1, 12, 0]):.0%}" in paused.value
    before = paused.value
    panel.controls["position"].value = 13
    assert paused.value != before


def test_what_an_action_does_not_read_is_greyed_out(lm, written):
    panel = panels.intervention_panel(lm, written)
    greyed = {
        action: [n for n, c in panel.controls.items() if c.disabled and n not in ("go", "stop")]
        for action in panels.ACTIONS
        if not setattr(panel.controls["action"], "value", action)
    }
    assert greyed == {
        "pin": ["seed", "words"], "replace": ["seed", "words"], "noise": ["token", "words"],
        "branch": ["token", "words"], "rewrite": ["token"],
    }  # fmt: skip


def test_an_end_can_be_pinned_and_a_second_click_starts_nothing(lm, written):
    panel = panels.intervention_panel(lm, written)
    panel.controls["token"].value, panel.controls["position"].value = "</s>", 12
    panel.controls["go"].click()
    thread = panel.thread
    panel.controls["go"].click()
    assert panel.thread is thread
    thread.join()
    assert panel.result.token_ids[12] == lm.tokenizer.eos_token_id and panel.result.ended


def test_a_run_made_with_hooks_needs_them_in_the_panel(lm):
    hooks = [Pin({10: 400})]
    pinned = t2.generate(lm, "Tom had a drum.", steps=4, length=12, hooks=hooks, progress=False)
    panel = go(panels.intervention_panel(lm, pinned), action="branch", step=2)
    assert "was made with Pin; give these hooks again" in panel.children[-2].value
    panel = go(panels.intervention_panel(lm, pinned, hooks), action="branch", step=2)
    assert (shown(panel)[:, 10] == 400).all()


def test_a_position_stays_chosen_when_the_sentence_changes(lm):
    lab = panels.noise_panel(lm)
    position = lab.controls["position"]
    position.value = 3
    lab.controls["sentence"].value = "Tom sat down."
    assert position.value == 3 and position.options[position.index][1] == 3  # what is shown is what is computed
    position.value = 2
    assert position.options[position.index][1] == 2
