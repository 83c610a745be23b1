"""Self-consistency: the arithmetic by hand, every row accounted for, images untouched."""

import hashlib
import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from curating import (
    ACCURACY,
    BLUE,
    FIVE,
    GARBAGE,
    RED,
    answered,
    completions,
    described,
    ids,
    looked,
    reasoned,
    row,
    said,
    table,
)
from datasets import Dataset
from trl.data_utils import is_conversational

from sicog_trl.curation import CurationConfig, curate, curation, writing
from sicog_trl.data import CURATED_FEATURES, DROPPED_FEATURES, load, split_file
from sicog_trl.files import AnotherRunError
from sicog_trl.prompts import prompt_for


@pytest.fixture
def mixed() -> Dataset:
    """Rows of both tasks with every kind of fate."""
    return table(
        row("agree", described(RED, RED, RED), answer=RED),
        row("two-of-three", described(BLUE, RED, RED), answer=RED),
        row("quarrel", described(RED, BLUE, FIVE), answer=BLUE),
        row("cut", [said(RED, "detailed_description", "length")] * 2, answer=RED),
        row("blank", described(" ", "", " "), answer=RED),
        row("broken", [said("Step 1: What?\nx", "chain_of_description")] * 2),
        row("unseen", [], error="unreadable_image: cannot identify image file"),
        row("sure", [reasoned("7"), reasoned("seven."), *answered("7")], answer="7"),
        row("majority", [reasoned("8"), reasoned("7", "Other."), *answered("Seven")], answer="7"),
        row("split", answered("1", "2", "3"), answer="3"),
    )


# Rows ----------------------------------------------------------------------------------------------------------------


def test_law_1_every_row_is_kept_or_dropped_once(mixed, tmp_path):
    """Law 1: input rows = kept + dropped, by id, counted by reason."""
    summary = curate(mixed, CurationConfig(min_consistency=0.4), tmp_path)
    kept, dropped = ids(tmp_path, "curated"), load(str(tmp_path), split="dropped")
    assert sorted(kept + dropped["id"][:]) == sorted(mixed["id"][:])
    assert kept == ["agree", "two-of-three", "sure", "majority"]
    reasons = dict(zip(dropped["id"], dropped["reason"], strict=True))
    assert reasons == {
        "quarrel": "inconsistent",
        "cut": "truncated",
        "blank": "empty",
        "broken": "incomplete",
        "unseen": "unreadable_image",
        "split": "inconsistent",
    }
    assert summary["rows_in"] == len(mixed) == summary["kept"] + sum(summary["dropped"].values())
    assert summary["dropped"] == {
        "empty": 1,
        "incomplete": 1,
        "inconsistent": 2,
        "truncated": 1,
        "unreadable_image": 1,
    }
    scores = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert [score["id"] for score in scores] == mixed["id"][:]
    assert [len(score["scores"]) for score in scores] == [len(c) for c in mixed["candidates"]]


def test_whole_winner_is_kept(mixed, tmp_path):
    curate(mixed, CurationConfig(min_consistency=0.4), tmp_path)
    rows = {row["id"]: row for row in load(str(tmp_path), split="curated").remove_columns("images")}
    winner = next(r["candidates"][1] for r in mixed.remove_columns("images") if r["id"] == "majority")
    assert rows["majority"]["completion"] == [{"role": "assistant", "content": winner["text"]}]
    assert rows["majority"]["prompt"] == [{"role": "user", "content": winner["prompt"]}]
    assert rows["majority"]["mode"] == "chain_of_thought"
    assert rows["majority"]["consistency"] == pytest.approx(0.5)
    assert rows["majority"]["num_candidates"] == 3
    assert rows["two-of-three"]["completion"][0]["content"] == RED


def test_ties_go_to_the_first_candidate_and_the_first_id(tmp_path):
    rows = [row(name, described(RED, RED)) for name in ("c", "a", "d", "b")]
    curate(table(*rows), CurationConfig(keep=0.5), tmp_path / "keep")
    assert ids(tmp_path / "keep", "curated") == ["a", "b"]
    tie = [looked(RED), *described(RED)]
    curate(table(row("x", tie), row("y", tie[::-1])), CurationConfig(), tmp_path / "tie")
    modes = load(str(tmp_path / "tie"), split="curated")["mode"][:]
    assert modes == ["chain_of_description", "detailed_description"]


def test_keep_is_a_share_of_each_task(tmp_path):
    rows = [row(f"d{i}", described(RED, *[RED] * i, *[BLUE] * (4 - i))) for i in range(5)]
    rows += [row(f"r{i}", answered("1", *["1"] * i, *map(str, range(2, 6 - i)))) for i in range(5)]
    summary = curate(table(*rows), CurationConfig(keep=0.4, veto=True), tmp_path)
    # d4 is unanimous; d0 and d3 are four against one, and the first id wins.
    assert ids(tmp_path, "curated") == ["d0", "d4", "r3", "r4"]
    assert summary["kept"] == 4
    assert summary["dropped"] == {"inconsistent": 6}
    whole = curate(table(*rows), CurationConfig(keep=1.0, min_consistency=0), tmp_path / "whole")
    assert whole["kept"] == 10


def test_broken_rows_count_into_the_share(mixed, tmp_path):
    # 7 descriptions and 3 questions: a share of 0.4 is 3 and 1 rows, though only 3 and 3 can be chosen.
    curate(mixed, CurationConfig(keep=0.4, min_consistency=0), tmp_path)
    assert ids(tmp_path, "curated") == ["agree", "two-of-three", "quarrel", "sure"]


# Label accuracy ------------------------------------------------------------------------------------------------------


def test_label_accuracy_by_hand(mixed, tmp_path):
    summary = curate(mixed, CurationConfig(min_consistency=0.4, description_accuracy=ACCURACY), tmp_path)
    # Shares of right candidates: agree 1, two-of-three 2/3, quarrel 1/3, cut 1 (right, but cut), blank 0;
    # sure 1, majority 2/3, split 1/3.
    description, reasoning = [1, 2 / 3, 1 / 3, 1, 0], [1, 2 / 3, 1 / 3]
    assert summary["label_accuracy_before"] == {
        "overall": pytest.approx(np.mean(description + reasoning)),
        "description": pytest.approx(np.mean(description)),
        "reasoning": pytest.approx(np.mean(reasoning)),
    }
    assert summary["label_accuracy_after"] == {"overall": 1.0, "description": 1.0, "reasoning": 1.0}
    scores = {score["id"]: score for score in pq.read_table(tmp_path / "scores.parquet").to_pylist()}
    assert scores["cut"]["accuracy_after"] is None  # nothing was chosen, so there is nothing to measure
    assert scores["quarrel"]["accuracy_after"] == 0  # its winner is the first of three that disagree


def test_accuracy_needs_truth_and_a_measure(mixed, tmp_path):
    summary = curate(mixed, CurationConfig(), tmp_path)
    assert summary["label_accuracy_before"]["description"] is None
    assert summary["label_accuracy_before"]["reasoning"] is not None


def test_a_truth_that_cannot_be_measured_is_named(tmp_path):
    rows = table(row("odd", described(RED, RED), answer="no digit at all"))
    with pytest.raises(
        ValueError, match="row 'odd': description_accuracy cannot be measured against the answer 'no d"
    ):
        curate(rows, CurationConfig(description_accuracy=ACCURACY), tmp_path)


def test_accuracy_reads_answers_as_votes_do(tmp_path):
    rows = [row("a", answered("B. red", "1", "(B) red"), answer="B"), row("b", answered("1/2", "0.5"), answer=".5")]
    summary = curate(table(*rows), CurationConfig(min_consistency=0), tmp_path)
    assert summary["label_accuracy_before"]["reasoning"] == pytest.approx((2 / 3 + 1) / 2)


def test_answers_only_measure(mixed, tmp_path):
    curate(mixed, CurationConfig(), tmp_path / "with")
    without = mixed.remove_columns("answer").add_column(
        "answer", [None] * len(mixed), feature=mixed.features["answer"]
    )
    curate(without, CurationConfig(), tmp_path / "without")
    for split in ("curated", "dropped"):
        assert (
            split_file(tmp_path / "with", split).read_bytes() == split_file(tmp_path / "without", split).read_bytes()
        )


# Strategies ----------------------------------------------------------------------------------------------------------


def test_strategies_choose_as_they_say(tmp_path):
    long = RED.replace("a red", "a very red")
    rows = [row(f"x{i}", described(BLUE, long, RED, RED)) for i in range(40)]
    chosen = {}
    for strategy in ("self_consistency", "first", "longest", "random"):
        curate(table(*rows), CurationConfig(strategy=strategy), tmp_path / strategy)
        chosen[strategy] = completions(tmp_path / strategy)
    assert set(chosen["self_consistency"].values()) <= {RED, long}
    assert set(chosen["first"].values()) == {BLUE}
    assert set(chosen["longest"].values()) == {long}
    assert set(chosen["random"].values()) == {BLUE, long, RED}
    curate(table(*rows), CurationConfig(strategy="random", curation_seed=1), tmp_path / "other")
    assert completions(tmp_path / "other") != chosen["random"]


def test_ablations_keep_as_many_rows_as_self_consistency_would(mixed, tmp_path):
    rule = {"keep": 0.9, "min_consistency": 0.9}
    counts = {}
    for strategy in ("self_consistency", "random", "first"):
        summary = curate(mixed, CurationConfig(strategy=strategy, **rule), tmp_path / strategy)
        counts[strategy] = summary["kept"]
        assert ("inconsistent" in summary["dropped"]) == (strategy == "self_consistency")
    assert len(set(counts.values())) == 1 and 0 < counts["random"] < len(mixed)


def test_oracle_trains_on_the_truth(tmp_path):
    rows = [row("d", described(BLUE, BLUE), answer=RED), row("r", [reasoned("8"), reasoned("8")], answer="7")]
    summary = curate(table(*rows), CurationConfig(strategy="oracle", description_accuracy=ACCURACY), tmp_path)
    found = {row["id"]: row for row in load(str(tmp_path), split="curated").remove_columns("images")}
    assert found["d"]["completion"][0]["content"] == RED
    assert found["d"]["prompt"][0]["content"] == prompt_for("detailed_description")
    assert found["r"]["completion"][0]["content"] == "7"
    assert found["r"]["prompt"][0]["content"] == prompt_for("direct_answer", "How many?")
    assert [found[name]["mode"] for name in "dr"] == ["detailed_description", "direct_answer"]
    assert summary["label_accuracy_after"]["overall"] == 1.0


def test_oracle_needs_answers(tmp_path):
    with pytest.raises(ValueError, match="row 'd': the strategy 'oracle' needs the column `answer`, which is empty"):
        curate(table(row("d", described(BLUE, BLUE))), CurationConfig(strategy="oracle"), tmp_path)
    assert not split_file(tmp_path, "curated").exists()


# The artefact --------------------------------------------------------------------------------------------------------


def test_curated_is_what_trl_reads(mixed, tmp_path):
    curate(mixed, CurationConfig(), tmp_path)
    rows = load(str(tmp_path), split="curated")
    assert rows.features == CURATED_FEATURES
    assert load(str(tmp_path), split="dropped").features == DROPPED_FEATURES
    for example in rows.select_columns(["prompt", "completion"]):
        assert is_conversational(example)
        assert [message["role"] for part in ("prompt", "completion") for message in example[part]] == [
            "user",
            "assistant",
        ]
        assert "<image>" not in json.dumps(example)
    # `datasets` reads the folder without our help.
    assert datasets.load_dataset(str(tmp_path), split="curated")["id"][:] == rows["id"][:]
    assert len(datasets.load_dataset(str(tmp_path), "dropped", split="dropped")) + len(rows) == len(mixed)


def test_law_2_images_pass_through_undecoded(mixed, tmp_path):
    """Law 2: curation never looks at an image; bytes that are none reach both splits as they were."""
    curate(mixed, CurationConfig(min_consistency=0.4, description_accuracy=ACCURACY), tmp_path)
    for split in ("curated", "dropped"):
        images = pq.read_table(split_file(tmp_path, split))["images"].to_pylist()
        assert images and all(image == [GARBAGE] for image in images)


def test_law_3_same_bytes_again(mixed, tmp_path):
    """Law 3: same candidates, same settings, same bytes."""
    for strategy in ("self_consistency", "random"):
        digests = set()
        for number in range(2):
            folder = tmp_path / f"{strategy}-{number}"
            curate(mixed, CurationConfig(strategy=strategy, keep=0.5), folder)
            files = sorted(folder.rglob("*.parquet"))
            assert len(files) == 3
            digests.add(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
        assert len(digests) == 1


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_result_does_not_depend_on_the_batch(batch, mixed, tmp_path, monkeypatch):
    settings = CurationConfig(keep=0.5, description_accuracy=ACCURACY)
    expected = curate(mixed, settings, tmp_path / "whole")
    monkeypatch.setattr(curation, "_BATCH", batch)
    monkeypatch.setattr(writing, "_ROWS", batch)
    assert curate(mixed, settings, tmp_path / "batched") == expected
    for split in ("curated", "dropped"):
        rows = [pq.read_table(split_file(tmp_path / name, split)).to_pylist() for name in ("whole", "batched")]
        assert rows[0] == rows[1]
    settings_files = [(tmp_path / name / "settings.json").read_bytes() for name in ("whole", "batched")]
    assert settings_files[0] == settings_files[1]  # the hash of the candidates included


def test_selected_rows_are_matched_by_what_they_hold(mixed, tmp_path):
    """Law 1: a view of a dataset (selected, turned round) is curated like its rows."""
    turned = mixed.select(range(len(mixed) - 1, -1, -1))
    curate(mixed, CurationConfig(keep=0.5), tmp_path / "straight")
    curate(turned, CurationConfig(keep=0.5), tmp_path / "turned")
    assert completions(tmp_path / "straight") == completions(tmp_path / "turned")


def test_law_5_nothing_kept_is_still_an_artefact(tmp_path):
    """Law 5: if all rows are dropped, both splits are there and the counts say so."""
    summary = curate(table(row("a", described(RED, BLUE))), CurationConfig(min_consistency=0.9), tmp_path)
    assert (summary["kept"], summary["dropped"]) == (0, {"inconsistent": 1})
    assert len(load(str(tmp_path), split="curated")) == 0
    assert summary["mean_consistency"] is None
    kept = curate(table(row("a", described(RED, RED))), CurationConfig(), tmp_path / "all")
    assert (kept["kept"], kept["dropped"]) == (1, {})
    assert len(load(str(tmp_path / "all"), split="dropped")) == 0


def test_unusable_input_is_refused(mixed, tmp_path):
    settings = CurationConfig()
    with pytest.raises(ValueError, match="the candidates: there is no column 'candidates'"):
        curate(mixed.remove_columns("candidates"), settings, tmp_path)
    with pytest.raises(ValueError, match="the id 'twice' stands in 2 rows"):
        curate(table(*[row("twice", described(RED, RED))] * 2), settings, tmp_path)
    for options, message in [
        ({"strategy": "best"}, "unknown strategy 'best'"),
        ({"keep": 0}, r"keep is a share in \(0, 1\], got 0"),
        ({"keep": 1.5}, "got 1.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            CurationConfig(**options)
    with pytest.raises(ValueError, match="unknown similarity 'x'"):
        curate(mixed, CurationConfig(similarity="x"), tmp_path)


def test_a_folder_belongs_to_one_curation_and_a_failed_try_leaves_no_trace(mixed, tmp_path):
    with pytest.raises(ValueError, match=r"description_accuracy: cannot import 'no\.such'"):
        curate(mixed, CurationConfig(description_accuracy="no.such"), tmp_path)
    curate(mixed, CurationConfig(keep=0.5), tmp_path)
    before = (tmp_path / "data" / "curated-00000-of-00001.parquet").read_bytes()
    with pytest.raises(AnotherRunError, match=r"keep is 0\.5 there and 0\.9 here"):
        curate(mixed, CurationConfig(keep=0.9), tmp_path)
    with pytest.raises(AnotherRunError, match="candidates is"):
        curate(mixed.select(range(3)), CurationConfig(keep=0.5), tmp_path)
    curate(mixed, CurationConfig(keep=0.5), tmp_path)
    assert (tmp_path / "data" / "curated-00000-of-00001.parquet").read_bytes() == before


def test_no_candidates_are_refused(mixed, tmp_path):
    with pytest.raises(ValueError, match="no rows; there is nothing to curate"):
        curate(mixed.select([]), CurationConfig(), tmp_path)
