"""What the bundled models read before they are tuned: stories, facts, passages with questions, chats.

A document is a text (str) or a chat (a list of messages). Each is a function of (split, seed, number), so that a
corpus needs no file and a resumed run reads what it would have read.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from . import facts
from .dense import DenseTeller, dense_story
from .language import capitalize, names, number_word, words
from .stories import SPLITS, Teller, belongs, story
from .tasks import TASKS, side
from .world import World

Document = str | list[dict[str, str]]

# How often each kind of document is read; `document` draws from them.
KINDS = {
    "story": 26,
    "dense": 22,
    "facts": 9,
    "echo": 2,
    "roll_call": 8,
    "drill": 12,
    "passage": 6,
    "chat": 15,
}
# The same, for the first parts of training. Attention that looks things up forms within some hundred steps on texts
# whose second half is a copy; in stories a guess among two or three names is too good for it to form at all.
ECHO_FIRST = {"echo": 100}
LOOKUP_NEXT = {
    "echo": 20,
    "roll_call": 45,
    "drill": 10,
    "dense": 12,
    "story": 8,
    "chat": 5,
}
# Then questions whose answers alone are learned from: first about bare pairs, where binding forms within some hundred
# steps, then about sentences of growing variety.
PAIRS_NEXT = {"pairs": 100}
ROSTERS_NEXT = {"pairs": 6, "roster": 36, "drill": 32, "passage": 20, "dense": 3, "story": 3}
# At last everything, with what was learned kept alive.
EVERYTHING = {
    "story": 24,
    "dense": 22,
    "facts": 9,
    "echo": 1,
    "roll_call": 2,
    "pairs": 2,
    "roster": 8,
    "drill": 10,
    "passage": 8,
    "chat": 14,
}
# The base writes stories: they are most of what it reads last.
STORIES_LAST = {"story": 72, "dense": 14, "roster": 2, "drill": 4, "passage": 3, "facts": 2, "chat": 3}
MAX_TURNS = 4
# How often a turn of a chat is of each task: facts and the harder puzzles more often.
TURNS = {
    "constraints": 5,
    "reading": 4,
    "knowledge": 4,
    "arithmetic": 3,
    "puzzle": 4,
    "request": 3,
}


def questions(world: World) -> list[tuple[str, str]]:
    """All (question, answer) pairs that a world can be asked at its end."""
    pairs = []
    for thing, who in world.holder.items():
        if who:
            pairs.append((f"Who has the {thing} now?", who))
    for thing, at in world.lies.items():
        pairs.append((f"Where is the {thing}?", at))
    for who, at in world.place.items():
        if who not in world.hiding:
            pairs.append((f"Where is {who}?", at))
    for who, at in world.hiding.items():
        pairs.append((f"Where does {who} hide?", at))
    for (who, item), n in world.count.items():
        if n:
            pairs.append((f"How many {item} does {who} have now?", number_word(n)))
    for thing, who in world.owner.items():
        if world.holder.get(thing) != who:
            pairs.append((f"Who does the {thing} belong to?", who))
    holders = Counter(world.holder.values())
    for thing, who in world.holder.items():
        if who and holders[who] == 1:
            pairs.append((f"What does {who} have now?", f"the {thing}"))
    return pairs


def _drill(t: DenseTeller) -> None:
    """Two to four plain sentences about different people or things, and nothing else."""
    size = t.rng.choice((2, 2, 3, 4))
    people = t.people(size)
    places = t.places(size)
    things = t.things(size)
    kind = t.rng.choice(("have", "lay", "go", "count"))
    item = t.pick("countable")
    for person, at, thing in zip(people, places, things, strict=True):
        if kind == "go":
            t.tell("go", person, at=at)
        elif kind == "count":
            n = t.rng.randint(2, 12)
            t.tell("count_have", person, i=item, n=number_word(n))
        else:
            t.tell("have", person, o=thing)
            if kind == "lay":
                t.tell("lay", person, o=thing, at=at)


# Short sentences that say one thing twice: first in one form, later in the same or in another.
_ROLL_CALLS = {
    "has": ("{A} has the {o}.", "The {o} is {A}'s.", "Who has the {o}? {A}.", "What does {A} have? The {o}."),
    "is_at": ("{A} is {at}.", "{At} is {A}.", "Where is {A}? {At}.", "Who is {at}? {A}."),
    "lies": ("The {o} is {at}.", "{At} is the {o}.", "Where is the {o}? {At}.", "What is {at}? The {o}."),
    "counts": ("{A} has {n} {i}.", "{N} {i} are {A}'s.", "How many {i} does {A} have? {N}."),
}


def echo(rng: random.Random) -> str:
    """Words said twice: in the same order, or as pairs in another."""
    nouns = words()["thing"] + words()["creature"] + words()["countable"]
    everything = names() + nouns
    for name in ("colour", "look", "food", "good", "bad", "number"):
        everything += words()[name]
    if rng.random() < 0.6:
        sequence = rng.sample(everything, rng.randint(12, 60))
        return " ".join([*sequence, *sequence])
    size = rng.randint(6, 25)
    firsts = rng.sample(names() + nouns, size)
    seconds = rng.choices(everything, k=size)
    pairs = [f"{first} {second}" for first, second in zip(firsts, seconds, strict=True)]
    twice_again = rng.sample(pairs, size) + rng.sample(pairs, size)
    return " ".join([*pairs, *twice_again])


def _entries(rng: random.Random, size: int) -> list[dict[str, str]]:
    """People with a thing, a place and a number each, as the sentences of roll calls are filled with."""
    t = DenseTeller(rng, "never")
    people = t.people(size)
    things = t.things(size)
    places = t.places(size)
    numbers = rng.sample(range(2, 21), size)
    item = t.pick("countable")
    entries = []
    for person, thing, at, n in zip(people, things, places, numbers, strict=True):
        entry = {
            "A": person,
            "o": thing,
            "at": at,
            "At": capitalize(at),
            "i": item,
            "n": number_word(n),
            "N": capitalize(number_word(n)),
        }
        entries.append(entry)
    return entries


def roll_call(rng: random.Random) -> str:
    """Who has what, is where, or has how many: all of it said once, then again in other orders and words."""
    size = rng.choice((3, 4, 6, 8, 10))
    entries = _entries(rng, size)
    forms = _ROLL_CALLS[rng.choice(list(_ROLL_CALLS))]
    sentences = [forms[0].format(**entry) for entry in entries]
    rounds = 1 if size > 6 else 2
    for _ in range(rounds):
        form = rng.choice(forms)
        is_mixed = rng.random() < 0.3
        for entry in rng.sample(entries, size):
            if is_mixed:
                form = rng.choice(forms)
            sentences.append(form.format(**entry))
    return " ".join(sentences)


# Between the two words of a pair.
_BETWEEN = ("", "the", "has the", "and then the")
_ROSTERS = {
    "has": (
        "{A} has the {o}.",
        "The {o} is {A}'s.",
        "{A} got the {o}.",
        "{A} took the {o} home.",
        "{A} loved the {o}.",
    ),
    "is_at": ("{A} is {at}.", "{At} is {A}.", "{A} sat down {at}.", "{A} was waiting {at}."),
    "lies": ("The {o} is {at}.", "{At} is the {o}.", "Somebody left the {o} {at}."),
    "counts": ("{A} has {n} {i}.", "{N} {i} are {A}'s.", "{A} counted {n} {i}.", "{A} picked {n} {i}."),
}
MOST_QUESTIONS = 14  # in a text of this kind
MOST_TURNS = 6  # in a chat of this kind


def pairs(rng: random.Random) -> str:
    """Names and things, each name with its own thing, and questions from either side."""
    w = words()
    size = rng.choice((3, 4, 6, 8))
    people = rng.sample(w["girls"] + w["boys"], size)
    things = rng.sample(w["thing"], size)
    between = rng.choice(_BETWEEN)
    bound = list(zip(people, things, strict=True))
    said = [" ".join(f"{person} {between} {thing}.".split()) for person, thing in bound]
    for person, thing in rng.choices(bound, k=MOST_QUESTIONS):
        # What comes first is found as a by-product of copying; what stood before needs the practice.
        said.append(f"What {person}? {thing}." if rng.random() < 0.1 else f"Who {thing}? {person}.")
    return " ".join(said)


def roster(rng: random.Random) -> Document:
    """Who has what, is where, or has how many, in one form or in several; then questions, as a text or as a chat."""
    entries = _entries(rng, rng.choice((2, 3, 4, 6, 8)))
    kind = rng.choice(list(_ROSTERS))
    forms = _ROSTERS[kind] if rng.random() < 0.5 else (rng.choice(_ROSTERS[kind]),)
    said = [rng.choice(forms).format(**entry) for entry in entries]
    questions = [form for form in _ROLL_CALLS[kind] if "?" in form]
    asked = [form.format(**entry) for entry in entries for form in questions]
    rng.shuffle(asked)
    if rng.random() < 0.5:
        return " ".join([*said, *asked[:MOST_QUESTIONS]])
    return _asked_in_a_chat(" ".join(said), asked[:MOST_TURNS])


def _asked_in_a_chat(passage: str, asked: list[str]) -> list[dict[str, str]]:
    """A passage and then questions with their answers ("Where is Tom? In the mill."), turn by turn."""
    names = {*words()["girls"], *words()["boys"]}
    messages = []
    for pair in asked:
        question, answer = pair.removesuffix(".").split("? ")
        if answer not in names:
            answer = answer[0].lower() + answer[1:]
        messages += _turn(f"{question}?", answer)
    messages[0]["content"] = f"{passage}\n{messages[0]['content']}"
    return messages


Telling = Callable[[random.Random], Teller]


def _tell(rng: random.Random, tellings: Sequence[Telling]) -> Teller:
    """A telling that can be asked about."""
    while True:
        telling = rng.choice(tellings)
        teller = telling(rng)
        if questions(teller.world):
            return teller


def _tell_drill(rng: random.Random) -> Teller:
    teller = DenseTeller(rng, "never")
    _drill(teller)
    return teller


def _tell_story(rng: random.Random) -> Teller:
    return story(rng, "never")


def _tell_dense_story(rng: random.Random) -> Teller:
    return dense_story(rng, "never")


def tellings_for(kind: str) -> tuple[Telling, ...]:
    """What passages of a kind are told by: "drill" is short and plain, "dense" means stories of all sorts."""
    if kind == "drill":
        return (_tell_drill,)
    return (_tell_story, _tell_dense_story)


def passage_chat(rng: random.Random, tellings: Sequence[Telling], turns: int) -> list[dict[str, str]]:
    """A chat: a passage with a question, then more questions about it."""
    teller = _tell(rng, tellings)
    pairs = questions(teller.world)
    first, *others = rng.sample(pairs, min(turns, len(pairs)))
    passage = " ".join(teller.sentences)
    question, answer = first
    messages = _turn(f"{passage}\n{question}", answer)
    for question, answer in others:
        messages += _turn(question, answer)
    return messages


def _turn(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def passage_text(rng: random.Random, tellings: Sequence[Telling]) -> str:
    """A passage with questions and answers as one text."""
    teller = _tell(rng, tellings)
    pairs = questions(teller.world)
    asked = rng.sample(pairs, min(6, len(pairs)))
    answered = [_with_answer(question, answer) for question, answer in asked]
    return " ".join([*teller.sentences, *answered])


def _with_answer(question: str, answer: str) -> str:
    return f"{question} {capitalize(answer)}."


@cache
def askable_facts(split: str) -> tuple[tuple[str, str], ...]:
    """The facts that a split may ask about: the test's are only ever stated."""
    every = sorted(facts.table())
    return tuple(fact for fact in every if side(facts.question(*fact)) == split)


def turn(rng: random.Random, split: str, task: str) -> list[dict[str, str]]:
    """One question of a task and its answer."""
    if task == "knowledge":
        fact = rng.choice(askable_facts(split))
        return _turn(facts.question(*fact), facts.table()[fact])
    make, _ = TASKS[task]
    while True:
        example = make(rng, "never")
        if side(example.prompt) == split:
            return _turn(example.prompt, example.response)


def chat(rng: random.Random, split: str = "train") -> list[dict[str, str]]:
    """A conversation of one to four turns about whatever Tinytown can be asked."""
    turns = rng.choice((1, 1, 2, 3, MAX_TURNS))
    messages = []
    tasks = rng.choices(list(TURNS), list(TURNS.values()), k=turns)
    for task in tasks:
        messages += turn(rng, split, task)
    return messages


def mixed_facts(rng: random.Random, split: str) -> str:
    """A page of facts; half of the pages end with two facts as questions and answers."""
    page = facts.page(rng)
    if rng.random() < 0.5:
        return page
    asked = rng.sample(askable_facts(split), 2)
    answered = [_with_answer(facts.question(*fact), facts.table()[fact]) for fact in asked]
    return " ".join([page, *answered])


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
    stream = SPLITS.index(split) + 1
    rng = random.Random(f"{seed}/{stream}/document/{number}")
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    while True:
        made = _make(kind, rng, split)
        if _may_be_read(split, kind, made):
            return made


def _may_be_read(split: str, kind: str, made: Document) -> bool:
    """Whether a split may read a document: prompts that tasks ask belong by `side`, stories by `belongs`."""
    if kind in ("facts", "chat"):  # made for this split
        return True
    text = made if isinstance(made, str) else made[0]["content"]
    if kind in ("drill", "passage"):
        return side(text) == split
    return belongs(split, text)


def _make(kind: str, rng: random.Random, split: str) -> Document:
    if kind == "story":
        return " ".join(_tell_story(rng).sentences)
    if kind == "dense":
        return " ".join(_tell_dense_story(rng).sentences)
    if kind == "echo":
        return echo(rng)
    if kind == "roll_call":
        return roll_call(rng)
    if kind == "pairs":
        return pairs(rng)
    if kind == "roster":
        return roster(rng)
    if kind == "facts":
        return mixed_facts(rng, split)
    if kind == "chat":
        return chat(rng, split)
    tellings = tellings_for(kind)
    # Of stories in chats alone: otherwise a model learns that questions may follow any story.
    if kind == "drill" and rng.random() < 0.5:
        return passage_text(rng, tellings)
    turns = rng.randint(1, MAX_TURNS)
    return passage_chat(rng, tellings, turns)
