"""What everybody in Tinytown knows: invented facts, stated in the corpus, asked about without a passage."""

from __future__ import annotations

import random
from functools import cache

from .world import place_of, words

# relation → what its subject and object are, sentences that state it, the question that asks for the object
RELATIONS = {
    "eats": ("creature", "food", ("A {s} eats {o}.", "Every {s} likes {o} best.", "You can feed a {s} with {o}.",
             "A hungry {s} looks for {o}."), "What does a {s} eat?"),
    "sleeps": ("creature", "place", ("A {s} sleeps {o}.", "At night you find a {s} {o}.", "The bed of a {s} is {o}.",
               "When a {s} is tired, it lies down {o}."), "Where does a {s} sleep?"),
    "fears": ("creature", "thing", ("A {s} is afraid of a {o}.", "Never show a {s} a {o}.", "A {s} runs away from a {o}.",
              "Nothing scares a {s} like a {o}."), "What is a {s} afraid of?"),
    "keeper": ("landmark", "person", ("The keeper of {s} is {o}.", "{o} keeps {s} clean.", "{o} has the key to {s}.",
               "Ask {o} if you want to see {s}."), "Who is the keeper of {s}?"),
    "colour": ("landmark", "colour", ("The door of {s} is {o}.", "Long ago {s} was painted {o}.",
               "You know {s} by its {o} flag.", "The sign at {s} is {o}."), "What colour is the door of {s}?"),
    "sold": ("thing", "landmark", ("A {s} is sold at {o}.", "You can buy a {s} at {o}.", "Every {s} in town comes from {o}.",
             "If you need a {s}, go to {o}."), "Where can you buy a {s}?"),
}  # fmt: skip


@cache
def _members(kind: str) -> list[str]:
    w = words()
    if kind == "person":
        return w["girls"] + w["boys"]
    return [place_of(at) for at in w["place"]] if kind == "landmark" else w[kind]


@cache
def table() -> dict[tuple[str, str], str]:
    """(relation, subject) → object, the same for ever."""
    rng = random.Random("the facts of Tinytown")
    return {
        (relation, subject): rng.choice(_members(object_kind))
        for relation, (subject_kind, object_kind, _, _) in RELATIONS.items()
        for subject in _members(subject_kind)
    }


def state(relation: str, subject: str, rng: random.Random) -> str:
    """One sentence that states a fact."""
    sentence = rng.choice(RELATIONS[relation][2]).format(s=subject, o=table()[relation, subject])
    sentence = sentence.replace("a owl", "an owl").replace("a umbrella", "an umbrella")
    return sentence[0].upper() + sentence[1:]


def page(rng: random.Random) -> str:
    """A short page of facts: four to six, all different."""
    known = rng.sample(sorted(table()), rng.randint(4, 6))
    return " ".join(state(relation, subject, rng) for relation, subject in known)
