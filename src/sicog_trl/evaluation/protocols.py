"""How a question is put to a model, and which part of what it writes the scorer gets.

A benchmark asked `direct`ly is asked as lmms-eval wrote it. Asked `step_by_step` the same question is followed by our
request for a structured chain of thought (SICOG, arXiv 2503.12303), with room to write it, and the scorer gets the
final answer alone: nine of fourteen tasks give a right answer nothing if it comes at the end of a chain. A protocol
may ask more than once; it gets the model as a function and knows nothing of lmms-eval.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..prompts import prompt_for
from ..responses import chain_fault, final_part
from .bare_answer import bare_answer


# A conversation in the form of Transformers: turns with typed content, images in place.
Conversation = list[dict[str, Any]]
# ours: room for four steps; a benchmark that allows more is given more.
MAX_CHAIN_TOKENS = 2048
# What a chain lacks that was cut off before its answer.
_CUT_OFF = ("missing_step", "empty_step")
# The request alone, for a question that ends with an image.
_REQUEST = prompt_for("chain_of_thought", "?").removeprefix("?").strip()


@dataclass(frozen=True)
class Completion:
    """
    What a model wrote.

    Args:
        text (`str`):
            Without special tokens.
        num_tokens (`int`, *optional*):
            Tokens of the text; a server may not tell.
        truncated (`bool`, *optional*, defaults to `False`):
            It was cut off at the limit of new tokens.
    """

    text: str
    num_tokens: int | None = None
    truncated: bool = False


@dataclass(frozen=True)
class Reply:
    """
    The answer to one row of a benchmark.

    Args:
        text (`str`):
            All that the model wrote, for people to read.
        answer (`str`):
            What the scorer gets.
        num_tokens (`int`, *optional*):
            Tokens written, over all calls.
        truncated (`bool`, *optional*, defaults to `False`):
            Something was cut off.
        fault (`str`, *optional*):
            Why no answer was found in the text, see [`~sicog_trl.responses.chain_fault`]; the scorer got all of it, or
            nothing if the answer was cut off.
    """

    text: str
    answer: str
    num_tokens: int | None = None
    truncated: bool = False
    fault: str | None = None


def images_of(conversation: Conversation) -> list[Any]:
    """Return the images of a conversation, in their order."""
    return [part["image"] for turn in conversation for part in turn["content"] if part["type"] == "image"]


def texts_of(conversation: Conversation) -> list[str]:
    """Return the texts of a conversation, in their order."""
    return [part["text"] for turn in conversation for part in turn["content"] if part["type"] == "text"]


# Conversations and the most new tokens of each -> what the model wrote, in their order. Implementations batch.
Ask = Callable[[list[Conversation], list[int]], list[Completion]]


def direct(ask: Ask, conversations: list[Conversation], limits: list[int]) -> list[Reply]:
    """
    Ask as the benchmark does; the scorer gets what the model wrote, behind its thoughts if it tells them.

    Args:
        ask (`Callable`):
            The model.
        conversations (`list[Conversation]`):
            One per row.
        limits (`list[int]`):
            The most new tokens that the benchmark allows for each.
    """
    return [
        Reply(each.text, behind_thoughts(each.text), each.num_tokens, each.truncated)
        for each in ask(conversations, limits)
    ]


def step_by_step(ask: Ask, conversations: list[Conversation], limits: list[int]) -> list[Reply]:
    """
    Ask for a structured chain of thought; the scorer gets its last step, bare.

    The request is the one of training ([`~sicog_trl.prompts.prompt_for`]), put around the text that the question ends
    with, or behind an image at its end. What the benchmark says about the form of the answer stays, and holds for the
    last step; see [`~sicog_trl.evaluation.bare_answer.bare_answer`] for what is taken off there. A text that is no
    complete chain goes to the scorer as it is, with its fault beside it; of a chain that was cut off before its
    answer it gets nothing, because lenient scorers would find one in the steps.

    Args:
        ask (`Callable`):
            The model.
        conversations (`list[Conversation]`):
            One per row.
        limits (`list[int]`):
            Raised to [`MAX_CHAIN_TOKENS`].
    """
    found = ask([as_chain(each) for each in conversations], [max(limit, MAX_CHAIN_TOKENS) for limit in limits])
    replies = []
    for each, conversation in zip(found, conversations, strict=True):
        said = behind_thoughts(each.text)
        fault = chain_fault(said, "chain_of_thought")
        question = "\n".join(texts_of(conversation[-1:]))
        if each.truncated and fault in _CUT_OFF:
            said = ""
        answer = said if fault else bare_answer(final_part(said, "chain_of_thought"), question)
        replies.append(Reply(each.text, answer, each.num_tokens, each.truncated, fault))
    return replies


def behind_thoughts(text: str) -> str:
    """
    Return what follows `</think>`, as lmms-eval does by default; nothing of thoughts that were cut off.

    The opening tag may stand in the chat template rather than in the text.
    """
    *_, tag, said = text.rpartition("</think>")
    if tag:
        return said.strip()
    return "" if text.lstrip().startswith("<think>") else text


def as_chain(conversation: Conversation) -> Conversation:
    """Return a conversation whose last turn asks for a chain of thought; the given one stays as it is."""
    *before, turn = conversation
    *parts, last = turn["content"]
    if last["type"] == "text" and last["text"].strip():
        last = {**last, "text": prompt_for("chain_of_thought", last["text"])}
    else:  # an image, or an empty text behind one
        parts, last = [*parts, *([last] if last["type"] != "text" else [])], {"type": "text", "text": _REQUEST}
    return [*before, {**turn, "content": [*parts, last]}]


PROTOCOLS: dict[str, Callable[[Ask, list[Conversation], list[int]], list[Reply]]] = {
    "direct": direct,
    "step_by_step": step_by_step,
}
