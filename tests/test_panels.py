"""Every field of every panel changes what is computed, and a mistake is one sentence in place of the pictures."""

import json
import re
from pathlib import Path

import pytest
import torch
from test_guidance import small_judge
from transformers import AutoModelForCausalLM

import tess2lite as t2
from tess2lite.chat_template import chat_prompt
from tess2lite.hooks import Branch, Pin
from tess2lite.tokens import encode
from tess2lite.viz import panels
from tess2lite.viz.voices import bundled_parent, guided_passes, number_at_equal_cost

HALF, LONG, NAN = "\ud800", "Tom sat. " * 200, float("nan")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def lm():
    return t2.load("tinytown-base")


@pytest.fixture(scope="module")
def reward_models(lm):
    one, two = small_judge(lm), small_judge(lm)
    with torch.no_grad():
        two.score.weight.neg_()
    return {"one": one, "two": two}


def watched(panel):
    """A panel whose messages to the front end are kept."""
    panel.sent = []
    panel.send = panel.sent.append
    return panel


def go(panel, step=0, position=None, run=0, **values):
    watched(panel).go(values, run, step, position)
    return panel


def failure(panel):
    return next((message["sentence"] for message in panel.sent if message["type"] == "fail"), None)


def tokens(panel):
    return panel.result.trajectory.tokens


# Noise


@pytest.mark.parametrize(
    "change",
    [{"time": 0.6}, {"k": 2.0}, {"schedule": "linear"}, {"seed": 3}, {"position": 4}, {"sentence": "Tom sat."}],
    ids=lambda change: [*change][0],
)
def test_noise_panel(lm, change):
    panel = panels.noise_panel(lm)
    before = panel.picture.value
    for name, value in change.items():
        panel.controls[name].value = value
    assert panel.picture.value != before


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"sentence": " "}, "The sentence is empty"),
        ({"sentence": HALF}, "contains an unpaired surrogate"),
        ({"sentence": LONG}, "context of"),
        ({"sentence": 40 * HOSTILE}, "context of"),
        ({"position": None}, "position is None"),
        ({"k": NAN}, "k is nan"),
        ({"time": NAN}, "t/T is nan"),
    ],
)
def test_a_mistake_clears_the_noise_panel_and_it_goes_on(lm, change, sentence):
    panel = panels.noise_panel(lm)
    (name, value), picture = *change.items(), panel.picture
    before, good = picture.value, panel.controls[name].value
    panel.controls[name].value = value
    assert '<p role="alert">' in picture.value and sentence in picture.value
    assert "<img" not in picture.value and "bar true" not in picture.value  # no old picture under it
    panel.controls[name].value = good
    assert picture.value == before


def test_the_noise_panel_escapes_what_it_shows(lm):
    panel = panels.noise_panel(lm)
    panel.controls["time"].value, panel.controls["sentence"].value = 0, "<b>Tom"
    assert "<b>Tom" not in panel.picture.value and "&lt;" in panel.picture.value


def test_a_position_stays_chosen_when_the_sentence_changes(lm):
    panel = panels.noise_panel(lm)
    position = panel.controls["position"]
    position.value = 3
    panel.controls["sentence"].value = "Tom sat down."
    assert position.value == 3 and position.options[position.index][1] == 3  # what is shown is what is computed


def test_the_noise_panel_opens_where_reading_all_words_helps_most(lm):
    """The noisy page has lost the word at the chosen position, and the model finds it."""
    panel = panels.noise_panel(lm)
    position = panel.controls["position"].value
    true = encode(lm.tokenizer, panels.STORY)[position - 1]
    page, model = re.findall(r'<div class="bar( true)?"><span>([^<]*)<', panel.picture.value)[:: panels.BARS][:2]
    assert page[0] == "" and model == (" true", lm.tokenizer.decode(true).strip())


# A run

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
)
def test_run_panel(lm, plain, change):
    panel = go(panels.run_panel(lm, ""), **RUN | change)
    assert tokens(panel).tolist() != plain.trajectory.tokens.tolist()
    assert [message["type"] for message in panel.sent].count("step") == (RUN | change)["steps"]


def test_earlier_runs_stay_as_tabs(lm):
    panel = panels.run_panel(lm, "")
    for seed in range(3):
        go(panel, **RUN | {"seed": seed})
    assert [run["name"] for run in panel.data["runs"]] == [f"seed {seed}, 5 steps" for seed in range(3)]


@pytest.mark.parametrize(
    "mistake, sentence",
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": HALF}, "unpaired surrogate"),
        ({"prompt": LONG}, "shorten it"),
        ({"prompt": 40 * HOSTILE}, "shorten it"),
        ({"length": 9999}, "length is 9999"),
        ({"top_p": NAN}, "top_p is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"seed": None}, "seed"),
        ({"temperature": NAN}, "temperature is nan"),
    ],
)
def test_the_run_panel_goes_on_after_a_mistake(lm, mistake, sentence):
    panel = go(panels.run_panel(lm, ""), **RUN | mistake)
    if "seed" in mistake:  # an empty field means a fresh one
        assert panel.result.token_ids
        return
    assert sentence in failure(panel) and panel.result is None
    assert failure(go(panel, **RUN)) is None and panel.result.token_ids


# Guidance

LAB = {"prompt": "Tell me something about the barn.", "steps": 6, "scale": 1e3, "reward": "one"}


@pytest.fixture(scope="module")
def guided(lm, reward_models):
    return go(panels.guidance_panel(lm, reward_models, ""), **LAB)


def test_panels_open_with_what_works_best(lm, reward_models):
    """Guidance at the scale that breaks fewest sentences and gains for certain; a run as `generate` makes it."""
    study = json.loads(Path("assets/findings/guidance.json").read_text())["summary"]
    helps = [arm for arm in study.values() if arm["model"] == "tinytown-reward" and arm["best_of"] == 1]
    helps = [arm for arm in helps if arm["scale"] and arm["gain"][1] > 0]
    best = min(helps, key=lambda arm: arm["broken"][0])
    values = {field["name"]: field["value"] for field in panels.guidance_panel(lm, reward_models, "").fields}
    assert (values["scale"], values["inner_steps"], values["start"], values["end"]) == (best["scale"], 1, 0, 1)
    values = {field["name"]: field["value"] for field in panels.run_panel(lm, "").fields}
    usual = t2.SamplingParams()
    assert (values["top_p"], values["temperature"]) == (usual.top_p, usual.temperature)
    written = t2.generate(lm, "Tom had a drum.", steps=2, length=8, progress=False)
    action = next(field for field in panels.intervention_panel(lm, written).fields if field["name"] == "action")
    assert action["value"] == "branch"  # which needs no held word


def test_the_guidance_panel_runs_what_it_shows(lm, reward_models, guided):
    asked = [{"role": "user", "content": LAB["prompt"]}]
    hook = t2.RewardGuidance(reward_models["one"], 1e3)
    expected = t2.generate(lm, asked, steps=6, hooks=[hook], progress=False)
    assert guided.result.token_ids == expected.token_ids
    assert [run["name"] for run in guided.data["runs"]] == ["unguided", "guided, η = 1000"]
    assert all(run["reward"] for run in guided.data["runs"])
    began = [message for message in guided.sent if message["type"] == "run"]
    assert [message.get("beside") for message in began] == [None, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Who is Tom?"},
        {"reward": "two"},
        {"scale": 10},
        {"inner_steps": 2},
        {"end": 0.5},
        {"start": 0.5},
        {"steps": 7},
        {"seed": 1},
    ],
    ids=lambda change: [*change][0],
)
def test_guidance_panel(lm, reward_models, guided, change):
    ours = go(panels.guidance_panel(lm, reward_models, ""), **LAB | change).result.trajectory
    theirs = guided.result.trajectory
    assert ours.top_p.shape != theirs.top_p.shape or not torch.equal(ours.top_p, theirs.top_p)


@pytest.mark.parametrize(
    "mistake, sentence",
    [
        ({"prompt": ""}, "message has no content"),
        ({"prompt": LONG}, "shorten it"),
        ({"prompt": HALF}, "surrogate"),
        ({"scale": NAN}, "scale is nan"),
        ({"start": NAN}, "start is nan"),
        ({"scale": None}, "scale is None"),
        ({"reward": None}, "reward model is None"),
    ],
)
def test_the_guidance_panel_goes_on_after_a_mistake(lm, reward_models, mistake, sentence):
    good = LAB | {"steps": 2}
    panel = go(panels.guidance_panel(lm, reward_models, ""), **good | mistake)
    assert sentence in failure(panel) and panel.result is None
    assert failure(go(panel, **good)) is None and panel.result.token_ids


def likeliest_words(model, lm, prompt, room):
    """A plain loop: the likeliest token after all tokens before it."""
    ids = [lm.tokenizer.bos_token_id, *encode(lm.tokenizer, prompt)]
    written = []
    while len(written) < room and (not written or written[-1] != lm.tokenizer.eos_token_id):
        with torch.no_grad():
            logits = model(torch.tensor([ids + written])).logits
        written.append(int(logits[0, -1].argmax()))
    return written


def test_the_guidance_panel_lists_best_of_n_and_the_autoregressive_model(lm, reward_models, guided):
    """Against generate, score_ids and a plain loop: who speaks, what was said, its reward and its cost."""
    chat = [{"role": "user", "content": LAB["prompt"]}]
    judge = reward_models["one"]
    steps = LAB["steps"]
    ours, plain, parent, best = guided.data["runs"][1]["voices"]
    assert [voice["name"] for voice in (ours, plain, parent, best)] == [
        "guided, η = 1000",
        "unguided",
        "tinytown-ar (AR)",
        "best of 3",  # 24 passes / 7
    ]
    outs = t2.generate(lm, [chat] * 3, steps=steps, seed=range(3), progress=False)
    rewards = [float(judge.score_ids(torch.tensor([out.token_ids]))) for out in outs]
    assert plain["text"] == outs[0].text and plain["reward"] == pytest.approx(rewards[0], abs=1e-3)
    assert ours["text"] == guided.result.text and ours["reward"] > plain["reward"]
    chosen = max(range(3), key=lambda i: rewards[i])
    assert best["text"] == outs[chosen].text
    others = [reward for i, reward in enumerate(rewards) if i != chosen]
    assert [best["reward"], *best["unchosen"]] == pytest.approx([rewards[chosen], *others], abs=1e-3)
    model = AutoModelForCausalLM.from_pretrained(t2.bundled()["tinytown-ar"], dtype=torch.float32)
    prompt = chat_prompt(chat)
    context = lm.config.max_position_embeddings
    room = context - 1 - len(encode(lm.tokenizer, prompt))
    written = likeliest_words(model, lm, prompt, room)
    assert parent["text"] == lm.tokenizer.decode(written, skip_special_tokens=True).strip()
    row = [*outs[0].token_ids[: context - room], *written]
    row += [lm.tokenizer.pad_token_id] * (context - len(row))
    assert parent["reward"] == pytest.approx(float(judge.score_ids(torch.tensor([row]))), abs=1e-3)
    costs = [voice["passes"] for voice in (ours, plain, parent, best)]
    assert costs == [steps * 4, steps, len(written), 3 * (steps + 1)]


def test_passes_of_a_guided_run_and_how_many_texts_they_pay(reward_models):
    hook = t2.RewardGuidance(reward_models["one"], 10, inner_steps=2, start=0.5)
    assert guided_passes(hook, 10) == 10 + 5 * 2 * 3
    assert guided_passes(t2.RewardGuidance(reward_models["one"], 0), 10) == 10
    assert number_at_equal_cost(40, 9) == 4


def test_voices_of_another_panel_run_stay_with_their_run(lm, reward_models):
    panel = panels.guidance_panel(lm, reward_models, "")
    for prompt in ("Who is Tom?", "Who is Mia?"):
        go(panel, **LAB | {"prompt": prompt, "steps": 2})
    counts = [len(run["voices"]) for run in panel.data["runs"]]
    assert counts == [0, 4, 0, 4]
    sent = [message for message in panel.sent if message["type"] == "voices"]
    assert [(message["run"], len(message["voices"])) for message in sent] == [(3, 3), (3, 4)]


def test_no_autoregressive_voice_beside_a_model_with_other_tokens(lm, reward_models, tiny):
    assert bundled_parent(tiny()) is None
    other = AutoModelForCausalLM.from_config(tiny(vocab_size=64).config)
    panel = go(panels.guidance_panel(lm, reward_models, "", autoregressive=other), **LAB | {"steps": 2})
    assert "64 tokens and the denoiser" in failure(panel)


def test_a_hostile_prompt_is_data(lm, reward_models):
    panel = go(panels.run_panel(lm, HOSTILE), steps=2)
    assert panel.result.prompt == HOSTILE
    assert go(panels.guidance_panel(lm, {HOSTILE: reward_models["one"]}, HOSTILE), steps=2).result


# Interventions


@pytest.fixture(scope="module")
def written(lm):
    return t2.generate(lm, "Tom had a drum.", steps=8, length=30, progress=False)


def test_another_seed_and_another_word_for_one_step(lm, written):
    panel, run = panels.intervention_panel(lm, written), written.trajectory
    branched = tokens(go(panel, step=3, action="branch", seed=5))
    assert torch.equal(branched, t2.replay(lm, run, [Branch(3, 5)], progress=False).trajectory.tokens)
    position = int(run.span_mask.nonzero()[8, 0])
    replaced = tokens(go(panel, step=3, position=position, action="replace", word="kite"))
    (kite,) = encode(lm.tokenizer, " kite")
    once = [Pin({position: kite}, start=3, count=1)]
    assert torch.equal(replaced, t2.replay(lm, run, once, progress=False).trajectory.tokens)
    assert panel.data["runs"][2]["pins"][0]["until"] == 4


def test_noise_again_and_written_anew(lm, written):
    panel, old = panels.intervention_panel(lm, written), written.trajectory.tokens
    noised = tokens(go(panel, step=5, action="noise", seed=4))
    assert len(noised) == 3 and panel.data["runs"][1]["first"] == 5
    first, end = next(word for word in written.trajectory.words() if written.trajectory.span_mask[word[0]])
    rewritten = tokens(go(panel, position=first, action="rewrite", seed=4))[-1]
    elsewhere = [i for i in range(len(rewritten)) if not first <= i < end]
    assert (rewritten[elsewhere] == old[-1][elsewhere]).all()


def test_a_future_of_a_branch_needs_the_branch_again(lm, written):
    panel = panels.intervention_panel(lm, written)
    go(panel, step=2, action="branch", seed=5)
    again = tokens(go(panel, run=1, step=5, action="branch", seed=6))
    expected = t2.replay(lm, written, [Branch(2, 5), Branch(5, 6)], progress=False).trajectory.tokens
    assert torch.equal(again, expected)


@pytest.mark.parametrize(
    "held, values, sentence",
    [
        ({"step": 2, "position": 12}, {"action": "replace", "word": "hippopotamus"}, "tokens, not one"),
        ({"step": 2, "position": 12}, {"action": "replace", "word": " "}, "No word is given"),
        ({"step": 2, "position": 12}, {"action": "replace", "word": HALF}, "unpaired surrogate"),
        ({"step": 2, "position": None}, {"action": "replace", "word": "kite"}, "No word is held"),
        ({"step": 2, "position": None}, {"action": "rewrite"}, "No word is held"),
        ({"step": 0, "position": 12}, {"action": "noise"}, "Step 1 reads pure noise"),
    ],
)
def test_interventions_say_what_is_wrong_and_go_on(lm, written, held, values, sentence):
    panel = go(panels.intervention_panel(lm, written), **held, **values)
    assert sentence in failure(panel) and panel.result is None
    assert failure(go(panel, step=3, action="branch")) is None and panel.result.token_ids


def test_a_run_made_with_hooks_needs_them_in_the_panel(lm):
    hooks = [Pin({10: 400})]
    pinned = t2.generate(lm, "Tom had a drum.", steps=4, length=12, hooks=hooks, progress=False)
    panel = go(panels.intervention_panel(lm, pinned), step=1, action="branch")
    assert "was made with Pin; give these hooks again" in failure(panel)
    panel = go(panels.intervention_panel(lm, pinned, hooks), step=1, action="branch")
    assert (tokens(panel)[:, 10] == 400).all()


MADE_OF = [
    (lambda lm, reward_models: panels.noise_panel(None), "lm is a NoneType"),
    (lambda lm, reward_models: panels.noise_panel(lm, None), "text is None"),
    (lambda lm, reward_models: panels.run_panel(reward_models["one"], ""), "lm is a MistralRewardModel"),
    (lambda lm, reward_models: panels.run_panel(lm, "", steps=0), "steps is 0"),
    (lambda lm, reward_models: panels.run_panel(lm, 5), "text is 5"),
    (lambda lm, reward_models: panels.guidance_panel(lm, {}, ""), "rewards is dict"),
    (lambda lm, reward_models: panels.guidance_panel(lm, reward_models["one"], ""), "rewards is MistralRewardModel"),
    (
        lambda lm, reward_models: panels.guidance_panel(lm, {"one": lm}, ""),
        "The reward model is a MistralForDiffusionLM",
    ),
    (lambda lm, reward_models: panels.guidance_panel(lm, reward_models, "", steps=2.5), "steps is 2.5"),
    (lambda lm, reward_models: panels.guidance_panel(lm, reward_models, "", scale=-1), "scale is -1"),
    (lambda lm, reward_models: panels.intervention_panel(lm, None), "run is a NoneType"),
    (lambda lm, reward_models: panels.intervention_panel(None, None), "lm is a NoneType"),
]


@pytest.mark.parametrize("made, sentence", MADE_OF, ids=lambda part: part if isinstance(part, str) else "")
def test_what_a_panel_is_made_of_is_checked_at_once(lm, reward_models, made, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        made(lm, reward_models)
