"""What is asked and how answers are read: prompts, steps, final parts, normalised answers."""

import random

import pytest

from sicog_trl.prompts import STEPS, TASKS, prompt_for, task_of
from sicog_trl.responses import build_steps, final_part, is_complete, normalize_answer, split_steps


CHAINS = [mode for mode, titles in STEPS.items() if titles]
PLAIN = [mode for mode, titles in STEPS.items() if not titles]
# Pieces that could be mistaken for a heading, a placeholder or the end of a body.
PIECES = [
    "Step 2:",
    "Step",
    "step 1: x",
    "a red three",
    "1 + 2 = 3.",
    "\n",
    "\n\n",
    ":",
    "Answer",
    "é 数",
    "{question}",
]


def bodies_for(mode: str, rng: random.Random) -> list[str]:
    bodies = []
    while len(bodies) < len(STEPS[mode]):
        body = " ".join(rng.choices(PIECES, k=rng.randint(1, 8))).strip()
        if body and not any(line.startswith("Step 2:") for line in body.splitlines()):  # that would be a heading
            bodies.append(body)
    return bodies


@pytest.mark.parametrize("mode", CHAINS)
def test_steps_are_read_back_as_they_were_built(mode):
    rng = random.Random(0)
    for bodies in (bodies_for(mode, rng) for _ in range(300)):
        text = build_steps(mode, bodies)
        assert split_steps(text, mode) == bodies
        assert split_steps(f"\n{text}\n ", mode) == bodies
        assert is_complete(text, mode)
        assert final_part(text, mode) == bodies[-1]


@pytest.mark.parametrize("mode", CHAINS)
def test_chain_with_wrong_steps_is_incomplete(mode):
    bodies = [f"body {number}" for number in range(len(STEPS[mode]))]
    steps = build_steps(mode, bodies).split("\nStep ")
    steps = [steps[0], *(f"Step {step}" for step in steps[1:])]
    wrong = {
        "missing": [steps[:i] + steps[i + 1 :] for i in range(len(steps))],
        "repeated": [[*steps[:i], steps[i], *steps[i:]] for i in range(len(steps))],
        "swapped": [[*steps[:i], steps[i + 1], steps[i], *steps[i + 2 :]] for i in range(len(steps) - 1)],
        "renamed": [[steps[0].replace(STEPS[mode][0], "Something else"), *steps[1:]]],
        "empty": [[*steps[:-1], steps[-1].split("\n")[0]]],
        "preceded": [["Sure, here it is:", *steps]],
        "a heading of its own": [[*steps[:-1], f"Step {len(steps)}: {STEPS[mode][-1]}", "Step 9: More", "x"]],
        "of the other chain": [build_steps(m, ["x"] * len(STEPS[m])).split("\n") for m in CHAINS if m != mode],
        "nothing": [[]],
    }
    for why, variants in wrong.items():
        for variant in variants:
            text = "\n".join(variant)
            assert split_steps(text, mode) is None, why
            assert not is_complete(text, mode), why
            assert final_part(text, mode) is None, why


def test_number_of_bodies_is_checked():
    with pytest.raises(ValueError, match=r"chain_of_thought.*4 steps, got 2"):
        build_steps("chain_of_thought", ["a", "b"])


@pytest.mark.parametrize("mode", PLAIN)
def test_plain_mode_is_compared_whole(mode):
    assert final_part("  a red three \n", mode) == "a red three"
    assert final_part(" \n", mode) is None
    assert not is_complete(" \n", mode)


@pytest.mark.parametrize("mode", STEPS)
def test_prompt_asks_for_what_the_mode_needs(mode):
    question = "What is {x}, 50% or <b>?"  # braces and percent signs are text like any other
    if task_of(mode) == "reasoning":
        assert question in prompt_for(mode, question)
        for missing in (None, ""):
            with pytest.raises(ValueError, match=f"{mode}.*the row has none"):
                prompt_for(mode, missing)
    else:
        assert prompt_for(mode) == prompt_for(mode, "")
        with pytest.raises(ValueError, match=f"{mode}.*describes the image"):
            prompt_for(mode, question)


def test_prompts_tell_the_modes_apart_and_hold_no_placeholder():
    """Law 7: a prompt is plain text; the image placeholders are inserted by TRL."""
    prompts = {mode: prompt_for(mode, "Why?" if task_of(mode) == "reasoning" else None) for mode in STEPS}
    assert len(set(prompts.values())) == len(STEPS)
    assert not any("<" in prompt or "{" in prompt for prompt in prompts.values())


def test_every_mode_has_one_task():
    assert sorted(mode for modes in TASKS.values() for mode in modes) == sorted(STEPS)
    with pytest.raises(ValueError, match=r"unknown mode 'describe'.*chain_of_description"):
        task_of("describe")


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("7", "7"),
        ("Seven.", "7"),
        (" The seven! ", "7"),
        ("twelve", "12"),
        ("7.0", "7"),
        ("0.50", "0.5"),
        (".5", "0.5"),
        ("-2.0", "-2"),
        ("3.", "3"),
        ("1,234.50.", "1234.5"),
        ("1,234,567", "1234567"),
        ("12,34", "12,34"),
        ("1.2.3", "1.2.3"),
        ("100", "100"),
        ("Yes", "yes"),
        ("YES.", "yes"),
        ("(B).", "b"),
        ("B)", "b"),
        ("A", "a"),
        ("a cat", "cat"),
        ("the  Top\nLeft", "top left"),
        ('"red"', "red"),
        ("an", ""),
        ("", ""),
    ],
)
def test_normalize_answer(answer, normal):
    assert normalize_answer(answer) == normal
    assert normalize_answer(normal) == normal  # a normal form stays what it is


@pytest.mark.parametrize(("one", "other"), [("5", ".5"), ("no", "not"), ("1", "10"), ("-3", "3"), ("b", "c")])
def test_different_answers_stay_different(one, other):
    assert normalize_answer(one) != normalize_answer(other)
