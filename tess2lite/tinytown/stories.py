"""Stories of Tinytown: plots that choose events, a teller that turns each into a sentence.

A plot is a generator function that says what happens; the teller keeps the world true
(`world.World.apply` raises where a plot errs) and picks the words. Everything follows from one
`random.Random`, so a split is its seed and nothing else.
"""

from __future__ import annotations

import itertools
import random
import zlib
from functools import lru_cache

from . import facts
from .language import number_word, render, skeletons, words
from .world import World


class Teller:
    """Tells events one by one. `held_out`: 'never' (training) or 'also' (test: unseen sentences too)."""

    def __init__(self, rng: random.Random, held_out: str):
        self.rng, self.held_out = rng, held_out
        self.world, self.sentences, self.used = World(), [], []

    def pick(self, name: str) -> str:
        return self.rng.choice(words()[name])

    def people(self, n: int = 2) -> list[str]:
        return self.rng.sample(words()["girls"] + words()["boys"], n)

    def places(self, n: int) -> list[str]:
        return self.rng.sample(words()["place"], n)

    def thing(self) -> str:
        return f"{self.pick(self.rng.choice(('colour', 'look')))} {self.pick('thing')}"

    def creature(self) -> str:
        return f"{self.pick('creature_look')} {self.pick('creature')}"

    def maybe(self, chance: float) -> bool:
        return self.rng.random() < chance

    def perhaps(self, chance: float, kind: str, **slots: str) -> None:
        """Tell an event with this probability."""
        if self.maybe(chance):
            self.tell(kind, **slots)

    def _fits(self, skeleton: str, slots: dict) -> bool:
        needs = {"{A}": "A", "{B}": "B", "{o}": "o", "{q}": "q", "{c}": "c", "{m}": "m"}
        if any(mark in skeleton and slot not in slots for mark, slot in needs.items()):
            return False
        if "A" in slots and "{A}" not in skeleton and "{He}" in skeleton:
            return self.world.last == slots["A"]  # He or She must mean A
        return True

    def tell(self, kind: str, **slots: str) -> None:
        """Make an event happen and put one sentence about it down."""
        slots |= {k: self.pick(k) for k in ("good", "bad", "mood", "food") if k not in slots}
        choices = [s for s in skeletons()[kind] if self._fits(s[0], slots)]
        if self.held_out == "never":
            choices = [s for s in choices if not s[1]]
        skeleton, unseen = self.rng.choice(choices)
        told = {k: v for k, v in slots.items() if "{" + k + "}" in skeleton or k in ("A", *"ocqinm", "at")}
        self.world.apply(kind, told)
        self.sentences.append(render(skeleton, slots))
        self.used.append((skeleton, unseen))
        if "{A}" not in skeleton and "{B}" not in skeleton and "{He}" not in skeleton:
            return
        # the world remembers the person a reader would take "he" to mean: the sentence's subject
        self.world.last = slots["A"] if "{A}" in skeleton or "{He}" in skeleton else slots["B"]


def _opening(t: Teller, a: str, b: str | None = None) -> None:
    t.perhaps(0.85, "intro", A=a)
    if b and t.maybe(0.6):
        t.tell("friend", A=a, B=b)
    t.perhaps(0.3, "weather")


def _get(t: Teller, a: str, thing: str, at: str) -> None:
    kind = t.rng.choice(("have", "find", "make"))
    t.tell(kind, A=a, o=thing, **({"at": at} if kind == "find" else {}))


def _ending(t: Teller, a: str, holder: str | None = None, thing: str | None = None) -> None:
    if holder and t.maybe(0.35):
        t.tell("holds", A=holder, o=thing)
    t.perhaps(0.5, "joy", A=holder or a)
    t.perhaps(0.25, "night", A=a)
    t.perhaps(0.6, "end")


def gift(t: Teller) -> None:
    (a, b), thing, (p, r) = t.people(), t.thing(), t.places(2)
    _opening(t, a, b)
    _get(t, a, thing, p)
    t.tell("together", A=a, B=b, at=r)
    t.perhaps(0.5, "sorrow", A=b)
    t.perhaps(0.5, "want", A=a, B=b, o=thing)
    t.tell("give", A=a, B=b, o=thing)
    t.perhaps(0.6, "thanks", A=a, B=b)
    _ending(t, a, b, thing)


def lost(t: Teller) -> None:
    (a, b), thing, (p, q, r) = t.people(), t.thing(), t.places(3)
    finder = t.rng.choice((a, b))
    _opening(t, a, b if finder == b else None)
    if t.maybe(0.7):
        _get(t, a, thing, r)
    t.tell("lose", A=a, o=thing, at=p)
    t.perhaps(0.7, "miss", A=a, o=thing)
    t.perhaps(0.4, "sorrow", A=a)
    t.perhaps(0.6, "search", A=a, o=thing, at=q)
    t.tell("refind", A=finder, o=thing, at=p)
    if finder == b:
        t.tell("giveback", A=b, B=a, o=thing)
        t.perhaps(0.5, "thanks", A=b, B=a)
    _ending(t, a, a, thing)


def swap(t: Teller) -> None:
    (a, b), (p, r) = t.people(), t.places(2)
    thing, other = t.thing(), t.thing()
    if thing == other:
        other = "old " + other.split(" ", 1)[1] if not other.startswith("old") else "new " + other.split(" ", 1)[1]
    _opening(t, a, b)
    _get(t, a, thing, p)
    t.tell(t.rng.choice(("have", "make")), A=b, o=other)
    t.tell("together", A=a, B=b, at=r)
    t.perhaps(0.5, "want", A=a, B=b, o=thing)
    t.tell("swap", A=a, B=b, o=thing, q=other)
    _ending(t, a, *t.rng.choice(((a, other), (b, thing))))


def borrow(t: Teller) -> None:
    (a, b), thing, (p,) = t.people(), t.thing(), t.places(1)
    _opening(t, a, b)
    _get(t, a, thing, p)
    t.tell("lend", A=a, B=b, o=thing)
    if t.maybe(0.7):
        t.tell("break", A=b, o=thing)
        t.tell("sorrow", A=t.rng.choice((a, b)))
        t.tell("mend", A=b, o=thing)
    t.tell("giveback", A=b, B=a, o=thing)
    t.perhaps(0.4, "thanks", A=b, B=a)
    _ending(t, a, a, thing)


def stuck(t: Teller) -> None:
    (a, b), thing, (p, r) = t.people(), t.thing(), t.places(2)
    _opening(t, a, b)
    _get(t, a, thing, p)
    t.tell("stuck", A=a, o=thing, at=r)
    t.perhaps(0.7, "sorrow", A=a)
    t.tell("fetch", A=b, B=a, o=thing)
    t.perhaps(0.7, "thanks", A=b, B=a)
    _ending(t, a, a, thing)


def hide_and_seek(t: Teller) -> None:
    (a, b), (p, q, r, s) = t.people(), t.places(4)
    _opening(t, a, b)
    t.perhaps(0.6, "together", A=a, B=b, at=p)
    t.tell("hide", A=b, at=q)
    for at in (r, s)[: t.rng.choice((0, 1, 1, 2))]:
        t.tell("seek", A=a, B=b, at=at)
    t.tell("found_person", A=a, B=b, at=q)
    _ending(t, a)


def creature(t: Teller) -> None:
    (a,), c, (p, q) = t.people(1), t.creature(), t.places(2)
    _opening(t, a)
    t.perhaps(0.3, "go", A=a, at=q)
    t.tell("creature", A=a, c=c, at=p)
    t.perhaps(0.8, "hungry", c=c)
    t.tell("feed", A=a, c=c)
    t.tell("follow", A=a, c=c)
    _ending(t, a)


def counting(t: Teller) -> None:
    (a, b), item = t.people(), t.pick("countable")
    _opening(t, a, b)
    n = t.rng.randint(3, 12)
    t.tell("count_have", A=a, i=item, n=number_word(n))
    for _ in range(t.rng.choice((1, 1, 2))):
        kind = t.rng.choice(("count_more", "count_give", "count_lose"))
        if kind == "count_more" and n <= 17:
            m = t.rng.randint(2, min(8, 20 - n))
            n += m
        elif kind != "count_more" and n >= 4:
            m = t.rng.randint(2, n - 2)
            n -= m
        else:
            continue
        t.tell(kind, A=a, B=b, i=item, m=number_word(m))
        t.perhaps(0.5, "count_left", A=a, i=item, n=number_word(n))
    else:
        if not t.sentences[-1].endswith("left."):
            t.tell("count_left", A=a, i=item, n=number_word(n))
    if t.maybe(0.4):
        t.tell("joy", A=t.rng.choice((a, b)))
    t.perhaps(0.5, "end")


def journey(t: Teller) -> None:
    (a, b), thing, (p, q, r) = t.people(), t.thing(), t.places(3)
    _opening(t, a)
    t.tell("go", A=a, at=p)
    t.perhaps(0.5, "go", A=a, at=q)
    t.tell("find", A=a, o=thing, at=r)
    t.perhaps(0.5, "holds", A=a, o=thing)
    if t.maybe(0.6):
        t.tell("together", A=a, B=b, at=q)
        t.tell("give", A=a, B=b, o=thing)
        t.tell("thanks", A=a, B=b)
    t.tell("night", A=a)
    t.perhaps(0.6, "end")


def birthday(t: Teller) -> None:
    (a, b, c), thing, other = t.people(3), t.thing(), t.thing()
    _opening(t, a, b)
    t.tell("party", A=a)
    t.tell("bring", A=b, B=a, o=thing)
    t.perhaps(0.5, "thanks", A=b, B=a)
    if other != thing and t.maybe(0.5):
        t.tell("bring", A=c, B=a, o=other)
    _ending(t, a, a, thing)


def chain(t: Teller) -> None:
    (a, b, c), thing, (p, q, r) = t.people(3), t.thing(), t.places(3)
    _opening(t, a, b)
    _get(t, a, thing, p)
    t.tell("together", A=a, B=b, at=q)
    t.tell("give", A=a, B=b, o=thing)
    t.tell("together", A=b, B=c, at=r)
    t.perhaps(0.4, "want", A=b, B=c, o=thing)
    t.tell("give", A=b, B=c, o=thing)
    t.perhaps(0.4, "thanks", A=b, B=c)
    _ending(t, b, c, thing)


PLOTS = (birthday, chain, gift, lost, swap, borrow, stuck, hide_and_seek, creature, counting, journey)


def story(rng: random.Random, held_out: str) -> Teller:
    """One told story; `.sentences` and `" ".join` of them are the text, `.used` the skeletons."""
    while True:
        teller = Teller(rng, held_out)
        rng.choice(PLOTS)(teller)
        if len(teller.sentences) >= 4:
            return teller


SPLITS = ("train", "validation", "test")


def belongs(split: str, text: str) -> bool:
    """Whether a text is of this side of the fence: a tenth of all texts is validation, whoever generates them."""
    return split == "test" or (zlib.crc32(text.encode()) % 10 == 0) == (split == "validation")


def stories(split: str, n: int, seed: int = 0) -> list[str]:
    """The first n stories of a split, disjoint from the others' by construction.

    Training and validation never use a held-out sentence, a test story has at least one.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; Tinytown has {', '.join(SPLITS)}.")
    told, numbers = [], itertools.count()
    while len(told) < n:
        number = next(numbers)
        teller = story(_numbered(split, number, seed), "also" if split == "test" else "never")
        text = " ".join(teller.sentences)
        if belongs(split, text) and (split != "test" or any(unseen for _, unseen in teller.used)):
            told.append(text)
    return told


def _numbered(split: str, i: int, seed: int) -> random.Random:
    return random.Random(f"{seed}/{SPLITS.index(split) + 1}/{i}")


@lru_cache(maxsize=4)  # seconds, and asked for again by every arm of a finding
def corpus(split: str, n: int, seed: int = 0) -> tuple[str, ...]:
    """What models are pretrained on: six stories to one page of facts."""
    pages = [facts.page(_numbered(split, i, seed)) for i in range(n // 7)]
    told = stories(split, n - len(pages), seed)
    mixed = [*pages, *told]
    random.Random(f"{seed}/{split}").shuffle(mixed)
    return tuple(mixed)
