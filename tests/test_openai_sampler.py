"""Candidates from a server: the real client over real HTTP, against a stand-in with the faults of real servers."""

import io
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from PIL import Image


pytest.importorskip("openai")

from openai_server import StubServer, in_order

from sicog_trl.generation.openai_client import ServerGoneError, ServerSupport
from sicog_trl.generation.openai_sampler import OpenAISampler
from sicog_trl.generation.sampling import Failure, Request, Response


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch):
    """Retries of the client and of ours come at once."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("sicog_trl.generation.openai_client.FIRST_DELAY", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def make_sampler(server: StubServer, **settings) -> OpenAISampler:
    return OpenAISampler("stub", server.base_url, **{"max_retries": 3, **settings})


def picture(shade: int = 0) -> Image.Image:
    image = Image.new("RGB", (8, 6), (shade, 100, 200))
    image.putpixel((1, 1), (255, shade, 0))
    return image


def stored_as(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def request(prompt: str = "what is it?", seeds: tuple[int, ...] = (5, 6, 7), **fields) -> Request:
    return Request(fields.pop("images", []), prompt, list(seeds), **fields)


def answer(sampler: OpenAISampler, asked: Request) -> list[Response] | Failure:
    [(number, answer)] = sampler.sample([asked])
    assert number == 0
    return answer


def probed(server: StubServer, **settings) -> OpenAISampler:
    """A sampler that knows its server already; the server has forgotten that it was asked."""
    sampler = make_sampler(server, **settings)
    assert isinstance(answer(sampler, request("first")), list)
    server.requests.clear()
    return sampler


def url_of(payload: dict) -> str:
    return payload["messages"][0]["content"][0]["image_url"]["url"]


# What is asked, and what is read


def test_one_request_brings_all_candidates(server):
    sampler = probed(server, temperature=0.7, top_p=0.9, max_completion_length=50)
    images = [picture(1), picture(2)]
    responses = answer(sampler, request(images=images))
    assert len({response.text for response in responses}) == 3
    assert [response.num_tokens for response in responses] == [6, 6, 6]
    assert {response.finish_reason for response in responses} == {"stop"}
    [payload] = server.requests
    assert {name: payload[name] for name in ("n", "seed", "max_tokens", "temperature", "top_p")} == {
        "n": 3, "seed": 5, "max_tokens": 50, "temperature": 0.7, "top_p": 0.9,
    }  # fmt: skip
    assert (payload["top_k"], payload["min_p"], payload["repetition_penalty"]) == (-1, 0.0, 1.0)
    kinds = [part["type"] for part in payload["messages"][0]["content"]]
    assert kinds == ["image_url", "image_url", "text"]


def test_asking_for_more_later_is_a_top_up(server):
    sampler = make_sampler(server)
    at_once = answer(sampler, request(seeds=(5, 6, 7), images=[picture()]))
    earlier = answer(sampler, request(seeds=(5,), images=[picture()]))
    later = answer(make_sampler(server), request(seeds=(6, 7), images=[picture()]))
    assert at_once == earlier + later


def test_seeds_with_a_gap_are_asked_one_by_one(server):
    sampler = probed(server)
    wrapped = answer(sampler, request(seeds=(2**31 - 1, 0)))
    assert [payload["seed"] for payload in server.requests] == [2**31 - 1, 0]
    assert wrapped[1:] == answer(sampler, request(seeds=(0,)))


@pytest.mark.parametrize("fault", ["reversed", "unnumbered"])
def test_candidates_are_told_apart_by_number_or_else_by_place(server, fault):
    sampler = probed(server)
    expected = answer(sampler, request())
    server.fault = in_order(fault)
    assert answer(sampler, request()) == expected


def test_greedy_asks_once(server):
    sampler = probed(server, temperature=0)
    responses = answer(sampler, request())
    assert len(responses) == 3 and len(set(responses)) == 1
    assert "n" not in server.requests[0] and len(server.requests) == 1


def test_length_and_missing_content(server):
    sampler = probed(server, max_completion_length=2)
    assert [(r.finish_reason, r.num_tokens) for r in answer(sampler, request())] == [("length", 2)] * 3
    server.fault = in_order("null")
    assert [(r.text, r.finish_reason) for r in answer(sampler, request())] == [("", "unknown")] * 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_stored_bytes_are_sent_as_they_are(server, kind):
    data = stored_as(picture(), kind)
    seen = Image.open(io.BytesIO(data)).convert("RGB")
    sampler = probed(server)
    as_stored = answer(sampler, request(images=[seen], stored=[{"bytes": data, "path": "x"}]))
    as_pixels = answer(sampler, request(images=[seen]))
    first, second = (url_of(payload) for payload in server.requests)
    assert first.startswith(f"data:image/{kind.lower()};base64,") and second.startswith("data:image/png;base64,")
    assert as_stored == as_pixels  # the stub answers to pixels: nothing is lost on either way


def test_formats_that_not_every_server_reads_are_sent_as_pixels(server):
    stored = {"bytes": stored_as(picture(), "TIFF"), "path": None}
    sampler = probed(server)
    answer(sampler, request(images=[picture(), picture()], stored=[stored, None]))
    first, second, _ = server.requests[0]["messages"][0]["content"]
    assert first == second


def test_files_are_named_to_a_server_that_shares_the_disk(server, tmp_path):
    path = tmp_path / "with space & sign.png"
    picture().save(path)
    images = [picture()]
    sampler = probed(server, image_transport="file")
    expected = answer(sampler, request(images=images))
    for stored in ({"bytes": None, "path": str(path)}, {"bytes": path.read_bytes(), "path": "x.png"}, None):
        assert answer(sampler, request(images=images, stored=[stored])) == expected
    # Without the disk in common the file itself is sent; a path into an archive is no file.
    data_sampler = probed(server)
    server.requests.clear()
    for where in (str(path), "zip://a.png::b.zip"):
        assert answer(data_sampler, request(images=images, stored=[{"bytes": None, "path": where}])) == expected
    assert not any(url_of(payload).startswith("file:") for payload in server.requests)


def test_file_transport_sends_an_address(server, tmp_path):
    path = tmp_path / "a.png"
    picture().save(path)
    sampler = probed(server, image_transport="file")
    answer(sampler, request(images=[picture()], stored=[{"bytes": None, "path": str(path)}]))
    assert url_of(server.requests[0]) == path.as_uri()


# What the server can do


def supports(server: StubServer) -> tuple[ServerSupport, list[Response]]:
    sampler = make_sampler(server)
    responses = answer(sampler, request())
    assert isinstance(responses, list) and len(responses) == 3
    return sampler.supports, responses


def test_probe_of_a_server_that_can_everything(server, caplog):
    caplog.set_level(logging.INFO, "sicog_trl")
    support, _ = supports(server)
    assert support == ServerSupport(several=True, seeds=True, neutral=True, token_ids=True)
    assert [record.levelname for record in caplog.records if "sicog_trl" in record.name] == ["INFO"]


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"token_ids": False}, (True, True, True, False)),
        ({"refuses": ("return_token_ids",)}, (True, True, True, False)),
        ({"refuses": ("return_token_ids", "top_k")}, (True, True, False, False)),
        ({"refuses": ("n",)}, (False, True, True, False)),
        ({"refuses": ("n", "min_p")}, (False, True, False, False)),
        ({"several": "one"}, (False, True, True, False)),
        ({"several": "clones"}, (False, True, True, True)),
    ],
)
def test_probe_makes_do_with_less(settings, expected):
    with StubServer() as able, StubServer(**settings) as server:
        support, responses = supports(server)
        assert support == ServerSupport(*expected)
        # The texts are those of the same seeds everywhere.
        assert [r.text for r in responses] == [r.text for r in supports(able)[1]]
    # A count is the server's own: of one candidate it is in the usage, of several only their sum would be.
    counted = expected[3] or not expected[0]
    assert [r.num_tokens for r in responses] == ([6] * 3 if counted else [None] * 3)


def test_seeds_that_mean_nothing_are_noticed():
    texts = iter(range(1000))
    with StubServer(text=lambda prompt, images, seed: f"text {next(texts)}") as server:
        assert not supports(server)[0].seeds


def test_the_same_text_for_every_seed_is_told(caplog):
    with StubServer(text=lambda prompt, images, seed: "always this") as server:
        assert supports(server)[0].several
    assert "same text for different seeds" in caplog.text


def test_probe_is_made_once_and_only_when_there_is_something_to_ask(server):
    sampler = make_sampler(server)
    assert list(sampler.sample([])) == [] and sampler.supports is None
    answer(sampler, request())
    asked = len(server.requests)
    answer(sampler, request())
    assert len(server.requests) == asked + 1


def test_no_server_is_said_with_its_address():
    with socket.socket() as taken:  # bound, not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(ConnectionError, match=rf"{url} does not list its models.*vllm serve stub"):
            answer(OpenAISampler("stub", url), request())


def test_address_without_v1(server):
    sampler = OpenAISampler("stub", server.base_url.removesuffix("/v1"))
    with pytest.raises(ConnectionError, match=r"404.*ends with /v1"):
        answer(sampler, request())


def test_another_model_is_served(server):
    with pytest.raises(ValueError, match=r"does not have the model 'other'; it has \['stub'\]"):
        answer(OpenAISampler("other", server.base_url), request())


def test_wrong_key_stops_and_is_not_shown(server, monkeypatch):
    server.api_key = "right"
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-and-secret\n")
    with pytest.raises(PermissionError, match=r"401.*OPENAI_API_KEY") as stopped:
        answer(make_sampler(server), request())
    assert "secret" not in str(stopped.value)
    monkeypatch.setenv("OPENAI_API_KEY", "right\n")
    assert isinstance(answer(make_sampler(server), request()), list)
    sampler = probed(server)
    server.api_key = "changed"
    with pytest.raises(PermissionError, match="401"):
        answer(sampler, request())


# Log-probabilities


@pytest.mark.parametrize("settings", [{}, {"several": "one"}, {"refuses": ("n", "min_p")}])
def test_mean_logprob_is_that_over_the_tokens_of_each_candidate(settings):
    with StubServer(**settings) as server:
        plain = answer(make_sampler(server), request())
        scored = answer(make_sampler(server, logprobs=True), request())
    assert [response.mean_logprob for response in plain] == [None] * 3
    for response, same in zip(scored, plain, strict=True):
        assert response.text == same.text
        assert response.mean_logprob == pytest.approx(-sum(map(len, response.text.split())) / 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logprobs": "none"}, "gives no log-probabilities for 'stub': it leaves them out of its answer"),
        ({"refuses": ("logprobs",)}, "gives no log-probabilities for 'stub': the server refuses it with 400"),
        (
            {"logprobs": "tempered"},
            r"counts the temperature into .*: that of one token is -3\.000 at 0\.5 and -0\.750",
        ),
    ],
)
def test_a_server_without_the_models_own_logprobs_is_refused_at_once(settings, message):
    with StubServer(**settings) as server:
        with pytest.raises(RuntimeError, match=message):
            answer(make_sampler(server, logprobs=True), request())
        assert isinstance(answer(make_sampler(server), request()), list)


def test_a_candidate_that_comes_without_logprobs_stops_the_run(server):
    sampler = probed(server, logprobs=True)
    server.logprobs = "none"
    with pytest.raises(ServerGoneError, match="without log-probabilities"):
        answer(sampler, request())
    server.text = lambda prompt, images, seed: ""  # of nothing there is none
    assert [response.mean_logprob for response in answer(sampler, request())] == [None] * 3


# Faults


@pytest.mark.parametrize("fault", ["429", "408", "409", "500", "503", "cut", "invalid", "page", "error"])
def test_what_passes_is_tried_again(server, fault):
    sampler = probed(server)
    expected = answer(sampler, request())
    server.requests.clear()
    server.fault = in_order(fault, fault)
    assert answer(sampler, request()) == expected
    assert len(server.requests) == 3


def test_slow_answer_is_tried_again(server):
    sampler = probed(server)
    sampler.timeout = 0.3
    server.fault = in_order("slow")
    assert isinstance(answer(sampler, request()), list)
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", ["400", "404", "413", "422"])
def test_refusal_is_of_one_request_and_not_tried_again(server, status):
    sampler = probed(server)
    server.fault = in_order(status)
    failure = answer(sampler, request())
    assert failure.reason == "refused" and status in failure.message and "the stub was told" in failure.message
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["500", "cut", "invalid"])
def test_poison_fails_alone(server, fault):
    sampler = probed(server, max_retries=2)
    server.fault = lambda prompt: fault if prompt == "poison" else None
    prompts = ["a", "poison", "b", "c"]
    answers = dict(sampler.sample([request(prompt) for prompt in prompts]))
    assert sorted(answers) == [0, 1, 2, 3]
    assert answers.pop(1).reason == "server_error"
    assert all(isinstance(answer, list) for answer in answers.values())
    assert len(server.requests) == 3 + 3


def test_server_that_dies_ends_the_run(server):
    sampler = probed(server)
    server.fault = in_order(None, "dead")
    with pytest.raises(ServerGoneError, match=r"is gone.*Finished shards are kept.*resumes"):
        list(sampler.sample([request(str(i)) for i in range(50)]))


def test_too_many_requests_for_good_ends_the_run(server):
    sampler = probed(server, max_retries=1)
    server.fault = lambda prompt: "429"
    with pytest.raises(ServerGoneError, match=r"refused for too long.*429.*lower concurrency"):
        answer(sampler, request())


def test_missing_candidates_are_asked_for_again(server):
    sampler = probed(server)
    expected = answer(sampler, request())
    server.requests.clear()
    server.fault = in_order("short")
    assert answer(sampler, request()) == expected
    assert [(payload.get("n"), payload["seed"]) for payload in server.requests] == [(3, 5), (None, 7)]


def test_still_missing_candidates_are_a_failure(server):
    sampler = probed(server)
    server.fault = in_order("short", "short")
    failure = answer(sampler, request())
    assert failure.reason == "too_few_candidates" and "asked for 3, got 2" in failure.message


def test_more_candidates_than_asked_for_are_a_failure(server):
    sampler = probed(server)
    server.fault = in_order("long")
    failure = answer(sampler, request())
    assert (failure.reason, failure.message) == ("too_many_candidates", "asked for 3, got 4")


def test_refusals_never_end_the_run(server):
    sampler = probed(server)
    server.fault = lambda prompt: "400"
    assert len(list(sampler.sample([request(str(i)) for i in range(60)]))) == 60


def test_errors_in_a_row_end_the_run_though_models_are_listed(server):
    sampler = probed(server, max_retries=0)
    server.fault = lambda prompt: "500"  # an engine that hangs behind a front that lives
    with pytest.raises(ServerGoneError, match="20 requests in a row"):
        list(sampler.sample([request(str(i)) for i in range(60)]))


def test_errors_between_answers_never_end_the_run(server):
    sampler = probed(server, max_retries=0, concurrency=1)
    server.fault = lambda prompt: "500" if int(prompt) % 3 else None
    answers = dict(sampler.sample([request(str(i)) for i in range(60)]))
    assert sum(isinstance(answer, Failure) for answer in answers.values()) == 40


def test_candidates_that_came_before_a_failure_are_kept():
    with StubServer(several="one") as server:  # one request per seed
        sampler = probed(server)
        calls = iter([None, None, "400"])
        server.fault = lambda prompt: next(calls, None)
        failure = answer(sampler, request(seeds=[5, 6, 7]))
        whole = answer(sampler, request(seeds=[5, 6, 7]))
    assert failure.reason == "refused"
    assert failure.responses == whole[:2]


# Many at once


def until(condition) -> None:
    """Wait for what another thread does."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it has not come about in ten seconds")


def test_as_many_at_once_as_allowed_and_no_more(server):
    sampler = probed(server, concurrency=5)
    server.most_at_once = 0
    server.gate.clear()
    answers = {}
    thread = threading.Thread(target=lambda: answers.update(sampler.sample([request(str(i)) for i in range(30)])))
    thread.start()
    until(lambda: server.at_once == 5)
    server.gate.set()
    thread.join()
    assert sorted(answers) == list(range(30)) and server.most_at_once == 5
    assert len(server.requests) == 30


def test_answers_come_as_they_are_ready(server):
    sampler = probed(server, concurrency=4)
    server.fault = lambda prompt: "slow" if prompt == "0" else None
    answers = sampler.sample([request(str(i)) for i in range(10)])
    assert sorted(next(answers)[0] for _ in range(9)) == list(range(1, 10))
    answers.close()


def test_images_are_encoded_no_earlier_than_needed(server):
    class Rows:
        """A sequence that notes what was taken from it."""

        taken = 0

        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> Request:
            if index >= 100:
                raise IndexError
            self.taken = max(self.taken, index + 1)
            return request(str(index), images=[picture(index)])

    sampler, rows = probed(server, concurrency=3), Rows()
    answers = sampler.sample(rows)
    for done in range(1, 20):
        next(answers)
        assert rows.taken <= done + 3
    answers.close()


@pytest.mark.parametrize("fault", [None, "slow", "500"])
def test_nothing_is_sent_once_the_consumer_stops(server, fault):
    sampler = probed(server, concurrency=4, max_retries=1000)
    server.fault = lambda prompt: fault if prompt != "0" else None
    answers = sampler.sample([request(str(i)) for i in range(100)])
    next(answers)
    until(lambda: len(server.requests) >= 4)
    answers.close()  # comes back although some wait and others would be tried again for minutes
    sent = len(server.requests)
    time.sleep(0.1)
    assert len(server.requests) <= sent + 3  # what was on the line already
    settled = len(server.requests)
    time.sleep(0.1)
    assert len(server.requests) == settled
    assert not [thread for thread in threading.enumerate() if "portal" in thread.name]


def test_interrupt_while_waiting_ends_at_once(server):
    sampler = probed(server)
    server.fault = lambda prompt: "slow"

    def interrupt() -> None:
        until(lambda: len(server.requests) == 3)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        list(sampler.sample([request(str(i)) for i in range(3)]))
    assert len(server.requests) == 3


# Settings


@pytest.mark.parametrize("settings", [{"image_transport": "ftp"}, {"concurrency": 0}])
def test_wrong_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        OpenAISampler("stub", "http://127.0.0.1:1/v1", **settings)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"sicog-trl\[openai\]"):
        OpenAISampler("stub", "http://127.0.0.1:1/v1")


def test_placeholders_are_known():
    assert {"<image>", "<|image_pad|>", "<image_soft_token>", "[IMG]"} <= set(OpenAISampler.placeholders)
