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
from typing import TYPE_CHECKING, Any

from ..chat_template import encode_chat
from . import facts
from .language import names, number_word, place_of, split_sentences, words
from .stories import SPLITS, story
from .world import World, verify

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """A prompt with an answer that can be checked.

    Args:
        task: Its name.
        prompt: What is asked.
        response: A right answer.
        key: What the verifier compares with.
    """

    task: str
    prompt: str
    response: str
    key: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- stories under constraints (stands in for IFEval)


def constraints(rng: random.Random, held_out: str) -> Example:
    """Ask for a story that names people, perhaps a thing, a number of sentences and how it ends."""
    teller = story(rng, held_out)
    people = sorted(teller.world.people)
    things = sorted(teller.world.holder)
    number = min(len(people), rng.choice((1, 2)))
    key: dict[str, Any] = {"people": rng.sample(people, number)}
    about = list(key["people"])
    wishes = []
    if things and rng.random() < 0.7:
        key["thing"] = rng.choice(things)
        about.append(f"a {key['thing']}")
    if rng.random() < 0.6:
        key["sentences"] = len(teller.sentences)
        wishes.append(f"Write {number_word(key['sentences'])} sentences.")
    if rng.random() < 0.5:
        key["ending"] = teller.sentences[-1]
        wishes.append(f"End with: {key['ending']}")
    prompt = " ".join([f"Write a story about {' and '.join(about)}.", *wishes])
    return Example("constraints", prompt, " ".join(teller.sentences), key)


def keeps_constraints(example: Example, text: str) -> float:
    """Returns 1 when the text is a true story of Tinytown and keeps every constraint, else 0."""
    key = example.key
    sentences = split_sentences(text)
    checks = [
        verify(text) is None,
        all(re.search(rf"\b{name}\b", text) for name in key["people"]),
        key.get("thing", "") in text,
        len(sentences) == key.get("sentences", len(sentences)),
        "ending" not in key or sentences[-1:] == [key["ending"]],
    ]
    return float(all(checks))


# ---------------------------------------------------------------- a question about a passage (SQuAD)


def reading(rng: random.Random, held_out: str) -> Example:
    """Ask about how a story ends."""
    questions: list[tuple[str, str]] = []
    while not questions:
        teller = story(rng, held_out)
        questions = _questions(teller.world)
    question, answer = rng.choice(questions)
    passage = " ".join(teller.sentences)
    return Example("reading", f"{passage}\n{question}", answer, {"answer": answer})


def _questions(world: World) -> list[tuple[str, str]]:
    pairs = []
    for thing, who in world.holder.items():
        if who:
            pairs.append((f"Who has the {thing} now?", who))
    for (who, item), n in world.count.items():
        if n:
            pairs.append((f"How many {item} does {who} have now?", number_word(n)))
    for thing, at in world.lies.items():
        pairs.append((f"Where is the {thing}?", at))
    for thing, who in world.owner.items():
        if world.holder.get(thing) not in (who, None):
            pairs.append((f"Who does the {thing} belong to?", who))
    return pairs


# ---------------------------------------------------------------- a question about the world, closed book (TriviaQA)


def knowledge(rng: random.Random, held_out: str) -> Example:
    """The test asks about facts that training never asked about: only the corpus states them."""
    relation, subject = rng.choice(sorted(facts.table()))
    answer = facts.table()[relation, subject]
    return Example("knowledge", facts.question(relation, subject), answer, {"answer": answer})


# ---------------------------------------------------------------- word problems, worked (GSM8k)


def arithmetic(rng: random.Random, held_out: str) -> Example:
    """Ask how many somebody has in the end; the answer shows its work."""
    who, other = rng.sample(names(), 2)
    item = rng.choice(words()["countable"])
    worked = []
    if rng.random() < 0.4:
        bags = rng.randint(2, 4)
        each = rng.randint(2, 5)
        total = bags * each
        sentences = [f"{who} had {bags} bags with {each} {item} in each."]
        worked.append(f"{bags} * {each} = {total}.")
    else:
        total = rng.randint(3, 12)
        sentences = [f"{who} had {total} {item}."]
    fewest = 0 if worked else 1
    for _ in range(rng.randint(fewest, 2)):
        change = rng.randint(1, 9)
        if rng.random() < 0.5 or change >= total:
            forms = (f"{who} found {change} more.", f"{other} gave {who} {change} more.")
            sign = "+"
            after = total + change
        else:
            forms = (f"{who} ate {change}.", f"{who} gave {change} to {other}.")
            sign = "-"
            after = total - change
        sentences.append(rng.choice(forms))
        worked.append(f"{total} {sign} {change} = {after}.")
        total = after
    sentences.append(f"How many {item} did {who} have then?")
    response = f"{' '.join(worked)}\n#### {total}"
    return Example("arithmetic", " ".join(sentences), response, {"answer": str(total)})


def same_number(example: Example, text: str) -> float:
    """Returns 1 when the number after #### is right, however it was reached."""
    match = re.search(r"####\s*(-?\d+)", text)
    return float(match is not None and match.group(1) == example.key["answer"])


# ---------------------------------------------------------------- puzzles (BIG-Bench Hard)


def puzzle(rng: random.Random, held_out: str) -> Example:
    """Ask one of four kinds of puzzle."""
    make = rng.choice((_boolean, _sorting, _counting, _tracking))
    prompt, answer = make(rng)
    return Example("puzzle", prompt, answer, {"answer": answer})


def _boolean(rng: random.Random) -> tuple[str, str]:
    def term(depth: int) -> str:
        if depth == 0:
            return rng.choice(("True", "False"))
        left = term(depth - 1)
        right = term(0)
        both = f"{left} {rng.choice(('and', 'or'))} {right}"
        return rng.choice((both, f"not {right}", f"not ( {both} )", f"( {both} )"))

    depth = rng.choice((1, 2, 2, 3))
    expression = term(depth)
    return f"{expression} is", str(eval(expression))  # of the words above and no others


def _sorting(rng: random.Random) -> tuple[str, str]:
    nouns = words()["creature"] + words()["thing"]
    unsorted = rng.sample(nouns, rng.randint(3, 6))
    return f"Sort these words: {' '.join(unsorted)}", " ".join(sorted(unsorted))


def _counting(rng: random.Random) -> tuple[str, str]:
    items = rng.sample(words()["countable"], rng.randint(2, 4))
    numbers = [rng.randint(2, 5) for _ in items]
    counted = [f"{number_word(n)} {item}" for n, item in zip(numbers, items, strict=True)]
    listed = ", ".join(counted)
    return f"I have {listed}. How many things do I have?", str(sum(numbers))


def _tracking(rng: random.Random) -> tuple[str, str]:
    people = rng.sample(names(), 3)
    things = rng.sample(words()["thing"], 3)
    has = dict(zip(people, things, strict=True))
    sentences = [f"{who} has the {thing}." for who, thing in has.items()]
    for _ in range(rng.randint(1, 3)):
        a, b = rng.sample(people, 2)
        has[a], has[b] = has[b], has[a]
        sentences.append(f"{a} and {b} swap.")
    person = rng.choice(people)
    prompt = f"{' '.join(sentences)} What does {person} have now?"
    return prompt, has[person]


def same_answer(example: Example, text: str) -> float:
    """Returns 1 when text and answer are the same words."""
    return float(normalize(text) == normalize(example.key["answer"]))


def normalize(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    tokens = re.findall(r"\w+", text.lower())
    return " ".join(word for word in tokens if word not in ("a", "an", "the"))


# ---------------------------------------------------------------- open requests with a tone (AlpacaEval)

PREFERENCES = ("cheerful", "brief")  # kinds of the true reward
_OPENINGS = (
    "Let me tell you about {at_p}.",
    "You asked about {at_p}.",
    "Here is what I know about {at_p}.",
)
_TONES = {
    "cheerful": (
        "Everybody is {good} there.",
        "One {good} {creature} lives {at}.",
        "{who} was {good} all day {at}.",
        "Come and be {good} with us.",
        "It made {who} {good}.",
    ),
    "gloomy": (
        "Nobody laughs there, and {who} was {bad}.",
        "One {bad} {creature} sits {at}.",
        "{who} was {bad} {at}.",
        "It makes you {bad}.",
        "Even the {creature} looked {bad}.",
    ),
}


def request(rng: random.Random, held_out: str) -> Example:
    """Ask for something about a place."""
    at = rng.choice(words()["place"])
    tone = rng.choice(sorted(_TONES))
    prompt = f"Tell me something about {place_of(at)}."
    return Example("request", prompt, answer_in(tone, at, rng), {"at": at})


def answer_in(tone: str, at: str, rng: random.Random) -> str:
    """Three or four sentences about a place, in a tone."""
    opening = rng.choice(_OPENINGS)
    number = rng.choice((2, 3))
    templates = [opening, *rng.sample(_TONES[tone], number)]
    return " ".join(_fill(template, at, rng) for template in templates)


def _fill(template: str, at: str, rng: random.Random) -> str:
    return template.format(
        at=at,
        at_p=place_of(at),
        who=rng.choice(names()),
        creature=rng.choice(words()["creature"]),
        good=rng.choice(words()["good"]),
        bad=rng.choice(words()["bad"]),
    )


@functools.cache
def answer_sentence() -> re.Pattern[str]:
    """Matches every sentence that an answer to an open request can be made of."""
    options = {
        "at": words()["place"],
        "at_p": [place_of(at) for at in words()["place"]],
        "who": names(),
        "creature": words()["creature"],
        "good": words()["good"],
        "bad": words()["bad"],
    }
    patterns = {}
    for name, texts in options.items():
        alternatives = "|".join(map(re.escape, texts))
        patterns[name] = f"(?:{alternatives})"
    templates = [*_OPENINGS, *_TONES["cheerful"], *_TONES["gloomy"]]
    sentences = [template.replace(".", r"\.").format(**patterns) for template in templates]
    return re.compile("|".join(sentences))


def broken(text: str) -> int:
    """Returns how many of a text's sentences no answer could have."""
    could_be = answer_sentence().fullmatch
    return sum(not could_be(sentence) for sentence in split_sentences(text))


def reward(example: Example, text: str, kind: str = "cheerful") -> float:
    """The true reward: what the preference pairs follow. 1 for keeping to the topic, −1 for each broken sentence.

    "cheerful": glad words minus sad ones. "brief": fewer words are better, to a point.
    """
    keeps_topic = place_of(example.key["at"]) in text
    base = float(keeps_topic) - broken(text)
    tokens = re.findall(r"[a-z]+", text.lower())
    if kind == "brief":
        return base - abs(len(tokens) - 12) / 12
    glad = sum(word in words()["good"] for word in tokens)
    sad = sum(word in words()["bad"] for word in tokens)
    return base + glad - sad


def pleases(example: Example, text: str) -> float:
    """Returns 1 when the text earns at least the reference's true reward."""
    return float(reward(example, text) >= reward(example, example.response))


def preference_pair(example: Example, rng: random.Random, kind: str = "cheerful") -> dict[str, Any]:
    """Two answers, one truly better: {"prompt", "chosen", "rejected", "chosen_reward", "rejected_reward"}."""
    while True:
        at = example.key["at"]
        elsewhere = rng.choice(words()["place"]) if rng.random() < 0.3 else at
        scored = []
        for place in (at, elsewhere):
            tone = rng.choice(sorted(_TONES))
            text = answer_in(tone, place, rng)
            scored.append((reward(example, text, kind), text))
        worse, better = sorted(scored)
        if worse[0] < better[0]:
            return {
                "prompt": example.prompt,
                "chosen": better[1],
                "rejected": worse[1],
                "chosen_reward": better[0],
                "rejected_reward": worse[0],
            }


TASKS: dict[str, tuple[Callable, Callable]] = {
    "constraints": (constraints, keeps_constraints),
    "reading": (reading, same_answer),
    "knowledge": (knowledge, same_answer),
    "arithmetic": (arithmetic, same_number),
    "puzzle": (puzzle, same_answer),
    "request": (request, pleases),
}


def score(example: Example, text: str) -> float:
    """Returns how good a text is as an answer, in [0, 1]."""
    _, verifier = TASKS[example.task]
    return verifier(example, text.strip())


def side(prompt: str) -> str:
    """Returns the split a prompt belongs to, whoever asks it: a tenth is validation, a fifth is test."""
    tenth = zlib.crc32(prompt.encode()) % 10
    if tenth == 0:
        return "validation"
    return "test" if tenth <= 2 else "train"


def examples(task: str, split: str, n: int, seed: int = 0) -> list[Example]:
    """Up to n examples of a task, all different (there are only so many facts), disjoint from the other splits'."""
    if task not in TASKS or split not in SPLITS:
        raise ValueError(f"'{task}', '{split}': tasks are {', '.join(TASKS)}; splits are {', '.join(SPLITS)}.")
    make, _ = TASKS[task]
    held_out = "also" if split == "test" else "never"
    different: dict[tuple[str, str], Example] = {}
    for number in range(50 * n + 1000):
        rng = random.Random(f"{seed}/{split}/{task}/{number}")
        example = make(rng, held_out)
        if side(example.prompt) == split:
            different.setdefault((example.prompt, example.response), example)
        if len(different) == n:
            break
    return list(different.values())


def fitting(candidates: list[Example], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Example]:
    """Those whose prompt and reference answer fit into `length` tokens."""
    return [example for example in candidates if encode_chat(tokenizer, _messages(example), length)]


def as_chat(chats: list[Example]) -> Dataset:
    """Examples as a `datasets.Dataset` with one column `messages`, the form chats are trained on."""
    from datasets import Dataset

    return Dataset.from_dict({"messages": [_messages(example) for example in chats]})


def _messages(example: Example) -> list[dict[str, str]]:
    return [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.response}]


def preferences(split: str, n: int, kind: str = "cheerful", seed: int = 0) -> Dataset:
    """Preference pairs as a `datasets.Dataset`: prompt, chosen, rejected and the true rewards that decided."""
    from datasets import Dataset

    requests = examples("request", split, n, seed)
    pairs = []
    for number in range(n):
        rng = random.Random(f"{seed}/{split}/{kind}/{number}")
        example = requests[number % len(requests)]
        pairs.append(preference_pair(example, rng, kind))
    return Dataset.from_list(pairs)
