"""A copy of what the model is shown, of any benchmark, is found: all its columns of images and questions are known."""

import io
import random
import sys

import pytest
from benchmark_rows import ROWS, write_rows
from datasets import Dataset
from judged_rows import JUDGED_ROWS
from PIL import Image

from sicog_trl.data import IMAGES_FEATURES, load
from sicog_trl.decontamination import (
    DecontaminationConfig,
    Pool,
    benchmark_rows,
    compare,
    conclude,
    hash_benchmarks,
    start,
)
from sicog_trl.evaluation.benchmarks import benchmarks, select_tasks
from sicog_trl.evaluation.task_files import write_task_files


pytest.importorskip("lmms_eval")

MAKERS = JUDGED_ROWS | ROWS
NAMES = [name for name, each in benchmarks().items() if not each.yaml.startswith("sicog_trl/digits/")]
WITHOUT_QUESTION = {"mmmu_pro_vision"}  # it stands in the picture


def distinct(name: str) -> list:
    """The made-up rows of a benchmark with pictures and questions that are each row's own."""
    questions = MAKERS[name]()
    for number, question in enumerate(questions):
        for column, value in question.row.items():
            rng = random.Random(f"{name} {number} {column}")
            if isinstance(value, Image.Image):
                question.row[column] = Image.frombytes("L", (8, 6), rng.randbytes(48)).resize((96, 72)).convert("RGB")
        rng = random.Random(f"{name} {number}")
        said = " ".join("".join(rng.choices("abcdefghij", k=4)) for _ in range(30))
        question.row.update(
            {column: f"{said} {question.row[column]}" for column in ("question", "query") if column in question.row}
        )
    return questions


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[str, dict[str, list[tuple[list, str]]]]:
    """Where the rows are, and the pictures and the text that lmms-eval shows for each, by benchmark."""
    from lmms_eval.tasks import TaskManager, get_task_dict
    from loguru import logger

    logger.disable("lmms_eval")
    folder = tmp_path_factory.mktemp("copies")
    write_rows(folder / "rows", NAMES, {name: lambda name=name: distinct(name) for name in NAMES})
    tasks = {task.benchmark.name: task for task in select_tasks("judge_free", NAMES, ["direct"]).values()}
    write_task_files(folder / "tasks", str(folder / "rows"), {task.name: task for task in tasks.values()})
    manager = TaskManager("ERROR", include_path=str(folder / "tasks"), include_defaults=False)
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENAI_API_KEY", "unused")  # some tasks want one as soon as they are read
        loaded = get_task_dict([task.name for task in tasks.values()], manager)
    # They remember for good that there is no judge, and other tests of this process have one.
    for name in set(sys.modules) - before:
        if name.startswith("lmms_eval.tasks."):
            del sys.modules[name]
    found = {}
    for name, task in tasks.items():
        asked = loaded[task.name]
        docs = asked.dataset[task.benchmark.split]
        found[name] = [(asked.doc_to_visual(doc), str(asked.doc_to_text(doc))) for doc in docs]
    yield str(folder / "rows"), found
    logger.enable("lmms_eval")


@pytest.mark.parametrize("name", NAMES)
def test_what_the_model_is_shown_is_found(name, shown, tmp_path):
    rows, found = shown
    pool = []
    for number, (pictures, text) in enumerate(found[name]):
        pool += [{"id": f"{number}-{n}", "images": [stored(each)]} for n, each in enumerate(pictures)]
        if name not in WITHOUT_QUESTION:
            pool.append({"id": f"{number}-question", "question": text})
        assert pictures
    against = benchmark_rows("judge_free", [name], rows)
    empty = {"images": [], "question": None, "answer": None}
    everything = Pool(Dataset.from_list([empty | row for row in pool], features=IMAGES_FEATURES))
    config = DecontaminationConfig(duplicates=False)
    start(everything, against, config, "train", tmp_path)
    hash_benchmarks(against, config, tmp_path)
    compare(everything, against, config, tmp_path)
    summary = conclude(everything, against, config, "train", tmp_path)
    dropped = load(str(tmp_path), split="dropped").select_columns(["id", "near"])
    near = {row["id"]: {(one["benchmark"], one["row"], one["matched"]) for one in row["near"]} for row in dropped}
    assert summary["kept"] == 0
    for row_id, places in near.items():
        number, _, what = row_id.partition("-")
        assert (name, int(number), "question" if what == "question" else "image") in places


def stored(picture: Image.Image) -> dict:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=60)
    return {"bytes": buffer.getvalue(), "path": None}
