"""What everybody in Tinytown knows: invented facts, stated in the corpus, asked about without a passage."""

from __future__ import annotations

import random
import re
from functools import cache

from .language import HERE, article, place_of, words


@cache
def relations() -> dict[str, tuple[str, str, str, list[str]]]:
    """Relation → (kind of subject, kind of object, question, sentences that state it), from facts.txt."""
    table, sentences = {}, None
    for line in (HERE / "facts.txt").read_text().splitlines():
        if header := re.fullmatch(r"\[(\w+): (\w+) -> (\w+): (.*)\]", line):
            relation, subjects, objects, question = header.groups()
            sentences = []
            table[relation] = (subjects, objects, question, sentences)
        elif line and not line.startswith("#"):
            sentences.append(line)
    return table


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
        (relation, subject): rng.choice(_members(objects))
        for relation, (subjects, objects, _, _) in relations().items()
        for subject in _members(subjects)
    }


def state(relation: str, subject: str, rng: random.Random) -> str:
    """One sentence that states a fact."""
    known = table()[relation, subject]
    forms = {"s": subject, "o": known, "a_s": article(subject), "A_s": article(subject).capitalize()}
    sentence = rng.choice(relations()[relation][3]).format(a_o=article(known), **forms)
    return sentence[0].upper() + sentence[1:]


def page(rng: random.Random) -> str:
    """A short page of facts: four to six, all different."""
    known = rng.sample(sorted(table()), rng.randint(4, 6))
    return " ".join(state(relation, subject, rng) for relation, subject in known)


def question(relation: str, subject: str) -> str:
    """The question that a fact answers."""
    return relations()[relation][2].format(s=subject, a_s=article(subject))
