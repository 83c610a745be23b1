"""What training reads: which forms of rows it takes, and that what it cannot use is refused with a name."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, Value
from training import train

from sicog_trl.data import IMAGES, MESSAGES, load, save


FEATURES = Features({"images": IMAGES, "prompt": MESSAGES, "completion": MESSAGES})
BROKEN = {"bytes": b"no image", "path": None}


@pytest.fixture
def stored(digits_world) -> list[dict]:
    """Rows with their images as they are stored."""
    data = load(str(digits_world / "annotated"), split="base").select_columns(list(FEATURES))
    return data.with_format("arrow")[:].to_pylist()


@pytest.fixture
def run(tmp_path, digits_model):
    """Train on some rows, given as a dataset or as a list with the usual columns; return the record."""

    def run(data: Dataset | list, kind: str = "sft", mixed: bool = False, **settings) -> dict:
        data = Dataset.from_list(data, features=FEATURES) if isinstance(data, list) else data
        for split in ("train", "test"):
            save(data, tmp_path / "data", split)
        path = str(tmp_path / "data")
        settings |= {"datasets": [{"path": path}, {"path": path}]} if mixed else {"dataset_name": path}
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        common = {"model_name_or_path": str(digits_model), "output_dir": str(out), "save_strategy": "no"}
        train(kind, **{**common, "max_steps": 2, **settings})
        return json.loads(Path(out, "training.json").read_text())

    return run


def messages(rows: list[dict]) -> Dataset:
    turns = [{"images": row["images"], "messages": row["prompt"] + row["completion"]} for row in rows]
    return Dataset.from_list(turns, features=Features({"images": IMAGES, "messages": MESSAGES}))


def test_plain_texts_are_refused(run, stored):
    texts = {name: [row[name][0]["content"] for row in stored] for name in ("prompt", "completion")}
    with pytest.raises(ValueError, match=r"plain text in the column prompt: .*no end behind it.* Make messages of it"):
        run(Dataset.from_dict(texts))
    pairs = {"prompt": texts["prompt"], "chosen": texts["completion"], "rejected": texts["prompt"]}
    with pytest.raises(ValueError, match="plain text in the column prompt"):
        run(Dataset.from_dict(pairs), kind="dpo")


def test_placeholders_of_images_are_not_learned(run, stored, capsys):
    data = messages(stored)
    with pytest.raises(ValueError, match="placeholders of images among it: set assistant_only_loss: true"):
        run(data)
    with pytest.raises(ValueError, match="placeholders of images among it: leave completion_only_loss out"):
        run(stored, completion_only_loss=False)
    for mixed in (False, True):
        run(data, assistant_only_loss=True, mixed=mixed, max_length=45)
        shown = capsys.readouterr().out
        assert f"⟦{stored[0]['completion'][0]['content']}<|im_end|>⟧" in shown
        assert mixed or "max_length: 45 cuts 2 of 42 rows" in shown


def test_one_image_instead_of_a_list(run, stored):
    rows = [{**row, "image": row["images"][0]} for row in stored]
    columns = {"image": Image(), "prompt": MESSAGES, "completion": MESSAGES}
    data = Dataset.from_list(rows, features=Features({**FEATURES, **columns})).remove_columns("images")
    assert run(data, max_length=40)["tokens"] == run(stored, max_length=40)["tokens"]
    with pytest.raises(ValueError, match="one image in the column 'image'"):
        run(data, mixed=True)


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_contents_in_parts_train_and_are_evaluated(run, stored, strategy):
    def parts(messages: list[dict], number: int = 0) -> list[dict]:
        image = {"type": "image", "text": None}
        return [
            {"role": each["role"], "content": [image] * number + [{"type": "text", "text": each["content"]}]}
            for each in messages
        ]

    rows = [
        {
            "images": row["images"],
            "prompt": parts(row["prompt"], len(row["images"])),
            "completion": parts(row["completion"]),
        }
        for row in stored
    ]
    data = Dataset.from_list(rows).cast_column("images", IMAGES)
    settings = {"train_sampling_strategy": strategy, "eval_strategy": "steps", "eval_steps": 1}
    assert run(data, **settings)["first_loss"] == run(stored, **settings)["first_loss"]
    with pytest.raises(ValueError, match=r"datasets\[0\]: the column '\w+' holds .* with one text as content"):
        run(data, mixed=True)
    rows[2]["prompt"] = parts([{"role": "user", "content": "An <image>?"}], 1)
    with pytest.raises(ValueError, match=r"row 2 .*: the column prompt holds '<image>'"):
        run(Dataset.from_list(rows).cast_column("images", IMAGES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [BROKEN]}, "cannot be read: not an image that Pillow can read"),
        ({"images": [None]}, "cannot be read: ValueError: one of its images is null"),
        ({"completion": None}, "there is no text in the column completion"),
        ({"completion": []}, "there is no text in the column completion"),
        ({"prompt": [{"role": "user", "content": None}]}, "there is no text in the column prompt"),
    ],
)
@pytest.mark.parametrize("row", [0, 3])
def test_a_row_that_cannot_be_used_is_named(run, stored, row, change, message):
    stored[row] |= change
    with pytest.raises(ValueError, match=rf"row {row} \('.*\).*{message}"):
        run(stored[:4], max_steps=1)
    if "images" in change:
        with pytest.raises(ValueError, match=rf"row {row} \('.*\).*(null|cannot be read)"):
            run(stored[:4], max_steps=1, max_length=500)


@pytest.mark.parametrize("mixed", [False, True])
def test_ids_that_stand_twice_are_refused(run, stored, mixed):
    rows = [{**row, "id": row_id} for row, row_id in zip(stored, ["a", "b", "c", "b"], strict=False)]
    data = Dataset.from_list(rows, features=Features({**FEATURES, "id": Value("string")}))
    with pytest.raises(ValueError, match="the id 'b' stands in row 1 and in row 3, and 0 others in several rows"):
        run(data, mixed=mixed)
    assert run(data.select(range(3)), mixed=mixed)["steps"] == 2


def test_rows_that_drop_last_leaves_out_do_not_count(run, stored):
    settings = {"global_batch_size": 8, "max_steps": -1, "num_train_epochs": 2}
    records = [run(stored[:14], **settings, dataloader_drop_last=drop) for drop in (False, True)]
    assert [(record["steps"], record["samples"]) for record in records] == [(4, 28), (4, 24)]
