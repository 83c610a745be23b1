import json

import numpy as np
import pytest

from sicog_trl.evaluation.comparison import (
    bootstrap_interval,
    compare,
    compare_scores,
    exact_mcnemar,
    pair,
    sign_flip_test,
)


BEFORE = np.array([1, 1, 0, 0, 0, 1.0])
AFTER = np.array([1, 0, 1, 1, 1, 1.0])


def test_numbers_computed_by_hand():
    result = compare_scores(BEFORE, AFTER)
    assert (result["n"], result["fixed"], result["broken"], result["test"]) == (6, 3, 1, "mcnemar")
    assert (result["before_score"], result["after_score"]) == (0.5, pytest.approx(5 / 6))
    assert result["difference"] == pytest.approx(1 / 3)
    assert result["p"] == pytest.approx(2 * (1 + 4) / 2**4)
    assert result["low"] < 1 / 3 < result["high"]


@pytest.mark.parametrize(
    ("fixed", "broken", "p"), [(0, 0, 1), (5, 0, 2 / 32), (0, 5, 2 / 32), (2, 2, 1), (54, 30, 0.0116)]
)
def test_exact_mcnemar(fixed, broken, p):
    assert exact_mcnemar(fixed, broken) == pytest.approx(p, rel=0.01)


def test_exact_mcnemar_of_many_rows_stays_a_number():
    assert 0 < exact_mcnemar(5200, 4900) < 0.01


def test_bootstrap_of_three_rows():
    # The mean of three draws from [1, 0, 0] is 0 with probability 8/27 and 1 with 1/27, both above 2.5 %.
    assert bootstrap_interval(np.array([1.0, 0, 0])) == (0.0, 1.0)


def test_bootstrap_equals_drawing_row_by_row():
    differences = np.random.default_rng(1).choice([-0.5, -1 / 3, 0, 1 / 3, 1], size=400)
    rows = np.random.default_rng(2).integers(400, size=(10_000, 400))
    expected = np.quantile(differences[rows].mean(axis=1), (0.025, 0.975))
    assert bootstrap_interval(differences) == pytest.approx(tuple(expected), abs=0.003)


def test_bootstrap_is_seeded():
    differences = AFTER - BEFORE
    assert bootstrap_interval(differences, seed=3) == bootstrap_interval(differences, seed=3)


def test_sign_flips():
    # Of the 16 ways to sign four equal differences, two are as far from zero.
    assert sign_flip_test(np.full(4, 0.5)) == pytest.approx(2 / 16, abs=0.01)
    assert sign_flip_test(np.zeros(4)) == 1
    assert compare_scores(BEFORE / 2, AFTER / 2)["test"] == "sign_flip"


@pytest.mark.parametrize("scores", [[], [np.nan]])
def test_scores_that_are_none_are_refused(scores):
    with pytest.raises(ValueError, match="cannot compare"):
        compare_scores(np.array(scores), np.array(scores))


def sample(doc_id, target="three", score=1.0):
    return {"doc_id": doc_id, "hash": target, "input": "Which?", "target": target, "scores": {"accuracy": score}}


def test_rows_are_joined_by_doc_id():
    pairs = pair([sample(0, "one"), sample(1, "two")], [sample(1, "two"), sample(0, "one")])
    assert [(a["target"], b["target"]) for a, b in pairs] == [("one", "one"), ("two", "two")]


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ([sample(0), sample(1, "four")], "doc_id 1 .* differ in target: 'three' and 'four'"),
        ([sample(0)], "only on one side, such as doc_id 1 of the first"),
        ([sample(0), sample(0)], "occurs twice"),
    ],
)
def test_rows_that_do_not_match_are_refused(after, message):
    with pytest.raises(ValueError, match=message):
        pair([sample(0), sample(1)], after)


def write(folder, samples, **conditions):
    folder.mkdir()
    (folder / "samples_digits_vqa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    (folder / "results_digits_vqa.json").write_text(json.dumps({"conditions": conditions}))
    return folder


def test_compare_reads_two_folders(tmp_path):
    before = write(tmp_path / "before", [sample(0, score=0.0), sample(1, score=0.0)], rows="a")
    after = write(tmp_path / "after", [sample(1, score=0.0), sample(0, score=1.0)], rows="a")
    (entry,) = compare(before, after, {"digits_vqa": ["accuracy"]})
    assert (entry["task"], entry["metric"], entry["difference"], entry["fixed"]) == ("digits_vqa", "accuracy", 0.5, 1)


def test_compare_refuses_other_conditions(tmp_path):
    before = write(tmp_path / "before", [sample(0)], rows="a", dtype="auto")
    after = write(tmp_path / "after", [sample(0)], rows="a", dtype="bfloat16")
    with pytest.raises(ValueError, match="dtype is 'auto' and 'bfloat16'"):
        compare(before, after, {"digits_vqa": ["accuracy"]})


def test_compare_refuses_missing_samples(tmp_path):
    before = write(tmp_path / "before", [sample(0)])
    (before / "samples_digits_vqa.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"samples_digits_vqa\.jsonl is missing"):
        compare(before, before, {"digits_vqa": ["accuracy"]})
