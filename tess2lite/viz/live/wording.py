"""What the live page says around the explorer: of a model that continues stories, and of one that answers questions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """Plain texts of a page; the page escapes them.

    Attributes:
        title: Of the page.
        lead: One sentence under it.
        label: Of the field that the reader fills.
        button: Starts a run.
        length: Names the setting of how many tokens are written.
        training: What the model was trained on.
        tries: Texts that one click sends; the first is what the page opens with.
        advice: What to try, in sentences.
    """

    title: str
    lead: str
    label: str
    button: str
    length: str
    training: str
    tries: tuple[str, ...]
    advice: tuple[str, ...]


STORY = Wording(
    title="A story out of noise",
    lead="A small language model is writing in this page: it starts from noise in every place and makes all the words "
    "clearer at once, step by step.",
    label="Your beginning, or a text with blanks ( _ )",
    button="Write",
    length="Words to write",
    training="on short stories from a small invented town",
    tries=(
        "Once there was a boy named Tom. Tom lost his old drum in the forest.",
        "Lily and Max played hide and seek, and Max hid in the school.",
        "Anna had a __ and Tom had a __. They played all day.",
    ),
    advice=(
        "Drag the slider back to the noise, and forward again: some words are decided early, and the others arrange "
        "themselves around them.",
        "Click a word, go to an early step, and choose another word for it. The story is written again from that step, "
        "and both are shown side by side.",
        "Press “Why?” for a held word: the page hides every other word in turn and underlines those that mattered to "
        "it.",
        "Write a sentence with blanks (each _ is one word), such as “Tom saw a __ in the barn.”, and the model fills "
        "them in from both sides.",
        "“Share” copies a link that holds your text, the settings and every word you changed. Whoever opens the page "
        "with it sees the same run.",
    ),
)

CHAT = Wording(
    title="An answer out of noise",
    lead="A small language model is answering in this page: it starts from noise in every place and makes all the "
    "words of its answer clearer at once, step by step.",
    label="Your question",
    button="Ask",
    length="Room for the answer",
    training="on short stories from a small invented town, and to answer questions about it",
    tries=(
        "Tell me something about the barn.",
        "Where does a cat sleep?",
        "Tom has the key. Ivan has the cup. Tom and Ivan swap. What does Tom have now?",
        "Ivan had 11 cookies. Ivan ate 7. Ivan found 6 more. How many cookies did Ivan have then?",
    ),
    advice=(
        "Drag the slider back to the noise, and forward again: the end of the answer and its length are decided in the "
        "noise, too.",
        "Click a word of the answer, go to an early step, and choose another word for it. The answer is written again "
        "from that step, and both are shown side by side.",
        "Press “Why?” for a held word: the page hides every other word in turn, those of your question too, and "
        "underlines those that mattered to it.",
        "Each question is answered alone; the model does not remember the one before. It has never heard of the world "
        "outside its town, and it is often wrong inside of it.",
        "“Share” copies a link that holds your question, the settings and every word you changed. Whoever opens the "
        "page with it sees the same run.",
    ),
)
