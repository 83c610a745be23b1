"""What is asked: one wording per mode, used for training and for generation alike.

A *mode* is a way of asking about an image. The two chains come from SICOG (arXiv 2503.12303): the chain of description
looks at the image in five steps and ends in a cohesive description; the structured chain of thought solves a question
in four steps and ends in the answer. Their short counterparts ask for the last part alone. The words are ours.
"""

CHAIN_OF_DESCRIPTION_STEPS: tuple[str, ...] = (
    "Salient content",
    "Fine details",
    "Relations",
    "Periphery",
    "Cohesive description",
)
CHAIN_OF_THOUGHT_STEPS: tuple[str, ...] = ("Task", "Visual information", "Reasoning", "Answer")

# Mode -> titles of its steps; modes that are not chains have none.
STEPS: dict[str, tuple[str, ...]] = {
    "short_caption": (),
    "detailed_description": (),
    "chain_of_description": CHAIN_OF_DESCRIPTION_STEPS,
    "direct_answer": (),
    "chain_of_thought": CHAIN_OF_THOUGHT_STEPS,
}

# Task of a row -> modes in which it can be asked.
TASKS: dict[str, tuple[str, ...]] = {
    "description": ("chain_of_description", "detailed_description", "short_caption"),
    "reasoning": ("chain_of_thought", "direct_answer"),
}

_REQUESTS = {
    "short_caption": "Describe the image in one short sentence.",
    "detailed_description": "Describe the image in detail.",
    "chain_of_description": (
        "Describe the image in five steps: salient content, fine details, relations, periphery, "
        "and a cohesive description."
    ),
    "direct_answer": "{question}\nAnswer with a single word or phrase.",
    "chain_of_thought": "{question}\nAnswer in four steps: task, visual information, reasoning, answer.",
}


# What a conversation asks for one step at a time, when a chain is told in turns.
STEP_REQUESTS: dict[str, tuple[str, ...]] = {
    "chain_of_description": (
        "What stands out in the image?",
        "What do these things look like in detail?",
        "How do they relate to one another, and where are they?",
        "What else is there, at the edges or in the background?",
        "Put all of this together into one description.",
    ),
    "chain_of_thought": (
        "{question}\nFirst say what the task is.",
        "What in the image matters for it?",
        "Reason from there, step by step.",
        "So what is the answer?",
    ),
}


def task_of(mode: str) -> str:
    """Return the task (`"description"` or `"reasoning"`) that `mode` belongs to."""
    for task, modes in TASKS.items():
        if mode in modes:
            return task
    raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(STEPS)}")


def prompt_for(mode: str, question: str | None = None) -> str:
    """
    Return the text of the user turn that asks for `mode`.

    Args:
        mode (`str`):
            One of the keys of [`STEPS`].
        question (`str`, *optional*):
            The question; required by the reasoning modes, refused by the description modes.

    Returns:
        `str`: plain text without an image placeholder (TRL and the chat template insert it).
    """
    needs_question = task_of(mode) == "reasoning"
    if needs_question and not question:
        raise ValueError(f"mode {mode!r} answers a question, but the row has none")
    if question and not needs_question:
        raise ValueError(f"mode {mode!r} describes the image, but the row has the question {question!r}")
    return _REQUESTS[mode].format(question=question)
