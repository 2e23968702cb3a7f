"""The language of Tinytown: its words, its sentences, writing one and reading one back."""

from __future__ import annotations

import re
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
    table, kind = {}, None
    for line in (HERE / "grammar.txt").read_text().splitlines():
        if line.startswith("["):
            kind = table.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            kind.append((line.removeprefix("~"), line.startswith("~")))
    return table


def is_girl(name: str) -> bool:
    return name in words()["girls"]


def article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def place_of(at: str) -> str:
    """'in the barn' → 'the barn'."""
    return at[at.index("the ") :]


@cache
def at_of(place: str) -> str:
    """'the barn' → 'in the barn'."""
    return next(at for at in words()["place"] if place_of(at) == place)


def number(word: str) -> int:
    return words()["number"].index(word) + 1


def number_word(n: int) -> str:
    return words()["number"][n - 1]


def render(skeleton: str, slots: dict[str, str]) -> str:
    """Fill a skeleton's slots. `slots` holds A, B, o, q, c, at, i, n, m, …; the rest follows from them."""
    full = dict(slots)
    for who, prefix in (("A", ""), ("B", "b")):
        if who in slots:
            girl = is_girl(slots[who])
            full |= {prefix + "he": "she" if girl else "he", prefix + "him": "her" if girl else "him"}
            full |= {prefix + "his": "her" if girl else "his"}
    if "A" in slots:
        full |= {"kid": "girl" if is_girl(slots["A"]) else "boy", "He": full["he"].capitalize()}
    if "at" in slots:
        full |= {"p": place_of(slots["at"]), "At": slots["at"][0].upper() + slots["at"][1:]}
    for key in "oqc":
        if key in slots:
            full["a" + key] = article(slots[key])
            full["A" + key] = article(slots[key]).capitalize()
    text = skeleton.format_map(full)
    return text[0].upper() + text[1:]


def _either(options) -> str:
    return "(?:" + "|".join(sorted(map(re.escape, options), key=len, reverse=True)) + ")"


@cache
def _patterns() -> dict[str, str]:
    w = words()
    thing = f"{_either(w['colour'] + w['look'])} {_either(w['thing'])}"
    creature = f"{_either(w['creature_look'])} {_either(w['creature'])}"
    person, countable = _either(w["girls"] + w["boys"]), _either(w["countable"])
    places = _either(map(place_of, w["place"]))
    at = _either(w["place"])
    patterns = {"A": person, "B": person, "o": thing, "q": thing, "c": creature, "at": at, "p": places}
    patterns |= {"At": at, "ao": f"an? {thing}", "aq": f"an? {thing}"}
    patterns |= {"ac": f"an? {creature}", "Ac": f"An? {creature}"}
    patterns |= {"i": countable, "n": _either(w["number"]), "m": _either(w["number"])}
    patterns |= {key: _either(w[key]) for key in ("good", "bad", "mood", "food")}
    patterns |= {"kid": "(?:girl|boy)", "He": "(?:He|She)", "His": "(?:His|Her)"}
    for prefix in ("", "b"):
        patterns |= {prefix + "he": "(?:he|she)", prefix + "him": "(?:him|her)", prefix + "his": "(?:his|her)"}
    return patterns


@cache
def _readers() -> list[tuple[str, str, re.Pattern]]:
    readers = []
    for kind, lines in skeletons().items():
        for skeleton, _ in lines:
            seen, regex = set(), ""
            for literal, slot in re.findall(r"([^{]*)(?:\{(\w+)\})?", skeleton):
                regex += re.escape(literal)
                if slot:
                    regex += f"(?P={slot})" if slot in seen else f"(?P<{slot}>{_patterns()[slot]})"
                    seen.add(slot)
            readers.append((kind, skeleton, re.compile(regex, re.IGNORECASE)))
    return readers


def read_sentence(sentence: str) -> list[tuple[str, str, dict[str, str]]]:
    """Every (kind, skeleton, slots) that the sentence can be read as; empty when it is not Tinytown's."""
    readings = []
    for kind, skeleton, reader in _readers():
        if match := reader.fullmatch(sentence):
            slots = match.groupdict()
            for capital in ("At", "ao", "aq", "ac", "Ac"):
                if capital in slots:
                    value = slots.pop(capital)
                    key = "at" if capital == "At" else capital[1]
                    slots[key] = value[0].lower() + value[1:] if capital == "At" else value.split(" ", 1)[1]
            if "p" in slots:
                slots["at"] = at_of(slots.pop("p"))
            readings.append((kind, skeleton, slots))
    return readings


def split_sentences(text: str) -> list[str]:
    """Sentences of a Tinytown text; a quotation stays with the words around it."""
    return [s for s in re.split(r'(?<=[.!?])\s+(?=(?:"?[A-Z]))', text.strip()) if s]
