"""The language of Tinytown: its words, its sentences, writing one and reading one back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@cache
def words() -> dict[str, list[str]]:
    """Word lists by slot name, from words.txt."""
    lists = {}
    for line in (HERE / "words.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(":")
            lists[name] = [w.replace("_", " ") for w in rest.split()]
    return lists


@cache
def skeletons() -> dict[str, list[tuple[str, bool]]]:
    """Sentence skeletons by event kind: [(skeleton, held_out)], from grammar.txt."""
    table: dict[str, list[tuple[str, bool]]] = {}
    for line in (HERE / "grammar.txt").read_text().splitlines():
        if line.startswith("["):
            lines = table.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            held_out = line.startswith("~")
            lines.append((line.removeprefix("~"), held_out))
    return table


def names() -> list[str]:
    """Names of all people."""
    return words()["girls"] + words()["boys"]


def is_girl(name: str) -> bool:
    """Whether a name is a girl's."""
    return name in words()["girls"]


def with_article(noun: str) -> str:
    """'apple' → 'an apple'."""
    article = "an" if noun[0] in "aeiou" else "a"
    return f"{article} {noun}"


def capitalize(text: str) -> str:
    """The text with a capital at its start; the other letters stay as they are."""
    return text[0].upper() + text[1:]


def place_of(at: str) -> str:
    """'in the barn' → 'the barn'."""
    return at[at.index("the ") :]


@cache
def at_of(place: str) -> str:
    """'the barn' → 'in the barn'."""
    return next(at for at in words()["place"] if place_of(at) == place)


def number(word: str) -> int:
    """'three' → 3."""
    return words()["number"].index(word) + 1


def number_word(n: int) -> str:
    """3 → 'three'."""
    return words()["number"][n - 1]


def render(skeleton: str, slots: dict[str, str]) -> str:
    """Fill a skeleton's slots. `slots` holds A, B, o, q, c, at, i, n, m, …; the rest follows from them."""
    filled = dict(slots)
    for who, prefix in (("A", ""), ("B", "b")):
        if who in slots:
            pronouns = ("she", "her", "her") if is_girl(slots[who]) else ("he", "him", "his")
            for role, pronoun in zip(("he", "him", "his"), pronouns, strict=True):
                filled[prefix + role] = pronoun
    if "A" in slots:
        filled["kid"] = "girl" if is_girl(slots["A"]) else "boy"
        filled["He"] = capitalize(filled["he"])
    if "at" in slots:
        filled["p"] = place_of(slots["at"])
        filled["At"] = capitalize(slots["at"])
    for key in "oqc":
        if key in slots:
            noun = with_article(slots[key])
            filled["a" + key] = noun
            filled["A" + key] = noun.capitalize()
    return capitalize(skeleton.format_map(filled))


def _either(options: Iterable[str]) -> str:
    longest_first = sorted(map(re.escape, options), key=len, reverse=True)
    return f"(?:{'|'.join(longest_first)})"


@cache
def _patterns() -> dict[str, str]:
    choices = {name: _either(options) for name, options in words().items()}
    thing = _either(words()["colour"] + words()["look"]) + " " + choices["thing"]
    creature = choices["creature_look"] + " " + choices["creature"]
    person = _either(names())
    patterns = {
        "A": person,
        "B": person,
        "o": thing,
        "q": thing,
        "c": creature,
        "ao": f"an? {thing}",
        "aq": f"an? {thing}",
        "ac": f"an? {creature}",
        "Ac": f"An? {creature}",
        "at": choices["place"],
        "At": choices["place"],
        "p": _either(map(place_of, words()["place"])),
        "i": choices["countable"],
        "n": choices["number"],
        "m": choices["number"],
        "kid": "(?:girl|boy)",
        "He": "(?:He|She)",
        "His": "(?:His|Her)",
    }
    for name in ("good", "bad", "mood", "food"):
        patterns[name] = choices[name]
    for prefix in ("", "b"):
        patterns[prefix + "he"] = "(?:he|she)"
        patterns[prefix + "him"] = "(?:him|her)"
        patterns[prefix + "his"] = "(?:his|her)"
    return patterns


@cache
def _readers() -> list[tuple[str, str, re.Pattern]]:
    readers = []
    for kind, lines in skeletons().items():
        for skeleton, _ in lines:
            reader = re.compile(_regex(skeleton), re.IGNORECASE)
            readers.append((kind, skeleton, reader))
    return readers


def _regex(skeleton: str) -> str:
    """Matches the sentences of a skeleton; a slot that comes again is a reference to its first place."""
    regex = ""
    seen = set()
    for literal, slot in re.findall(r"([^{]*)(?:\{(\w+)\})?", skeleton):
        regex += re.escape(literal)
        if slot in seen:
            regex += f"(?P={slot})"
        elif slot:
            regex += f"(?P<{slot}>{_patterns()[slot]})"
            seen.add(slot)
    return regex


def read_sentence(sentence: str) -> list[tuple[str, str, dict[str, str]]]:
    """Every (kind, skeleton, slots) that the sentence can be read as; empty when it is not Tinytown's."""
    readings = []
    for kind, skeleton, reader in _readers():
        if match := reader.fullmatch(sentence):
            readings.append((kind, skeleton, _plain_slots(match.groupdict())))
    return readings


def _plain_slots(slots: dict[str, str]) -> dict[str, str]:
    """Slots without articles and capitals, so that a thing or a place has one form."""
    for key in ("ao", "aq", "ac", "Ac"):
        if key in slots:
            _, noun = slots.pop(key).split(" ", 1)
            slots[key[1]] = noun
    if "At" in slots:
        at = slots.pop("At")
        slots["at"] = at[0].lower() + at[1:]
    if "p" in slots:
        slots["at"] = at_of(slots.pop("p"))
    return slots


def split_sentences(text: str) -> list[str]:
    """Sentences of a Tinytown text; a quotation stays with the words around it."""
    return [s for s in re.split(r'(?<=[.!?])\s+(?=(?:"?[A-Z]))', text.strip()) if s]
