"""TESS 2's chat template: messages as a prompt, and as the rows a denoiser is trained on."""

from typing import Any

from .tokens import encode, encode_continuation
from .validation import InputError

ROLES = ("system", "user", "assistant")

# The same in Jinja, for the tokenizer: apply_chat_template, and with it TRL and lm-eval, agree with `encode_chat`.
JINJA = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'].strip() }}"
    "{{ eos_token if loop.last and message['role'] == 'assistant' else '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def check_chat(messages: Any) -> None:
    """Raise InputError unless a chat is perhaps a system prompt, then user and assistant in turn, none empty."""
    if not isinstance(messages, list) or not messages:
        raise InputError("A chat has no messages; give a list of {'role': …, 'content': …}.")
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise InputError(f"A message has the role {role!r}; roles are {', '.join(ROLES)}.")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise InputError(f"The {role}'s message has no content; give its text.")
    roles = [message["role"] for message in messages]
    turns = roles[roles[0] == "system" :]
    if turns != [ROLES[1 + i % 2] for i in range(len(turns))]:
        order = ", ".join(roles)
        raise InputError(f"The roles come as {order}; they are perhaps a system prompt, then user, assistant in turn.")


def chat_prompt(messages: list[dict[str, str]]) -> str:
    """TESS 2's chat format up to where the assistant speaks, BOS apart: `<|user|>\\n…\\n<|assistant|>\\n`.

    Turns are joined by a newline, with no EOS between them. A system prompt, `<|system|>\\n…\\n` before the first
    turn, is ours: TESS 2 has none.

    Args:
        messages: [{"role": …, "content": …}, …], ending with the user's.
    """
    check_chat(messages)
    if messages[-1]["role"] != "user":
        raise InputError("The last message is not the user's; the assistant answers a user.")
    turns = [f"<|{message['role']}|>\n{message['content'].strip()}\n" for message in messages]
    return "".join(turns) + "<|assistant|>\n"


def encode_chat(
    tokenizer: Any,
    messages: list[dict[str, str]],
    length: int,
    from_turn: int = 0,
) -> list[dict[str, list]]:
    """Encode one example per assistant turn: the conversation so far, then the response to be denoised.

    Args:
        tokenizer: The denoiser's.
        messages: The chat.
        length: Of the rows; turns that do not fit are left out.
        from_turn: First assistant turn to take; −1 for the last alone.

    Returns:
        [{"input_ids": …, "span_mask": …}]: `<s>` + prompt + response + `</s>`, then PAD to the end. The mask is True on
        the response, its `</s>` and the PAD after it, which teaches the model to end.
    """
    check_chat(messages)
    rows = []
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for turn in turns[from_turn:]:
        context = [tokenizer.bos_token_id, *encode(tokenizer, chat_prompt(messages[:turn]))]
        response = [*encode_continuation(tokenizer, messages[turn]["content"].strip()), tokenizer.eos_token_id]
        padding = length - len(context) - len(response)
        if padding < 0:
            continue
        ids = context + response + [tokenizer.pad_token_id] * padding
        rows.append({"input_ids": ids, "span_mask": [i >= len(context) for i in range(length)]})
    return rows
