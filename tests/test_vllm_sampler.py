"""The sampler with vLLM in process, on a stand-in for vLLM.

The stand-in answers as vLLM 0.32.0 was seen to (a build for CPUs, with a LLaVA and a Qwen2.5-VL of 5M random weights)
in all that is used of it: which errors are raised for what, that a refused prompt leaves the others alone, the order
of the outputs, and that a killed engine is waited for without end. On that real one were also seen, and cannot be
tested here: candidates of one prompt equal to single ones, the same texts for chunks of 1, 4 and 256, prompts token
for token those of training, and the image token never sampled. Of 0.29.0, which the extra `vllm` names, only the
sources were read: the signatures are the same. Log-probabilities were read in the sources of both, not run.
"""

import multiprocessing
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from sicog_trl.generation import Request, Response, vllm_sampler
from sicog_trl.generation.sampling import Failure
from sicog_trl.generation.vllm_sampler import VLLMSampler


VOCABULARY = 1000


class VLLMClientError(Exception):
    pass


class VLLMServerError(Exception):
    pass


class EngineDeadError(VLLMServerError):
    pass


@dataclass
class SamplingParams:
    n: int
    seed: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    max_tokens: int
    logit_bias: dict[int, float] | None
    logprobs: int | None = None

    def check(self) -> None:
        if self.temperature == 0 and self.n > 1:
            raise VLLMClientError(f"n must be 1 when using greedy sampling, got {self.n}.")
        if any(token >= VOCABULARY for token in self.logit_bias or {}):
            raise VLLMClientError("logit_bias contain out-of-vocab token ids")


class LLM:
    """Answers a prompt with the first pixels of its images, its text and the seed of the candidate."""

    last: "LLM"

    def __init__(self, model, *, dtype, revision, generation_config, limit_mm_per_prompt, **options):
        self.options = {key: value for key, value in locals().items() if key not in ("self", "options")} | options
        self.model_config = SimpleNamespace(get_vocab_size=lambda: VOCABULARY)
        self.waiting, self.most_waiting, self.parameters, self.contents = [], 0, [], []
        self.finish_reason = "stop"
        LLM.last = self

    def enqueue_chat(self, messages, sampling_params, *, use_tqdm):
        [[message]], [parameters] = messages, sampling_params
        assert message["role"] == "user" and not use_tqdm
        parameters.check()
        *images, text = message["content"]
        assert text.keys() == {"type", "text"} and text["type"] == "text"
        assert all(part.keys() == {"type", "image_pil"} and part["type"] == "image_pil" for part in images)
        if "too long" in text["text"]:
            raise VLLMClientError("This model's maximum context length is 1024 tokens.")
        if "dead" in text["text"]:
            raise EngineDeadError("EngineCore encountered an issue.")
        if any(part["image_pil"].width == 1 for part in images):
            cause = ValueError("absolute aspect ratio must be smaller than 200, got 400.0")
            raise ValueError(f"Failed to apply Processor on data={images}") from cause
        self.parameters.append(parameters)
        self.contents.append(message["content"])
        words = " ".join([*(str(part["image_pil"].getpixel((0, 0))) for part in images), text["text"]])
        self.waiting.append((words, parameters))
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        return [str(len(self.parameters))]

    def wait_for_completion(self, *, use_tqdm):
        assert not use_tqdm
        waiting, self.waiting = self.waiting, []
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        index=index,
                        text=f"{words} {parameters.seed + index}",
                        token_ids=[7] * (index + 1),
                        finish_reason=self.finish_reason,
                        cumulative_logprob=None if parameters.logprobs is None else -1.5 * (index + 1) - index,
                    )
                    for index in reversed(range(parameters.n))
                ]
            )
            for words, parameters in waiting
        ]


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module, exceptions = ModuleType("vllm"), ModuleType("vllm.exceptions")
    module.LLM, module.SamplingParams, module.exceptions = LLM, SamplingParams, exceptions
    exceptions.VLLMServerError = VLLMServerError
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.exceptions", exceptions)
    return module


def image(red: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (red, 0, 0))


def requests(count: int, candidates: int = 3) -> list[Request]:
    seeds = [range(100 * k, 100 * k + candidates) for k in range(count)]
    return [Request([image(k)], f"prompt {k}", list(seeds[k])) for k in range(count)]


def texts(answer: list[Response] | Failure) -> list[str]:
    assert not isinstance(answer, Failure), answer
    return [response.text for response in answer]


def test_nothing_but_what_we_ask_for_decides_a_candidate(digits_model: Path):
    sampler = VLLMSampler(
        str(digits_model), "main", "float32", max_completion_length=20, temperature=0.6, top_p=0.8, max_model_len=99
    )
    assert LLM.last.options == {
        "model": str(digits_model),
        "revision": "main",
        "dtype": "float32",
        "generation_config": "vllm",
        "limit_mm_per_prompt": {"video": 0},
        "max_model_len": 99,
    }
    list(sampler.sample([Request([], "prompt", [5, 6])]))
    image_token = 4
    assert sampler.placeholders == ("<image>",)
    assert LLM.last.parameters == [SamplingParams(2, 5, 0.6, 0.8, 0, 0.0, 1.0, 20, {image_token: -float("inf")})]


def test_logprobs_are_asked_for_before_the_temperature(digits_model: Path):
    sampler = VLLMSampler(str(digits_model), logprobs=True)
    assert LLM.last.options["logprobs_mode"] == "raw_logprobs"
    [(_, answer)] = sampler.sample([Request([], "prompt", [5, 6, 7])])
    assert LLM.last.parameters[0].logprobs == 0  # of the drawn token, and of no other
    assert [response.mean_logprob for response in answer] == pytest.approx([-1.5, -2.0, -6.5 / 3])
    [(_, answer)] = VLLMSampler(str(digits_model)).sample([Request([], "prompt", [5])])
    assert answer[0].mean_logprob is None and LLM.last.parameters[0].logprobs is None


def test_an_image_token_behind_the_vocabulary_needs_no_ban(digits_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "VOCABULARY", 4)
    [(_, answer)] = VLLMSampler(str(digits_model)).sample([Request([], "prompt", [5])])
    assert texts(answer) == ["prompt 5"]


def test_images_come_first_and_are_passed_as_they_are(digits_model: Path):
    shown = [image(1), image(2)]
    list(VLLMSampler(str(digits_model)).sample([Request(shown, "prompt", [5])]))
    *parts, text = LLM.last.contents[0]
    assert all(part["image_pil"] is one for part, one in zip(parts, shown, strict=True))
    assert text["text"] == "prompt"


@pytest.mark.parametrize("chunk_size", [1, 4, 256])
def test_every_request_gets_its_own_candidates_whatever_the_chunk(digits_model: Path, chunk_size: int):
    sampler = VLLMSampler(str(digits_model), chunk_size=chunk_size)
    asked = requests(10)
    answers = dict(sampler.sample(asked))
    assert sorted(answers) == list(range(10))
    for k in range(10):
        assert texts(answers[k]) == [f"({k}, 0, 0) prompt {k} {100 * k + c}" for c in range(3)]
    assert [response.num_tokens for response in answers[0]] == [1, 2, 3]
    assert LLM.last.most_waiting == min(chunk_size, 10)


def test_the_next_chunk_waits_until_it_is_asked_for(digits_model: Path):
    answers = VLLMSampler(str(digits_model), chunk_size=2).sample(requests(6))
    next(answers)
    assert len(LLM.last.parameters) == 2


def test_seeds_that_wrap_around_are_asked_for_one_by_one(digits_model: Path):
    [(_, answer)] = VLLMSampler(str(digits_model)).sample([Request([], "prompt", [2**31 - 1, 0, 1])])
    assert texts(answer) == [f"prompt {2**31 - 1}", "prompt 0", "prompt 1"]


def test_greedy_asks_once_for_all(digits_model: Path):
    [(_, answer)] = VLLMSampler(str(digits_model), temperature=0).sample([Request([], "prompt", [5, 6, 7])])
    assert texts(answer) == ["prompt 5"] * 3
    assert len(LLM.last.parameters) == 1


def test_a_refused_request_costs_no_other(digits_model: Path):
    asked = requests(5)
    asked[1] = Request([image(1)], "much too long", [1, 2, 3])
    asked[3] = Request([image(3, (1, 400))], "thin", [2**31 - 1, 0])
    answers = dict(VLLMSampler(str(digits_model)).sample(asked))
    assert isinstance(answers[1], Failure) and answers[1].reason == "refused"
    assert "maximum context length" in answers[1].message
    # The processor's own words, not vLLM's, which name an address in memory.
    assert answers[3] == Failure(
        "refused", "vLLM refuses it: ValueError: absolute aspect ratio must be smaller than 200, got 400.0"
    )
    for k in (0, 2, 4):
        assert texts(answers[k]) == [f"({k}, 0, 0) prompt {k} {100 * k + c}" for c in range(3)]


def test_a_dead_engine_is_nobodys_failure(digits_model: Path):
    with pytest.raises(EngineDeadError):
        list(VLLMSampler(str(digits_model)).sample([Request([], "dead", [1])]))


def test_a_candidate_that_was_broken_off_is_none(digits_model: Path):
    sampler = VLLMSampler(str(digits_model))
    LLM.last.finish_reason = "abort"
    with pytest.raises(RuntimeError, match="abort"):
        list(sampler.sample(requests(1)))


def test_a_killed_engine_is_not_waited_for(digits_model: Path, vllm: ModuleType, monkeypatch: pytest.MonkeyPatch):
    class Killed(LLM):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.engine = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
            self.engine.start()

        def wait_for_completion(self, *, use_tqdm):
            self.engine.kill()
            threading.Event().wait()

    monkeypatch.setattr(vllm, "LLM", Killed)
    monkeypatch.setattr(vllm_sampler, "WATCH_SECONDS", 0.1)
    with pytest.raises(RuntimeError, match="engine has died"):
        list(VLLMSampler(str(digits_model)).sample(requests(1)))


def test_an_adapter_is_refused_with_what_to_do(tmp_path: Path, digits_model: Path):
    text = f'{{"base_model_name_or_path": "{digits_model}"}}'
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="merge"):
        VLLMSampler(str(tmp_path))


def test_without_vllm_the_error_names_the_extra(digits_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModuleNotFoundError, match=r"sicog-trl\[vllm\]"):
        VLLMSampler(str(digits_model))
