"""Dense stories: several people, things, places and counts, told once and recalled in another order.

A classic story (`stories.py`) mostly has one thing to copy. Here two or three of everything are alive at once, so
that the next word can only be known by looking up who has what, and where.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from .language import number_word, words
from .stories import Teller

MOST = 20  # the largest number that has a word


class DenseTeller(Teller):
    """A teller with several distinct things at hand."""

    def things(self, n: int) -> list[str]:
        """n things whose nouns all differ, so that a noun alone names one of them."""
        nouns = self.rng.sample(words()["thing"], n)
        things = []
        for noun in nouns:
            adjectives = self.rng.choice(("colour", "look"))
            things.append(f"{self.pick(adjectives)} {noun}")
        return things

    def shuffled(self, items: Collection) -> list:
        """The items in another order."""
        return self.rng.sample(list(items), len(items))

    def someone_else(self, people: list[str], person: str) -> str:
        """One of the people, but not this one."""
        others = [other for other in people if other != person]
        return self.rng.choice(others)

    def recall(self, kind: str, *people: str, **slots: str) -> None:
        """Tell a state of the world; a sentence that does not name A leaves "he" and "she" as they were."""
        last = self.world.last
        self.tell(kind, *people, **slots)
        skeleton, _ = self.used[-1]
        if not any(mark in skeleton for mark in ("{A}", "{B}", "{He}")):
            self.world.last = last


def _number_of_people(t: DenseTeller) -> int:
    return t.rng.choice((2, 2, 3))


def _open(t: DenseTeller, people: list[str]) -> None:
    if t.maybe(0.7):
        t.tell("intro", people[0])
    if t.maybe(0.4):
        t.tell("friend", people[0], people[1])
    t.perhaps(0.1, "weather")


def _close(t: DenseTeller, person: str) -> None:
    t.perhaps(0.3, "joy", person)
    t.perhaps(0.15, "night", person)
    t.perhaps(0.4, "end")


def _get_things(t: DenseTeller, people: list[str]) -> dict[str, str]:
    """Everybody gets a thing. Returns person → thing."""
    has = dict(zip(people, t.things(len(people)), strict=True))
    for person, thing in has.items():
        kind = t.rng.choice(("have", "have", "make"))
        t.tell(kind, person, o=thing)
    return has


def _recall_holder(t: DenseTeller, holder: str, thing: str, others: list[str]) -> None:
    if t.maybe(0.5):
        t.recall("holds", holder, o=thing)
    else:
        speaker = t.someone_else(others, holder)
        t.recall("tell_holder", speaker, holder, o=thing)


def treasures(t: DenseTeller) -> None:
    """Everybody has a thing; then who has what, in another order."""
    people = t.people(_number_of_people(t))
    _open(t, people)
    has = _get_things(t, people)
    for person in t.shuffled(people):
        if t.maybe(0.5):
            other = t.someone_else(people, person)
            t.recall("owner_is", person, other, o=has[person])
        else:
            _recall_holder(t, person, has[person], people)
    _close(t, people[0])


def tidy(t: DenseTeller) -> None:
    """Things are laid in different places; then where they are, and who fetches them."""
    people = t.people(_number_of_people(t))
    places = t.places(len(people))
    _open(t, people)
    has = _get_things(t, people)
    spots = dict(zip(people, places, strict=True))
    for person in t.shuffled(people):
        t.tell("lay", person, o=has[person], at=spots[person])
    for person in t.shuffled(people):
        if t.maybe(0.6):
            speaker = t.rng.choice(people)
            t.recall("where", speaker, o=has[person], at=spots[person])
    for person in t.shuffled(people):
        if t.maybe(0.7):
            t.tell("takeout", person, o=has[person], at=spots[person])
            if t.maybe(0.4):
                t.recall("holds", person, o=has[person])
    _close(t, people[0])


def exchange(t: DenseTeller) -> None:
    """Things go from hand to hand; then who has what."""
    people = t.people(_number_of_people(t))
    _open(t, people)
    has = {thing: person for person, thing in _get_things(t, people).items()}
    times = t.rng.choice((1, 2, 2, 3))
    for _ in range(times):
        _pass_on(t, people, has)
    for thing in t.shuffled(has):
        if t.maybe(0.7):
            _recall_holder(t, has[thing], thing, people)
    _close(t, people[0])


def _pass_on(t: DenseTeller, people: list[str], has: dict[str, str]) -> None:
    """One gift or one swap. has: thing → person, changed here."""
    thing = t.rng.choice(list(has))
    giver = has[thing]
    taker = t.someone_else(people, giver)
    theirs = [other for other, person in has.items() if person == taker]
    if theirs and t.maybe(0.6):
        other = t.rng.choice(theirs)
        t.tell("swap", giver, taker, o=thing, q=other)
        has[other] = giver
    else:
        t.perhaps(0.3, "want", giver, taker, o=thing)
        t.tell("give", giver, taker, o=thing)
        t.perhaps(0.3, "thanks", giver, taker)
    has[thing] = taker


def whereabouts(t: DenseTeller) -> None:
    """Everybody goes somewhere; then who is where."""
    people = t.people(_number_of_people(t))
    places = t.places(len(people) + 2)
    _open(t, people)
    is_at = dict(zip(people, places, strict=False))
    for person in t.shuffled(people):
        t.tell("go", person, at=is_at[person])
    for person in t.shuffled(people):
        t.recall("was_at", person, at=is_at[person])
    if t.maybe(0.5):
        mover = t.rng.choice(people)
        is_at[mover] = places[-1]
        t.tell("go", mover, at=places[-1])
        for person in t.shuffled(people)[:2]:
            t.recall("was_at", person, at=is_at[person])
    _close(t, people[0])


def baskets(t: DenseTeller) -> None:
    """Everybody counts; numbers go up and down, and are recalled."""
    people = t.people(2)
    item = t.pick("countable")
    _open(t, people)
    counts = {}
    for person in people:
        count = t.rng.randint(2, 9)
        counts[person] = count
        t.tell("count_have", person, i=item, n=number_word(count))
    changes = t.rng.choice((1, 1, 2))
    for _ in range(changes):
        _change_counts(t, people, item, counts)
    for person in t.shuffled(people):
        count = counts[person]
        if count >= 2:
            t.tell("count_left", person, i=item, n=number_word(count))
    more, fewer = sorted(people, key=counts.__getitem__, reverse=True)
    if counts[more] > counts[fewer] and t.maybe(0.4):
        t.tell("more_than", more, fewer, i=item)
    total = sum(counts.values())
    if 2 <= total <= MOST and t.maybe(0.4):
        t.tell("count_both", *people, i=item, n=number_word(total))
    _close(t, people[0])


def _change_counts(t: DenseTeller, people: list[str], item: str, counts: dict[str, int]) -> None:
    who, other = t.shuffled(people)
    kind = t.rng.choice(("count_give", "count_give", "count_lose", "count_more"))
    if kind == "count_more":
        change = t.rng.randint(2, 5)
        before = dict(t.world.count)
        involved = [who, other] if counts[other] > 5 else [who]
        t.tell(kind, *involved, i=item, m=number_word(change))
        for person in people:  # who else gave some is for the sentence to say
            counts[person] += t.world.count[person, item] - before[person, item]
        return
    if counts[who] < 4:
        return
    change = t.rng.randint(2, min(6, counts[who] - 2))
    if counts[other] + change > MOST:
        return
    t.tell(kind, who, other, i=item, m=number_word(change))
    counts[who] -= change
    if kind == "count_give":
        counts[other] += change


def two_things(t: DenseTeller) -> None:
    """Two things lie somewhere; one is taken, and the other one is for the other."""
    a, b = t.people(2)
    (at,) = t.places(1)
    thing, other = t.things(2)
    _open(t, [a, b])
    t.tell("two", a, b, o=thing, q=other, at=at)
    taken, left = t.shuffled((thing, other))
    first, second = t.shuffled((a, b))
    t.tell("choose", first, second, o=taken, q=left)
    for person, held in t.shuffled(((first, taken), (second, left))):
        if t.maybe(0.7):
            _recall_holder(t, person, held, [a, b])
    if t.maybe(0.4):
        t.tell("swap", first, second, o=taken, q=left)
        _recall_holder(t, first, left, [a, b])
    _close(t, a)


def lost_and_found(t: DenseTeller) -> None:
    """Several things are lost in several places, found by somebody, and go back to their owners."""
    people = t.people(_number_of_people(t))
    places = t.places(len(people))
    _open(t, people)
    has = _get_things(t, people)
    spots = dict(zip(people, places, strict=True))
    for person in t.shuffled(people):
        t.tell("lose", person, o=has[person], at=spots[person])
    for person in t.shuffled(people):
        thing = has[person]
        t.perhaps(0.3, "miss", person, o=thing)
        if t.maybe(0.3):
            wrong_places = [at for at in places if at != spots[person]]
            t.tell("search", person, o=thing, at=t.rng.choice(wrong_places))
        finder = t.rng.choice(people)
        t.tell("refind", finder, o=thing, at=spots[person])
        if finder != person:
            t.tell("giveback", finder, person, o=thing)
            t.perhaps(0.3, "thanks", finder, person)
    _close(t, people[0])


def hiders(t: DenseTeller) -> None:
    """Two hide, one seeks, and finds them in another order."""
    seeker, *hidden = t.people(3)
    places = t.places(2)
    spots = dict(zip(hidden, places, strict=True))
    _open(t, [seeker, hidden[0]])
    for person in t.shuffled(hidden):
        t.tell("hide", person, at=spots[person])
    if t.maybe(0.4):
        person = t.rng.choice(hidden)
        t.recall("hidden_at", person, at=spots[person])
    first, second = t.shuffled(hidden)
    if t.maybe(0.4):
        t.tell("seek", seeker, first, at=spots[second])
    t.tell("found_person", seeker, first, at=spots[first])
    t.tell("found_person", seeker, second, at=spots[second])
    _close(t, seeker)


def lenders(t: DenseTeller) -> None:
    """Two things are lent to one friend, and go back to the right owners."""
    friend, *owners = t.people(3)
    _open(t, [friend, owners[0]])
    has = _get_things(t, owners)
    for person in t.shuffled(owners):
        t.tell("lend", person, friend, o=has[person])
    if t.maybe(0.4):
        person = t.rng.choice(owners)
        t.recall("owner_is", person, friend, o=has[person])
    if t.maybe(0.4):
        thing = has[t.rng.choice(owners)]
        t.tell("break", friend, o=thing)
        t.tell("mend", friend, o=thing)
    for person in t.shuffled(owners):
        t.tell("giveback", friend, person, o=has[person])
    _close(t, friend)


DENSE_PLOTS = (
    treasures,
    tidy,
    exchange,
    exchange,
    whereabouts,
    baskets,
    two_things,
    lost_and_found,
    hiders,
    lenders,
)


def dense_story(rng: random.Random, held_out: str) -> DenseTeller:
    """One dense story, as `stories.story`."""
    while True:
        teller = DenseTeller(rng, held_out)
        plot = rng.choice(DENSE_PLOTS)
        plot(teller)
        if len(teller.sentences) >= 4:
            return teller
