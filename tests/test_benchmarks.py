"""The packaged tasks of lmms-eval with made-up rows and a model that is always right, wrong, or half of each."""

from dataclasses import replace
from statistics import mean

import asking
import pytest
from asking import ask_benchmarks, check_prompts
from benchmark_rows import ROWS, write_rows

from sicog_trl.evaluation.benchmarks import SUITES, benchmarks, select_tasks
from sicog_trl.evaluation.extractors import EXTRACTORS, GROUP_EXTRACTORS, extract, extract_all
from sicog_trl.evaluation.protocols import PROTOCOLS
from sicog_trl.evaluation.task_files import task_yaml, write_task_files


pytest.importorskip("lmms_eval")

NAMES = [name for name in ROWS if benchmarks()[name].judge != "needed"]
QUESTIONS = {name: ROWS[name]() for name in NAMES}
TASKS = {name: task for protocol in PROTOCOLS for name, task in select_tasks("judge_free", NAMES, [protocol]).items()}
EACH_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
# A judge is asked about nothing here.
RULES = [name for name in NAMES if benchmarks()[name].judge == "none"]
STRICT = [name for name in NAMES if any(question.dressed for question in QUESTIONS[name])]
# Ways to be right that are told apart; a question with fewer has its last one asked again.
FORMS = range(max(len(question.right) for questions in QUESTIONS.values() for question in questions))
DRESSES = range(max(len(question.dressed) for questions in QUESTIONS.values() for question in questions))


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Return a function that asks all benchmarks under a protocol: `choose(number of the row, question)` answers."""
    from loguru import logger

    folder, done = tmp_path_factory.mktemp("benchmarks"), {}
    write_rows(folder / "rows", NAMES)
    write_task_files(folder / "tasks", str(folder / "rows"), TASKS)
    logger.disable("lmms_eval")

    def ask(protocol, key, choose, names=NAMES):
        if (protocol, key) not in done:
            tasks = [task for task in TASKS.values() if task.protocol == protocol and task.benchmark.name in names]
            done[protocol, key] = ask_benchmarks(
                folder, tasks, lambda task, number: choose(number, QUESTIONS[task.benchmark.name][number])
            )
        return done[protocol, key]

    yield ask
    logger.enable("lmms_eval")


@pytest.fixture(scope="module")
def right(ask):
    def right(protocol, form=0):
        return ask(protocol, form, lambda _, question: question.right[min(form, len(question.right) - 1)])

    return right


@pytest.fixture(scope="module")
def half(ask):
    """Every other answer is right."""
    return lambda protocol: ask(
        protocol, "half", lambda row, question: question.wrong if row % 2 else question.right[0]
    )


@pytest.fixture(scope="module")
def dressed(ask):
    return lambda protocol, form: ask(
        protocol, f"dressed {form}", lambda _, question: _dressed(question, form), STRICT
    )


def _dressed(question, form):
    return question.dressed[min(form, len(question.dressed) - 1)] if question.dressed else question.right[0]


def full_marks(name):
    """The headline of a perfect model on the rows here."""
    benchmark = benchmarks()[name]
    if name == "mme":
        return [benchmark.full_marks, 800]
    if name == "ocrbench":  # lmms-eval divides by 1000, whatever was asked
        return [len(QUESTIONS[name]) / 1000]
    return [benchmark.full_marks] * len(benchmark.headline)


# The scorers --------------------------------------------------------------------------------------------------------


@EACH_TASK
def test_a_right_answer_scores_full_marks_in_every_usual_form(right, task):
    for form in FORMS:
        run = right(task.protocol, form)
        asked = [question.right[min(form, len(question.right) - 1)] for question in QUESTIONS[task.benchmark.name]]
        assert run.headline(task) == pytest.approx(full_marks(task.benchmark.name)), asked
        assert set(run.scores(task)) == {1}, asked


@EACH_TASK
def test_a_wrong_answer_scores_nothing(ask, task):
    run = ask(task.protocol, "wrong", lambda _, question: question.wrong)
    assert set(run.headline(task)) == {0}
    assert set(run.scores(task)) == {0}


@pytest.mark.parametrize("name", [name for name in TASKS if TASKS[name].benchmark.name != "mme"])
def test_the_mean_of_the_rows_is_the_headline(half, name):
    task, run = TASKS[name], half(TASKS[name].protocol)
    assert set(run.scores(task)) == {0, 1}
    assert run.headline(task)[0] == pytest.approx(mean(run.scores(task)) * full_marks(task.benchmark.name)[0])


def test_a_pair_of_mme_is_worth_more_than_its_halves(half):
    run = half("direct")
    # 50 of 200 points for one right answer of two.
    assert run.headline(TASKS["mme"]) == [500, 200]
    assert mean(run.scores(TASKS["mme"])) == 0.5


@pytest.mark.parametrize("name", STRICT)
def test_scorers_that_take_the_plain_answer_alone(dressed, name):
    """Known strictness of lmms-eval: where it is gone, scores from before and after must not be compared."""
    for form in DRESSES:
        run, asked = dressed("direct", form), [_dressed(question, form) for question in QUESTIONS[name]]
        assert run.headline(TASKS[name])[0] < full_marks(name)[0], asked


@pytest.mark.parametrize("name", STRICT)
def test_the_last_step_of_a_chain_is_undressed(dressed, name):
    for form in DRESSES:
        task, asked = TASKS[f"{name}_step_by_step"], [_dressed(question, form) for question in QUESTIONS[name]]
        assert dressed("step_by_step", form).headline(task) == pytest.approx(full_marks(name)), asked


def test_a_chain_gets_nothing_where_it_is_not_read(ask):
    """Why there is a protocol for it: a verbose right answer, handed to the scorer as it is."""
    run = ask("direct", "verbose", lambda _, question: f"Let me think.\nThe answer is {question.right[0]}", RULES)
    lost = {name for name in RULES if run.headline(TASKS[name])[0] < full_marks(name)[0]}
    assert lost == {
        "pope",
        "scienceqa",
        "ai2d",
        "docvqa",
        "chartqa",
        "textvqa",
        "mme",
        "realworldqa",
        "mmmu_pro_vision",
    }


# Prompts ------------------------------------------------------------------------------------------------------------


@EACH_TASK
def test_the_prompt_is_the_golden_one(right, task):
    check_prompts(task.name, right(task.protocol).prompts[task.name][:2])


def test_the_prompts_of_the_digits_are_the_golden_ones(digits_world, tmp_path):
    tasks = select_tasks("digits")
    assert set(map(len, (tasks, {task.benchmark.name for task in tasks.values()}))) == {6, 4}
    write_task_files(tmp_path / "tasks", str(digits_world / "test"), tasks)
    # They ask for their steps themselves, under both protocols.
    run = ask_benchmarks(tmp_path, [replace(task, protocol="direct") for task in tasks.values()], lambda *_: "one")
    for name, prompts in run.prompts.items():
        check_prompts(name, prompts[:2])


def test_every_task_of_every_suite_has_a_golden_prompt():
    tasks = {name for suite in SUITES for judge in (True, False) for name in _tasks_of(suite, judge)}
    assert {path.stem for path in asking.GOLDEN.iterdir()} == tasks


def _tasks_of(suite, judge):
    names = None if judge else [name for name in _members(suite) if name not in ("mmvet", "llava_bench")]
    return select_tasks(suite, names, list(PROTOCOLS), judge=judge)


def _members(suite):
    return {task.benchmark.name for task in select_tasks(suite).values()}


def test_a_changed_prompt_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(asking, "GOLDEN", tmp_path / "prompts")
    monkeypatch.delenv("SICOG_RENEW_GOLDEN", raising=False)
    with pytest.raises(AssertionError, match=r"pope\.txt is missing"):
        check_prompts("pope", ["Is it?"])
    monkeypatch.setenv("SICOG_RENEW_GOLDEN", "1")
    check_prompts("pope", ["Is it?"])
    monkeypatch.delenv("SICOG_RENEW_GOLDEN")
    check_prompts("pope", ["Is it?"])
    with pytest.raises(AssertionError, match="SICOG_RENEW_GOLDEN=1 renews"):
        check_prompts("pope", ["Is it a dog?"])


# The table ----------------------------------------------------------------------------------------------------------


def test_suites_are_those_of_the_papers():
    sizes = {name: len(select_tasks(name, protocols=["direct"])) for name in SUITES}
    # Of Insight-V's eleven benchmarks one is two tasks.
    assert sizes == {"sicog": 12, "stic": 7, "insight_v": 12, "judge_free": 15, "digits": 4}


@pytest.mark.parametrize("suite", ["insight_v", "judge_free", "digits"])
def test_without_a_judge_its_counterpart_is_asked(suite):
    tasks = select_tasks(suite, judge=False)
    assert len(tasks) == len(select_tasks(suite))
    assert {task.benchmark.judge for task in tasks.values()} == {"none"}


@pytest.mark.parametrize("suite", ["sicog", "stic"])
def test_what_only_a_judge_can_score_is_named(suite):
    with pytest.raises(ValueError, match=r"(mmvet|llava_bench) needs a judge: give judge_base_url"):
        select_tasks(suite, judge=False)


@pytest.mark.parametrize("name", benchmarks())
def test_every_benchmark_is_complete(name):
    benchmark = benchmarks()[name]
    for task in select_tasks("judge_free", [name], list(PROTOCOLS)).values():
        assert task_yaml(task).is_file()
    assert benchmark.score in {**EXTRACTORS, **GROUP_EXTRACTORS}
    assert benchmark.judge in ("none", "fallback", "needed")
    if benchmark.judge == "none":
        assert benchmark.judge_free is None
    elif benchmark.judge_free:
        assert benchmarks()[benchmark.judge_free].judge == "none"


# The extractors -----------------------------------------------------------------------------------------------------


def mmbench_record(index, prediction, answer="A"):
    options = {"A": "cube", "B": "cone", "C": "ring", "D": "nan", "E": "nan"}
    row = {"index": index, "question": "?", "answer": answer, "prediction": prediction, **options}
    return {"doc_id": index, "gpt_eval_score": row}


def mmbench_scores(name, *records):
    return extract_all(name, list(records), ("gpt_eval_score",))


@pytest.mark.parametrize("name", ["mmbench", "mmbench_static"])
def test_a_question_is_right_if_all_its_rotations_are(name):
    main, other = mmbench_record(7, "A"), mmbench_record(8, "cube")
    rotated, wrong = mmbench_record(1_000_007, "B", "B"), mmbench_record(2_000_007, "B", "C")
    assert mmbench_scores(name, rotated, main, other) == [{}, {"accuracy": 1}, {"accuracy": 1}]
    assert mmbench_scores(name, main, rotated, wrong) == [{"accuracy": 0}, {}, {}]
    # Cut off by a limit, a rotation without its question counts for nothing.
    assert mmbench_scores(name, rotated) == [{}]


def test_a_row_that_a_judge_decided_has_no_score():
    unclear, wrong = mmbench_record(7, "a shape"), mmbench_record(1_000_007, "B")
    assert mmbench_scores("mmbench", unclear) == [{"accuracy": None}]
    assert mmbench_scores("mmbench_static", unclear) == [{"accuracy": 0}]
    assert mmbench_scores("mmbench", unclear, wrong) == [{"accuracy": 0}, {}]


def test_metrics_are_taken_as_they_are():
    record = {"doc_id": 0, "doc": {}, "target": "x", "filtered_resps": ["x"], "accuracy": 1.0, "complete": 0.0}
    assert extract("metrics", record, ("accuracy",)) == {"accuracy": 1, "complete": 0}


def test_what_cannot_be_read_is_named():
    with pytest.raises(ValueError, match="row 3 has none of the metrics anls; it has"):
        extract("fraction", {"doc_id": 3, "exact_match": 1.0}, ("anls",))
    with pytest.raises(ValueError, match="unknown extractor 'gone'; choose one of metrics"):
        extract("gone", {}, ())
