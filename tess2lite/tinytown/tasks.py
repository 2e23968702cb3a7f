"""Six things to ask of Tinytown, each with an answer that a program can check.

An `Example` is a prompt, a reference response and what its verifier needs to know. `score(example, text)` is in
[0, 1] for every task; `reward` is the true reward behind the preference pairs.
"""

from __future__ import annotations

import functools
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from ..chat_template import encode_chat
from . import facts
from .language import number_word, place_of, split_sentences, words
from .stories import SPLITS, story
from .world import World, verify


@dataclass(frozen=True)
class Example:
    """task: its name. prompt, response: texts. key: what the verifier compares with."""

    task: str
    prompt: str
    response: str
    key: dict = field(default_factory=dict)


# ---------------------------------------------------------------- stories under constraints (stands in for IFEval)


def constraints(rng: random.Random, held_out: str) -> Example:
    teller = story(rng, held_out)
    text, asked, key = " ".join(teller.sentences), [], {}
    people = sorted(teller.world.people)
    key["people"] = rng.sample(people, min(len(people), rng.choice((1, 2))))
    things = sorted(teller.world.holder)
    about = [" and ".join(key["people"])]
    if things and rng.random() < 0.7:
        key["thing"] = rng.choice(things)
        about.append(f"a {key['thing']}")
    if rng.random() < 0.6:
        key["sentences"] = len(teller.sentences)
        asked.append(f"Write {number_word(key['sentences'])} sentences.")
    if rng.random() < 0.5:
        key["ending"] = teller.sentences[-1]
        asked.append(f"End with: {key['ending']}")
    return Example("constraints", " ".join([f"Write a story about {' and '.join(about)}.", *asked]), text, key)


def keeps_constraints(example: Example, text: str) -> float:
    """1 when the text is a true story of Tinytown and keeps every constraint, else 0."""
    key, sentences = example.key, split_sentences(text)
    kept = verify(text) is None and all(re.search(rf"\b{name}\b", text) for name in key["people"])
    kept = kept and key.get("thing", "") in text
    kept = kept and ("sentences" not in key or len(sentences) == key["sentences"])
    return float(kept and ("ending" not in key or sentences[-1] == key["ending"]))


# ---------------------------------------------------------------- a question about a passage (SQuAD)


def reading(rng: random.Random, held_out: str) -> Example:
    while True:
        teller = story(rng, held_out)
        questions = _questions(teller.world)
        if questions:
            break
    question, answer = rng.choice(questions)
    return Example("reading", f"{' '.join(teller.sentences)}\n{question}", answer, {"answer": answer})


def _questions(world: World) -> list[tuple[str, str]]:
    found = [(f"Who has the {thing} now?", who) for thing, who in world.holder.items() if who]
    found += [(f"How many {item} does {who} have now?", number_word(n)) for (who, item), n in world.count.items() if n]
    found += [(f"Where is the {thing}?", at) for thing, at in world.lies.items()]
    lent = [(thing, who) for thing, who in world.owner.items() if world.holder.get(thing) not in (who, None)]
    return found + [(f"Who does the {thing} belong to?", who) for thing, who in lent]


# ---------------------------------------------------------------- a question about the world, closed book (TriviaQA)


def knowledge(rng: random.Random, held_out: str) -> Example:
    """The test asks about facts that training never asked about: only the corpus states them."""
    relation, subject = rng.choice(sorted(facts.table()))
    answer = facts.table()[relation, subject]
    return Example("knowledge", facts.question(relation, subject), answer, {"answer": answer})


# ---------------------------------------------------------------- word problems, worked (GSM8k)


def arithmetic(rng: random.Random, held_out: str) -> Example:
    who, other = rng.sample(words()["girls"] + words()["boys"], 2)
    item = rng.choice(words()["countable"])
    if rng.random() < 0.4:
        bags, each = rng.randint(2, 4), rng.randint(2, 5)
        total, told = bags * each, [f"{who} had {bags} bags with {each} {item} in each."]
        worked = [f"{bags} * {each} = {total}."]
    else:
        total = rng.randint(3, 12)
        told, worked = [f"{who} had {total} {item}."], []
    for _ in range(rng.randint(0 if worked else 1, 2)):
        change = rng.randint(1, 9)
        if rng.random() < 0.5 or change >= total:
            told.append(rng.choice((f"{who} found {change} more.", f"{other} gave {who} {change} more.")))
            worked.append(f"{total} + {change} = {total + change}.")
            total += change
        else:
            told.append(rng.choice((f"{who} ate {change}.", f"{who} gave {change} to {other}.")))
            worked.append(f"{total} - {change} = {total - change}.")
            total -= change
    told.append(f"How many {item} did {who} have then?")
    return Example("arithmetic", " ".join(told), f"{' '.join(worked)}\n#### {total}", {"answer": str(total)})


def same_number(example: Example, text: str) -> float:
    """1 when the number after #### is right, however it was reached."""
    found = re.search(r"####\s*(-?\d+)", text)
    return float(found is not None and found.group(1) == example.key["answer"])


# ---------------------------------------------------------------- puzzles (BIG-Bench Hard)


def puzzle(rng: random.Random, held_out: str) -> Example:
    prompt, answer = rng.choice((_boolean, _sorting, _counting, _tracking))(rng)
    return Example("puzzle", prompt, answer, {"answer": answer})


def _boolean(rng: random.Random) -> tuple[str, str]:
    def term(depth: int) -> str:
        if depth == 0:
            return rng.choice(("True", "False"))
        left, right = term(depth - 1), term(0)
        whole = f"{left} {rng.choice(('and', 'or'))} {right}"
        return rng.choice((whole, f"not {right}", f"not ( {whole} )", f"( {whole} )"))

    expression = term(rng.choice((1, 2, 2, 3)))
    return f"{expression} is", str(eval(expression))  # of the words above and no others


def _sorting(rng: random.Random) -> tuple[str, str]:
    chosen = rng.sample(words()["creature"] + words()["thing"], rng.randint(3, 6))
    return f"Sort these words: {' '.join(chosen)}", " ".join(sorted(chosen))


def _counting(rng: random.Random) -> tuple[str, str]:
    items = rng.sample(words()["countable"], rng.randint(2, 4))
    numbers = [rng.randint(2, 5) for _ in items]
    listed = ", ".join(f"{number_word(n)} {item}" for n, item in zip(numbers, items, strict=True))
    return f"I have {listed}. How many things do I have?", str(sum(numbers))


def _tracking(rng: random.Random) -> tuple[str, str]:
    people = rng.sample(words()["girls"] + words()["boys"], 3)
    things = rng.sample(words()["thing"], 3)
    has = dict(zip(people, things, strict=True))
    told = [f"{who} has the {thing}." for who, thing in has.items()]
    for _ in range(rng.randint(1, 3)):
        a, b = rng.sample(people, 2)
        has[a], has[b] = has[b], has[a]
        told.append(f"{a} and {b} swap.")
    asked = rng.choice(people)
    return f"{' '.join(told)} What does {asked} have now?", has[asked]


def same_answer(example: Example, text: str) -> float:
    """1 when text and answer are the same words."""
    return float(normal(text) == normal(example.key["answer"]))


def normal(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    return " ".join(word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the"))


# ---------------------------------------------------------------- open requests with a tone (AlpacaEval)

PREFERENCES = ("cheerful", "brief")  # kinds of the true reward
_OPENINGS = ("Let me tell you about {at_p}.", "You asked about {at_p}.", "Here is what I know about {at_p}.")
_TONES = {
    "cheerful": ("Everybody is {good} there.", "One {good} {creature} lives {at}.", "{who} was {good} all day {at}.",
                 "Come and be {good} with us.", "It made {who} {good}."),
    "gloomy": ("Nobody laughs there, and {who} was {bad}.", "One {bad} {creature} sits {at}.", "{who} was {bad} {at}.",
               "It makes you {bad}.", "Even the {creature} looked {bad}."),
}  # fmt: skip


def request(rng: random.Random, held_out: str) -> Example:
    at = rng.choice(words()["place"])
    tone = rng.choice(sorted(_TONES))
    return Example(
        "request", f"Tell me something about {at[at.index('the ') :]}.", answer_in(tone, at, rng), {"at": at}
    )


def answer_in(tone: str, at: str, rng: random.Random) -> str:
    """Three or four sentences about a place, in a tone."""
    told = [rng.choice(_OPENINGS), *rng.sample(_TONES[tone], rng.choice((2, 3)))]
    return " ".join(
        sentence.format(
            at=at, at_p=place_of(at), who=rng.choice(words()["girls"] + words()["boys"]),
            creature=rng.choice(words()["creature"]), good=rng.choice(words()["good"]), bad=rng.choice(words()["bad"]),
        )
        for sentence in told
    )  # fmt: skip


@functools.cache
def answer_sentence() -> re.Pattern:
    """Matches every sentence that an answer to an open request can be made of."""
    people = words()["girls"] + words()["boys"]
    filled = {"at": words()["place"], "at_p": [place_of(at) for at in words()["place"]], "who": people}
    filled |= {name: words()[name] for name in ("creature", "good", "bad")}
    choices = {name: f"(?:{'|'.join(map(re.escape, options))})" for name, options in filled.items()}
    templates = [*_OPENINGS, *_TONES["cheerful"], *_TONES["gloomy"]]
    return re.compile("|".join(template.replace(".", r"\.").format(**choices) for template in templates))


def broken(text: str) -> int:
    """How many of a text's sentences are none that an answer could have."""
    return sum(not answer_sentence().fullmatch(sentence) for sentence in split_sentences(text))


def reward(example: Example, text: str, kind: str = "cheerful") -> float:
    """The true reward: what the preference pairs follow. 1 for keeping to the topic, −1 for each broken sentence.

    "cheerful": glad words minus sad ones. "brief": fewer words are better, to a point.
    """
    base = float(place_of(example.key["at"]) in text) - broken(text)
    found = re.findall(r"[a-z]+", text.lower())
    if kind == "brief":
        return base - abs(len(found) - 12) / 12
    return base + sum(w in words()["good"] for w in found) - sum(w in words()["bad"] for w in found)


def pleases(example: Example, text: str) -> float:
    """1 when the text earns at least the reference's true reward."""
    return float(reward(example, text) >= reward(example, example.response))


def preference_pair(example: Example, rng: random.Random, kind: str = "cheerful") -> dict:
    """{"prompt", "chosen", "rejected", "chosen_reward", "rejected_reward"}: two answers, one truly better."""
    while True:
        elsewhere = rng.choice(words()["place"]) if rng.random() < 0.3 else example.key["at"]
        answers = [answer_in(rng.choice(sorted(_TONES)), at, rng) for at in (example.key["at"], elsewhere)]
        worse, better = sorted((reward(example, text, kind), text) for text in answers)
        if worse[0] < better[0]:
            return {
                "prompt": example.prompt, "chosen": better[1], "rejected": worse[1],
                "chosen_reward": better[0], "rejected_reward": worse[0],
            }  # fmt: skip


TASKS: dict[str, tuple[Callable, Callable]] = {
    "constraints": (constraints, keeps_constraints),
    "reading": (reading, same_answer),
    "knowledge": (knowledge, same_answer),
    "arithmetic": (arithmetic, same_number),
    "puzzle": (puzzle, same_answer),
    "request": (request, pleases),
}


def score(example: Example, text: str) -> float:
    return TASKS[example.task][1](example, text.strip())


def side(prompt: str) -> str:
    """The split a prompt belongs to, whoever asks it: a tenth is validation, a fifth is test."""
    return ("validation", "test", "test", *["train"] * 7)[zlib.crc32(prompt.encode()) % 10]


def examples(task: str, split: str, n: int, seed: int = 0) -> list[Example]:
    """Up to n examples of a task, all different (there are only so many facts), disjoint from the other splits'."""
    if task not in TASKS or split not in SPLITS:
        raise ValueError(f"'{task}', '{split}': tasks are {', '.join(TASKS)}; splits are {', '.join(SPLITS)}.")
    made = {}
    for number in range(50 * n + 1000):
        rng = random.Random(f"{seed}/{split}/{task}/{number}")
        example = TASKS[task][0](rng, "also" if split == "test" else "never")
        if side(example.prompt) == split:
            made.setdefault((example.prompt, example.response), example)
        if len(made) == n:
            break
    return list(made.values())


def fitting(made: list[Example], tokenizer, length: int) -> list[Example]:
    """Those whose prompt and reference answer fit into `length` tokens."""
    return [example for example in made if encode_chat(tokenizer, _messages(example), length)]


def as_chat(made: list[Example]):
    """Examples as a `datasets.Dataset` with one column `messages`, the form chats are trained on."""
    from datasets import Dataset

    return Dataset.from_dict({"messages": [_messages(example) for example in made]})


def _messages(example: Example) -> list[dict[str, str]]:
    return [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.response}]


def preferences(split: str, n: int, kind: str = "cheerful", seed: int = 0):
    """Preference pairs as a `datasets.Dataset`: prompt, chosen, rejected and the true rewards that decided."""
    from datasets import Dataset

    asked = examples("request", split, n, seed)
    draws = [random.Random(f"{seed}/{split}/{kind}/{i}") for i in range(n)]
    return Dataset.from_list([preference_pair(asked[i % len(asked)], rng, kind) for i, rng in enumerate(draws)])
