"""The chat template of a language model, made fit for images and for a loss on the answers alone."""

import re

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template


# Turns typed content into text before the template of the language model, which knows text alone, reads it. After an
# image comes a line break, as in LLaVA.
_FLATTEN = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is iterable and message['content'] is not string -%}
{%- set turn = namespace(text='') -%}
{%- for part in message['content'] -%}
{%- set turn.text = turn.text + ('IMAGE\\n' if part['type'] == 'image' else part['text']) -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [dict(message, content=turn.text)] -%}
{%- else -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
# An output that starts a turn and goes on with its content, as in ChatML and in Llama 3:
# `{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}`
_TURN = re.compile(
    r"\{\{(-?)((?:(?!\}\}).)*?)\+\s*(message(?:\.content|\[.content.\])(?:(?!\}\}).)*?)(-?)\}\}", re.DOTALL
)
_MARKED = (
    r"{{\1\2}}{%- if message['role'] == 'assistant' -%}{%- generation -%}{{- \3 -}}{%- endgeneration -%}"
    r"{%- else -%}{{- \3 -}}{%- endif -%}{{- ''\4}}"
)
_SAMPLE = [
    {"role": "user", "content": "Which colour?"},
    {"role": "assistant", "content": "It is green."},
    {"role": "user", "content": "Why so?"},
    {"role": "assistant", "content": "Leaves are."},
]


def with_images(tokenizer: PreTrainedTokenizerBase, image_token: str) -> tuple[str, bool]:
    """
    Extend the chat template of a language model.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            With the template; text comes out as before.
        image_token (`str`):
            What stands for an image in typed content.

    Returns:
        `tuple[str, bool]`: the template, and whether it marks the assistant's tokens, which `assistant_only_loss`
        needs.
    """
    template, marked = _with_marks(tokenizer)
    return _FLATTEN.replace("IMAGE", image_token) + template, marked


def _with_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """Return the template with `{% generation %}` around the assistant's text: its own, TRL's, or put there."""
    own = tokenizer.chat_template
    own = own["default"] if isinstance(own, dict) else own
    try:
        candidates = [get_training_chat_template(tokenizer) or own]
    except ValueError:  # TRL has no variant of this one
        candidates = []
    candidates.append(_TURN.sub(_MARKED, own))
    for template in candidates:
        if _marks_answers(tokenizer, own, template):
            return template, True
    return own, False


def _marks_answers(tokenizer: PreTrainedTokenizerBase, own: str, marked: str) -> bool:
    """Return whether `marked` says what `own` says, and marks the answers and no more than the ends of their turns."""
    plain, text = (
        tokenizer.apply_chat_template(_SAMPLE, tokenize=False, chat_template=each) for each in (own, marked)
    )
    if text != plain:
        return False
    read = tokenizer.apply_chat_template(
        _SAMPLE, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens = zip(read["input_ids"], read["assistant_masks"], strict=True)
    said = tokenizer.decode([token for token, mask in tokens if mask])
    asked = [message["content"] for message in _SAMPLE if message["role"] == "user"]
    answers = [message["content"] for message in _SAMPLE if message["role"] == "assistant"]
    return all(answer in said for answer in answers) and not any(question in said for question in asked)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that the template puts behind an answer, if it does."""
    text = tokenizer.apply_chat_template(_SAMPLE[:2], tokenize=False)
    after = tokenizer(text.rpartition(_SAMPLE[1]["content"])[2], add_special_tokens=False)["input_ids"]
    return after[0] if after and after[0] in tokenizer.added_tokens_decoder else None
