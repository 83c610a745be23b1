"""What all models that lmms-eval asks have in common: rows become conversations, a protocol asks, scorers get answers.

Importing lmms-eval takes seconds and it is an optional dependency, so the package imports this module, and those of
the models, only when there is something to run.
"""

import logging
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from PIL import Image
from tqdm.auto import tqdm

from ..generation.sampling import Failure
from .protocols import PROTOCOLS, Completion, Conversation, Reply, images_of, texts_of


logger = logging.getLogger(__name__)

DEFAULT_MAX_NEW_TOKENS = 1024  # for a task that sets none
_WINDOW_PIXELS = 2**27  # ours: about 400 MB of open images, among which requests are sorted into batches
Row = tuple[str, int]  # task and `doc_id`
# What a table of answers cannot hold: MMBench writes one, and a single such character would cost the whole task.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


class Answering(lmms):
    """
    What a model needs to be asked by lmms-eval under a protocol: a subclass says how it completes conversations.

    Attributes:
        protocol (`str`):
            How rows are asked, a key of [`~sicog_trl.evaluation.protocols.PROTOCOLS`]; may change from task to task.
        replies (`dict[tuple[str, int], Reply]`):
            What was replied to each row (task and `doc_id`) so far, by all processes.
        spaced (`set[tuple[str, int]]`):
            Rows of this process whose text holds what the model takes for an image. It was spelled with a space, or
            the model would look for one image more than there is.
        description (`str`):
            What the progress bar says.
        placeholders (`tuple[str, ...]`):
            What the model takes for an image.
    """

    is_simple = False
    placeholders: tuple[str, ...] = ()

    def __init__(self, description: str) -> None:
        super().__init__()
        self.protocol = "direct"
        self.replies: dict[Row, Reply] = {}
        self.spaced: set[Row] = set()
        self.description = description
        self._rows: list[Row] = []  # those that are being asked
        self._progress = tqdm(disable=True)

    @abstractmethod
    def complete(
        self, conversations: list[Conversation], limits: list[int]
    ) -> Iterator[tuple[int, Completion | Failure]]:
        """
        Yield, in any order, the number of each conversation with what the model wrote, or with why it wrote nothing.

        Args:
            conversations (`list[Conversation]`):
                What to go on from.
            limits (`list[int]`):
                The most new tokens of each.
        """

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """
        Answer the requests, in their order, with what the scorer is to get.

        Of the task's `generation_kwargs` only `max_new_tokens` counts. `until` is ignored: chat models end their turn
        by themselves, and lmms-eval's own default would cut every chain at its first blank line. So are `temperature`,
        `do_sample`, `top_p` and `num_beams`: answers are greedy. A row that is asked more than once, because a task
        wants repeats or processes are to have equally many, is answered once.

        Raises:
            `RuntimeError`: if a row has no answer; an empty one in its place would be a wrong answer.
        """
        known = len(self.spaced)
        wanted = {_row(request): request for request in requests}
        with tqdm(total=len(wanted), desc=self.description, unit="answer", disable=self.rank != 0) as self._progress:
            for rows, conversations, limits in self._windows(wanted):
                self._rows = rows
                replies = PROTOCOLS[self.protocol](self.ask, conversations, limits)
                replies = [replace(reply, answer=_CONTROL.sub("", reply.answer)) for reply in replies]
                self.replies.update(zip(rows, replies, strict=True))
        if len(self.spaced) > known:
            example = "{}, row {}".format(*min(self.spaced))
            logger.warning("%d rows spell out a placeholder of the model, such as %s", len(self.spaced), example)
        answers = [self.replies[_row(request)] for request in requests]
        if self.world_size > 1:  # the first process writes the replies of all
            self.replies = dict(gather_object(list(self.replies.items())))
        return [GenerationResult(each.answer, TokenCounts(output_tokens=each.num_tokens)) for each in answers]

    def ask(self, conversations: list[Conversation], limits: list[int]) -> list[Completion]:
        """Return what the model writes, in the order of the conversations: what a protocol gets as `ask`."""
        self._progress.total = max(self._progress.total or 0, self._progress.n + len(conversations))
        found: dict[int, Completion] = {}
        for number, completion in self.complete(conversations, limits):
            if isinstance(completion, Failure):
                whole = len(conversations) == len(self._rows)
                row = "{}, row {}".format(*self._rows[number]) if whole else self._rows[0][0]
                question = " ".join(texts_of(conversations[number]))[:80]
                raise RuntimeError(f"{row}, has no answer: {completion.message.rstrip('.')}. It asks {question!r}")
            found[number] = completion
            self._progress.update()
        return [found[number] for number in range(len(conversations))]

    def _windows(self, wanted: dict[Row, Instance]) -> Iterator[tuple[list[Row], list[Conversation], list[int]]]:
        """Yield rows with their conversations and limits, so many at a time that the open images fit into memory."""
        limits = {row: each.args[2].get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS) for row, each in wanted.items()}
        window: dict[Row, Conversation] = {}
        pixels = 0
        # Longest first: too little memory shows at once, and prompts of like length need little padding.
        for row in sorted(wanted, key=lambda row: (limits[row], len(wanted[row].args[0])), reverse=True):
            window[row] = self._conversation(wanted[row])
            pixels += sum(image.width * image.height for image in images_of(window[row]))
            if pixels >= _WINDOW_PIXELS:
                yield list(window), list(window.values()), [limits[each] for each in window]
                window, pixels = {}, 0
        if window:
            yield list(window), list(window.values()), [limits[each] for each in window]

    def _conversation(self, request: Instance) -> Conversation:
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        conversation = ChatMessages(messages=messages).to_hf_messages()
        for part in (part for turn in conversation for part in turn["content"]):
            if part["type"] == "image":
                part["image"] = _picture(part["image"])
            elif part["type"] != "text":
                raise ValueError(f"{task}, row {doc_id} shows a {part['type']}; models are asked about images alone")
            elif held := [token for token in self.placeholders if token in part["text"]]:
                self.spaced.add((task, doc_id))
                for token in held:
                    part["text"] = part["text"].replace(token, f"{token[0]} {token[1:]}")
        return conversation

    def clean(self) -> None:
        """Keep the model: lmms-eval would delete it after the first task."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported; every benchmark of this package asks for text."""
        raise NotImplementedError("sicog_trl answers with text; choose the generate_until variant of the task")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[Any]:
        """Not supported; no benchmark of this package has several rounds."""
        raise NotImplementedError("sicog_trl answers in one round; choose a single-round variant of the task")


def _row(request: Instance) -> Row:
    return request.args[4], request.args[3]


def _picture(image: Image.Image | str) -> Image.Image:
    """Return an image as training sees it, with three channels."""
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    with Image.open(Path(image)) as opened:  # a file; nothing is fetched
        return opened.convert("RGB")
