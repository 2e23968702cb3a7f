"""What everybody in Tinytown knows: invented facts, stated in the corpus, asked about without a passage."""

from __future__ import annotations

import random
import re
from functools import cache

from .language import HERE, capitalize, names, place_of, with_article, words


@cache
def relations() -> dict[str, tuple[str, str, str, list[str]]]:
    """Relation → (kind of subject, kind of object, question, sentences that state it), from facts.txt."""
    table = {}
    for line in (HERE / "facts.txt").read_text().splitlines():
        if header := re.fullmatch(r"\[(\w+): (\w+) -> (\w+): (.*)\]", line):
            relation, subjects, objects, question = header.groups()
            sentences: list[str] = []
            table[relation] = (subjects, objects, question, sentences)
        elif line and not line.startswith("#"):
            sentences.append(line)
    return table


@cache
def _members(kind: str) -> list[str]:
    if kind == "person":
        return names()
    if kind == "landmark":
        return [place_of(at) for at in words()["place"]]
    return words()[kind]


@cache
def table() -> dict[tuple[str, str], str]:
    """(relation, subject) → object, the same for ever."""
    rng = random.Random("the facts of Tinytown")
    facts = {}
    for relation, (subjects, objects, _, _) in relations().items():
        for subject in _members(subjects):
            facts[relation, subject] = rng.choice(_members(objects))
    return facts


def state(relation: str, subject: str, rng: random.Random) -> str:
    """One sentence that states a fact."""
    answer = table()[relation, subject]
    *_, sentences = relations()[relation]
    sentence = rng.choice(sentences)
    a_subject = with_article(subject)
    filled = sentence.format(
        s=subject,
        o=answer,
        a_s=a_subject,
        A_s=a_subject.capitalize(),
        a_o=with_article(answer),
    )
    return capitalize(filled)


def page(rng: random.Random) -> str:
    """A short page of facts: four to six, all different."""
    keys = rng.sample(sorted(table()), rng.randint(4, 6))
    return " ".join(state(relation, subject, rng) for relation, subject in keys)


def question(relation: str, subject: str) -> str:
    """The question that a fact answers."""
    _, _, form, _ = relations()[relation]
    return form.format(s=subject, a_s=with_article(subject))
