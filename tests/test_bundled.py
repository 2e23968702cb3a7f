"""The models that come with the package are there, small, and do what the quickstart says."""

import json
import shutil

import pytest
import torch

import tess2lite as t2
from tess2lite import textbook
from tess2lite.chat_template import encode_chat
from tess2lite.schedule import alpha_bar
from tess2lite.tinytown import tasks
from tess2lite.tinytown.language import split_sentences
from tess2lite.tinytown.stories import stories
from tess2lite.tinytown.tasks import score
from tess2lite.tokens import encode
from tess2lite.training.reward import pair_of
from tess2lite_course.experiments import instruct
from tess2lite_course.experiments.cards import write_cards

PEOPLE_AND_THINGS = [
    ("Anna", "red kite"),
    ("Tom", "old drum"),
    ("Lily", "golden key"),
    ("Max", "tiny robot"),
    ("Vera", "blue umbrella"),
    ("Ben", "shiny coin"),
    ("Nora", "purple scarf"),
    ("Gus", "wooden flute"),
]


@pytest.mark.parametrize("name", ["tinytown-ar", "tinytown-base"])
def test_bundled_models_are_small_and_have_a_card(name):
    folder = t2.bundled()[name]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 10e6
    card = json.loads((folder / "card.json").read_text())
    facts = {"model", "data_seed", "tokens", "phases", "device", "sampled", "stories_valid", "stories_valid_aim"}
    assert facts <= set(card)
    assert card["stories_valid"] >= card["stories_valid_aim"] or card["tried_to_reach_the_aim"]
    assert card["sentence_skeletons"] >= 300 and card["skeletons_only_in_test"] >= 0.3 * card["sentence_skeletons"]
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))


def test_readmes_are_written_from_the_cards(tmp_path):
    models = t2.bundled()["tinytown-base"].parent
    shutil.copytree(models, tmp_path / "models")
    write_cards(tmp_path / "models")
    for readme in models.rglob("README.md"):
        assert readme.read_text() == (tmp_path / "models" / readme.relative_to(models)).read_text(), readme
    card = json.loads((models / "tinytown-base" / "card.json").read_text())
    text = (models / "tinytown-base" / "README.md").read_text()
    assert all(f"| {point['million_tokens']} |" in text for point in card["learning_curve"])


@pytest.fixture(scope="module")
def written():
    lm = t2.load("tinytown-base")
    prompts = [
        f"This is a story about {person}. {person} had {'an' if thing[0] in 'aeiou' else 'a'} {thing}."
        for person, thing in PEOPLE_AND_THINGS
    ]
    return t2.generate(lm, prompts, steps=30, seed=range(len(prompts)), progress=False)


def test_names_and_things_are_carried_through_the_story(written):
    """Each story speaks of its own prompt's person and thing, and hardly ever of another prompt's."""
    pairs = list(zip(written, PEOPLE_AND_THINGS, strict=True))
    own = [(person in out.text) + (thing in out.text) for out, (person, thing) in pairs]
    others = [
        (person in out.text) + (thing in out.text)
        for out, mine in pairs
        for person, thing in PEOPLE_AND_THINGS
        if (person, thing) != mine
    ]
    assert sum(own) >= 12  # of 16
    assert sum(others) / len(others) < 0.2 * sum(own) / len(own)


def test_stories_end_and_are_made_of_sentences(written):
    assert sum(out.ended for out in written) >= 6  # of 8
    assert all(len(split_sentences(out.text)) >= 2 for out in written if out.ended)


def test_a_text_noised_a_little_is_read_back():
    """At a fifth of the time axis the model names nearly every token of an unseen story."""
    lm = t2.load("tinytown-base")
    torch.manual_seed(0)
    ids = torch.tensor([[1, *encode(lm.tokenizer, stories("validation", 1)[0])]])
    mask = torch.arange(ids.shape[1])[None] > 0
    noise = torch.randn(*ids.shape, lm.config.vocab_size)
    noisy = textbook.add_noise(textbook.token_simplex(ids, lm.config.vocab_size), noise, alpha_bar()[1000])
    with torch.no_grad():
        logits = lm.logits_from_simplex(noisy, torch.full(ids.shape, 0.2), ids, mask)
    assert (logits.argmax(-1) == ids)[mask].float().mean() > 0.95


def test_all_together_are_small():
    folders = set(t2.bundled().values())
    assert {"tinytown-instruct", "tinytown-reward", "tinytown-reward-brief"} <= set(t2.bundled())
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) <= 25e6


def test_the_assistant_reads_and_its_card_says_how_well():
    """The card's score for reading, on questions of another seed."""
    card = json.loads((t2.bundled()["tinytown-instruct"] / "card.json").read_text())
    assert all({"diffusion", "ar"} <= set(models) for models in card["scores"].values())
    assert {*card["aims"]} <= {*card["scores"]}
    lm = t2.load("tinytown-instruct")
    asked = instruct.test_examples("reading", lm.tokenizer, 128, seed=9)[:12]
    chats = [[{"role": "user", "content": e.prompt}] for e in asked]
    out = t2.generate(lm, chats, steps=20, seed=range(len(asked)), progress=False)
    right = sum(score(example, text.text) for example, text in zip(asked, out, strict=True))
    assert right / len(asked) >= card["scores"]["reading"]["diffusion"]["score"] - 0.25


@pytest.mark.parametrize("name", ["tinytown-reward", "tinytown-reward-brief"])
def test_the_reward_models_prefer_what_their_cards_say(name):
    card = json.loads((t2.bundled()[name] / "card.json").read_text())
    judge, right = t2.load_reward(name, base=t2.load("tinytown-instruct")), 0
    pairs = tasks.preferences("test", 60, card["preference"], seed=5)
    for pair in pairs:
        rows = [encode_chat(judge.tokenizer, chat, 128)[0]["input_ids"] for chat in pair_of(pair)]
        better, worse = judge.score_ids(torch.tensor(rows))
        right += bool(better > worse)
    assert right / len(pairs) >= card["accuracy"] - 0.15
