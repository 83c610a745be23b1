"""Decontamination: copies are found and others are not, every row is accounted for, nothing is done twice."""

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value, load_dataset
from PIL import Image as Pictures
from PIL import ImageOps

from sicog_trl.data import (
    CANDIDATES_FEATURES,
    CURATED_FEATURES,
    IMAGES_FEATURES,
    PREFERENCE_FEATURES,
    load,
    save,
    split_file,
)
from sicog_trl.decontamination import (
    Benchmark,
    DecontaminationConfig,
    Pool,
    benchmark_rows,
    compare,
    conclude,
    hash_benchmarks,
    overview,
    start,
)
from sicog_trl.decontamination import images as image_hashing
from sicog_trl.decontamination import parts as part_writing
from sicog_trl.decontamination.images import HammingIndex
from sicog_trl.decontamination.texts import SequenceIndex, sequences, signature, similarity, words
from sicog_trl.files import AnotherRunError


QUESTION = "Which of the two ships in the harbour carries more containers on its upper deck than the other one does"


def photo(seed: int, colours: int = 0) -> Pictures.Image:
    """A picture of soft shapes with fine grain; those of the same `colours` have the same palette."""
    rng, palette = np.random.default_rng(seed), np.random.default_rng([7, colours]).uniform(0, 255, (4, 3))
    coarse = Pictures.fromarray(rng.uniform(0, 255, (9, 12)).astype(np.uint8)).resize((320, 240), Pictures.BICUBIC)
    shade = np.asarray(coarse, dtype=np.float32)[..., None] / 255
    position = np.clip(shade * 3, 0, 2.999)
    low = position.astype(int)[..., 0]
    mixed = palette[low] + (palette[low + 1] - palette[low]) * (position - low[..., None])
    return Pictures.fromarray((mixed + rng.normal(0, 4, mixed.shape)).clip(0, 255).astype(np.uint8))


def stored(picture: Pictures.Image, kind: str = "PNG", **options) -> dict:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def resized(picture: Pictures.Image) -> Pictures.Image:
    return picture.resize((picture.width * 2 // 5, picture.height * 2 // 5))


def cropped(picture: Pictures.Image) -> Pictures.Image:
    across, down = picture.width // 50, picture.height // 50
    return picture.crop((across, down, picture.width - across, picture.height - down))


def pool_of(rows: list[dict]) -> Pool:
    whole = [{"id": f"row-{n}", "images": [], "question": None, "answer": None, **row} for n, row in enumerate(rows)]
    return Pool(Dataset.from_list(whole, features=IMAGES_FEATURES))


def benchmark_of(rows: list[dict], name: str = "asked") -> Benchmark:
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    whole = [{"image": None, "question": None, "answer": None, **row} for row in rows]
    return Benchmark(name, Dataset.from_list(whole, features=features), "here")


def check(pool: Pool, benchmarks: list[Benchmark], folder: Path, **settings) -> tuple[dict, dict[str, dict]]:
    """The summary, and the dropped rows by id."""
    config = DecontaminationConfig(**settings)
    start(pool, benchmarks, config, "train", folder)
    hash_benchmarks(benchmarks, config, folder)
    compare(pool, benchmarks, config, folder)
    summary = conclude(pool, benchmarks, config, "train", folder)
    dropped = load(str(folder), split="dropped").select_columns(["id", "reason", "detail", "near"])
    assert summary["rows_in"] == len(pool) == summary["kept"] + sum(summary["dropped"].values())
    assert len(load(str(folder), split="train")) == summary["kept"] and len(dropped) == len(pool) - summary["kept"]
    return summary, {row["id"]: row for row in dropped}


def test_copies_of_a_picture_are_found_and_other_photos_of_the_same_colours_are_not(tmp_path):
    asked = [photo(seed, colours=seed % 3) for seed in range(12)]
    copies = {
        "resized": stored(resized(asked[3])),
        "recompressed": stored(asked[4], "JPEG", quality=35),
        "cropped": stored(cropped(asked[5])),
        "all": stored(resized(cropped(asked[6])), "JPEG", quality=50),
        "grey": stored(asked[7].convert("L")),
    }
    others = {f"other-{seed}": stored(photo(seed, colours=seed % 3)) for seed in range(100, 160)}
    pool = pool_of([{"id": name, "images": [image]} for name, image in {**copies, **others}.items()])
    benchmarks = [benchmark_of([{"image": stored(picture)} for picture in asked])]
    summary, dropped = check(pool, benchmarks, tmp_path)
    assert summary["dropped"] == {"contaminated": 5}
    near = {
        name: [(one["benchmark"], one["row"], one["matched"]) for one in row["near"]] for name, row in dropped.items()
    }
    assert near == {name: [("asked", number, "image")] for number, name in enumerate(copies, 3)}
    assert all(0 <= row["near"][0]["distance"] <= 8 for row in dropped.values())
    assert dropped["cropped"]["detail"].startswith("image of asked, row 5: ")
    assert summary["contaminated"]["asked"]["rows"] == 5 and len(summary["contaminated"]["asked"]["nearest"]) == 3
    assert "asked: 5 rows (5 by image)" in overview(summary)


def test_what_is_found_of_real_photographs_and_what_is_not(tmp_path):
    """Not found is what `images.py` says that it is not: whoever changes that should know."""
    folder = Path(pytest.importorskip("sklearn").__file__).parent / "datasets/images"
    china, flower = (Pictures.open(folder / name).convert("RGB") for name in ("china.jpg", "flower.jpg"))
    edge = lambda picture, share: picture.crop(  # noqa: E731
        tuple(round(side * part) for part in (share, 1 - share) for side in picture.size)
    )
    found = {
        "recompressed": stored(china, "JPEG", quality=20),
        "thumbnail": stored(china.resize((64, 43)), "JPEG", quality=75),
        "larger": stored(flower.resize((1280, 854))),
        "squashed": stored(flower.resize((224, 224))),
        "grey": stored(flower.convert("L")),
        "brighter": stored(china.point(lambda value: min(255, value * 1.3))),
        "2 % off": stored(edge(china, 0.02)),
    }
    missed = {
        "10 % off": stored(edge(china, 0.1)),
        "mirrored": stored(ImageOps.mirror(china)),
        "framed": stored(ImageOps.expand(flower, 64, "white")),
        "upside down": stored(flower.rotate(180)),
        "piece": stored(china.crop((0, 0, 320, 213))),
    }
    pool = pool_of([{"id": name, "images": [image]} for name, image in (found | missed).items()])
    _, dropped = check(pool, [benchmark_of([{"image": stored(flower)}, {"image": stored(china)}])], tmp_path)
    assert {name: row["near"][0]["row"] for name, row in dropped.items()} == {
        name: int(name not in ("larger", "squashed", "grey")) for name in found
    }


def test_a_flat_picture_is_found_only_if_it_is_the_very_one(tmp_path):
    """Its perceptual hash would be that of every blank page."""
    white, black = (Pictures.new("RGB", (64, 64), colour) for colour in ("white", "black"))
    pool = pool_of([{"images": [stored(white)]}, {"images": [stored(black)]}])
    summary, dropped = check(pool, [benchmark_of([{"image": stored(white)}])], tmp_path)
    assert list(dropped) == ["row-0"] and summary["benchmarks"]["asked"]["flat_images"] == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (QUESTION, True),
        (f"Look closely and take your time. {QUESTION.upper()}?! Answer with a single word, please.", True),
        (QUESTION.replace("harbour", "port"), True),
        (QUESTION.replace("harbour", "port").replace("upper", "top"), True),
        ("Two ships lie in the harbour; on the upper deck of which one do more containers stand, tell me", False),
        ("Which of the two dogs in the garden carries more", False),
    ],
)
def test_a_text_is_found_inside_another_and_a_little_changed_but_not_reworded(tmp_path, text, found):
    pool = pool_of([{"question": text, "images": [stored(photo(1))]}])
    _, dropped = check(pool, [benchmark_of([{"question": "Why?"}, {"question": QUESTION}])], tmp_path)
    assert bool(dropped) is found
    if found:
        (near,) = dropped["row-0"]["near"]
        assert (near["row"], near["matched"], near["distance"]) == (1, "question", None) and 0.6 <= near[
            "overlap"
        ] <= 1


def test_texts_that_everybody_asks_are_not_compared(tmp_path):
    """A short question says nothing about where it is from, nor does one that a benchmark asks in every row."""
    short, template = "Is there a dog in the image? Please answer yes or no.", QUESTION
    asked = [{"question": short}, *[{"question": template}] * 11]
    summary, dropped = check(pool_of([{"question": short}, {"question": template}]), [benchmark_of(asked)], tmp_path)
    assert not dropped and summary["benchmarks"]["asked"]["texts"] == 0
    assert summary["benchmarks"]["asked"]["texts_too_common"] == 11


def test_captions_and_all_columns_of_images_count(tmp_path):
    caption = f"A photograph. {QUESTION}, and gulls circle above the cranes while a tug waits for the tide."
    features = Features(
        {"image_1": Image(), "image_2": Image(), "query": Value("string"), "answers": [Value("string")]}
    )
    second = {"image_1": stored(photo(1)), "image_2": stored(photo(2)), "query": "?", "answers": ["no", caption]}
    rows = Dataset.from_list([{**second, "image_2": None, "image_1": None, "answers": []}, second], features=features)
    pool = pool_of([{"answer": caption}, {"images": [stored(photo(9)), stored(photo(2))]}])
    _, dropped = check(pool, [Benchmark("b", rows, "here")], tmp_path)
    assert [(r["near"][0]["row"], r["near"][0]["matched"]) for r in dropped.values()] == [(1, "caption"), (1, "image")]


def test_a_row_names_every_benchmark_and_the_nearest_row_of_each(tmp_path):
    picture = photo(1)
    first = benchmark_of([{"image": stored(cropped(picture))}, {"image": stored(picture), "question": QUESTION}], "a")
    second = benchmark_of([{"image": stored(resized(picture))}], "b")
    pool = pool_of([{"images": [stored(picture)], "question": QUESTION}])
    summary, dropped = check(pool, [first, second], tmp_path)
    near = [(one["benchmark"], one["row"], one["matched"]) for one in dropped["row-0"]["near"]]
    assert near == [("a", 1, "image"), ("b", 0, "image"), ("a", 1, "question")]
    assert summary["contaminated"]["a"]["rows"] == summary["contaminated"]["b"]["rows"] == 1


def test_duplicates_share_picture_and_words(tmp_path):
    one, other = photo(1), photo(2)
    rows = {
        "first": ([one], "How many?"),
        "same": ([one], "how many"),
        "near": ([resized(one)], "How many?"),
        "other question": ([one], "How much?"),
        "other picture": ([other], "How many?"),
        "two pictures": ([one, other], "How many?"),
        "two again": ([resized(one), other], "How many?"),
        "cropped": ([cropped(one)], "How many?"),
        "other order": ([other, one], "How many?"),
        "text": ([], QUESTION),
        "text again": ([], f"{QUESTION} here"),
        "other text": ([], QUESTION.replace("ships", "lorries").replace("deck", "rack").replace("more", "fewer")),
        "short text": ([], "Why?"),
    }
    pool = pool_of(
        [{"id": n, "images": [stored(p) for p in pictures], "question": q} for n, (pictures, q) in rows.items()]
    )
    summary, dropped = check(pool, [], tmp_path / "a")
    repeated = {name: row["near"][0]["id"] for name, row in dropped.items()}
    assert repeated == {"same": "first", "near": "first", "two again": "two pictures", "text again": "text"}
    assert summary["dropped"] == {"duplicate": 4} and dropped["near"]["detail"] == "repeats first"
    assert check(pool, [], tmp_path / "b", duplicates=False)[0]["kept"] == len(rows)


def test_training_data_is_a_duplicate_only_if_it_says_the_same(tmp_path):
    def row(name: str, completion: str) -> dict:
        turns = {"prompt": [{"role": "user", "content": "Describe."}]}
        turns["completion"] = [{"role": "assistant", "content": completion}]
        empty = {"task": "description", "mode": "m", "consistency": 1.0, "num_candidates": 3}
        return {"id": name, "images": [stored(photo(1))], **turns, **empty}

    rows = [row("a", "A red ball."), row("b", "A blue cube."), row("c", "a red ball"), row("d", f"{QUESTION}.")]
    curated = Pool(Dataset.from_list(rows, features=CURATED_FEATURES))
    _, dropped = check(curated, [benchmark_of([{"answer": QUESTION}])], tmp_path)
    assert {name: r["reason"] for name, r in dropped.items()} == {"c": "duplicate", "d": "contaminated"}
    kept = load(str(tmp_path), split="train")
    assert kept.features == CURATED_FEATURES and kept["id"][:] == ["a", "b"]
    assert (
        load_dataset(str(tmp_path), "dropped", split="dropped").features["completion"] == kept.features["completion"]
    )


def test_a_contaminated_row_is_not_what_others_repeat(tmp_path):
    pool = pool_of([{"images": [stored(photo(1))], "question": f"{QUESTION}?"}, {"images": [stored(photo(1))]}])
    _, dropped = check(pool, [benchmark_of([{"question": QUESTION}])], tmp_path)
    assert {name: row["reason"] for name, row in dropped.items()} == {"row-0": "contaminated"}


def test_unreadable_images_are_rows_with_a_reason(tmp_path):
    whole = stored(photo(1))
    images = [
        [whole],
        [{"bytes": whole["bytes"][:500], "path": None}],
        [{"bytes": b"<svg></svg>", "path": None}],
        [{"bytes": None, "path": "https://example.org/a.png"}],
        [whole, None],
        [],
    ]
    pool = pool_of([{"images": some, "question": str(n)} for n, some in enumerate(images)])
    damaged = benchmark_of([{"image": images[1][0]}, {"image": stored(photo(5))}])
    summary, dropped = check(pool, [damaged], tmp_path)
    assert {row["reason"] for row in dropped.values()} == {"unreadable_image"}
    assert list(dropped) == ["row-1", "row-2", "row-3", "row-4"]
    assert "SVG" in dropped["row-2"]["detail"] and "nothing is fetched" in dropped["row-3"]["detail"]
    assert dropped["row-4"]["detail"] == "image 1: neither bytes nor path"
    assert summary["benchmarks"]["asked"]["unreadable_images"] == 1
    assert "1 of its images are unreadable" in overview(summary)


@pytest.fixture
def decoded(monkeypatch) -> list:
    """What was decoded, in order."""
    seen: list = []
    real = image_hashing.open_image
    monkeypatch.setattr(image_hashing, "open_image", lambda image: seen.append(image["bytes"]) or real(image))
    return seen


def small_parts(monkeypatch) -> None:
    monkeypatch.setattr(part_writing, "ROWS", 3)


def scenes(copies: int = 2) -> tuple[Pool, list[Benchmark]]:
    rows = [{"images": [stored(photo(s))], "question": f"{s} {c}"} for s in range(4) for c in range(copies)]
    return pool_of(rows), [benchmark_of([{"image": stored(photo(2))}, {"image": stored(photo(8))}])]


def test_no_image_is_decoded_twice_and_a_killed_run_goes_on(tmp_path, monkeypatch, decoded):
    small_parts(monkeypatch)
    pool, benchmarks = scenes()
    summary, dropped = check(pool, benchmarks, tmp_path / "whole")
    assert Counter(Counter(decoded).values()) == {1: 4, 2: 1}  # photo 2 in the pool and in the benchmark
    assert list(dropped) == ["row-4", "row-5"]

    folder, config = tmp_path / "killed", DecontaminationConfig()
    decoded.clear()
    start(pool, benchmarks, config, "train", folder)
    hash_benchmarks(benchmarks, config, folder)
    reads = iter([None, KeyboardInterrupt()])

    def read_some(first: int, last: int, read=pool.read):
        if error := next(reads, None):
            raise error
        return read(first, last)

    monkeypatch.setattr(pool, "read", read_some)
    with pytest.raises(KeyboardInterrupt):
        compare(pool, benchmarks, config, folder)
    monkeypatch.undo()
    small_parts(monkeypatch)
    assert len(list((folder / "hashes/pool").glob("[0-9]*"))) == 1
    before = {file: file.stat().st_mtime_ns for file in (folder / "hashes").rglob("[0-9]*.parquet")}
    assert check(pool, benchmarks, folder)[0] == summary
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    for name in ("data/train-00000-of-00001.parquet", "data/dropped-00000-of-00001.parquet", "README.md"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_every_row_of_a_benchmark_is_known_by_its_number(tmp_path, monkeypatch):
    """Benchmarks have more rows than a part."""
    small_parts(monkeypatch)
    asked = [{"image": stored(photo(n)), "question": f"{n} {QUESTION} number {n}"} for n in range(7)]
    pool = pool_of([{"images": [stored(photo(n), "JPEG")]} for n in range(7)])
    summary, dropped = check(pool, [benchmark_of(asked)], tmp_path)
    assert {name: row["near"][0]["row"] for name, row in dropped.items()} == {f"row-{n}": n for n in range(7)}
    compared = {"rows": 7, "images": 7, "unreadable_images": 0, "flat_images": 0, "texts": 7, "texts_too_common": 0}
    assert summary["benchmarks"]["asked"] == {"origin": "here", **compared}


def test_processes_share_the_work_and_write_the_same(tmp_path, monkeypatch):
    small_parts(monkeypatch)
    pool, benchmarks = scenes()
    summary, _ = check(pool, benchmarks, tmp_path / "one")
    folder, config = tmp_path / "three", DecontaminationConfig()
    start(pool, benchmarks, config, "train", folder)
    for step in (hash_benchmarks, lambda *args: compare(pool, *args)):
        for process in (2, 0, 1):
            step(benchmarks, config, folder, process, 3)
    assert conclude(pool, benchmarks, config, "train", folder) == summary
    assert split_file(folder, "train").read_bytes() == split_file(tmp_path / "one", "train").read_bytes()


def test_a_folder_of_another_check_is_refused(tmp_path):
    pool, benchmarks = scenes()
    check(pool, benchmarks, tmp_path)
    for change in ({"max_distance": 3}, {"texts": False}):
        with pytest.raises(AnotherRunError, match=next(iter(change))):
            check(pool, benchmarks, tmp_path, **change)
    with pytest.raises(AnotherRunError, match="benchmarks"):
        check(pool, [], tmp_path)
    with pytest.raises(AnotherRunError, match="pool"):
        check(pool_of([{"id": str(n), "question": "?"} for n in range(len(pool))]), benchmarks, tmp_path)


def test_settings_and_rows_that_make_no_sense_are_refused(tmp_path):
    for wrong in (
        {"max_distance": 12},
        {"max_duplicate_distance": -1},
        {"max_fine_distance": 257},
        {"min_overlap": 0},
        {"min_words": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DecontaminationConfig(**wrong)
    pool = pool_of([{"id": "twice"}, {"id": "twice"}])
    with pytest.raises(ValueError, match="'twice' stands in several rows"):
        start(pool, [], DecontaminationConfig(), "train", tmp_path)
    with pytest.raises(ValueError, match="what is dropped goes there"):
        start(scenes()[0], [], DecontaminationConfig(), "dropped", tmp_path)
    unknown = Benchmark("b", Dataset.from_list([{"number": 1}]), "here")
    with pytest.raises(ValueError, match="neither images nor texts"):
        check(scenes()[0], [unknown], tmp_path / "unknown")
    assert not list(tmp_path.glob("*.json"))


def test_the_index_finds_exactly_what_a_comparison_of_all_pairs_finds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    flips = rng.integers(0, 14, 300)
    masks = np.array([sum(1 << int(bit) for bit in rng.choice(64, n, replace=False)) for n in flips], np.uint64)
    queries = hashes ^ masks
    for most in (0, 3, 7, 11):
        distances = np.bitwise_count(queries[:, None] ^ hashes[None])
        query, entry, distance = HammingIndex(hashes, most).near(queries)
        assert np.array_equal(np.stack([query, entry], 1), np.argwhere(distances <= most))
        assert np.array_equal(distance, distances[query, entry]) and len(query) > 0


def test_text_measures_are_what_they_say():
    assert words("\uff34he “Cat's” 3½ 图像里") == ["the", "cat", "s", "31", "2", "图", "像", "里"]
    first = sequences(words(" ".join(f"w{n}" for n in range(200))))
    second = sequences(words(" ".join(f"w{n}" for n in range(40, 240))))
    true = len(np.intersect1d(first, second)) / len(np.union1d(first, second))
    assert abs(similarity(signature(first), signature(second)) - true) < 0.15
    index = SequenceIndex([first, second], np.array([0, 0]), min_overlap=0.5)
    _, text, share = index.near([first])
    assert text.tolist() == [0, 1] and share[0] == 1
    assert share[1] == len(np.intersect1d(first, second)) / len(second)


def test_rows_come_from_where_the_evaluation_takes_them(tmp_path, digits_world, monkeypatch):
    found = benchmark_rows("digits", None, str(digits_world / "test"))
    assert [each.name for each in found] == [
        "digits_caption",
        "digits_hallucination",
        "digits_vqa",
        "digits_reasoning",
    ]
    assert all(len(each.rows) == 4 for each in found)
    save(Dataset.from_list([{"question": "?"}]), tmp_path / "pope", "test")
    (pope,) = benchmark_rows("sicog", ["pope"], str(tmp_path))
    assert pope.rows["question"][:] == ["?"]
    asked = {}
    monkeypatch.setattr(
        "sicog_trl.decontamination.evaluation_sets.load_dataset",
        lambda path, config, **rest: asked.update(path=path, config=config, **rest) or pope.rows,
    )
    assert benchmark_rows("sicog", ["pope_step_by_step"], None)[0].origin.startswith(asked["path"])
    assert asked["split"] == "test" and "/" in asked["path"]


ROOT = Path(__file__).parents[1]


def recipe(*arguments: str) -> list[str]:
    config = ROOT / "recipes/digits/decontaminate.yaml"
    return [sys.executable, str(ROOT / "recipes/decontaminate.py"), "--config", str(config), *arguments]


def test_the_recipe_finds_a_test_scene_and_goes_on_after_a_kill(digits_world, tmp_path):
    unlabelled = load(str(digits_world / "unlabelled"))
    leaked = load(str(digits_world / "test"), split="description").select([2])
    rows = [*unlabelled.to_list(), {**leaked.to_list()[0], "id": "leaked"}]
    save(Dataset.from_list(rows, features=IMAGES_FEATURES), tmp_path / "pool", "train")
    places = ("--dataset_name", str(tmp_path / "pool"), "--evaluation_dataset_name", str(digits_world / "test"))
    out = tmp_path / "out"
    command = recipe(*places, "--output_dir", str(out))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    while process.poll() is None and not (out / "hashes/digits_caption/00000.parquet").exists():
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["dropped"] == {"contaminated": 1} and summary["kept"] == len(unlabelled)
    assert summary["contaminated"]["digits_caption"]["nearest"][0] == {
        **{"id": "leaked", "row": 2, "matched": "image", "distance": 0},
        "overlap": None,
    }
    kept = load(str(out))
    assert kept.features == unlabelled.features and kept["id"][:] == unlabelled["id"][:]
    assert load(str(out), split="dropped")["images"][0][0] == leaked["images"][0][0]


def candidate(text: str) -> dict:
    return dict.fromkeys(CANDIDATES_FEATURES["candidates"].feature) | {"text": text, "mode": "m"}


def test_candidates_pass_through_with_all_their_columns(tmp_path):
    row = {
        "question": None,
        "answer": None,
        "task": "description",
        "error": None,
        "candidates": [candidate("A ball.")],
    }
    rows = [{**row, "id": str(n), "images": [stored(photo(n))]} for n in range(3)]
    pool = Pool(Dataset.from_list(rows, features=CANDIDATES_FEATURES))
    check(pool, [benchmark_of([{"image": stored(photo(1))}])], tmp_path)
    kept = load(str(tmp_path))
    assert kept.features == CANDIDATES_FEATURES and kept["id"][:] == ["0", "2"]
    assert kept["candidates"][0] == [candidate("A ball.")]


def test_every_candidate_counts_by_itself_and_none_tells_rows_apart(tmp_path):
    """Half of a benchmark's caption in one candidate and half in another is no copy."""
    first, second = QUESTION[: len(QUESTION) // 2], QUESTION[len(QUESTION) // 2 :]
    said = {
        "copied": ["A ball.", f"I see this: {QUESTION}"],
        "halves": [f"{first} and so on", f"and so on {second}"],
        "again": ["A ball.", None],
        "none": [],
    }
    row = {"question": None, "answer": None, "task": "description", "error": None}
    rows = [
        {
            **row,
            "id": name,
            "images": [stored(photo(name == "copied"))],
            "candidates": [candidate(text) for text in some],
        }
        for name, some in said.items()
    ]
    pool = Pool(Dataset.from_list(rows, features=CANDIDATES_FEATURES))
    _, dropped = check(pool, [benchmark_of([{"answer": QUESTION}])], tmp_path)
    assert {name: (one["reason"], one["near"][0]["matched"]) for name, one in dropped.items()} == {
        "copied": ("contaminated", "caption"),
        "again": ("duplicate", "row"),
        "none": ("duplicate", "row"),
    }


def test_both_sides_of_a_preference_and_earlier_turns_count(tmp_path):
    """What a model is trained away from is said to it all the same."""

    def turns(*texts: str) -> list[dict]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]

    def answer(text: str) -> list[dict]:
        return [{"role": "assistant", "content": text}]

    rows = [
        {"prompt": turns("What?"), "chosen": answer("A ball."), "rejected": answer(QUESTION)},
        {"prompt": turns("What?", QUESTION, "And now?"), "chosen": answer("A ball."), "rejected": answer("A cube.")},
        {"prompt": turns("What?"), "chosen": answer("A ball."), "rejected": answer("A cube.")},
        {"prompt": turns("What?"), "chosen": answer("A ball."), "rejected": answer("A cone.")},
        {"prompt": turns("What?"), "chosen": answer("A ball."), "rejected": answer("a cone")},
    ]
    empty = dict.fromkeys(PREFERENCE_FEATURES) | {"images": [stored(photo(1))]}
    whole = [{**empty, "id": str(number), **row} for number, row in enumerate(rows)]
    pool = Pool(Dataset.from_list(whole, features=PREFERENCE_FEATURES))
    _, dropped = check(pool, [benchmark_of([{"answer": QUESTION}])], tmp_path)
    reasons = {name: one["reason"] for name, one in dropped.items()}
    assert reasons == {"0": "contaminated", "1": "contaminated", "4": "duplicate"}


def test_texts_and_conversations_of_other_shapes_are_read(tmp_path):
    """Plain texts, and a question that stands in the ending because there is no prompt."""
    plain = Dataset.from_list(
        [{"id": "a", "prompt": QUESTION, "completion": "yes"}, {"id": "b", "prompt": "?", "completion": QUESTION}]
    )
    talk = [
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]
    whole = Dataset.from_list([{"id": "c", "messages": talk}])
    implicit = Dataset.from_list([{"id": "d", "chosen": talk, "rejected": talk[1:]}])
    for number, rows in enumerate((plain, whole, implicit)):
        pool = Pool(rows)
        _, dropped = check(pool, [benchmark_of([{"question": QUESTION}])], tmp_path / str(number))
        assert list(dropped) == rows["id"][:]
        assert pool.read(0, 1).asked == [[QUESTION]]


def test_a_long_wording_that_all_rows_share_does_not_make_them_duplicates(tmp_path):
    """One picture, one answer, and a page of instructions around questions that differ."""
    wording = " ".join(f"word{n}" for n in range(80))
    ships = [f"{wording} How many {thing} are there?" for thing in ("ships", "cranes", "gulls", "sailors")]
    others = [f"{wording} What does sign {n} say?" for n in range(12)]
    rows = [{"id": text[-20:], "images": [stored(photo(1))], "question": text} for text in [*ships, *others]]
    pool = pool_of([*rows, {**rows[2], "id": "again"}])
    _, dropped = check(pool, [], tmp_path)
    assert list(dropped) == ["again"]


def test_a_pool_or_benchmark_with_other_content_under_the_same_ids_is_another_check(tmp_path):
    def rows(picture: int, question: str = "?") -> list[dict]:
        return [{"images": [stored(photo(picture))], "question": question}]

    asked = benchmark_of([{"question": QUESTION, "image": stored(photo(3))}])
    check(pool_of(rows(1)), [asked], tmp_path)
    check(pool_of(rows(1)), [asked], tmp_path)  # the same again
    for other in (rows(2), rows(1, "!")):
        with pytest.raises(AnotherRunError, match="pool"):
            check(pool_of(other), [asked], tmp_path)
    for changed in ({"question": QUESTION.upper(), "image": stored(photo(3))}, {"question": QUESTION}):
        with pytest.raises(AnotherRunError, match="benchmarks"):
            check(pool_of(rows(1)), [benchmark_of([changed])], tmp_path)


def test_a_benchmark_that_cannot_be_loaded_is_named_with_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"rows of pope .* `evaluation_dataset_name`; `tasks`"):
        benchmark_rows("sicog", ["pope"], str(tmp_path))
    monkeypatch.setattr(
        "sicog_trl.decontamination.evaluation_sets.load_dataset",
        lambda *args, **rest: (_ for _ in ()).throw(ConnectionError("offline")),
    )
    with pytest.raises(FileNotFoundError, match=r"rows of mmstar cannot be loaded: offline"):
        benchmark_rows("sicog", ["mmstar"])
    with pytest.raises(ValueError, match="`evaluation_dataset_name` is missing: digits_caption"):
        benchmark_rows("digits")
