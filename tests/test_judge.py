"""The judge as every task of lmms-eval finds it, a judge that fails, and the judged benchmarks with a stub model."""

import argparse
import importlib
import json
import logging
import os
import urllib.error
import urllib.request

import pytest
from judge_server import JudgeServer
from judged_rows import JUDGED_ROWS, mathvista, write_judged_rows

from sicog_trl.evaluation.benchmarks import benchmarks, select_tasks
from sicog_trl.evaluation.extractors import extract_all
from sicog_trl.evaluation.judge import Judge, check_answers, check_judge
from sicog_trl.evaluation.judge_client import KEY_VARIABLE
from sicog_trl.evaluation.protocols import PROTOCOLS, Completion
from sicog_trl.evaluation.task_files import write_task_files
from sicog_trl.responses import build_steps


KEY = "sk-very-secret"


@pytest.fixture
def server():
    with JudgeServer() as server:
        yield server


@pytest.fixture
def judge(server):
    with Judge(server.base_url, "judge", max_retries=0) as judge:
        yield judge


def post(address, prompt="Grade this.", **settings):
    """Ask as the tasks do that have no client: all of the address is given to them."""
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": prompt}], **settings}
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Authorization": "Bearer none"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def ask(prompt="Grade this.", **settings):
    return post(os.environ["LLM_JUDGE_URL"], prompt, **settings)


# How tasks find it --------------------------------------------------------------------------------------------------


def test_every_form_of_the_address_leads_to_the_judge(server, judge):
    from openai import OpenAI

    for variable in ("OPENAI_API_URL", "JUDGE_BASE_URL", "OPENAI_BASE_URL"):
        client = OpenAI(base_url=os.environ[variable], api_key=os.environ["OPENAI_API_KEY"])
        messages = [{"role": "user", "content": f"By {variable}"}]
        answer = client.chat.completions.create(model=os.environ["MODEL_VERSION"], messages=messages, temperature=0.2)
        assert answer.choices[0].message.content == "1.0"
    assert post(os.environ["OPENAI_API_URL"], "In full", max_tokens=16) == "1.0"
    assert post(os.environ["LLM_JUDGE_URL"], "In full, local") == "1.0"
    assert (judge.calls, judge.failed) == (5, 0)
    # Whatever name a task asks for, it is our judge; everything else is as the task wants it.
    assert {request["model"] for request in server.requests} == {"judge"}
    assert server.requests[0]["temperature"] == 0.2
    assert server.requests[3]["max_tokens"] == 16


def test_the_environment_is_put_back(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "mine")
    monkeypatch.delenv("API_TYPE", raising=False)
    before = dict(os.environ)
    with Judge(server.base_url, "judge"):
        assert os.environ["API_TYPE"] == "openai"
        assert os.environ["OPENAI_API_KEY"] != "mine"
        with Judge():
            assert ask("Of nobody") == ""
        assert ask("Of somebody") == "1.0"
    assert dict(os.environ) == before


def test_a_dotenv_file_changes_nothing(judge, monkeypatch, tmp_path):
    factory = pytest.importorskip("lmms_eval.llm_judge.factory")
    names = ("API_TYPE", "OPENAI_API_KEY", "OPENAI_API_URL", "LLM_JUDGE_URL", "MODEL_VERSION", "USE_LLM_JUDGE")
    (tmp_path / ".env").write_text("".join(f"{name}=other\n" for name in (*names, "JUDGE_BASE_URL", "SOMETHING_ELSE")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOMETHING_ELSE", "")
    monkeypatch.delenv("SOMETHING_ELSE")
    before = dict(os.environ)
    importlib.reload(factory)
    assert os.environ["SOMETHING_ELSE"] == "other"  # lmms-eval has read the file
    assert {name: value for name, value in os.environ.items() if name != "SOMETHING_ELSE"} == before


def test_who_does_not_know_the_path_is_not_served(server, judge):
    port = os.environ["LLM_JUDGE_URL"].split("/")[2]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        post(f"http://{port}/v1/chat/completions")
    assert server.requests == []


# Requests that fail -------------------------------------------------------------------------------------------------


def test_a_busy_judge_is_asked_again(server):
    server.faults = ["429", "429", "503"]
    with Judge(server.base_url, "judge", max_retries=3) as judge:
        assert ask() == "1.0"
    assert (judge.calls, judge.failed, len(server.requests)) == (1, 0, 4)


@pytest.mark.parametrize("fault", ["404", "500", "429", "cut", "page", "say "])
def test_a_request_without_an_answer_is_counted_once_and_never_an_error(server, judge, fault):
    server.faults = [fault]
    assert ask() == ""
    assert ask() == ""  # lmms-eval asks again, and gets the same at once
    assert ask("Another") == "1.0"
    assert (judge.calls, judge.failed, len(server.requests)) == (2, 1, 2)


def test_the_same_request_is_paid_once(server, judge):
    assert {ask() for _ in range(3)} == {"1.0"}
    assert (judge.calls, len(server.requests)) == (1, 1)
    assert ask(temperature=0.5) == "1.0"
    assert (judge.calls, len(server.requests)) == (2, 2)


@pytest.mark.parametrize("fault", ["cut", "429"])
def test_a_judge_that_is_gone_is_not_waited_for_row_by_row(server, fault):
    server.fault = fault
    with Judge(server.base_url, "judge", max_retries=1) as judge:
        assert [ask(str(number)) for number in range(3)] == [""] * 3
        assert len(server.requests) == 2 + 1 + 1
        server.fault = None
        assert ask("It is back") == "1.0"
        server.faults = [fault]
        assert ask("And trusted again") == "1.0"
    assert (judge.calls, judge.failed) == (5, 3)


def test_an_answer_that_a_task_never_takes_ends(judge):
    answers = [ask() for _ in range(510)]
    assert set(answers[:100]) == {"1.0"}  # as many rows may have the same
    assert answers[-1] == ""
    assert (judge.calls, judge.failed) == (1, 1)


def test_without_a_judge_nobody_is_asked():
    with Judge() as judge:
        assert ask() == ""
        assert os.environ["USE_LLM_JUDGE"] == "False"
    assert (judge.calls, judge.failed) == (1, 1)


# The key ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["401", "500", "400", "cut", None])
def test_the_key_is_never_shown(server, fault, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    server.api_key, server.fault = KEY if fault else "another", fault
    with Judge(server.base_url, "judge", max_retries=1) as judge:
        assert KEY not in [value for name, value in os.environ.items() if name != KEY_VARIABLE]
        assert ask() == ""
    assert judge.failed == 1
    with pytest.raises((PermissionError, RuntimeError, ConnectionError)) as error:
        check_judge(server.base_url, "judge", max_retries=0)
    assert "failed" in caplog.text
    assert KEY not in caplog.text + str(error.value) + repr(judge) + "".join(capfd.readouterr())


def test_the_key_reaches_the_judge_alone(server, monkeypatch):
    server.api_key = KEY
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n")  # as `cat` gives it
    check_judge(server.base_url, "judge")
    with Judge(server.base_url, "judge"):
        assert ask() == "1.0"


# The check ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "model", "error", "words"),
    [
        ("cut", "judge", ConnectionError, "no judge answers at http://127.0.0.1:.*Is the server running"),
        ("page", "judge", ConnectionError, "no judge answers at"),
        ("401", "judge", PermissionError, "does not let us in.*Set the environment variable SICOG_JUDGE_API_KEY"),
        (None, "other", ValueError, "does not have the judge 'other'.*no such model"),
        ("500", "judge", RuntimeError, "told to say 500"),
        ("400", "judge", RuntimeError, "told to say 400"),
        ("say ", "judge", RuntimeError, "answers with nothing"),
        ("say <think>Well, the", "judge", RuntimeError, "answers with its thoughts"),
    ],
)
def test_a_judge_that_is_of_no_use_is_an_error_at_once(server, fault, model, error, words):
    server.fault = fault
    with pytest.raises(error, match=words):
        check_judge(server.base_url, model, max_retries=0)


def test_a_judge_that_is_there_passes(server):
    check_judge(server.base_url, "judge")
    check_judge(server.base_url + "/chat/completions", "judge")


def test_no_server_at_all():
    with JudgeServer() as server:
        address = server.base_url
    with pytest.raises(ConnectionError, match="Is the server running"):
        check_judge(address, "judge", max_retries=0)


def test_an_address_without_a_model_is_an_error():
    with pytest.raises(ValueError, match="judge_model is missing"):
        Judge("http://127.0.0.1:1/v1")


# The benchmarks -----------------------------------------------------------------------------------------------------


class Run:
    """What lmms-eval made of the answers of a stub: headline and rows by task, and how the judge fared."""

    def __init__(self, found, tasks, judge):
        self.tasks, self.calls, self.failed = tasks, judge.calls, judge.failed
        self.headline, self.rows = {}, {}
        for name, task in tasks.items():
            records = sorted(found["samples"][name], key=lambda record: record["doc_id"])
            scores = extract_all(task.benchmark.score, records, task.benchmark.headline)
            self.rows[name] = [value for score in scores for value in score.values()]
            self.headline[name] = found["results"][name][f"{task.benchmark.headline[0]},none"]


@pytest.fixture(scope="module")
def grading(tmp_path_factory):
    """Return a function that asks benchmarks under a protocol, with a judge that may fail."""
    pytest.importorskip("lmms_eval")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager
    from loguru import logger

    from sicog_trl.evaluation.wrapper import Answering

    class Stub(Answering):
        def __init__(self, protocol, answer):
            super().__init__("stub")
            self.protocol, self.answer = protocol, answer

        def complete(self, conversations, limits):
            for number, row in enumerate(self._rows):
                text = self.answer(*row)
                if self.protocol == "step_by_step":
                    text = build_steps("chain_of_thought", ["Find it.", "A or B, 7 or 8.", "It is 7, no: 8.", text])
                yield number, Completion(text, len(text.split()))

    folder = tmp_path_factory.mktemp("judged")
    questions = write_judged_rows(folder / "rows")
    known = select_tasks("sicog", list(JUDGED_ROWS), list(PROTOCOLS))
    write_task_files(folder / "tasks", str(folder / "rows"), known)
    logger.disable("lmms_eval")

    def grading(names, choose, protocol="direct", fault=None, faults=()):
        tasks = {name: task for name, task in known.items() if task.protocol == protocol}
        tasks = {name: task for name, task in tasks.items() if task.benchmark.name in names}
        stub = Stub(protocol, lambda task, doc: choose(doc, questions[known[task].benchmark.name][doc]))
        with JudgeServer() as server, Judge(server.base_url, "judge", max_retries=0) as judge:
            server.fault, server.faults = fault, list(faults)
            found = simple_evaluate(
                model=stub,
                tasks=list(tasks),
                task_manager=TaskManager("ERROR", include_path=str(folder / "tasks"), include_defaults=False),
                bootstrap_iters=0,
                cli_args=argparse.Namespace(output_path=str(folder), process_with_media=False, reasoning_tags=None),
            )
        return Run(found, tasks, judge)

    yield grading
    logger.enable("lmms_eval")


def right(number, question):
    return question.right[0]


def wrong(number, question):
    return question.wrong


EACH_PROTOCOL = pytest.mark.parametrize("protocol", PROTOCOLS)
NEED_A_JUDGE = [name for name, row in benchmarks().items() if row.judge == "needed"]


def test_every_benchmark_that_needs_a_judge_is_tested():
    assert set(NEED_A_JUDGE) <= set(JUDGED_ROWS)


@EACH_PROTOCOL
def test_right_answers_get_full_marks(grading, protocol):
    run = grading(JUDGED_ROWS, right, protocol)
    for name, task in run.tasks.items():
        assert run.headline[name] == task.benchmark.full_marks
        # The stub grades the model like the reference, with 8 of 10.
        assert set(run.rows[name]) == {0.8 if task.benchmark.name == "llava_bench" else 1.0}
    assert run.calls > 0
    assert run.failed == 0


@EACH_PROTOCOL
def test_wrong_answers_do_not(grading, protocol):
    run = grading(JUDGED_ROWS, wrong, protocol)
    for name, task in run.tasks.items():
        llava_bench = task.benchmark.name == "llava_bench"
        assert run.headline[name] == (100 * 2 / 8 if llava_bench else 0)
        assert set(run.rows[name]) == {0.2 if llava_bench else 0.0}
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
    with pytest.raises(RuntimeError, match=f"left {run.failed} requests for 12 rows without an answer"):
        check_answers(run.failed, 12)


def test_one_request_that_fails_costs_one_row(grading):
    run = grading(["mmvet"], right, faults=["500"])
    assert run.rows["mmvet"] == [None, 1.0]
    assert (run.calls, run.failed) == (2, 1)


@pytest.mark.parametrize("said", ["10", "very good"])
def test_a_judge_that_gives_no_score_does_not_make_the_model_wrong(grading, said, monkeypatch):
    """MM-Vet asks for ever if a number is none of a score, and scores 0 if it is no number, after 20 seconds."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    run = grading(["mmvet"], right, fault=f"say {said}")
    assert run.rows["mmvet"] == [None] * 2
    assert run.failed >= 2


def test_a_few_failures_are_tolerated():
    check_answers(0, 0)
    check_answers(20, 1000)
    with pytest.raises(RuntimeError, match="left 21 requests for 1000 rows"):
        check_answers(21, 1000)


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
