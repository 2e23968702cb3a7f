"""Stories of Tinytown: plots that choose events, a teller that turns each into a sentence.

A plot is a generator function that says what happens; the teller keeps the world true
(`world.World.apply` raises where a plot errs) and picks the words. Everything follows from one
`random.Random`, so a split is its seed and nothing else.
"""

from __future__ import annotations

import random
import zlib
from functools import lru_cache

from . import facts
from .language import names, number_word, render, skeletons, words
from .world import World

FACTS = ("A", "o", "c", "q", "i", "n", "m", "at")  # slots that the world learns even where a sentence leaves them out


class Teller:
    """Tells events one by one.

    Args:
        rng: What all choices come from.
        held_out: "never" (training) or "also" (test: sentences that training never uses, too).
    """

    def __init__(self, rng: random.Random, held_out: str):
        self.rng = rng
        self.held_out = held_out
        self.world = World()
        self.sentences: list[str] = []
        self.used: list[tuple[str, bool]] = []  # skeletons, and whether training never uses them

    def pick(self, name: str) -> str:
        """One word of a list."""
        return self.rng.choice(words()[name])

    def people(self, n: int = 2) -> list[str]:
        """n different people."""
        return self.rng.sample(names(), n)

    def places(self, n: int) -> list[str]:
        """n different places, as in 'in the barn'."""
        return self.rng.sample(words()["place"], n)

    def thing(self) -> str:
        """A thing with its colour or look."""
        adjectives = self.rng.choice(("colour", "look"))
        return f"{self.pick(adjectives)} {self.pick('thing')}"

    def creature(self) -> str:
        """A creature with its look."""
        return f"{self.pick('creature_look')} {self.pick('creature')}"

    def maybe(self, chance: float) -> bool:
        """True with this probability."""
        return self.rng.random() < chance

    def perhaps(self, chance: float, kind: str, *people: str, **slots: str) -> None:
        """Tell an event with this probability."""
        if self.maybe(chance):
            self.tell(kind, *people, **slots)

    def _fits(self, skeleton: str, slots: dict[str, str]) -> bool:
        if any(f"{{{name}}}" in skeleton and name not in slots for name in "ABoqcm"):
            return False
        if "A" in slots and "{A}" not in skeleton and "{He}" in skeleton:
            return self.world.last == slots["A"]  # He or She must mean A
        return True

    def tell(self, kind: str, *people: str, **slots: str) -> None:
        """Make an event happen and put one sentence about it down.

        Args:
            kind: Of the event.
            people: Who does it (slot A), and who else takes part (slot B).
            slots: What else the sentence names.
        """
        slots |= zip("AB", people, strict=False)
        for name in ("good", "bad", "mood", "food"):
            slots[name] = self.pick(name)
        choices = [(skeleton, unseen) for skeleton, unseen in skeletons()[kind] if self._fits(skeleton, slots)]
        if self.held_out == "never":
            choices = [(skeleton, unseen) for skeleton, unseen in choices if not unseen]
        skeleton, unseen = self.rng.choice(choices)
        event = {name: value for name, value in slots.items() if name in FACTS or f"{{{name}}}" in skeleton}
        self.world.apply(kind, event)
        self.sentences.append(render(skeleton, slots))
        self.used.append((skeleton, unseen))
        # the world remembers the person a reader would take "he" to mean: the sentence's subject
        if "{A}" in skeleton or "{He}" in skeleton:
            self.world.last = slots["A"]
        elif "{B}" in skeleton:
            self.world.last = slots["B"]


def _opening(t: Teller, a: str, b: str | None = None) -> None:
    t.perhaps(0.85, "intro", a)
    if b and t.maybe(0.6):
        t.tell("friend", a, b)
    t.perhaps(0.3, "weather")


def _get(t: Teller, a: str, thing: str, at: str) -> None:
    kind = t.rng.choice(("have", "find", "make"))
    if kind == "find":
        t.tell("find", a, o=thing, at=at)
    else:
        t.tell(kind, a, o=thing)


def _ending(t: Teller, a: str, holder: str | None = None, thing: str = "") -> None:
    if holder and t.maybe(0.35):
        t.tell("holds", holder, o=thing)
    t.perhaps(0.5, "joy", holder or a)
    t.perhaps(0.25, "night", a)
    t.perhaps(0.6, "end")


def gift(t: Teller) -> None:
    """A thing is made, found or had, and given away."""
    a, b = t.people()
    thing = t.thing()
    p, r = t.places(2)
    _opening(t, a, b)
    _get(t, a, thing, p)
    t.tell("together", a, b, at=r)
    t.perhaps(0.5, "sorrow", b)
    t.perhaps(0.5, "want", a, b, o=thing)
    t.tell("give", a, b, o=thing)
    t.perhaps(0.6, "thanks", a, b)
    _ending(t, a, b, thing)


def lost(t: Teller) -> None:
    """A thing is lost, missed and found again."""
    a, b = t.people()
    thing = t.thing()
    p, q, r = t.places(3)
    finder = t.rng.choice((a, b))
    _opening(t, a, b if finder == b else None)
    if t.maybe(0.7):
        _get(t, a, thing, r)
    t.tell("lose", a, o=thing, at=p)
    t.perhaps(0.7, "miss", a, o=thing)
    t.perhaps(0.4, "sorrow", a)
    t.perhaps(0.6, "search", a, o=thing, at=q)
    t.tell("refind", finder, o=thing, at=p)
    if finder == b:
        t.tell("giveback", b, a, o=thing)
        t.perhaps(0.5, "thanks", b, a)
    _ending(t, a, a, thing)


def swap(t: Teller) -> None:
    """Two people swap their things."""
    a, b = t.people()
    p, r = t.places(2)
    thing = t.thing()
    other = t.thing()
    if thing == other:
        look, noun = other.split(" ", 1)
        other = f"new {noun}" if look == "old" else f"old {noun}"
    _opening(t, a, b)
    _get(t, a, thing, p)
    kind = t.rng.choice(("have", "make"))
    t.tell(kind, b, o=other)
    t.tell("together", a, b, at=r)
    t.perhaps(0.5, "want", a, b, o=thing)
    t.tell("swap", a, b, o=thing, q=other)
    holder, held = t.rng.choice(((a, other), (b, thing)))
    _ending(t, a, holder, held)


def borrow(t: Teller) -> None:
    """A thing is lent, perhaps broken and mended, and given back."""
    a, b = t.people()
    thing = t.thing()
    (p,) = t.places(1)
    _opening(t, a, b)
    _get(t, a, thing, p)
    t.tell("lend", a, b, o=thing)
    if t.maybe(0.7):
        t.tell("break", b, o=thing)
        unhappy = t.rng.choice((a, b))
        t.tell("sorrow", unhappy)
        t.tell("mend", b, o=thing)
    t.tell("giveback", b, a, o=thing)
    t.perhaps(0.4, "thanks", b, a)
    _ending(t, a, a, thing)


def stuck(t: Teller) -> None:
    """A thing is out of reach until somebody helps."""
    a, b = t.people()
    thing = t.thing()
    p, r = t.places(2)
    _opening(t, a, b)
    _get(t, a, thing, p)
    t.tell("stuck", a, o=thing, at=r)
    t.perhaps(0.7, "sorrow", a)
    t.tell("fetch", b, a, o=thing)
    t.perhaps(0.7, "thanks", b, a)
    _ending(t, a, a, thing)


def hide_and_seek(t: Teller) -> None:
    """One hides, the other seeks and finds."""
    a, b = t.people()
    p, q, r, s = t.places(4)
    _opening(t, a, b)
    t.perhaps(0.6, "together", a, b, at=p)
    t.tell("hide", b, at=q)
    wrong_places = t.rng.choice((0, 1, 1, 2))
    for at in (r, s)[:wrong_places]:
        t.tell("seek", a, b, at=at)
    t.tell("found_person", a, b, at=q)
    _ending(t, a)


def creature(t: Teller) -> None:
    """A hungry creature is fed and follows."""
    (a,) = t.people(1)
    c = t.creature()
    p, q = t.places(2)
    _opening(t, a)
    t.perhaps(0.3, "go", a, at=q)
    t.tell("creature", a, c=c, at=p)
    t.perhaps(0.8, "hungry", c=c)
    t.tell("feed", a, c=c)
    t.tell("follow", a, c=c)
    _ending(t, a)


def counting(t: Teller) -> None:
    """Somebody counts, gets more or gives some away."""
    a, b = t.people()
    item = t.pick("countable")
    _opening(t, a, b)
    n = t.rng.randint(3, 12)
    t.tell("count_have", a, i=item, n=number_word(n))
    for _ in range(t.rng.choice((1, 1, 2))):
        kind = t.rng.choice(("count_more", "count_give", "count_lose"))
        if kind == "count_more":
            if n > 17:
                continue
            m = t.rng.randint(2, min(8, 20 - n))
            n += m
        else:
            if n < 4:
                continue
            m = t.rng.randint(2, n - 2)
            n -= m
        t.tell(kind, a, b, i=item, m=number_word(m))
        t.perhaps(0.5, "count_left", a, i=item, n=number_word(n))
    if not t.sentences[-1].endswith("left."):
        t.tell("count_left", a, i=item, n=number_word(n))
    if t.maybe(0.4):
        happy = t.rng.choice((a, b))
        t.tell("joy", happy)
    t.perhaps(0.5, "end")


def journey(t: Teller) -> None:
    """Somebody goes places and finds a thing."""
    a, b = t.people()
    thing = t.thing()
    p, q, r = t.places(3)
    _opening(t, a)
    t.tell("go", a, at=p)
    t.perhaps(0.5, "go", a, at=q)
    t.tell("find", a, o=thing, at=r)
    t.perhaps(0.5, "holds", a, o=thing)
    if t.maybe(0.6):
        t.tell("together", a, b, at=q)
        t.tell("give", a, b, o=thing)
        t.tell("thanks", a, b)
    t.tell("night", a)
    t.perhaps(0.6, "end")


def birthday(t: Teller) -> None:
    """A party, and what the guests bring."""
    a, b, c = t.people(3)
    thing = t.thing()
    other = t.thing()
    _opening(t, a, b)
    t.tell("party", a)
    t.tell("bring", b, a, o=thing)
    t.perhaps(0.5, "thanks", b, a)
    if other != thing and t.maybe(0.5):
        t.tell("bring", c, a, o=other)
    _ending(t, a, a, thing)


def chain(t: Teller) -> None:
    """A thing is handed from one person to the next."""
    a, b, c = t.people(3)
    thing = t.thing()
    p, q, r = t.places(3)
    _opening(t, a, b)
    _get(t, a, thing, p)
    t.tell("together", a, b, at=q)
    t.tell("give", a, b, o=thing)
    t.tell("together", b, c, at=r)
    t.perhaps(0.4, "want", b, c, o=thing)
    t.tell("give", b, c, o=thing)
    t.perhaps(0.4, "thanks", b, c)
    _ending(t, b, c, thing)


PLOTS = (
    birthday,
    chain,
    gift,
    lost,
    swap,
    borrow,
    stuck,
    hide_and_seek,
    creature,
    counting,
    journey,
)


def story(rng: random.Random, held_out: str) -> Teller:
    """Tell one story: `" ".join(teller.sentences)` is its text, `teller.used` its skeletons."""
    while True:
        teller = Teller(rng, held_out)
        plot = rng.choice(PLOTS)
        plot(teller)
        if len(teller.sentences) >= 4:
            return teller


SPLITS = ("train", "validation", "test")


def belongs(split: str, text: str) -> bool:
    """Whether a text belongs to a split: a tenth of all texts is validation, whoever generates them."""
    if split == "test":
        return True
    is_validation = zlib.crc32(text.encode()) % 10 == 0
    return is_validation == (split == "validation")


def stories(split: str, n: int, seed: int = 0) -> list[str]:
    """The first n stories of a split, disjoint from the others' by construction.

    Training and validation never use a held-out sentence, a test story has at least one.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; Tinytown has {', '.join(SPLITS)}.")
    held_out = "also" if split == "test" else "never"
    texts: list[str] = []
    number = 0
    while len(texts) < n:
        teller = story(_numbered(split, number, seed), held_out)
        text = " ".join(teller.sentences)
        has_unseen = any(unseen for _, unseen in teller.used)
        if belongs(split, text) and (has_unseen or split != "test"):
            texts.append(text)
        number += 1
    return texts


def _numbered(split: str, i: int, seed: int) -> random.Random:
    stream = SPLITS.index(split) + 1
    return random.Random(f"{seed}/{stream}/{i}")


@lru_cache(maxsize=4)  # takes seconds, and every arm of an experiment asks for it
def corpus(split: str, n: int, seed: int = 0) -> tuple[str, ...]:
    """What models are pretrained on: six stories to one page of facts."""
    pages = [facts.page(_numbered(split, i, seed)) for i in range(n // 7)]
    texts = [*pages, *stories(split, n - len(pages), seed)]
    random.Random(f"{seed}/{split}").shuffle(texts)
    return tuple(texts)
