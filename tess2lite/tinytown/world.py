"""What is true in Tinytown: a world that sentences change, and that knows a false one.

A `World` knows who holds what, who is where and how many are left. An event is told by one sentence, needs
something to be true before it (`World.apply` says what was wrong) and makes something true after it. The same
rules generate stories (`stories.py`) and verify them (`verify`), whoever wrote them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .language import is_girl, number, number_word, read_sentence, split_sentences


class Contradiction(Exception):
    """A sentence that cannot be true in the world as told so far."""


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise Contradiction(message)


@dataclass
class World:
    """What a story has made true so far."""

    people: set[str] = field(default_factory=set)
    last: str | None = None  # whom He or She means
    place: dict[str, str] = field(default_factory=dict)  # person → 'in the barn'
    holder: dict[str, str | None] = field(default_factory=dict)  # thing → person, None when it lies somewhere
    lies: dict[str, str] = field(default_factory=dict)  # thing → where it was lost or landed
    owner: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    hiding: dict[str, str] = field(default_factory=dict)
    count: dict[tuple[str, str], int] = field(default_factory=dict)  # (person, countable) → how many
    creatures: set[str] = field(default_factory=set)

    def apply(self, kind: str, slots: dict[str, str]) -> None:
        """Make an event true, or raise `Contradiction` with what was wrong."""
        a = slots.get("A")
        b = slots.get("B")
        _need(a is None or a != b, f"{a} cannot do this with {a}")
        change = getattr(self, f"_{kind}", None)  # some events change nothing
        if change:
            values: dict[str, Any] = {name.lower(): slots.get(name) for name in ("A", "B", "o", "q", "c", "at", "i")}
            for name in ("n", "m"):
                if name in slots:
                    values[name] = number(slots[name])
            change(**values)
        for person in (b, a):
            if person:
                self.people.add(person)
                self.last = person

    def _hold(self, who, thing):
        _need(self.holder.get(thing) == who, f"{who} does not have the {thing}")

    def _take(self, who, thing):
        self.holder[thing] = who
        self.lies.pop(thing, None)

    def _new(self, who, thing):
        _need(thing not in self.holder, f"the {thing} is already somebody's")
        self._take(who, thing)
        self.owner[thing] = who

    def _have(self, a, o, **_):
        self._new(a, o)

    def _find(self, a, o, at, **_):
        self._new(a, o)
        self.place[a] = at

    def _make(self, a, o, **_):
        self._new(a, o)

    def _bring(self, b, o, **_):
        self._new(b, o)

    def _go(self, a, at, **_):
        _need(self.place.get(a) != at, f"{a} is already {at}")
        self.place[a] = at

    def _together(self, a, b, at, **_):
        self.place[a] = at
        self.place[b] = at

    def _give(self, a, b, o, **_):
        self._hold(a, o)
        self._take(b, o)
        self.owner[o] = b

    def _want(self, a, b, o, **_):
        _need(self.holder.get(o) not in (None, b), f"{b} cannot want the {o}")
        _need(a is None or self.holder[o] == a, f"{a} does not have the {o}")

    def _lose(self, a, o, at, **_):
        if o not in self.holder:  # "Anna lost her red ball": she had it
            self._new(a, o)
        self._hold(a, o)
        self._lie(o, at)

    def _miss(self, a, o, **_):
        _need(o in self.lies, f"the {o} is not lost")

    def _search(self, a, o, at, **_):
        _need(o in self.lies, f"the {o} is not lost")
        _need(self.lies[o] != at, f"the {o} is {at}")

    def _refind(self, a, o, at, **_):
        _need(self.lies.get(o) == at, f"the {o} is not {at}")
        self._take(a, o)

    def _giveback(self, a, b, o, **_):
        self._hold(a, o)
        _need(self.owner.get(o) == b, f"the {o} was never {b}'s")
        self._take(b, o)

    def _swap(self, a, b, o, q, **_):
        self._hold(a, o)
        self._hold(b, q)
        self._take(b, o)
        self._take(a, q)
        self.owner[o] = b
        self.owner[q] = a

    def _lend(self, a, b, o, **_):
        self._hold(a, o)
        self._take(b, o)

    def _break(self, a, o, **_):
        self._hold(a, o)
        _need(o not in self.broken, f"the {o} is already broken")
        self.broken.add(o)

    def _mend(self, o, **_):
        _need(o in self.broken, f"the {o} is not broken")
        self.broken.discard(o)

    def _stuck(self, a, o, at, **_):
        self._hold(a, o)
        self._lie(o, at)

    def _fetch(self, a, b, o, **_):
        _need(o in self.lies, f"the {o} is not out of reach")
        _need(self.owner.get(o) == b, f"the {o} is not {b}'s")
        self._take(b, o)

    def _hide(self, a, at, **_):
        self.hiding[a] = at
        self.place[a] = at

    def _seek(self, a, b, at, **_):
        _need(b in self.hiding, f"{b} is not hiding")
        _need(self.hiding[b] != at, f"{b} hides {at}")

    def _found_person(self, a, b, at, **_):
        _need(self.hiding.get(b) == at, f"{b} is not hiding {at}")
        del self.hiding[b]

    def _creature(self, a, at, c, **_):
        _need(not self.creatures, "there is a creature already")
        self.creatures.add(c)
        self.place[a] = at

    def _known_creature(self, c, **_):
        _need(c in self.creatures, f"nobody has met the {c}")

    _hungry = _feed = _follow = _known_creature

    def _count_have(self, a, i, n, **_):
        _need((a, i) not in self.count, f"{a}'s {i} were counted before")
        self.count[a, i] = n

    def _counted(self, a, item):
        _need((a, item) in self.count, f"nobody said how many {item} {a} had")
        return self.count[a, item]

    def _change(self, who, item, by):
        left = self._counted(who, item) + by
        missing = number_word(max(1, -by))
        _need(left >= 0, f"{who} does not have {missing} {item}")
        self.count[who, item] = left

    def _pass_on(self, giver, receiver, item, number_passed):
        """Both counts change; whoever was never counted is left out."""
        if (giver, item) in self.count:
            self._change(giver, item, -number_passed)
        if (receiver, item) in self.count:
            self._change(receiver, item, number_passed)

    def _count_more(self, a, b, i, m, **_):
        self._counted(a, i)
        self._pass_on(b, a, i, m)

    def _count_lose(self, a, i, m, **_):
        self._change(a, i, -m)

    def _count_give(self, a, b, i, m, **_):
        self._counted(a, i)
        self._pass_on(a, b, i, m)

    def _count_left(self, a, i, n, **_):
        _need(self._counted(a, i) == n, f"{a} does not have {n} {i}")

    def _count_both(self, a, b, i, n, **_):
        together = self._counted(a, i) + self._counted(b, i)
        _need(together == n, f"{a} and {b} do not have {number_word(n)} {i}")

    def _more_than(self, a, b, i, **_):
        more = self._counted(a, i) > self._counted(b, i)
        _need(more, f"{a} does not have more {i} than {b}")

    def _holds(self, a, o, **_):
        self._hold(a, o)

    def _tell_holder(self, b, o, **_):
        self._hold(b, o)

    def _owner_is(self, a, o, **_):
        _need(self.owner.get(o) == a, f"the {o} is not {a}'s")

    def _lay(self, a, o, at, **_):
        self._hold(a, o)
        self._lie(o, at)

    def _lie(self, thing, at):
        self.holder[thing] = None
        self.lies[thing] = at

    def _where(self, o, at, **_):
        _need(self.lies.get(o) == at, f"the {o} is not {at}")

    def _takeout(self, a, o, at, **_):
        self._refind(a, o, at)

    def _was_at(self, a, at, **_):
        _need(self.place.get(a) == at, f"{a} is not {at}")

    def _hidden_at(self, a, at, **_):
        _need(self.hiding.get(a) == at, f"{a} is not hiding {at}")

    def _two(self, o, at, q, **_):
        _need(o != q, f"there is only one {o}")
        for thing in (o, q):
            _need(thing not in self.holder, f"the {thing} is already somebody's")
            self._lie(thing, at)

    def _choose(self, a, b, o, q, **_):
        _need(o in self.lies, f"the {o} lies nowhere")
        _need(self.lies[o] == self.lies.get(q), f"the {q} is not beside the {o}")
        self._take(a, o)
        self._take(b, q)
        self.owner[o] = a
        self.owner[q] = b


FEMALE = {"she", "her", "girl"}


def _agrees(slots: dict[str, str]) -> bool:
    """Pronouns and girl/boy fit the people; an omitted A is the last one named."""
    for who, names in (("A", ("he", "him", "his", "He", "kid")), ("B", ("bhe", "bhim", "bhis"))):
        pronouns = [slots[name].lower() for name in names if name in slots]
        if pronouns and who not in slots:
            return False
        if any((pronoun in FEMALE) != is_girl(slots[who]) for pronoun in pronouns):
            return False
    return True


def tell(world: World, sentence: str) -> None:
    """Apply one sentence to the world, or raise `Contradiction` saying what is wrong with it."""
    problem = "no sentence of Tinytown"
    for kind, _, slots in read_sentence(sentence):
        if "A" not in slots and "He" in slots and world.last:
            slots["A"] = world.last
        if not _agrees(slots):
            problem = "a pronoun does not fit"
            continue
        try:
            return world.apply(kind, slots)
        except Contradiction as contradiction:
            problem = str(contradiction)
    raise Contradiction(f"{sentence!r}: {problem}")


def verify(text: str) -> str | None:
    """None when every sentence is Tinytown's and consistent with what came before; else what is wrong."""
    sentences = split_sentences(text)
    world = World()
    if len(sentences) < 3:
        return "fewer than three sentences"
    try:
        for sentence in sentences:
            tell(world, sentence)
    except Contradiction as contradiction:
        return str(contradiction)
    return None
