"""
A teacher writes chains of description: each answer is paid for once, and is on disk before it is looked at.

The answers stand in `answers.jsonl` of the artefact folder, one line per call. What is made of them can be made again
without asking anybody.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import AnotherRunError, claim
from ..generation.sampling import Failure, Request, candidate_seed
from ..images import UnreadableImageError, identity, open_image
from ..prompts import CHAIN_OF_DESCRIPTION_STEPS
from .answers import Answers, read_answer
from .convert import AnnotationConfig, write_annotations
from .reading import Reading
from .records import Record, Records
from .turns import Unusable, check_text, turns_of


_INSTRUCTION = """\
Look at the image closely and describe it in five steps, under exactly these five heading lines:
{headings}

What belongs where:
1. What the image is of: its main subjects, and what happens.
2. What these look like up close: attributes, parts, colours, materials, counts, and any writing, word for word.
3. How they stand to one another: who does what to what, and what is left, right, above, below, in front or behind.
4. What is easily missed: the background, the edges, small or half-hidden things.
5. All of it in one coherent description that is complete on its own.

Rules:
- Leave nothing out that can be seen.
- Write down nothing that cannot be seen. Invent no detail.
- Name a place, a work or a thing only where the image makes it certain, and say what you know of it only where it \
helps to understand the picture.
- Assume nothing about intentions, feelings, or what lies outside of the frame. What cannot be made out is left open.
- Steps 1 to 4 have one or two sentences each. Step 5 has one or two paragraphs.
- Plain text: no Markdown, nothing before the first heading, nothing after step 5.

Somebody has described the same image as follows. Take it as a hint: it may be incomplete or wrong, and the image is \
what counts. Do not mention it.

{reference}"""


@dataclass
class TeacherConfig:
    """
    Who writes the annotations, and when they are good enough.

    Args:
        teacher (`str`, *optional*, defaults to `"gpt-4o"`):
            Name of the model at the server.
        base_url (`str`, *optional*, defaults to `"https://api.openai.com/v1"`):
            Address of any OpenAI-compatible server. Its key is read from `OPENAI_API_KEY`.
        temperature (`float`, *optional*, defaults to `0.2`):
            Of the teacher.
        max_completion_length (`int`, *optional*, defaults to `2048`):
            Most tokens of an answer; what is cut there is dropped as `truncated`.
        max_retries (`int`, *optional*, defaults to `2`):
            How often a call that fails is tried again.
        concurrency (`int`, *optional*, defaults to `8`):
            Calls under way at the same time: what a killed run may have to pay again.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds to wait for an answer.
        max_pixels (`int`, *optional*):
            Larger images are scaled down before they are sent.
        min_words (`int`, *optional*, defaults to `20`):
            Answers whose cohesive description has fewer words are dropped as `too_short`. May be changed afterwards.
    """

    teacher: str = field(default="gpt-4o", metadata={"help": "Name of the model at the server."})
    base_url: str = field(default="https://api.openai.com/v1", metadata={"help": "Address of the server."})
    temperature: float = field(default=0.2, metadata={"help": "Of the teacher."})
    max_completion_length: int = field(default=2048, metadata={"help": "Most tokens of an answer."})
    max_retries: int = field(default=2, metadata={"help": "How often a call that fails is tried again."})
    concurrency: int = field(default=8, metadata={"help": "Calls under way at the same time."})
    timeout: float = field(default=600.0, metadata={"help": "Seconds to wait for an answer."})
    max_pixels: int | None = field(default=None, metadata={"help": "Larger images are scaled down."})
    min_words: int = field(default=20, metadata={"help": "Drop shorter descriptions."})


def annotate_with_teacher(
    records: Records,
    config: AnnotationConfig,
    teacher: TeacherConfig,
    output_dir: str | Path,
    retry_failed: bool = False,
) -> dict[str, Any]:
    """
    Have a teacher describe the images of `records` in five steps, with their captions as a reference.

    Killed and started again, it asks for what is missing; only calls that were under way are made twice.

    Args:
        records ([`Records`]):
            The source.
        config ([`AnnotationConfig`]):
            How it is to be read.
        teacher ([`TeacherConfig`]):
            Who is asked.
        output_dir (`str` or `Path`):
            Artefact folder, see [`~sicog_trl.annotation.write_annotations`].
        retry_failed (`bool`, *optional*, defaults to `False`):
            Ask again where the answer was no use or did not come.

    Returns:
        `dict[str, Any]`: the counts of [`~sicog_trl.annotation.write_annotations`].
    """
    settings = {
        name: getattr(teacher, name) for name in ("teacher", "temperature", "max_completion_length", "max_pixels")
    }
    # A difference is named by the hash, which comes first; the words are for who reads what was asked.
    settings |= {"instruction": hashlib.sha256(prompt_of("").encode()).hexdigest()[:16], "seed": config.seed}
    settings["teacher_prompt"] = prompt_of("{reference}")
    claim(Path(output_dir, "settings.json"), {"source_format": "teacher", **settings})
    with Answers(Path(output_dir, "answers.jsonl")).opened() as answers:
        lesson = _Lesson(records, config, teacher, answers)
        lesson.ask(retry_failed)
        cost = {"teacher": teacher.teacher, "calls": answers.calls, "tokens": answers.tokens}
        return write_annotations(records, lesson.read, output_dir, config.embed_images, lesson.text_of, cost)


def prompt_of(reference: str) -> str:
    """Return what the teacher is told, with the caption at hand."""
    headings = "\n".join(f"Step {number}: {title}" for number, title in enumerate(CHAIN_OF_DESCRIPTION_STEPS, 1))
    return _INSTRUCTION.format(headings=headings, reference=reference)


class _Lesson:
    """What is asked about each record, and what is made of the answers."""

    def __init__(self, records: Records, config: AnnotationConfig, teacher: TeacherConfig, answers: Answers):
        self.records, self.config, self.teacher, self.answers = records, config, teacher, answers

    def ask(self, retry_failed: bool) -> None:
        """Ask for what is missing; every answer is on disk before the next one is looked at."""
        from ..generation.openai_sampler import OpenAISampler

        names = ("max_completion_length", "temperature", "concurrency", "timeout", "max_retries")
        settings = {name: getattr(self.teacher, name) for name in names}
        sampler = OpenAISampler(self.teacher.teacher, self.teacher.base_url, top_p=1.0, **settings)
        asked: list[dict[str, str]] = []
        for number, answer in sampler.sample(self._requests(asked, retry_failed)):
            failed = isinstance(answer, Failure)
            said = {"failure": answer.reason, "message": answer.message} if failed else vars(answer[0])
            self.answers.add({**asked[number], **said})

    def read(self, record: Record, images: list[dict[str, Any]]) -> Reading:
        """Return what the answer about a record gives."""
        _, digest = self._question(record, images)
        answer = self._answer(record, digest)
        if answer is None:
            for image in images:
                _decode(image, self.teacher.max_pixels)  # says why it was not asked about
            raise Unusable("unasked")
        return read_answer(answer, _reference(record, self.config.reference_key), self.teacher.min_words)

    def text_of(self, record: Record) -> str | None:
        """Return what the teacher wrote about a record."""
        return (self.answers.get(record.id) or {}).get("text")

    def _requests(self, asked: list[dict[str, str]], retry_failed: bool) -> Iterator[Request]:
        """Yield what is to be asked, and note in `asked` about which record."""
        for record in self.records.progress("ask"):
            try:
                images = self.records.stored(record, embed=False)
                prompt, digest = self._question(record, images)
                if self._answer(record, digest) and not (retry_failed and self._has_failed(record, images)):
                    continue
                opened = [_decode(image, self.teacher.max_pixels) for image in images]
            except Unusable:
                continue  # told when the records are read
            asked.append({"id": record.id, "digest": digest})
            stored = [image if unchanged else None for image, (_, unchanged) in zip(images, opened, strict=True)]
            # Another seed each time, or a sure teacher would give the same useless answer again.
            seed = candidate_seed(self.config.seed, record.id, prompt, self.answers.times(record.id))
            yield Request([picture for picture, _ in opened], prompt, [seed], stored)

    def _question(self, record: Record, images: list[dict[str, Any]]) -> tuple[str, str]:
        """Return what is asked about a record, and a hash of it and of its images."""
        if not images:
            raise Unusable("no_image")
        prompt = prompt_of(_reference(record, self.config.reference_key))
        asked = repr((prompt, [identity(image) for image in images]))
        return prompt, hashlib.sha256(asked.encode()).hexdigest()[:16]

    def _answer(self, record: Record, digest: str) -> dict[str, Any] | None:
        answer = self.answers.get(record.id)
        if answer and answer["digest"] != digest:
            raise AnotherRunError(
                f"{self.answers.path}: the answer for {record.id!r} was given to another image or caption; the source "
                "has changed since. Choose another output_dir"
            )
        return answer

    def _has_failed(self, record: Record, images: list[dict[str, Any]]) -> bool:
        try:
            self.read(record, images)
        except Unusable:
            return True
        return False


def _reference(record: Record, key: str | None) -> str:
    """Return the caption at hand; that there is none is counted, not passed over."""
    value = record.fields.get(key or "answer")
    if value is None and not key:
        value = turns_of(record.fields, len(record.images))[-1]["content"]
    if not isinstance(value, str) or not value.strip():
        raise Unusable("no_reference", f"{value!r:.80}")
    check_text(value)
    return value.strip()


def _decode(image: dict[str, Any], max_pixels: int | None) -> tuple[Any, bool]:
    try:
        return open_image(image, max_pixels)
    except UnreadableImageError as error:
        raise Unusable("unreadable_image", str(error)) from error
