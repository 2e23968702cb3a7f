"""What a record holds: a text, a chat or a preference, in the forms that public sets use."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..chat_template import check_chat
from ..validation import InputError

Chat = list[dict[str, str]]

# Columns of a question and of its answer, most specific first.
FORMS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("inputs", "targets"),
    ("input", "output"),
    ("user", "assistant"),
)
QUESTIONS = ("prompt", "question", "instruction", "query", "input")
CONTEXTS = ("input", "context")  # added to the question
SYSTEMS = ("system", "system_prompt")
CONVERSATIONS = ("messages", "conversations", "conversation", "turns", "dialogue", "dialog", "items", "data")
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
TOOLS = (
    "tool",
    "function",
    "tool_call",
    "tool_response",
    "function_call",
    "function_response",
    "observation",
    "ipython",
)
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")


def check_text(name: str, text: Any) -> str:
    """Returns a text that can be encoded; raises InputError otherwise."""
    if text is None:
        raise InputError(f"has null in '{name}'; give text")
    if not isinstance(text, str):
        raise InputError(f"has {type(text).__name__} {text!r:.40} in '{name}'; give text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        message = f"has an unpaired surrogate in '{name}', which cannot be encoded as UTF-8"
        raise InputError(message) from None
    if "\x00" in text:
        raise InputError(f"has a NUL character in '{name}': it is binary data, not text")
    if not any(character.isprintable() and character != " " for character in text):
        raise InputError(f"has no text in '{name}': it is empty")
    return text


def text_of(record: dict[str, Any], column: str) -> str:
    """Returns the text in a column of a record."""
    if column not in record:
        raise InputError(f"has no text in column '{column}'; it has: {', '.join(map(str, record))}")
    return check_text(column, record[column])


def messages_of(record: dict[str, Any]) -> Chat:
    """Returns a record of an instruction set as messages.

    Args:
        record: `messages`, or ShareGPT's `conversations` of `from` and `value`; or a question and its answer:
            `instruction` and `output` (Alpaca, with `input`) or `response` (Dolly, with `context`), `prompt` and
            `response` or `completion`, `question` and `answer` or `response` (OpenOrca), `query` and `response`,
            `problem` and `solution`, `inputs` and `targets`; `instruction` with `instances`. A prompt may be
            messages. `system` or `system_prompt` comes before them; an empty one counts as none.

    Raises:
        InputError: With what is wrong or missing.
    """
    record = {str(name).lower(): value for name, value in record.items()}
    for column in CONVERSATIONS:
        conversation = _as_list(_decoded(record.get(column)))
        if isinstance(conversation, list):
            return _checked([*_system(record), *_normalised(conversation)])
    instances = record.get("instances")
    if isinstance(instances, list) and instances and isinstance(instances[0], dict):
        record = {**record, **instances[0]}
    question, answer = _question_and_answer(record)
    return _checked([*_system(record), *_as_messages(question, "user"), *_as_messages(answer, "assistant")])


def _checked(messages: Chat) -> Chat:
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages = messages[1:]
    check_chat(messages)
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError("No assistant turn: there is nothing to learn to write; give the answer as well.")
    return messages


def _decoded(value: Any) -> Any:
    """Messages that a .csv file or a database kept as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        for read in (json.loads, ast.literal_eval):  # pandas writes Python's quotes; a literal runs nothing
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return read(value)
    return value


def _as_list(conversation: Any) -> Any:
    """A conversation as a list of messages, of which arrow tables may have the columns."""
    if not isinstance(conversation, dict) or not all(isinstance(column, list) for column in conversation.values()):
        return conversation
    return [dict(zip(conversation, row, strict=False)) for row in zip(*conversation.values(), strict=False)]


def _question_and_answer(record: dict[str, Any]) -> tuple[Any, Any]:
    filled = [form for form in FORMS if all(record.get(name) is not None for name in form)]
    present = [form for form in FORMS if all(name in record for name in form)]
    if not filled and not present:
        accepted = "messages, instruction and output, prompt and response, or question and answer"
        columns = ", ".join(map(str, record))
        raise InputError(f"There is no chat in the columns {columns}; give {accepted}.")
    question_field, answer_field = (filled or present)[0]
    question = record[question_field]
    answer = record[answer_field]
    if not isinstance(question, list):
        question = check_text(question_field, question)
        contexts = _optional_texts(record, [name for name in CONTEXTS if name != question_field])
        question = "\n".join([question, *contexts])
    if not isinstance(answer, list):
        answer = check_text(answer_field, answer) if not isinstance(answer, str) or answer.strip() else answer
    return question, answer


def _system(record: dict[str, Any]) -> Chat:
    prompts = _optional_texts(record, SYSTEMS)
    return [{"role": "system", "content": prompts[0]}] if prompts else []


def _optional_texts(record: dict[str, Any], names: Iterable[str]) -> list[str]:
    """The texts in columns that may be empty; raises InputError where one holds something else."""
    texts = []
    for name in names:
        value = record.get(name)
        is_nan = isinstance(value, float) and math.isnan(value)  # pandas' word for nothing
        is_blank = isinstance(value, str) and not value.strip()
        if value is None or value == [] or value == {} or is_nan or is_blank:
            continue
        texts.append(check_text(name, value))
    return texts


def _as_messages(value: Any, role: str) -> Chat:
    return _normalised(value) if isinstance(value, list) else [{"role": role, "content": value}]


def _normalised(messages: list) -> Chat:
    """Messages of any dialect with the keys `role` and `content` alone.

    Texts without roles take turns, the user's first; so do the `input` and `output` of an exchange.
    """
    if messages and all(isinstance(message, dict) and {"input", "output"} <= message.keys() for message in messages):
        messages = [message[name] for message in messages for name in ("input", "output")]
    if messages and all(isinstance(message, str) for message in messages):
        roles = ("user", "assistant")
        messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(messages)]
    return [_message(message) for message in messages]


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InputError(f"A message is a {type(message).__name__}; give records with role and content.")
    role_name = message.get("role", message.get("from"))
    name = role_name.lower() if isinstance(role_name, str) else role_name
    if name in TOOLS:
        raise InputError(
            f"A message has the role {role_name!r}: the chat template has no tool calls. "
            "The roles are system, user, assistant; leave such chats out."
        )
    if message.get("tool_calls") or message.get("function_call"):
        raise InputError("A message calls a tool: the chat template has no tool calls; leave such chats out.")
    content: Any = next((message[key] for key in ("content", "value", "text") if message.get(key) is not None), None)
    if isinstance(content, list | dict):
        content = _joined(content if isinstance(content, list) else [content])
    if isinstance(content, str) and content.strip():
        check_text("content", content)
    role: Any = ROLES.get(name, role_name) if isinstance(name, str) else role_name
    is_empty_system = role == "system" and content is None
    return {"role": role, "content": "" if is_empty_system else content}


def _joined(parts: list) -> str:
    """The text of a content that comes in parts."""
    texts = []
    for part in parts:
        part = {"text": part} if isinstance(part, str) else part
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise InputError("A message has parts that are not text, such as an image; leave such chats out.")
        texts.append(part["text"])
    return "".join(texts)


def pair_of(record: dict[str, Any]) -> tuple[Chat, Chat]:
    """Returns a preference record as two chats, the chosen and the rejected one.

    Args:
        record: `chosen` and `rejected`, each messages, an answer to `prompt` (or `question`, with `system`), which
            may be messages itself, or a transcript of "Human:" and "Assistant:".

    Raises:
        InputError: With what is wrong or missing.
    """
    chosen = _judged(record, "chosen")
    rejected = _judged(record, "rejected")
    if _stripped(chosen) == _stripped(rejected):
        raise InputError("Chosen and rejected are the same text; there is nothing to prefer.")
    if opening(chosen) != opening(rejected):
        raise InputError("Chosen and rejected begin with different questions; their answers cannot be compared.")
    return chosen, rejected


def _stripped(messages: Chat) -> list[str]:
    """The texts of a chat, as the template has them."""
    return [message["content"].strip() for message in messages]


def opening(messages: Chat) -> str:
    """What a chat begins with, the system prompt apart: chats with one opening are held out together."""
    return next(message["content"].strip() for message in messages if message["role"] == "user")


def _judged(record: dict[str, Any], side: str) -> Chat:
    answer = _decoded(record.get(side))
    if side in record and not isinstance(answer, list | dict):
        check_text(side, answer)
    prompts = [_decoded(record.get(name)) for name in (*QUESTIONS, *CONVERSATIONS)]
    prompt = next((prompt for prompt in prompts if isinstance(prompt, str | list) and prompt), None)
    if isinstance(prompt, str):
        check_text("prompt", prompt)
    if isinstance(answer, dict):
        answer = [answer]
    if isinstance(answer, str) and prompt is None and TRANSCRIPT.match("\n\n" + answer.lstrip()):
        answer = _transcript(answer)
    if isinstance(answer, str) and prompt is not None:
        answer = [*_as_messages(prompt, "user"), {"role": "assistant", "content": answer}]
    elif isinstance(answer, list) and len(answer) == 1 and prompt is not None:
        answer = [*_as_messages(prompt, "user"), *answer]
    if not isinstance(answer, list):
        raise InputError(
            f"There is no preference in the columns {', '.join(map(str, record))}; give prompt, chosen and rejected, "
            "or chosen and rejected as messages."
        )
    messages = [*_system(record), *_normalised(answer)]
    if len(messages) > 1 and messages[0]["role"] == messages[1]["role"] == "system":
        messages = messages[1:]
    return _checked_pair(messages, side)


def _checked_pair(messages: Chat, side: str) -> Chat:
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages = messages[1:]
    check_chat(messages)
    if messages[-1]["role"] != "assistant":
        raise InputError(f"The {side} chat does not end with the assistant; there is nothing to judge.")
    return messages


def _transcript(text: str) -> Chat:
    """ "Human: … Assistant: …" as messages."""
    _, *parts = TRANSCRIPT.split("\n\n" + text.lstrip())
    roles = {"Human": "user", "Assistant": "assistant"}
    names = parts[::2]
    contents = parts[1::2]
    return [{"role": roles[name], "content": content.strip()} for name, content in zip(names, contents, strict=True)]
