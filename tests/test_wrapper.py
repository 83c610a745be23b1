"""What lmms-eval is answered: by a checkpoint in this process, and by a server, over the same rows."""

import hashlib
import json
from collections.abc import Callable

import pytest
from PIL import Image


pytest.importorskip("lmms_eval")
pytest.importorskip("openai")

from openai_server import StubServer, in_order, pixels
from test_protocols import describe_then_answer
from trl.data_utils import prepare_multimodal_messages
from wrapper_rows import ROWS, answers, picture, requests_for, row, text_of

from sicog_trl.checkpoints import load_processor, model_fingerprint, resolve_adapter
from sicog_trl.evaluation import answering
from sicog_trl.evaluation.answering import DEFAULT_MAX_NEW_TOKENS
from sicog_trl.evaluation.protocols import MAX_CHAIN_TOKENS, PROTOCOLS, Completion
from sicog_trl.evaluation.server import ServedModel, served_identity
from sicog_trl.evaluation.wrapper import VisionLanguageModel
from sicog_trl.generation.openai_client import ServerGoneError
from sicog_trl.generation.sampling import Failure
from sicog_trl.prompts import prompt_for
from sicog_trl.responses import build_steps


CHAIN = build_steps("chain_of_thought", ["Look.", "A digit.", "It is red.", "**The answer is B.**"])
QUESTION = "What colour is it?\nA. blue\nB. red"

# What all of them do ------------------------------------------------------------------------------------------------


class Scripted(answering.Answering):
    """Writes what a function of the text says, last question first."""

    placeholders = ("<image>",)

    def __init__(self, write: Callable[[str], str]):
        super().__init__("scripted")
        self.write, self.asked = write, []

    def complete(self, conversations, limits):
        self.asked.append((conversations, limits))
        for number in reversed(range(len(conversations))):
            text = self.write(conversations[number][-1]["content"][-1].get("text", ""))
            yield number, Failure("refused", "too thin") if text == "!" else Completion(text, len(text))


def test_answers_come_in_the_order_of_the_requests_and_replies_by_row():
    model = Scripted(str.upper)
    results = model.generate_until(requests_for(model, ROWS[:4]))
    expected = ["IS THERE A RED ONE?", "WHAT IS ONE AND ONE?", "WHICH OF THEM IS RED?", "AND SAY WHICH IS GREEN."]
    assert [result.text for result in results] == expected
    assert [result.token_counts.output_tokens for result in results] == list(map(len, expected))
    assert [model.replies["task", number].answer for number in range(4)] == expected


def test_of_what_a_task_asks_for_only_the_limit_counts():
    model = Scripted(str.upper)
    answers(model, ROWS[:1], max_new_tokens=5, until=["R"], temperature=2.0, do_sample=True, num_beams=3)
    assert model.asked[0][1] == [5]
    [request] = requests_for(model, ROWS[:1])
    del request.args[2]["max_new_tokens"]
    model.generate_until([request])
    assert model.asked[1][1] == [DEFAULT_MAX_NEW_TOKENS]


def test_step_by_step_the_scorer_gets_the_answer_and_people_all_of_it():
    model = Scripted(lambda text: CHAIN if "four steps" in text else "none")
    model.protocol = "step_by_step"
    assert answers(model, [row(picture(), QUESTION)]) == ["B"]
    [(conversations, limits)] = model.asked
    assert conversations[0][0]["content"][-1]["text"] == prompt_for("chain_of_thought", QUESTION)
    assert limits == [MAX_CHAIN_TOKENS]
    reply = model.replies["task", 0]
    assert (reply.text, reply.fault, reply.num_tokens) == (CHAIN, None, len(CHAIN))


def test_two_calls_go_through_the_same_model(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "two_calls", describe_then_answer)
    model = Scripted(lambda text: {"Describe the image.": "All red.", "Now answer.": "B"}[text])
    model.protocol = "two_calls"
    assert answers(model, ROWS) == ["B"] * 6
    assert len(model.asked) == 2 and model.replies["task", 0].text == "All red.\n\nB"


def test_a_row_without_an_answer_is_an_error_that_names_it():
    model = Scripted(lambda text: "!" if "cell by cell" in text else "fine")
    with pytest.raises(RuntimeError, match=r"task, row 5, has no answer: too thin\. It asks 'Describe all"):
        answers(model, ROWS)


def test_control_characters_do_not_reach_the_scorer():
    model = Scripted(lambda text: "B\x00\x1b[0m\n\tis red")
    assert answers(model, ROWS[:1]) == ["B[0m\n\tis red"]
    assert model.replies["task", 0].text == "B\x00\x1b[0m\n\tis red"


def test_a_row_that_is_asked_again_is_answered_once():
    model = Scripted(str.upper)
    requests = requests_for(model, ROWS[:2])
    found = model.generate_until([*requests, requests[0]])
    assert found[2] == found[0] and len(model.asked[0][0]) == 2


def test_open_images_are_bounded_and_longest_questions_come_first(monkeypatch):
    monkeypatch.setattr(answering, "_WINDOW_PIXELS", 2 * 32 * 32)
    model = Scripted(str.upper)
    answers(model, ROWS)
    shown = [[part for each in window for part in each[0]["content"]] for window, _ in model.asked]
    assert len(shown) > 2 and all(sum(part["type"] == "image" for part in parts) <= 3 for parts in shown)
    assert text_of(model.asked[0][0][0]) == text_of(ROWS[3])


def test_a_placeholder_in_a_text_is_not_taken_for_an_image(caplog):
    model = Scripted(str.upper)
    assert answers(model, [ROWS[0], row(picture(), "What does <image> 1 show?")])[1] == "WHAT DOES < IMAGE> 1 SHOW?"
    assert model.spaced == {("task", 1)}
    assert "1 rows spell out a placeholder of the model, such as task, row 1" in caplog.text


def test_images_have_three_channels_and_videos_are_refused(tmp_path):
    picture().save(tmp_path / "red.png")
    model = Scripted(str.upper)
    answers(model, [row(Image.new("P", (8, 8)), "?"), row(Image.new("RGBA", (8, 8)), "!?")])
    assert {each[0]["content"][0]["image"].mode for each in model.asked[0][0]} == {"RGB"}
    named = row(picture(), "?")
    named[0]["content"][0]["url"] = str(tmp_path / "red.png")
    answers(model, [named])
    assert model.asked[1][0][0][0]["content"][0]["image"].getpixel((0, 0)) == (255, 0, 0)
    video = [{"role": "user", "content": [{"type": "video", "url": "x.mp4"}]}]
    with pytest.raises(ValueError, match="task, row 0 shows a video"):
        answers(model, [video])


# A checkpoint -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(digits_model):
    return VisionLanguageModel(str(digits_model), batch_size=1)


@pytest.mark.parametrize("protocol", ["direct", "step_by_step"])
def test_batches_do_not_change_answers(digits_model, checkpoint, protocol):
    batched = VisionLanguageModel(str(digits_model), batch_size=4)
    found = []
    for model in (checkpoint, batched):
        model.protocol = protocol
        found.append((answers(model, ROWS), model.replies))
    checkpoint.protocol = "direct"
    assert found[0] == found[1]
    assert len(set(found[0][0])) > 1


def test_the_room_in_advance_does_not_change_answers(checkpoint, monkeypatch):
    expected = answers(checkpoint, ROWS, max_new_tokens=90)
    monkeypatch.setattr("sicog_trl.evaluation.wrapper.growing_cache", lambda model: None)
    assert answers(checkpoint, ROWS, max_new_tokens=90) == expected


def test_the_prompt_is_the_one_of_training(checkpoint, monkeypatch):
    asked = []
    monkeypatch.setattr(checkpoint, "_answer", lambda given, limit: asked.extend(given) or [Completion("")])
    checkpoint.protocol = "step_by_step"
    answers(checkpoint, [row(picture(), QUESTION)])
    checkpoint.protocol = "direct"
    prompt = [{"role": "user", "content": prompt_for("chain_of_thought", QUESTION)}]
    render = checkpoint.processor.apply_chat_template
    trained = prepare_multimodal_messages(prompt, images=[picture()])
    assert render(asked[0], add_generation_prompt=True) == render(trained, add_generation_prompt=True)


def test_an_answer_that_is_cut_off_is_known(checkpoint):
    answers(checkpoint, ROWS[:1], max_new_tokens=2)
    assert (checkpoint.replies["task", 0].truncated, checkpoint.replies["task", 0].num_tokens) == (True, 2)


def test_what_does_not_fit_behind_the_prompt_counts_as_cut_off(checkpoint, monkeypatch):
    length = checkpoint._encode(prepared(ROWS[0]))["input_ids"].shape[1]
    monkeypatch.setattr(checkpoint, "max_length", length + 3)
    monkeypatch.setattr(checkpoint, "stop_tokens", set())
    answers(checkpoint, ROWS[:1])
    assert (checkpoint.replies["task", 0].truncated, checkpoint.replies["task", 0].num_tokens) == (True, 3)


def test_a_prompt_that_does_not_fit_costs_its_row_alone(digits_model, checkpoint, monkeypatch, caplog):
    batched = VisionLanguageModel(str(digits_model), batch_size=4)
    expected = answers(checkpoint, ROWS)
    lengths = [checkpoint._encode(prepared(each))["input_ids"].shape[1] for each in ROWS]
    for model in (checkpoint, batched):
        caplog.clear()
        monkeypatch.setattr(model, "max_length", max(lengths))
        found = answers(model, ROWS)
        cut = [number for number, length in enumerate(lengths) if length == max(lengths)]
        assert 0 < len(cut) < len(ROWS)
        for number, length in enumerate(lengths):
            reply = model.replies["task", number]
            if number in cut:
                assert (reply.text, reply.num_tokens, reply.truncated) == ("", 0, True)
            elif length + 8 <= max(lengths):
                assert found[number] == expected[number]
        assert f"a prompt has {max(lengths)} tokens, the model takes {max(lengths)}" in caplog.text


def prepared(messages: list[dict]) -> list:
    content = [
        {"type": "image", "image": part["url"]} if part["type"] == "image" else part for part in messages[0]["content"]
    ]
    return [[{"role": "user", "content": content}]]


def test_an_adapter_answers_by_its_folder_and_on_a_base(digits_model, checkpoint, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(digits_model)
    lora = LoraConfig(r=8, lora_alpha=256, target_modules=r".*language_model.*_proj", init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(tmp_path)
    alone, together = (
        answers(VisionLanguageModel(*where, batch_size=4), ROWS)
        for where in ([str(tmp_path)], [str(digits_model), str(tmp_path)])
    )
    assert alone == together != answers(checkpoint, ROWS)


def test_an_adapter_on_the_hub_is_found_with_its_base(digits_model, tmp_path, monkeypatch):
    folder = tmp_path / "models--owner--adapter"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    config = json.dumps({"base_model_name_or_path": str(digits_model)})
    (folder / "snapshots" / ("0" * 40) / "adapter_config.json").write_text(config)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert resolve_adapter("owner/adapter") == (str(digits_model), "owner/adapter")
    assert load_processor(str(digits_model), "owner/adapter").image_processor is not None  # the one of the base
    assert resolve_adapter("owner/model") == ("owner/model", None)


# A server -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Retries come at once."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("sicog_trl.generation.openai_client.FIRST_DELAY", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server():
    with StubServer() as server:
        yield server


def served(server: StubServer, **settings) -> ServedModel:
    """A model on a server that it knows already; the server has forgotten that it was asked."""
    model = ServedModel("stub", server.base_url, max_retries=2, **settings)
    list(model.complete([[{"role": "user", "content": [{"type": "text", "text": "first"}]}]], [4]))
    server.requests.clear()
    return model


def test_a_server_gets_texts_and_images_in_their_order_and_decodes_greedily(server):
    model = served(server)
    found = answers(model, ROWS[3:4])
    [payload] = server.requests
    content = payload["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url", "text"]
    assert content[4] == {"type": "text", "text": "and say which is green."}
    assert pixels(content[1]["image_url"]["url"]) == hashlib.sha256(picture("green").tobytes()).hexdigest()
    assert (payload["temperature"], payload["max_tokens"], payload["repetition_penalty"]) == (0, 8, 1)
    assert len(found[0].split()) == 6
    assert model.replies["task", 0].num_tokens == 6 and not model.replies["task", 0].truncated


def test_a_server_under_both_protocols(server):
    server.text = lambda prompt, images, seed: CHAIN if "four steps" in prompt else "(B)"
    model = served(server)
    rows = [row(picture(), QUESTION)]
    assert answers(model, rows) == ["(B)"]
    model.protocol = "step_by_step"
    server.choice = keep_lines(server)
    assert answers(model, rows) == ["B"]
    assert server.requests[-1]["max_tokens"] == MAX_CHAIN_TOKENS


def keep_lines(server: StubServer):
    """Let the stub, which counts words, keep the lines of a chain."""
    plain = server.choice

    def choice(payload, prompt, images, index):
        return plain(payload, prompt, images, index) | {
            "message": {"role": "assistant", "content": server.text(prompt, images, 0)}
        }

    return choice


def test_several_turns_reach_the_server(server, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "two_calls", describe_then_answer)
    model = served(server)
    model.protocol = "two_calls"
    answers(model, ROWS[:1])
    assert [turn["role"] for turn in server.requests[1]["messages"]] == ["user", "assistant", "user"]


def test_the_limit_of_a_task_cuts_and_that_is_known(server):
    model = served(server)
    answers(model, ROWS[:1], max_new_tokens=3)
    assert model.replies["task", 0].truncated and model.replies["task", 0].num_tokens == 3


def test_where_the_limit_does_not_fit_the_server_writes_as_long_as_it_can(server):
    model = served(server)
    plain = server.answer

    def answer(payload):
        if "max_tokens" in payload:
            return 400, {"error": {"message": "This model's maximum context length is 4096 tokens"}}
        return plain(payload)

    server.answer = answer
    assert len(answers(model, ROWS[:1], max_new_tokens=16384)[0].split()) == 6


def test_a_prompt_that_does_not_fit_the_server_costs_its_row_alone(server):
    model = served(server)
    plain = server.answer
    words = {"max_tokens": "context length", None: "The decoder prompt is longer than the maximum model length of 9"}

    def answer(payload):
        if "cell by cell" in json.dumps(payload):
            return 400, {"error": {"message": words["max_tokens" if "max_tokens" in payload else None]}}
        return plain(payload)

    server.answer = answer
    found = answers(model, ROWS)
    assert [number for number, text in enumerate(found) if not text] == [5]
    assert model.replies["task", 5].truncated and not model.replies["task", 0].truncated


def test_as_many_requests_at_once_as_are_wanted(server):
    model = served(server, batch_size=3)
    answers(model, ROWS)
    assert len(server.requests) == 6 and server.most_at_once <= 3


def test_a_failing_server_is_asked_again(server):
    model = served(server, batch_size=1)
    expected = answers(model, ROWS)
    server.fault = in_order("500", "cut", None, "429", "invalid")
    assert answers(model, ROWS) == expected


@pytest.mark.parametrize(
    ("fault", "words"), [("500", "told to say 500"), ("400", "refuses it"), ("null", "ended with")]
)
def test_a_request_without_an_answer_is_no_empty_answer(server, fault, words):
    model = served(server)
    server.fault = lambda prompt: fault if "cell by cell" in prompt else None
    with pytest.raises(RuntimeError, match=f"task, row 5, has no answer: .*{words}"):
        answers(model, ROWS)


def test_an_answer_that_the_server_filters_is_empty(server):
    model = served(server)
    plain = server.choice

    def choice(payload, *rest):
        if "cell by cell" not in json.dumps(payload):
            return plain(payload, *rest)
        message = {"role": "assistant", "content": ""}
        return plain(payload, *rest) | {"message": message, "finish_reason": "content_filter"}

    server.choice = choice
    assert [number for number, text in enumerate(answers(model, ROWS)) if not text] == [5]


def test_a_server_that_has_gone(server):
    model = served(server)
    server.fault = in_order("dead")
    with pytest.raises(ServerGoneError, match=r"is gone.*Finished tasks are kept"):
        answers(model, ROWS)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="asked by one process, and here are 2"):
        ServedModel("stub", "http://127.0.0.1:1/v1")


def test_a_server_says_which_weights_it_has(server, digits_model):
    assert served_identity(server.base_url, "stub") == "served:stub=stub"
    server.cards[0]["root"] = str(digits_model)
    assert served_identity(server.base_url, "stub") == f"served:stub={model_fingerprint(str(digits_model))}"
    with pytest.raises(ValueError, match=r"does not have the model 'other'; it has \['stub'\]"):
        served_identity(server.base_url, "other")
