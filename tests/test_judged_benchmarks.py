"""The benchmarks that a judge grades, and MathVista by rules: made-up rows, a stub model, a judge on loopback."""

from collections.abc import Callable

import pytest
from asking import ask_benchmarks, check_prompts
from benchmark_rows import Question
from judge_server import JudgeServer
from judged_rows import JUDGED_ROWS, mathvista, write_judged_rows

from sicog_trl.evaluation.benchmarks import benchmarks, select_tasks
from sicog_trl.evaluation.judge import Judge
from sicog_trl.evaluation.protocols import PROTOCOLS
from sicog_trl.evaluation.task_files import write_task_files


pytest.importorskip("lmms_eval")

TASKS = select_tasks("sicog", list(JUDGED_ROWS), list(PROTOCOLS))
NEED_A_JUDGE = [name for name, row in benchmarks().items() if row.judge == "needed"]
EACH_PROTOCOL = pytest.mark.parametrize("protocol", PROTOCOLS)


class Graded:
    """What came out: headline, rows and prompts by name of the task, and how the judge fared."""

    def __init__(self, tasks, run, judge):
        self.tasks, self.prompts, self.calls, self.failed = tasks, run.prompts, judge.calls, judge.failed
        self.headline = {task.name: run.headline(task)[0] for task in tasks}
        self.rows = {task.name: run.scores(task) for task in tasks}


@pytest.fixture(scope="module")
def grading(tmp_path_factory):
    """Return a function that asks benchmarks under a protocol, with a judge that may fail."""
    from loguru import logger

    folder = tmp_path_factory.mktemp("judged")
    questions = write_judged_rows(folder / "rows")
    write_task_files(folder / "tasks", str(folder / "rows"), TASKS)
    logger.disable("lmms_eval")

    def grading(names, choose: Callable[[int, Question], str], protocol="direct", fault=None, faults=()) -> Graded:
        tasks = [task for task in TASKS.values() if task.protocol == protocol and task.benchmark.name in names]
        with JudgeServer() as server, Judge(server.base_url, "judge", max_retries=0) as judge:
            server.fault, server.faults = fault, list(faults)
            run = ask_benchmarks(
                folder, tasks, lambda task, number: choose(number, questions[task.benchmark.name][number])
            )
        return Graded(tasks, run, judge)

    yield grading
    logger.enable("lmms_eval")


def right(number, question):
    return question.right[0]


def wrong(number, question):
    return question.wrong


def test_every_benchmark_that_needs_a_judge_is_tested():
    assert set(NEED_A_JUDGE) <= set(JUDGED_ROWS)


@EACH_PROTOCOL
def test_right_answers_get_full_marks(grading, protocol):
    run = grading(JUDGED_ROWS, right, protocol)
    for task in run.tasks:
        assert run.headline[task.name] == task.benchmark.full_marks
        # The stub grades the model like the reference, with 8 of 10.
        assert set(run.rows[task.name]) == {0.8 if task.benchmark.name == "llava_bench" else 1.0}
    assert run.calls > 0
    assert run.failed == 0


@EACH_PROTOCOL
def test_wrong_answers_do_not(grading, protocol):
    run = grading(JUDGED_ROWS, wrong, protocol)
    for task in run.tasks:
        llava_bench = task.benchmark.name == "llava_bench"  # 2 of 10, the reference has 8
        assert run.headline[task.name] == (100 * 2 / 8 if llava_bench else 0)
        assert set(run.rows[task.name]) == {0.2 if llava_bench else 0.0}
    assert run.failed == 0


@pytest.mark.parametrize("form", range(max(len(question.right) for question in mathvista())))
def test_rules_read_right_answers_as_models_write_them(grading, form):
    run = grading(["mathvista_rules"], lambda number, question: question.right[form % len(question.right)])
    assert run.rows["mathvista_rules"] == [1.0] * len(mathvista())
    assert run.calls == 0


@pytest.mark.parametrize("name", ["mathvista", "mathvista_rules"])
def test_an_empty_answer_is_wrong(grading, name):
    run = grading([name], lambda number, question: "")
    assert run.rows[name] == [0.0] * len(mathvista())
    assert run.headline[name] == 0
    assert run.calls == 0


@pytest.mark.parametrize("said", ["I'm sorry, I cannot tell.", "shorter", "none", "?"])
def test_by_rules_an_answer_that_names_no_option_is_none(grading, said):
    """lmms-eval takes the option most similar to it, which is now and then the right one."""
    run = grading(["mathvista_rules"], lambda number, question: said)
    assert run.rows["mathvista_rules"] == [0.0] * len(mathvista())


def test_a_judge_of_mmbench_is_found(grading):
    """It wants the whole address where the others want its base, and is asked where the rules find two options."""

    def in_words(number, question):
        options = [question.row[letter] for letter in "AB"]
        return f"I would not say {options[question.row['answer'] == 'A']} but {question.row[question.row['answer']]}"

    run = grading(["mmbench"], in_words)
    assert run.calls > 0
    assert run.failed == 0
    assert run.headline["mmbench"] == 100
    assert set(run.rows["mmbench"]) == {None}  # what the judge said of one row is not logged


@pytest.mark.parametrize("fault", ["404", "500", "cut", "say "])
@pytest.mark.parametrize("choose", [right, wrong])
def test_a_judge_that_is_down_does_not_make_the_model_wrong(grading, choose, fault):
    """Digest of lmms-eval, trap 4: it scores such rows like wrong ones, and LLaVA-Bench with 100."""
    run = grading(NEED_A_JUDGE, choose, fault=fault)
    assert run.failed == run.calls > 0
    assert run.rows["mmvet"] == [None] * 2
    assert run.rows["llava_bench"] == [None] * 3
    # Where the answer can be read without a judge, it is.
    plain = float(choose is right)
    unread = [question.row["answer_type"] in ("text", "list") for question in mathvista()]
    unread[3] |= choose is wrong  # with a comma
    assert run.rows["mathvista"] == [None if each else plain for each in unread]


def test_one_request_that_fails_costs_one_row(grading):
    run = grading(["mmvet"], right, faults=["500"])
    assert sorted(run.rows["mmvet"], key=str) == [1.0, None]  # several rows are graded at once
    assert (run.calls, run.failed) == (2, 1)


@pytest.mark.parametrize("said", ["10", "very good"])
def test_a_judge_that_gives_no_score_does_not_make_the_model_wrong(grading, said, monkeypatch):
    """MM-Vet asks for ever if a number is none of a score, and scores 0 if it is no number, after 20 seconds."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    run = grading(["mmvet"], right, fault=f"say {said}")
    assert run.rows["mmvet"] == [None] * 2
    assert run.failed >= 2


@EACH_PROTOCOL
def test_the_prompts_are_the_golden_ones(grading, protocol):
    run = grading(JUDGED_ROWS, right, protocol)
    for task in run.tasks:
        if task.benchmark.name != "mmbench":
            check_prompts(task.name, run.prompts[task.name][:4])


# The suites ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", ["sicog", "stic", "insight_v"])
def test_without_a_judge_a_suite_says_what_it_lacks(suite):
    names = {task.benchmark.name for task in select_tasks(suite).values()}
    stuck = sorted(names & {"mmvet", "llava_bench"})
    if stuck:
        with pytest.raises(ValueError, match=r"needs a judge: give judge_base_url and judge_model"):
            select_tasks(suite, judge=False)
    free = select_tasks(suite, sorted(names - set(stuck)), judge=False)
    assert {task.benchmark.judge for task in free.values()} == {"none"}
    assert {"mathvista_rules", "mmbench_static"} <= {task.benchmark.name for task in free.values()}
