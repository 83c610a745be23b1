"""What is asked and how answers are read: prompts, steps, final parts, normalised answers."""

import random
import re
import time

import pytest

from sicog_trl.prompts import STEPS, TASKS, prompt_for, task_of
from sicog_trl.responses import (
    build_steps,
    canonical,
    chain_fault,
    final_part,
    is_complete,
    normalize_answer,
    split_steps,
)


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
        heading = any(line.strip().lower().startswith(("step 2:", "step 1:")) for line in body.splitlines())
        answer = mode == "chain_of_thought" and len(bodies) == len(STEPS[mode]) - 1  # is one paragraph
        if body and not heading and not (answer and re.search(r"\n\s*\n", body)):
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


@pytest.mark.parametrize("body", ["", " ", "x\nStep 2: Reasoning\ny", "x\n**step 7.** y"])
def test_bodies_that_would_not_be_read_back_are_refused(body):
    with pytest.raises(ValueError, match="read back"):
        build_steps("chain_of_thought", ["a", body, "c", "d"])


TITLES = STEPS["chain_of_thought"]


@pytest.mark.parametrize(
    "dress",
    [
        "Step {n}: {title}\n{body}",
        "STEP {n}: {upper}\n{body}",
        "**Step {n}: {title}**\n{body}",
        "**Step {n}:** {title}\n\n{body}\n",
        "### Step {n}: {title}\n{body}",
        "## **step {n} - {title}:**\n{body}",
        "Step {n}. {title}: {body}",
        "> Step {n}) *{title}* – {body}",
    ],
)
def test_dressed_headings_are_read_and_written_plain(dress):
    bodies = ["Count.", "Two **red** dogs.\n\nAnd a cat.", "1 + 2 = 3", "3"]
    parts = enumerate(zip(TITLES, bodies, strict=True), 1)
    text = "\n".join(dress.format(n=n, title=title, upper=title.upper(), body=body) for n, (title, body) in parts)
    assert split_steps(text, "chain_of_thought") == bodies
    assert canonical(text, "chain_of_thought") == build_steps("chain_of_thought", bodies)


@pytest.mark.parametrize(
    "answer",
    ["-3", ".5", "-0.5", "#1", "C#", "**3**", "*x* and *y*", "...", "- 3 or so", "$-\\frac{1}{2}$", "__init__"],
)
@pytest.mark.parametrize(
    "heading",
    ["Step 4: Answer: ", "**Step 4: Answer:** ", "**Step 4:** Answer - ", "Step 4 - **Answer**: ", "Step 4. Answer: "],
)
def test_a_heading_takes_nothing_of_the_text_on_its_line(heading, answer):
    """A minus taken for a dash made -3 into 3, in what is compared and in what is trained on."""
    text = "\n".join(f"Step {n}: {title}\nx" for n, title in enumerate(TITLES[:3], 1)) + f"\n{heading}{answer}"
    assert final_part(text, "chain_of_thought") == answer
    assert canonical(text, "chain_of_thought") == build_steps("chain_of_thought", ["x", "x", "x", answer])


@pytest.mark.parametrize(
    "text",
    [
        " " * 50_000 + "x",
        "step 1" + " " * 50_000,
        "step" + " " * 50_000,
        "\n \n" * 20_000,
        "#>" * 30_000,
        "1." * 30_000,
    ],
)
def test_a_model_that_repeats_itself_is_read_at_once(text):
    """Each of the first two took ten seconds once, by backtracking."""
    spent = []
    for each in ("word " * (len(text) // 5), text):
        started = time.perf_counter()
        for mode in STEPS:
            canonical(each, mode)
        normalize_answer(each)
        spent.append(time.perf_counter() - started)
    assert spent[1] < 500 * spent[0]


def test_a_number_too_long_for_an_int_is_text():
    text = build_steps("chain_of_thought", ["a", "b", "c", f"Step {'1' * 5000}: x"])
    assert is_complete(text, "chain_of_thought")


def test_every_fault_of_a_chain_has_a_name():
    whole = build_steps("chain_of_thought", ["a", "b", "c", "d"])
    steps = [f"Step {n}: {title}\nx" for n, title in enumerate(TITLES, 1)]
    faults = {
        "": "empty",
        "It is 12.": "no_steps",
        "\n".join(steps[:-1]): "missing_step",
        "\n".join([*steps, steps[0]]): "repeated_step",
        "\n".join([*steps, "Step 5: More\nx"]): "extra_step",
        "\n".join([steps[1], steps[0], *steps[2:]]): "steps_out_of_order",
        whole.replace("Answer", "Answers"): "renamed_step",
        whole.replace("\nb", "\n"): "empty_step",
        f"Sure!\n{whole}": "text_before_steps",
        f"{whole}\n\nI hope this helps.": "text_after_answer",
        f"{whole}\r\n\r\nI hope this helps.": "text_after_answer",
        whole.replace("Task", "Task's aim"): "renamed_step",
        whole: None,
    }
    assert {text: chain_fault(text, "chain_of_thought") for text in faults} == faults


def test_an_answer_is_one_paragraph_and_a_description_may_be_several():
    """The released code keeps what stands behind the answer and throws the answer away."""
    assert final_part("12\n\nBecause I counted.", "direct_answer") is None
    assert final_part("12 dogs\nand a cat", "direct_answer") == "12 dogs\nand a cat"
    text = build_steps("chain_of_description", ["a", "b", "c", "d", "One.\n\nTwo."])
    assert final_part(text, "chain_of_description") == "One.\n\nTwo."


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
        ("The answer is 12.", "12"),
        ("So the final answer is: (B)", "b"),
        ("**Answer:** Seven", "7"),
        ("**red**", "red"),
        ("", ""),
        ('"A"', "a"),
        ("`B`", "b"),
        ("\u22123", "-3"),
    ],
)
def test_normalize_answer(answer, normal):
    assert normalize_answer(answer) == normal
    assert normalize_answer(normal) == normal  # a normal form stays what it is


@pytest.mark.parametrize(
    ("one", "other"),
    [("5", ".5"), ("no", "not"), ("1", "10"), ("-3", "3"), ("b", "c"), ("A, B", "B"), ("vitamin A", "vitamin")],
)
def test_different_answers_stay_different(one, other):
    assert normalize_answer(one) != normalize_answer(other)
