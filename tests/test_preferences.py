"""Preference pairs: both sides of one kind, apart by a margin, made from damaged images, every row accounted for."""

import hashlib
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from training import recipe
from transformers import AutoProcessor
from trl import TrlParser
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from sicog_trl.curation import CurationConfig, curate
from sicog_trl.data import (
    ANNOTATED_FEATURES,
    CANDIDATES_FEATURES,
    CURATED_FEATURES,
    PREFERENCE_FEATURES,
    load,
    save,
    split_file,
)
from sicog_trl.files import AnotherRunError
from sicog_trl.preferences.pairs import DROPPED_PAIRS_FEATURES, PairConfig, make_pairs
from sicog_trl.prompts import STEPS, prompt_for, task_of
from sicog_trl.responses import build_steps, canonical, chain_fault, final_part, normalize_answer


ROOT = Path(__file__).parents[1]
GARBAGE = {"bytes": b"this is no image", "path": None}
WAYS = ("gaussian_blur", "color_jitter", "mirror_rotate", "half_plane_mask")
QUESTION = "How many?"
LASTS = {
    "description": ("a red car", "a red car stands", "a blue car by a tree", "nothing at all"),
    "reasoning": ("7", "seven", "8", "The answer is 9."),
}


def run(name: str, **settings) -> None:
    module = recipe(name)
    module.main(*TrlParser(module.ARGUMENTS).parse_dict(settings))


def asked(mode: str) -> str:
    return prompt_for(mode, QUESTION if task_of(mode) == "reasoning" else None)


def written(mode: str, last: str) -> str:
    """Return a whole response of a mode that ends in `last`."""
    return build_steps(mode, [*(["Looking."] * (len(STEPS[mode]) - 1)), last]) if STEPS[mode] else last


def said(mode: str, text: str, corruption: str | None = None, finish_reason: str = "stop", **changes) -> dict:
    base = {"text": text, "mode": mode, "prompt": asked(mode), "seed": 0, "finish_reason": finish_reason}
    return {**base, "num_tokens": 1, "corruption": corruption, "mean_logprob": None, **changes}


def candidates(*rows: tuple, **changes) -> Dataset:
    """Return rows of candidates from (id, candidates)."""
    return Dataset.from_list(
        [
            {
                "id": row_id,
                "images": [GARBAGE],
                "question": None,
                "answer": None,
                "task": task_of(found[0]["mode"]) if found else "description",
                "candidates": found,
                "error": None,
                **changes,
            }
            for row_id, found in rows
        ],
        features=CANDIDATES_FEATURES,
    )


def annotated(*rows: tuple) -> Dataset:
    """Return annotated rows from (id, source_id, mode, text)."""
    return Dataset.from_list(
        [
            {
                "id": row_id,
                "source_id": source,
                "images": [{"bytes": f"no image {source}".encode(), "path": None}],
                "prompt": [{"role": "user", "content": asked(mode)}],
                "completion": [{"role": "assistant", "content": text}],
                "task": task_of(mode),
                "mode": mode,
            }
            for row_id, source, mode, text in rows
        ],
        features=ANNOTATED_FEATURES,
    )


def pairs_of(folder: Path, split: str = "preference") -> list[dict]:
    rows = load(str(folder), split=split)
    return rows.select_columns([name for name in rows.column_names if name != "images"]).to_list()


def sides(pair: dict) -> tuple[str, str]:
    return pair["chosen"][0]["content"], pair["rejected"][0]["content"]


def one_pair(mode: str, chosen: str, *rejected: dict, **options) -> tuple[dict, list[dict], list[dict]]:
    """Pair one annotation with candidates about its damaged image; returns summary, pairs and dropped rows."""
    folder = Path(options.pop("folder"))
    chosen_rows, damaged = annotated(("a", "s", mode, chosen)), candidates(("s", list(rejected)))
    summary = make_pairs([chosen_rows], PairConfig(**options), folder, [damaged])
    return summary, pairs_of(folder), pairs_of(folder, "dropped")


# By hand -------------------------------------------------------------------------------------------------------------


def test_the_farthest_candidate_is_rejected_and_the_margin_is_one_minus_the_cosine(tmp_path):
    """Of "a b" against "a c": terms a, b, "a b" and a, c, "a c" share one of three, so the cosine is 1/3."""
    mode = "detailed_description"
    near, far, tie = said(mode, "a b", "color_jitter"), said(mode, "x y", WAYS[0]), said(mode, "z y", WAYS[2])
    middle = said(mode, "a c", "half_plane_mask")
    summary, pairs, dropped = one_pair(mode, " a b\n", near, middle, far, tie, folder=tmp_path)
    assert [pair["id"] for pair in pairs] == ["a-0"]
    assert sides(pairs[0]) == ("a b", "x y")
    assert (pairs[0]["corruption"], pairs[0]["margin"], pairs[0]["rejected_from"]) == ("gaussian_blur", 1.0, "damaged")
    assert pairs[0]["chosen_from"] == "annotated" and dropped == []
    assert summary["candidates"] == {"used": 1, "not_needed": 2, "identical": 1}
    summary, pairs, _ = one_pair(mode, "a b", near, middle, far, tie, folder=tmp_path / "all", pairs_per_row=4)
    assert [(pair["id"], sides(pair)[1]) for pair in pairs] == [("a-0", "x y"), ("a-1", "z y"), ("a-2", "a c")]
    assert pairs[2]["margin"] == pytest.approx(2 / 3)
    assert summary == {
        "rows_in": 1,
        "paired": 1,
        "dropped": {},
        "candidates": {"used": 3, "not_needed": 0, "identical": 1},
        "pairs": 3,
        "corruptions": {"gaussian_blur": 1, "half_plane_mask": 1, "mirror_rotate": 1},
        "mean_chosen_length": 2.0,
        "mean_rejected_length": 2.0,
        "mean_margin": pytest.approx(8 / 9),
        "modes": {
            mode: {
                "pairs": 3,
                "mean_chosen_length": 2.0,
                "mean_rejected_length": 2.0,
                "mean_margin": pytest.approx(8 / 9),
            }
        },
        "texts_longer_than_similarity_reads": 0,
    }


def test_captions_are_compared_by_their_last_step(tmp_path):
    mode = "chain_of_description"
    steps = build_steps(mode, ["Other.", "Other.", "Other.", "Other.", "a red car"])
    summary, _, dropped = one_pair(mode, written(mode, "a red car"), said(mode, steps, WAYS[0]), folder=tmp_path)
    assert summary["dropped"] == {"small_margin": 1}
    assert (dropped[0]["margin"], dropped[0]["corruption"]) == (pytest.approx(0), WAYS[0])


def test_vectors_may_be_dense_and_are_asked_of_one_model(tmp_path, monkeypatch):
    """A sentence model is loaded once, whatever the number of batches, and says how many texts it cut."""

    def embed(texts: list[str]) -> np.ndarray:
        return np.array([[0.6, 0.8] if text == "x" else [1.0, 0.0] for text in texts], dtype=np.float32)

    loaded = []
    embed.num_cut = 2
    monkeypatch.setattr("sicog_trl.preferences.rows.BATCH", 1)
    monkeypatch.setattr("sicog_trl.preferences.pairs.embedder", lambda name: loaded.append(name) or embed)
    mode = "detailed_description"
    chosen = annotated(("a", "s", mode, "a b"), ("b", "s", mode, "x"))
    damaged = candidates(("s", [said(mode, "x", WAYS[0]), said(mode, "y", WAYS[1])]))
    summary = make_pairs([chosen], PairConfig(similarity="model"), tmp_path, [damaged])
    assert loaded == ["model"] and summary["texts_longer_than_similarity_reads"] == 2
    assert [(sides(pair), pair["margin"]) for pair in pairs_of(tmp_path)] == [
        (("a b", "x"), pytest.approx(0.4)),
        (("x", "y"), pytest.approx(0.4)),
    ]


@pytest.mark.parametrize(
    ("mode", "text", "changes", "reason"),
    [
        ("detailed_description", " a  red\ncar ", {}, "identical"),
        ("detailed_description", "a red car .", {"min_margin": 0.5}, "small_margin"),
        ("detailed_description", " ", {}, "empty"),
        ("detailed_description", "a blue car", {"finish_reason": "length"}, "truncated"),
        ("detailed_description", "a blue car", {"prompt": "Describe it."}, "other_prompt"),
        ("detailed_description", "a blue car", {"corruption": None}, "not_damaged"),
        ("chain_of_description", "Step 1: Salient content\na car", {}, "missing_step"),
        ("chain_of_description", "a blue car", {}, "no_steps"),
        ("chain_of_thought", written("chain_of_thought", "Seven."), {}, "same_answer"),
        ("direct_answer", "The answer is 7", {}, "same_answer"),
        ("direct_answer", "8\n\nI am sure.", {}, "text_after_answer"),
    ],
)
def test_what_may_not_be_rejected_is_dropped_by_name(mode, text, changes, reason, tmp_path):
    """What gives the right answer in spite of the damage is no mistake; a broken response would teach form alone."""
    options = {"min_margin": changes.pop("min_margin", 0.05), "folder": tmp_path / "pairs"}
    chosen = written(mode, "7" if task_of(mode) == "reasoning" else "a red car")
    bad = said(mode, text, **{"corruption": WAYS[0], **changes})
    # Candidates of whole images alone are an error.
    others = [said(mode, "", WAYS[0])] if reason == "not_damaged" else []
    summary, pairs, dropped = one_pair(mode, chosen, bad, *others, **options)
    assert pairs == []
    assert (summary["rows_in"], summary["paired"], summary["dropped"]) == (1, 0, {reason: 1})
    assert summary["candidates"][reason] == 1
    assert (dropped[0]["id"], dropped[0]["reason"], dropped[0]["chosen"]) == ("a", reason, chosen)
    assert dropped[0]["rejected"] == text


def test_the_reason_of_a_row_is_that_of_the_candidate_that_came_nearest(tmp_path):
    mode = "direct_answer"
    wrong = [said(mode, "", WAYS[0]), said(mode, "7", WAYS[1]), said(mode, "seven", WAYS[2]), said(mode, " ", WAYS[3])]
    summary, _, dropped = one_pair(mode, "7", *wrong, folder=tmp_path)
    assert summary["dropped"] == {"same_answer": 1}
    assert summary["candidates"] == {"used": 0, "not_needed": 0, "empty": 2, "identical": 1, "same_answer": 1}
    assert dropped[0]["rejected"] == "seven"


def test_rows_without_candidates_keep_the_reason_that_generation_gave(tmp_path):
    mode = "detailed_description"
    chosen = annotated(
        ("seen", "s", mode, "a b"), ("gone", "t", mode, "a b"), ("unread", "u", mode, "a b"), ("cut", "s", mode, " ")
    )
    damaged = Dataset.from_list(
        [
            *candidates(("s", [said(mode, "x y", WAYS[0])])).with_format("arrow")[:].to_pylist(),
            {
                **{"id": "u", "images": [GARBAGE], "task": "description", "candidates": []},
                "error": "unreadable_image: row 'u': cut",
            },
        ],
        features=CANDIDATES_FEATURES,
    )
    summary = make_pairs([chosen], PairConfig(), tmp_path, [damaged])
    assert summary["dropped"] == {"chosen_empty": 1, "no_candidates": 1, "unreadable_image": 1}
    assert (summary["rows_in"], summary["paired"]) == (4, 1)


# Ranked by self-consistency ------------------------------------------------------------------------------------------


def scored(*verdicts: tuple) -> pa.Table:
    return pa.Table.from_pylist(
        [dict(zip(("id", "scores", "winner", "reason"), verdict, strict=True)) for verdict in verdicts],
        schema=pa.schema(
            {"id": pa.string(), "scores": pa.list_(pa.float64()), "winner": pa.int64(), "reason": pa.string()}
        ),
    )


def test_the_lowest_ranked_candidate_of_the_winners_mode_is_rejected(tmp_path):
    long, short = "chain_of_description", "detailed_description"
    found = [said(long, written(long, text)) for text in ("a", "b", "c")] + [said(short, "d")]
    rows = candidates(("kept", found), ("dropped", found), ("lonely", found))
    scores = scored(
        ("kept", [0.5, 0.9, 0.3, 0.1], 1, None),
        ("dropped", [0.2, 0.1, 0.1, 0.1], 0, "inconsistent"),
        ("lonely", [0.2, 0.1, 0.1, 0.8], 3, None),
    )
    config = PairConfig(rejected_from="ranked", min_margin=0.2)
    summary = make_pairs([rows], config, tmp_path, scores=[scores])
    (pair,) = pairs_of(tmp_path)
    assert sides(pair) == (written(long, "b"), written(long, "c"))
    assert (pair["margin"], pair["mode"], pair["corruption"]) == (pytest.approx(0.6), long, None)
    assert (pair["chosen_from"], pair["rejected_from"]) == ("candidate", "ranked")
    assert summary["dropped"] == {"inconsistent": 1, "no_candidates": 1}
    assert summary["candidates"] == {"used": 1, "not_needed": 1}
    all_of_them = PairConfig(rejected_from="ranked", min_margin=0.5, pairs_per_row=4)
    assert make_pairs([rows], all_of_them, tmp_path / "all", scores=[scores])["pairs"] == 1


def test_scores_of_curation_go_into_ranked_pairs_and_other_scores_are_refused(tmp_path):
    mode = "direct_answer"
    rows = candidates(
        ("most", [said(mode, "7"), said(mode, "8"), said(mode, "Seven.")]), ("all", [said(mode, "1")] * 3)
    )
    save(rows, tmp_path / "candidates", "candidates")
    curate(rows, CurationConfig(min_consistency=0.1), tmp_path / "curated")
    ranked = {"rejected_from": "ranked", "dataset_split": "candidates", "scores": str(tmp_path / "curated")}
    run("pair", dataset_name=str(tmp_path / "candidates"), output_dir=str(tmp_path / "pairs"), **ranked)
    (pair,) = pairs_of(tmp_path / "pairs")
    assert (sides(pair), pair["margin"]) == (("7", "8"), pytest.approx(0.5))
    assert json.loads((tmp_path / "pairs" / "summary.json").read_text())["dropped"] == {"identical": 1}
    config = PairConfig(rejected_from="ranked")
    for others in (scored(("most", [1.0], 0, None), ("all", [1.0] * 3, 0, None)), scored(("all", [1.0] * 3, 0, None))):
        with pytest.raises(ValueError, match=r"row 'most' has 3 candidates and (1|none) in the scores"):
            make_pairs([rows], config, tmp_path / "others", scores=[others])
    with pytest.raises(FileNotFoundError, match=r"scores\.parquet does not exist; name a folder that curate wrote"):
        run(
            "pair", **{**ranked, "scores": str(tmp_path), "dataset_name": str(tmp_path / "candidates")}, output_dir="x"
        )


# Properties, and the defects of the released code --------------------------------------------------------------------


def heap(seed: int) -> tuple[Dataset, Dataset]:
    """Return 60 annotated rows and candidates about their damaged images, of every kind and quality."""
    rng = random.Random(seed)
    rows, found = [], []
    for number in range(30):
        task = rng.choice(("description", "reasoning"))
        modes = ("chain_of_description", "detailed_description")
        modes = ("chain_of_thought", "direct_answer") if task == "reasoning" else modes
        last = rng.choice(LASTS[task])
        rows += [(f"row-{number}-{mode}", f"image-{number}", mode, written(mode, last)) for mode in modes]
        options = []
        for mode in [mode for mode in modes for _ in range(rng.randrange(5))]:
            text = written(mode, rng.choice(LASTS[task]))
            text = rng.choice(
                (text, text, text, text[: len(text) // 2], f"{text}\n\nNo.", text.replace("Step", "# Step"))
            )
            prompt = rng.choice((asked(mode), asked(mode), asked(mode), "Something else."))
            options.append(
                said(mode, text, rng.choice((*WAYS, None)), rng.choice(("stop", "stop", "length")), prompt=prompt)
            )
        if number % 10:
            found.append((f"image-{number}", options))
    rng.shuffle(found)
    return annotated(*rows), candidates(*found)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("options", [{}, {"pairs_per_row": 4, "min_margin": 0.3}, {"min_margin": 0.0}])
def test_both_sides_are_of_one_kind_and_apart(seed, options, tmp_path):
    """Defects 12 and 20: a short answer against a chain teaches length; the least similar is not yet different."""
    config = PairConfig(**options)
    chosen, damaged = heap(seed)
    summary = make_pairs([chosen], config, tmp_path, [damaged])
    pairs, dropped = pairs_of(tmp_path), pairs_of(tmp_path, "dropped")
    given = {row["id"]: row for row in chosen.remove_columns("images").to_list()}
    said_about = {row["id"]: row["candidates"] for row in damaged.remove_columns("images").to_list()}
    assert len({pair["id"] for pair in pairs}) == len(pairs) == summary["pairs"] > 3
    by_row: dict[str, list[dict]] = {}
    for pair in pairs:
        row = given[pair["id"].rpartition("-")[0]]
        by_row.setdefault(row["id"], []).append(pair)
        better, worse = sides(pair)
        (source,) = {
            candidate["corruption"]
            for candidate in said_about[row["source_id"]]
            if canonical(candidate["text"], pair["mode"]) == worse
            and (candidate["mode"], candidate["corruption"]) == (pair["mode"], pair["corruption"])
            and [{"role": "user", "content": candidate["prompt"]}] == row["prompt"]
            and candidate["finish_reason"] == "stop"
        }
        assert source in WAYS
        assert (pair["mode"], pair["prompt"], pair["task"]) == (row["mode"], row["prompt"], row["task"])
        assert better == row["completion"][0]["content"]
        assert better != worse
        assert chain_fault(better, pair["mode"]) is None and chain_fault(worse, pair["mode"]) is None
        assert pair["margin"] >= config.min_margin
        if pair["task"] == "reasoning":
            assert len({normalize_answer(final_part(text, pair["mode"])) for text in (better, worse)}) == 2
    for several in by_row.values():
        margins = [pair["margin"] for pair in several]
        assert margins == sorted(margins, reverse=True) and len(margins) <= config.pairs_per_row
    assert {row["id"] for row in dropped} | by_row.keys() == given.keys()
    assert len(dropped) + len(by_row) == len(given) == summary["rows_in"] == 60
    assert summary["paired"] == len(by_row) and sum(summary["dropped"].values()) == len(dropped)
    assert summary["candidates"]["used"] == len(pairs) == sum(part["pairs"] for part in summary["modes"].values())
    assert sum(summary["corruptions"].values()) == len(pairs)


def test_a_chain_is_never_paired_with_a_short_answer(tmp_path):
    """Defect 12: the released code sets the extracted answer against a whole chain."""
    long, short = "chain_of_thought", "direct_answer"
    chosen = annotated(("long", "s", long, written(long, "7")), ("short", "s", short, "7"))
    damaged = candidates(("s", [said(short, "8", WAYS[0]), said(long, written(long, "9"), WAYS[1])]))
    make_pairs([chosen], PairConfig(), tmp_path, [damaged])
    assert [sides(pair) for pair in pairs_of(tmp_path)] == [(written(long, "7"), written(long, "9")), ("7", "8")]
    only_short = candidates(("s", [said(short, "8", WAYS[0])]))
    assert make_pairs([chosen], PairConfig(), tmp_path / "x", [only_short])["dropped"] == {"no_candidates": 1}


def test_candidates_about_whole_images_are_refused(tmp_path):
    """Defect 9: the released code never damages an image, and pairs answers about clean ones."""
    mode = "detailed_description"
    with pytest.raises(ValueError, match="all 2 candidates are about whole images; generate them with `corruptions`"):
        one_pair(mode, "a b", said(mode, "x"), said(mode, "y"), folder=tmp_path)
    assert not (tmp_path / "settings.json").exists()
    assert not list(tmp_path.glob("data/*"))


def test_nothing_is_left_to_chance_to_the_order_of_the_candidates_or_to_the_batch(tmp_path, monkeypatch):
    """Defect 20: the released code draws the rejected side unseeded. Here neither run nor shards change a byte."""
    chosen, damaged = heap(0)
    turned = damaged.select(range(len(damaged) - 1, -1, -1))
    for name, parts in {"a": [damaged], "b": [damaged], "c": [turned.select(range(9)), turned.skip(9)]}.items():
        make_pairs([chosen], PairConfig(), tmp_path / name, parts)
    for split in ("preference", "dropped"):
        assert len({split_file(tmp_path / name, split).read_bytes() for name in "abc"}) == 1
    monkeypatch.setattr("sicog_trl.preferences.rows.BATCH", 7)
    make_pairs([chosen], PairConfig(), tmp_path / "d", [damaged])
    for split in ("preference", "dropped"):
        tables = [pq.read_table(split_file(tmp_path / name, split)) for name in "ad"]
        assert tables[0].equals(tables[1])


def test_curated_rows_are_chosen_as_annotated_ones_are(tmp_path):
    mode = "detailed_description"
    row = annotated(("s", "s", mode, "a b")).with_format("arrow")[:].to_pylist()[0]
    del row["source_id"]
    curated = Dataset.from_list([{**row, "consistency": 0.9, "num_candidates": 3}], features=CURATED_FEATURES)
    make_pairs([curated], PairConfig(), tmp_path, [candidates(("s", [said(mode, "x y", WAYS[0])]))])
    (pair,) = pairs_of(tmp_path)
    assert (pair["id"], pair["chosen_from"], sides(pair)) == ("s-0", "candidate", ("a b", "x y"))


# Files ---------------------------------------------------------------------------------------------------------------


def test_law_2_images_pass_through_as_bytes_and_inputs_stay_as_they_are(tmp_path):
    """Law 2: images that nobody could decode come out as they went in, each with its row."""
    chosen, damaged = heap(1)
    save(chosen, tmp_path / "chosen", "annotated")
    save(damaged, tmp_path / "damaged", "candidates")
    before = {file: hashlib.sha256(file.read_bytes()).digest() for file in tmp_path.rglob("*.parquet")}
    names = {"dataset_name": str(tmp_path / "chosen"), "rejected_dataset_name": str(tmp_path / "damaged")}
    run("pair", **names, output_dir=str(tmp_path / "pairs"), pairs_per_row=4)
    assert {file: hashlib.sha256(file.read_bytes()).digest() for file in before} == before
    table = pq.read_table(split_file(tmp_path / "pairs", "preference"))
    assert table["images"].to_pylist() == [
        [{"bytes": f"no image image-{row_id.split('-')[1]}".encode(), "path": None}]
        for row_id in table["id"].to_pylist()
    ]
    assert datasets.Features.from_arrow_schema(table.schema) == PREFERENCE_FEATURES
    dropped = pq.read_schema(split_file(tmp_path / "pairs", "dropped"))
    assert datasets.Features.from_arrow_schema(dropped) == DROPPED_PAIRS_FEATURES


def test_a_folder_belongs_to_one_run_and_a_failed_try_leaves_no_trace(tmp_path, monkeypatch):
    chosen, damaged = heap(2)
    broken = chosen.select_columns([n for n in chosen.column_names if n != "mode"]).add_column("mode", ["poem"] * 60)
    with pytest.raises(ValueError, match=r"row 'row-0-.*': unknown mode 'poem'"):
        make_pairs([broken], PairConfig(), tmp_path, [damaged])
    assert not list(tmp_path.glob("data/*")) and not (tmp_path / "settings.json").exists()
    make_pairs([chosen], PairConfig(), tmp_path, [damaged])
    before = {file.name: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
    assert before.keys() >= {"README.md", "settings.json", "preference-00000-of-00001.parquet"}
    with pytest.raises(AnotherRunError, match=r"min_margin is 0\.05 there and 0\.5 here"):
        make_pairs([chosen], PairConfig(min_margin=0.5), tmp_path, [damaged])
    with pytest.raises(AnotherRunError, match="chosen is"):
        make_pairs([chosen.select(range(30))], PairConfig(), tmp_path, [damaged])
    with pytest.raises(AnotherRunError, match="damaged is"):
        make_pairs([chosen], PairConfig(), tmp_path, [damaged.select(range(20))])
    split_file(tmp_path, "dropped").unlink()  # as if the run had been killed between its splits
    make_pairs([chosen], PairConfig(), tmp_path, [damaged])
    assert {file.name: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()} == before


def test_unusable_input_is_refused(tmp_path):
    chosen, damaged = heap(3)
    for inputs, message in [
        (([chosen.remove_columns("mode")], [damaged]), "the chosen rows have no column 'mode'"),
        (([chosen], [damaged.remove_columns("error")]), "the damaged rows have no column 'error'"),
        (([chosen, chosen.select([3])], [damaged]), "stands in more than one of the chosen rows"),
        (([chosen], [damaged, damaged.select([0])]), "stands in more than one of the damaged rows"),
        (([chosen.select([])], [damaged]), "there are no chosen rows"),
        (([chosen], []), "there are no damaged rows"),
        (([chosen], [candidates(("elsewhere", [said("direct_answer", "8", WAYS[0])]))]), "no chosen row has a cand"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_pairs(inputs[0], PairConfig(), tmp_path, inputs[1])
    with pytest.raises(ValueError, match="unknown similarity 'x'"):
        make_pairs([chosen], PairConfig(similarity="x"), tmp_path, [damaged])
    for options, message in [
        ({"rejected_from": "thin_air"}, "unknown rejected_from 'thin_air'; choose one of damaged, ranked"),
        ({"min_margin": 1.5}, "min_margin is between 0 and 1, got 1.5"),
        ({"pairs_per_row": 0}, "pairs_per_row is at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            PairConfig(**options)
    both = {"dataset_name": "a", "rejected_dataset_name": "b", "scores": "c", "output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="rejected_from: damaged needs rejected_dataset_name, and not scores"):
        run("pair", **both)
    with pytest.raises(ValueError, match="rejected_from: ranked needs scores, and not rejected_dataset_name"):
        run("pair", **both, rejected_from="ranked")


def test_no_pair_is_still_an_artefact(tmp_path):
    summary, pairs, dropped = one_pair("direct_answer", "7", said("direct_answer", "7", WAYS[0]), folder=tmp_path)
    assert (pairs, len(dropped), summary["mean_margin"], summary["modes"]) == ([], 1, None, {})


# The line ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def line(digits_model, digits_world, tmp_path_factory) -> Path:
    """Candidates of clean and of damaged images, and the pairs, through the recipes; a random model says anything."""
    folder = tmp_path_factory.mktemp("line")
    generate = recipe("generate")
    options = {
        "model_name_or_path": str(digits_model),
        "dataset_name": str(digits_world / "annotated"),
        "dataset_train_split": "images",
        "description_modes": {"detailed_description": 4},
        "reasoning_modes": {"direct_answer": 4},
        "max_completion_length": 192,
        "rows_per_shard": 9,
        "batch_size": 64,
    }
    for name, corruptions in {"damaged": list(WAYS), "clean": None}.items():
        settings = {**options, "corruptions": corruptions, "output_dir": str(folder / name)}
        generate.main(*TrlParser(generate.ARGUMENTS).parse_dict(settings))
    run(
        "pair",
        dataset_name=str(digits_world / "annotated"),
        dataset_split="instruction",
        rejected_dataset_name=str(folder / "damaged"),
        output_dir=str(folder / "pairs"),
        pairs_per_row=4,
    )
    return folder


def test_rejected_sides_are_what_the_model_says_about_damaged_images(line, digits_world):
    """Defect 9: from the annotated image through the sampler to the pair, rejected sides are of damaged images."""
    said_of = {
        name: {
            (row["id"], candidate["mode"], candidate["seed"]): candidate
            for row in load(str(line / name), split="candidates").remove_columns("images").to_list()
            for candidate in row["candidates"]
        }
        for name in ("damaged", "clean")
    }
    assert said_of["damaged"].keys() == said_of["clean"].keys()
    differ = [said_of["damaged"][key]["text"] != said_of["clean"][key]["text"] for key in said_of["clean"]]
    assert sum(differ) > 0.5 * len(differ)  # same seeds: only the picture is another
    pairs = pairs_of(line / "pairs")
    summary = json.loads((line / "pairs" / "summary.json").read_text())
    assert summary["corruptions"].keys() == set(WAYS)
    source = {row["id"]: row["source_id"] for row in pairs_source(digits_world)}
    texts = {(key[0], found["corruption"], found["text"].strip()) for key, found in said_of["damaged"].items()}
    for pair in pairs:
        assert (source[pair["id"].rpartition("-")[0]], pair["corruption"], sides(pair)[1]) in texts


def pairs_source(digits_world: Path) -> list[dict]:
    return load(str(digits_world / "annotated"), split="instruction").remove_columns("images").to_list()


def test_both_sides_reach_the_trainer_with_the_clean_image(line, digits_model, digits_world):
    """Law 7: the folder loads by its name alone, and TRL's collator sees prompt, image and both sides."""
    rows = datasets.load_dataset(str(line / "pairs"), split="preference")
    assert rows.features == PREFERENCE_FEATURES
    dropped = datasets.load_dataset(str(line / "pairs"), "dropped", split="dropped")
    assert set(dropped["reason"]) >= {"no_candidates"}  # rows about questions that were not asked
    processor = AutoProcessor.from_pretrained(digits_model)
    batch = DataCollatorForVisionPreference(processor)([dict(rows[0]), dict(rows[len(rows) - 1])])

    def spelled(messages: list[dict]) -> str:  # a random model joins words that the tokenizer has only apart
        return processor.tokenizer.decode(processor.tokenizer(messages[0]["content"])["input_ids"])

    order = [(number, side) for side in ("chosen", "rejected") for number in (0, len(rows) - 1)]
    for (number, side), ids, mask in zip(order, batch["input_ids"], batch["completion_mask"], strict=True):
        assert (ids == processor.image_token_id).sum() == 4
        assert processor.tokenizer.decode(ids[mask == 1]) == f"{spelled(rows[number][side])}<|im_end|>\n"
    images = {row["id"]: row["images"][0] for row in load(str(digits_world / "annotated"), split="instruction")}
    for row in rows.select(range(3)):
        assert row["images"][0].tobytes() == images[row["id"].rpartition("-")[0]].tobytes()


def test_the_pairs_train_with_trls_own_command(line, digits_model, tmp_path):
    """Plain `trl dpo` takes the folder as it is, and begins where policy and reference agree."""
    options = {
        "model_name_or_path": digits_model,
        "dataset_name": line / "pairs",
        "dataset_train_split": "preference",
        "output_dir": tmp_path,
        "max_steps": 1,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
    }
    command = [sys.executable, "-c", "from trl.cli import main; main()", "dpo"]
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (state,) = tmp_path.glob("checkpoint-1/trainer_state.json")
    assert json.loads(state.read_text())["log_history"][0]["loss"] == pytest.approx(math.log(2), abs=5e-5)
