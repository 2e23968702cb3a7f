"""What the bundled models read before they are tuned: stories, facts, passages with questions, chats.

A document is a text (str) or a chat (a list of messages). Each is a function of (split, seed, number), so that a
corpus needs no file and a run that resumes reads on where it stopped.
"""

from __future__ import annotations

import random
from functools import cache

from . import facts
from .dense import DenseTeller, dense_story
from .language import number_word, words
from .stories import SPLITS, belongs, story
from .tasks import TASKS, side
from .world import World

Document = str | list[dict[str, str]]

# How often each kind of document is read; `document` draws from them.
KINDS = {"story": 26, "dense": 22, "facts": 9, "echo": 2, "roll_call": 8, "drill": 12, "passage": 6, "chat": 15}
# The same, for the first parts of training. Attention that looks things up forms within some hundred steps on texts
# whose second half is a copy; in stories a guess among two or three names is too good for it to form at all.
ECHO_FIRST = {"echo": 100}
LOOKUP_NEXT = {"echo": 20, "roll_call": 45, "drill": 10, "dense": 12, "story": 8, "chat": 5}
MAX_TURNS = 4
# How often a turn of a chat is of each task: facts and the harder puzzles more often.
TURNS = {"constraints": 5, "reading": 4, "knowledge": 4, "arithmetic": 3, "puzzle": 4, "request": 3}


def questions(world: World) -> list[tuple[str, str]]:
    """All (question, answer) pairs that a world can be asked at its end."""
    asked = [(f"Who has the {thing} now?", who) for thing, who in world.holder.items() if who]
    asked += [(f"Where is the {thing}?", at) for thing, at in world.lies.items()]
    asked += [(f"Where is {who}?", at) for who, at in world.place.items() if who not in world.hiding]
    asked += [(f"Where does {who} hide?", at) for who, at in world.hiding.items()]
    asked += [(f"How many {item} does {who} have now?", number_word(n)) for (who, item), n in world.count.items() if n]
    asked += [
        (f"Who does the {thing} belong to?", who)
        for thing, who in world.owner.items()
        if world.holder.get(thing) != who
    ]
    held = [who for who in world.holder.values() if who]
    asked += [(f"What does {who} have now?", f"the {t}") for t, who in world.holder.items() if held.count(who) == 1]
    return asked


def _drill(t: DenseTeller) -> None:
    """Two to four plain sentences about different people or things, and nothing else."""
    people = t.people(t.rng.choice((2, 2, 3, 4)))
    places = t.places(len(people))
    things = t.things(len(people))
    kind = t.rng.choice(("have", "lay", "go", "count"))
    item = t.pick("countable")
    for person, at, thing in zip(people, places, things, strict=True):
        if kind == "go":
            t.tell("go", A=person, at=at)
        elif kind == "count":
            t.tell("count_have", A=person, i=item, n=number_word(t.rng.randint(2, 12)))
        else:
            t.tell("have", A=person, o=thing)
            if kind == "lay":
                t.tell("lay", A=person, o=thing, at=at)


# Short sentences that say one thing twice: first in one form, later in the same or in another.
_ROLL_CALLS = {
    "has": ("{A} has the {o}.", "The {o} is {A}'s.", "Who has the {o}? {A}.", "What does {A} have? The {o}."),
    "is_at": ("{A} is {at}.", "{At} is {A}.", "Where is {A}? {At}.", "Who is {at}? {A}."),
    "lies": ("The {o} is {at}.", "{At} is the {o}.", "Where is the {o}? {At}.", "What is {at}? The {o}."),
    "counts": ("{A} has {n} {i}.", "{N} {i} are {A}'s.", "How many {i} does {A} have? {N}."),
}


def echo(rng: random.Random) -> str:
    """Words said twice: in the same order, or as pairs in another."""
    w = words()
    names, nouns = w["girls"] + w["boys"], w["thing"] + w["creature"] + w["countable"]
    everything = [*names, *nouns, *w["colour"], *w["look"], *w["food"], *w["good"], *w["bad"], *w["number"]]
    if rng.random() < 0.6:
        said = rng.sample(everything, rng.randint(12, 60))
        return " ".join([*said, *said])
    size = rng.randint(6, 25)
    pairs = list(zip(rng.sample(names + nouns, size), rng.choices(everything, k=size), strict=True))
    again = [pair for _ in range(2) for pair in rng.sample(pairs, size)]
    return " ".join(f"{a} {b}" for a, b in [*pairs, *again])


def roll_call(rng: random.Random) -> str:
    """Who has what, is where, or has how many: all of it said once, then again in other orders and words."""
    t = DenseTeller(rng, "never")
    size = rng.choice((3, 4, 6, 8, 10))
    people, things, places = t.people(size), t.things(size), t.places(size)
    numbers = rng.sample(range(2, 21), size)
    item = t.pick("countable")
    entries = [
        {"A": a, "o": o, "at": at, "At": at[0].upper() + at[1:], "i": item, "n": number_word(n), "N": _as_start(n)}
        for a, o, at, n in zip(people, things, places, numbers, strict=True)
    ]
    forms = _ROLL_CALLS[rng.choice(list(_ROLL_CALLS))]
    said = [forms[0].format(**entry) for entry in entries]
    for _ in range(1 if size > 6 else 2):
        form = rng.choice(forms)
        mixed = rng.random() < 0.3
        for entry in rng.sample(entries, size):
            said.append((rng.choice(forms) if mixed else form).format(**entry))
    return " ".join(said)


def _as_start(n: int) -> str:
    return number_word(n).capitalize()


def _tell(rng: random.Random, tellings) -> DenseTeller:
    """A telling that can be asked about."""
    while True:
        teller = rng.choice(tellings)(rng)
        if questions(teller.world):
            return teller


def _drilled(rng: random.Random) -> DenseTeller:
    teller = DenseTeller(rng, "never")
    _drill(teller)
    return teller


def _told(rng: random.Random) -> DenseTeller:
    return story(rng, "never")


def _told_densely(rng: random.Random) -> DenseTeller:
    return dense_story(rng, "never")


def told(kind: str) -> tuple:
    """The tellings that passages of a kind are made by: "drill" short and plain, "dense" stories of all sorts."""
    return (_drilled,) if kind == "drill" else (_told, _told_densely)


def asked_about(rng: random.Random, tellings, turns: int) -> list[dict[str, str]]:
    """A chat: a passage with a question, then more questions about it."""
    teller = _tell(rng, tellings)
    asked = questions(teller.world)
    chosen = rng.sample(asked, min(turns, len(asked)))
    first_question, first_answer = chosen[0]
    messages = _turn(f"{' '.join(teller.sentences)}\n{first_question}", first_answer)
    for question, answer in chosen[1:]:
        messages += _turn(question, answer)
    return messages


def _turn(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def plain_questions(rng: random.Random, tellings) -> str:
    """A passage with questions and answers as one text."""
    teller = _tell(rng, tellings)
    known = questions(teller.world)
    asked = rng.sample(known, min(6, len(known)))
    return " ".join([*teller.sentences, *(f"{question} {_as_sentence(answer)}" for question, answer in asked)])


def _as_sentence(answer: str) -> str:
    return answer[0].upper() + answer[1:] + "."


@cache
def askable_facts(split: str) -> tuple[tuple[str, str], ...]:
    """The facts that a split may ask about: the test's are only ever stated."""
    return tuple(fact for fact in sorted(facts.table()) if side(facts.question(*fact)) == split)


def turn(rng: random.Random, split: str, task: str) -> list[dict[str, str]]:
    """One question of a task and its answer."""
    if task == "knowledge":
        fact = rng.choice(askable_facts(split))
        return _turn(facts.question(*fact), facts.table()[fact])
    while True:
        example = TASKS[task][0](rng, "never")
        if side(example.prompt) == split:
            return _turn(example.prompt, example.response)


def chat(rng: random.Random, split: str = "train") -> list[dict[str, str]]:
    """A conversation of one to four turns about whatever Tinytown can be asked."""
    turns = rng.choice((1, 1, 2, 3, MAX_TURNS))
    messages = []
    for task in rng.choices(list(TURNS), list(TURNS.values()), k=turns):
        messages += turn(rng, split, task)
    return messages


def mixed_facts(rng: random.Random, split: str) -> str:
    """A page of facts; now and then one of them is asked and answered, too."""
    page = facts.page(rng)
    if rng.random() < 0.5:
        return page
    asked = rng.sample(askable_facts(split), 2)
    answers = [f"{facts.question(*fact)} {_as_sentence(facts.table()[fact])}" for fact in asked]
    return " ".join([page, *answers])


def document(split: str, number: int, seed: int = 0, kinds: dict[str, int] = KINDS) -> Document:
    """Document `number` of a split.

    Args:
        split: "train" or "validation".
        number: which one, 0 or more.
        seed: of the corpus.
        kinds: how often each kind of document is read.

    Returns:
        A text, or a chat as a list of messages.
    """
    rng = random.Random(f"{seed}/{SPLITS.index(split) + 1}/document/{number}")
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    while True:
        made = _make(kind, rng, split)
        first = made if isinstance(made, str) else made[0]["content"]
        if kind in ("facts", "chat") or (
            side(first) == split if kind in ("drill", "passage") else belongs(split, first)
        ):
            return made


def _on_the_side_of(split: str, kind: str, text: str) -> bool:
    """Whether a text may be read in a split: prompts that tasks ask belong by `side`, stories by `belongs`."""
    return side(text) == split if kind in ("drill", "passage") else belongs(split, text)


def _make(kind: str, rng: random.Random, split: str) -> Document:
    if kind == "story":
        return " ".join(_told(rng).sentences)
    if kind == "dense":
        return " ".join(_told_densely(rng).sentences)
    if kind == "echo":
        return echo(rng)
    if kind == "roll_call":
        return roll_call(rng)
    if kind == "facts":
        return mixed_facts(rng, split)
    if kind == "chat":
        return chat(rng, split)
    tellings = told(kind)
    if rng.random() < 0.5:
        return plain_questions(rng, tellings)
    return asked_about(rng, tellings, rng.randint(1, MAX_TURNS))
