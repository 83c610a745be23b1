"""How a question is put and what a scorer gets, with functions in place of a model."""

import json
import random
import re

import pytest

from sicog_trl.evaluation.bare_answer import bare_answer
from sicog_trl.evaluation.protocols import (
    MAX_CHAIN_TOKENS,
    PROTOCOLS,
    Ask,
    Completion,
    Conversation,
    Reply,
    direct,
    step_by_step,
    texts_of,
)
from sicog_trl.prompts import prompt_for
from sicog_trl.responses import build_steps


OPTIONS = "What colour is it?\nA. blue\nB. red\nAnswer with the option's letter from the given choices directly."
IS_THERE = "Is there a dog in the image?\nAnswer the question using a single word or phrase."
TITLE = "What is the title of the page?\nAnswer the question using a single word or phrase."


def turn(*parts: str, role: str = "user") -> Conversation:
    """A turn of texts and, for "[x]", an image x."""
    content = [
        {"type": "image", "image": part} if part.startswith("[") else {"type": "text", "text": part} for part in parts
    ]
    return [{"role": role, "content": content}]


def chain(answer: str) -> str:
    return build_steps("chain_of_thought", ["Find it.", "A page.", "It is there.", answer])


class Model:
    """Writes `text` whatever it is asked, and keeps what it was asked."""

    def __init__(self, text: str, truncated: bool = False):
        self.text, self.truncated, self.asked = text, truncated, []

    def __call__(self, conversations: list[Conversation], limits: list[int]) -> list[Completion]:
        self.asked.append((conversations, limits))
        return [Completion(self.text, 7, self.truncated) for _ in conversations]


def answer_to(question: str, last_step: str) -> str:
    [reply] = step_by_step(Model(chain(last_step)), [turn("[image]", question)], [16])
    assert reply.fault is None
    return reply.answer


def test_asked_directly_the_scorer_gets_what_was_written_and_the_benchmark_sets_the_limit():
    model = Model("**B**", truncated=True)
    asked = [turn("[image]", OPTIONS), turn(IS_THERE)]
    assert direct(model, asked, [16, 32]) == [Reply("**B**", "**B**", 7, True)] * 2
    assert model.asked == [(asked, [16, 32])]


def test_the_request_is_the_one_of_training_and_hints_of_the_benchmark_stay():
    model = Model(chain("B"))
    asked = turn("[image]", OPTIONS)
    before = json.dumps(asked)
    [reply] = step_by_step(model, [asked], [16])
    [(conversations, limits)] = model.asked
    assert conversations == [turn("[image]", prompt_for("chain_of_thought", OPTIONS))]
    assert (limits, json.dumps(asked)) == ([MAX_CHAIN_TOKENS], before)
    assert (reply.text, reply.answer, reply.num_tokens) == (chain("B"), "B", 7)


def test_a_benchmark_that_allows_more_gets_more():
    model = Model(chain("B"))
    step_by_step(model, [turn("?")] * 2, [16, 16384])
    assert model.asked[0][1] == [MAX_CHAIN_TOKENS, 16384]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("Compare", "[one]", "with", "[two]", "Which?"), ("Compare", "[one]", "with", "[two]", "{Which?}")),
        (("Which is larger?", "[one]", "[two]"), ("Which is larger?", "[one]", "[two]", "{}")),
        (("Which is larger?", "[one]", ""), ("Which is larger?", "[one]", "{}")),
        (("[one]", "Is {this} <image 1> 100%?"), ("[one]", "{Is {this} <image 1> 100%?}")),
        (("[one]",), ("[one]", "{}")),
    ],
)
def test_texts_and_images_in_any_order(parts, expected):
    system = turn("Be brief.", role="system")
    model = Model(chain("B"))
    step_by_step(model, [system + turn(*parts)], [16])
    request = prompt_for("chain_of_thought", "?").removeprefix("?")
    asked = [each[1:-1] + request if each[0] == "{" else each for each in expected]
    assert model.asked[0][0] == [system + turn(*[each.strip() for each in asked])]


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "empty"), ("The answer is **B**.", "no_steps"), (chain("B").replace("Step 3", "Step 4"), "repeated_step")],
)
def test_without_a_chain_the_scorer_gets_all_of_it_and_is_told_why(text, fault):
    [reply] = step_by_step(Model(text), [turn(OPTIONS)], [16])
    assert reply == Reply(text, text, 7, False, fault)


@pytest.mark.parametrize("kept", ["It is there.", "Answer"])
def test_a_chain_that_was_cut_off_before_its_answer_has_none(kept):
    text = chain("B")
    text = text[: text.index(kept) + len(kept)]
    for truncated, answer in ((True, ""), (False, text)):
        [reply] = step_by_step(Model(text, truncated), [turn(OPTIONS)], [16])
        assert (reply.text, reply.answer, reply.truncated) == (text, answer, truncated)
        assert reply.fault in ("missing_step", "empty_step")


@pytest.mark.parametrize("before", ["<think>A? No.</think>\n\n", "A? No.\n</think>\n", ""])
def test_thoughts_are_no_answer(before):
    """The opening tag may stand in the chat template."""
    [reply] = step_by_step(Model(before + chain("B")), [turn(OPTIONS)], [16])
    assert (reply.text, reply.answer, reply.fault) == (before + chain("B"), "B", None)
    [reply] = direct(Model(before + "B"), [turn(OPTIONS)], [16])
    assert (reply.text, reply.answer) == (before + "B", "B")


def test_thoughts_that_were_cut_off_have_no_answer_behind_them():
    text = "<think>It may be B or"
    assert direct(Model(text, truncated=True), [turn(OPTIONS)], [16]) == [Reply(text, "", 7, True)]
    assert step_by_step(Model(text, truncated=True), [turn(OPTIONS)], [16]) == [Reply(text, "", 7, True, "empty")]


# Bare answers --------------------------------------------------------------------------------------------------------

DRESSES = (
    "{}", " {}\n", "**{}**", "*{}*", "`{}`", "The answer is {}", "The answer is: {}", "the final answer is **{}**",
    "Answer: {}", "**Answer:** {}", "**Final answer: {}**", "So the answer is {}",
    "Therefore, the correct answer is {}",
    "Based on the image, the answer is {}", "The answer to the question is {}", r"\boxed{{{}}}", r"$\boxed{{{}}}$",
    r"Hence \boxed{{\text{{{}}}}}.", "<answer>{}</answer>", '"{}"', "# {}",
)  # fmt: skip
ANSWERS = (
    "Yes", "no", "7", "-3.5", "1,204", "12%", "$5.00", "5 p.m.", "3:15", "the U.S.", "Philip Morris Inc.",
    "A. Lincoln",
    "ITC Limited", "file_name_2.txt", "left of the door", "Vitamin C", "A dog", "(555) 123-4567", "1/2", "A, C", "née",
    "No parking", "Dr. No", "E = mc^2", "- 5", "J. R. Smith & Co.", "http://a.b/c_d", "O'Hare", "#5", "No. 12",
)  # fmt: skip


def test_dress_is_taken_off_and_what_was_said_stays():
    for answer in ANSWERS:
        for dress in DRESSES:
            assert bare_answer(dress.format(answer), TITLE) == answer, dress


def test_the_point_of_a_sentence_is_taken_off():
    for answer in ("Yes", "7", "12%", "3.5", "left of the door", "ITC Limited"):
        assert answer_to(TITLE, f"The answer is {answer}.") == answer_to(TITLE, f"{answer}.") == answer


@pytest.mark.parametrize("answer", ["B", "(B)", "B.", "[B]", "B. red", "B) red", "(B) red", "B: red", "B – red"])
def test_of_listed_options_the_letter_counts(answer):
    for dress in DRESSES:
        assert answer_to(OPTIONS, dress.format(answer)) == "B", dress
    assert answer_to(OPTIONS, f"Option {answer}") == answer_to(OPTIONS, f"The correct option is {answer}") == "B"


def test_a_letter_that_is_no_option_is_part_of_a_name():
    assert answer_to(OPTIONS, "J. Smith") == "J. Smith"
    assert answer_to(TITLE, "B. red") == "B. red"
    assert answer_to(OPTIONS, "A dog") == "A dog"
    assert answer_to(OPTIONS, "(A) and (B)") == "(A) and (B)"


def test_yes_and_no_where_they_are_asked_for():
    assert answer_to(IS_THERE, "Yes, there is a dog.") == "Yes"
    assert answer_to("The dog sleeps. Please answer yes or no.", "No, it runs.") == "No"
    assert answer_to(TITLE, "No parking here") == "No parking here"
    assert answer_to("Is it a no-parking or a stop sign?", "No parking") == "No parking"


def test_of_several_options_none_is_chosen():
    for answer in ("A is wrong, so B", "A. blue and B. red", "A. blue\nB. red", "A - B", "A as well as B", "A, B"):
        assert answer_to(OPTIONS, answer) == answer


@pytest.mark.parametrize("answer", ["B, because it glows.", "B (red)", "b", "(b)", "b. red", "b) red", "**b**"])
def test_a_letter_is_known_in_small_and_with_its_reason(answer):
    assert answer_to(OPTIONS, answer) == answer_to(OPTIONS, f"The answer is {answer}") == "B"


def test_options_in_the_picture_have_letters_too():
    question = "Answer with the option letter from the given choices directly."
    assert [answer_to(question, each) for each in ("B. red", "(B) red", "b", "J")] == ["B", "B", "B", "J"]


def test_what_only_begins_with_yes_or_no_is_neither():
    for answer in ("Yes and no", "yes/no", "Yes or no", "No idea", "No way to tell", "No information", "No, yes"):
        assert answer_to(IS_THERE, answer) == answer
    assert answer_to(IS_THERE, "No dogs are there.") == answer_to(IS_THERE, "No, the right answer is none.") == "No"
    assert answer_to("Can you read the sign?\nUse a single word or phrase.", "No parking") == "No parking"


def test_reasons_stay_where_no_short_answer_is_asked_for():
    """LLaVA-Bench has such questions, and its judge wants to know why."""
    assert answer_to("Is there any yogurt in the fridge?", "Yes, two cups of it.") == "Yes, two cups of it"


def test_boxes_that_say_different_things_are_all_kept():
    assert answer_to(TITLE, r"x is \boxed{-1} or \boxed{-5}") == "x is -1 or -5"
    assert answer_to(OPTIONS, r"\boxed{A} or \boxed{B}") == "A or B"
    assert answer_to(OPTIONS, r"It is \boxed{B}. So \boxed{B}.") == answer_to(OPTIONS, r"\boxed{\boxed{B}}") == "B"


def test_what_is_written_on_a_page_keeps_its_brackets_and_its_case():
    for answer in ("(c)", "[B]", "b", "B. Smith"):
        assert answer_to(TITLE, answer) == answer


@pytest.mark.parametrize(("answer", "bare"), [(r"40\%", "40%"), (r"\$40", "$40"), (r"$\boxed{40\%}$", "40%")])
def test_signs_that_latex_escapes(answer, bare):
    assert answer_to(TITLE, answer) == bare
    assert answer_to("Write the formula in LaTeX format.", r"40 \%") == r"40 \%"


def test_a_wrong_answer_stays_wrong_whatever_it_wears():
    for dress in DRESSES:
        assert answer_to(OPTIONS, dress.format("A. blue")) == "A"
        assert answer_to(IS_THERE, dress.format("No, none.")) == "No"


def test_what_is_bare_stays_so():
    rng = random.Random(0)
    pieces = [
        "**",
        "The answer is ",
        "(",
        ")",
        "B",
        ". ",
        "red",
        '"',
        r"\boxed{",
        "}",
        "$",
        ":",
        "\n",
        "Option ",
        "_",
        "Yes",
    ]
    for text in ("".join(rng.choices(pieces, k=rng.randint(1, 9))) for _ in range(3000)):
        for question in (OPTIONS, IS_THERE, TITLE):
            found = bare_answer(text, question)
            assert bare_answer(found, question) == found
            letters, said = (re.sub(r"[\W_]", "", each) for each in (found, text))
            assert letters in said and (found or not text.strip())  # nothing is made up, or lost altogether


@pytest.mark.parametrize(
    "piece", [" ", "the ", "*", "answer is ", r"\boxed{", "a,", "<answer>", "final ", "(", "B - "]
)
def test_a_long_text_is_read_in_no_time(piece):
    for text in (piece * (1000 // len(piece)), piece * 50_000):
        assert bare_answer(text + "x", OPTIONS)


# A protocol of two calls ---------------------------------------------------------------------------------------------


def describe_then_answer(ask: Ask, conversations: list[Conversation], limits: list[int]) -> list[Reply]:
    """What a protocol that asks twice takes."""
    looked = ask([[*each[:-1], _request(each, "Describe the image.")] for each in conversations], [256] * len(limits))
    told = [
        [*each, *turn(seen.text, role="assistant"), *turn("Now answer.")]
        for each, seen in zip(conversations, looked, strict=True)
    ]
    pairs = zip(looked, ask(told, limits), strict=True)
    return [Reply(f"{a.text}\n\n{b.text}", b.text, a.num_tokens + b.num_tokens, b.truncated) for a, b in pairs]


def _request(conversation: Conversation, text: str) -> dict:
    images = [part for part in conversation[-1]["content"] if part["type"] == "image"]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def test_a_protocol_may_ask_twice():
    model = Model("A red dog.")
    [reply] = describe_then_answer(model, [turn("[dog]", OPTIONS)], [16])
    first, second = ([texts_of(each) for each in conversations] for conversations, _ in model.asked)
    assert first == [["Describe the image."]]
    assert second == [[OPTIONS, "A red dog.", "Now answer."]]
    assert reply == Reply("A red dog.\n\nA red dog.", "A red dog.", 14)
    assert set(PROTOCOLS) == {"direct", "step_by_step"}  # nothing has to be registered to be tried out
