"""The judge as every task of lmms-eval finds it, a judge that fails, and the key that nobody gets to see."""

import importlib
import json
import logging
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from judge_server import JudgeServer

from sicog_trl.evaluation.judge import Judge, check_judge
from sicog_trl.evaluation.judge_client import KEY_VARIABLE


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


def test_a_proxy_of_the_network_is_not_asked_for_the_way(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org")
    with Judge(server.base_url, "judge", max_retries=0):
        assert ask() == "1.0"
        assert os.environ["no_proxy"].split(",") == ["example.org", "127.0.0.1"]
    check_judge(server.base_url, "judge", max_retries=0)


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


def test_rows_may_be_graded_at_once(server, judge):
    """lmms-eval asks from several threads, and again if it has to wait."""
    server.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, prompt) for prompt in ("One", "Two", "One", "Two")]
        while len(server.requests) < 2:
            time.sleep(0.01)
        time.sleep(0.1)  # others would come now
        server.gate.set()
        assert [answer.result() for answer in answers] == ["1.0"] * 4
    assert (judge.calls, judge.failed, len(server.requests)) == (2, 0, 2)


def test_a_judge_for_each_task_counts_for_itself(server):
    """What failed for one task may succeed for the next, and is never missing in its count."""
    counts = []
    with Judge(server.base_url, "judge", max_retries=0):
        for server.fault in ("500", "500", None):
            with Judge(server.base_url, "judge", max_retries=0) as judge:
                ask()
            counts.append((judge.calls, judge.failed))
    assert counts == [(1, 1), (1, 1), (1, 0)]


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
