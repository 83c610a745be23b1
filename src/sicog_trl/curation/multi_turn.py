"""A chain told as a conversation: one turn per step, each asked for on its own.

SICOG turns captions of high consistency into conversations; its released code lacks that step.
"""

from ..prompts import STEP_REQUESTS
from ..responses import split_steps


def turns(text: str, mode: str, question: str | None) -> list[tuple[list[dict], list[dict]]]:
    """
    Return the turns of a chain as `(prompt, completion)`: what was said before and what is asked next, and the step.

    Args:
        text (`str`):
            A complete chain.
        mode (`str`):
            `"chain_of_description"` or `"chain_of_thought"`.
        question (`str`, *optional*):
            What the chain of thought answers; it is asked in the first turn.
    """
    said: list[dict] = []
    found = []
    for request, step in zip(STEP_REQUESTS[mode], split_steps(text, mode), strict=True):
        prompt = [*said, {"role": "user", "content": request.format(question=question)}]
        completion = [{"role": "assistant", "content": step}]
        found.append((prompt, completion))
        said = prompt + completion
    return found
