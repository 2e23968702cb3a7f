"""Chats: TESS 2's template, the forms that instruction sets come in, and the rows a denoiser is trained on."""

from __future__ import annotations

from .data import encode, encode_continuation, records
from .inputs import check_denoiser

ROLES = ("system", "user", "assistant")
# Columns of a question and of its answer, as public instruction sets name them; `input` is added to the question.
FORMS = (("instruction", "output"), ("prompt", "response"), ("prompt", "completion"), ("question", "answer"))


def check_chat(messages) -> None:
    """Messages as a chat has them: perhaps a system prompt, then user and assistant in turn, none empty."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("A chat has no messages; give a list of {'role': …, 'content': …}.")
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise ValueError(f"A message has the role {role!r}; roles are {', '.join(ROLES)}.")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise ValueError(f"The {role}'s message has no content; give its text.")
    roles = [message["role"] for message in messages]
    turns = roles[roles[0] == "system" :]
    if turns != [ROLES[1 + i % 2] for i in range(len(turns))]:
        said = ", ".join(roles)
        raise ValueError(f"The roles come as {said}; they are perhaps a system prompt, then user, assistant in turn.")


def chat_prompt(messages: list[dict[str, str]]) -> str:
    """TESS 2's chat format up to where the assistant speaks, BOS apart: `<|user|>\\n…\\n<|assistant|>\\n`.

    messages: [{"role": …, "content": …}, …], ending with the user's. Turns are joined by a newline, with no EOS
    between them. A system prompt, `<|system|>\\n…\\n` before the first turn, is ours: TESS 2 has none.
    """
    check_chat(messages)
    if messages[-1]["role"] != "user":
        raise ValueError("The last message is not the user's; the assistant answers a user.")
    turns = [f"<|{message['role']}|>\n{message['content'].strip()}\n" for message in messages]
    return "".join(turns) + "<|assistant|>\n"


class Chat:
    """A conversation with a denoiser: `chat("Tell me a story.")` answers as a Generation and keeps both turns.

    lm: an instruction-tuned denoiser. system: a system prompt, ours; TESS 2 has none. settings: of `generate`, for
    every turn. messages: what was said so far. A turn that fails is not kept.
    """

    def __init__(self, lm, system: str | None = None, **settings):
        check_denoiser(lm)
        self.lm, self.settings = lm, settings
        self.messages = [{"role": "system", "content": system}] if system is not None else []

    def __call__(self, text: str, **settings):
        """The answer to one more turn of the user's. settings: of `generate`, for this turn alone."""
        from .generation import generate

        asked = [*self.messages, {"role": "user", "content": text}]
        context = self.lm.config.max_position_embeddings
        if len(encode(self.lm.tokenizer, chat_prompt(asked))) + 1 >= context:
            raise ValueError(
                f"With these words the conversation fills this model's context of {context} tokens; say less, "
                "shorten `chat.messages`, or begin anew."
            )
        answer = generate(self.lm, asked, **(self.settings | settings))
        self.messages = [*asked, {"role": "assistant", "content": answer.text.strip() or "…"}]
        return answer


def encode_chat(tokenizer, messages: list[dict[str, str]], length: int, from_turn: int = 0) -> list[dict[str, list]]:
    """One example for each assistant turn: the conversation so far, then the response to be denoised.

    from_turn: first assistant turn to take; −1 for the last alone.

    Returns [{"input_ids": …, "span_mask": …}], rows of `length`: `<s>` + prompt + response + `</s>`, then PAD
    to the end. The mask is True on the response, its `</s>` and the PAD after it, which teaches the model to end.
    Turns that do not fit into `length` are left out.
    """
    check_chat(messages)
    rows = []
    for turn in [i for i, message in enumerate(messages) if message["role"] == "assistant"][from_turn:]:
        context = [tokenizer.bos_token_id, *encode(tokenizer, chat_prompt(messages[:turn]))]
        response = [*encode_continuation(tokenizer, messages[turn]["content"].strip()), tokenizer.eos_token_id]
        padding = length - len(context) - len(response)
        if padding < 0:
            continue
        ids = context + response + [tokenizer.pad_token_id] * padding
        rows.append({"input_ids": ids, "span_mask": [i >= len(context) for i in range(length)]})
    return rows


def chat_rows(chats, tokenizer, length: int):
    """Chats as rows to train on, and how many assistant turns were too long for them.

    chats: a `datasets.Dataset` with a column `messages`. Returns (Dataset of `input_ids` and `span_mask`, dropped).
    """

    def encoded(batch):
        rows = [row for messages in batch["messages"] for row in encode_chat(tokenizer, messages, length)]
        return {name: [row[name] for row in rows] for name in ("input_ids", "span_mask")}

    rows = chats.map(encoded, batched=True, batch_size=100, remove_columns=chats.column_names, desc="encoding chats")
    turns = sum(message["role"] == "assistant" for messages in chats["messages"] for message in messages)
    return rows, turns - len(rows)


def messages_of(record: dict) -> list[dict[str, str]]:
    """A record of an instruction set as messages.

    Accepted: `messages`; `instruction` (and `input`) with `output`; `instruction` with `instances` of both;
    `prompt` with `response` or `completion`; `question` with `answer`. Each with `system`, or without.
    """
    if isinstance(record.get("messages"), list):
        messages = record["messages"]
    else:
        if record.get("instances"):
            record = {**record, **record["instances"][0]}
        form = next((form for form in FORMS if all(isinstance(record.get(name), str) for name in form)), None)
        if form is None:
            accepted = "messages, instruction and output, prompt and response, or question and answer"
            raise ValueError(f"There is no chat in the columns {', '.join(record)}; give {accepted}.")
        question = "\n".join(filter(None, (record[form[0]], record.get("input"))))
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": record[form[1]]}]
        if record.get("system"):
            messages.insert(0, {"role": "system", "content": record["system"]})
    check_chat(messages)
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("No assistant turn: there is nothing to learn to write; give the answer as well.")
    return [{key: message[key] for key in ("role", "content")} for message in messages]


def read_records(source: str, read) -> list:
    """What `read` makes of every record of a .jsonl file or a hub dataset; its complaints name the record."""
    found = []
    for number, record in records(source):
        try:
            found.append(read(record))
        except ValueError as problem:
            raise ValueError(f"Record {number} of '{source}': {problem}") from None
    return found


def read_chats(source: str):
    """An instruction set as a `datasets.Dataset` of `messages`: a .jsonl file, or a hub dataset's train split."""
    from datasets import Dataset

    return Dataset.from_list([{"messages": messages} for messages in read_records(source, messages_of)])
