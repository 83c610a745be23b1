import json

import numpy as np
import pytest

from sicog_trl.evaluation.comparison import compare, compare_scores, pair
from sicog_trl.evaluation.significance import (
    bootstrap_interval,
    exact_mcnemar,
    holm,
    sign_flip_test,
    smallest_detectable_difference,
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


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1; none may be smaller than the one before it.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_holm_holds_the_error_of_the_family():
    rng = np.random.default_rng(0)
    families = [holm(p) for p in rng.random((2000, 12))]
    assert np.mean([min(family) < 0.05 for family in families]) == pytest.approx(0.05, abs=0.015)


def test_smallest_detectable_difference_of_the_published_table():
    # Two models of 50 % whose answers correlate by 0.5: the differences have the variance 0.25.
    differences = np.tile([1.0, -1, 0, 0, 0, 0, 0, 0], 2500 // 8 + 1)[:2500]
    assert smallest_detectable_difference(differences) == pytest.approx(0.028, abs=0.0005)
    assert smallest_detectable_difference(differences[:1000]) == pytest.approx(0.044, abs=0.0005)


def test_the_smallest_detectable_difference_is_found_four_times_of_five():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=400)
    effect = smallest_detectable_difference(noise)
    means = rng.normal(effect, 1, size=(4000, 400)).mean(axis=1)
    assert np.mean(means > 1.96 / np.sqrt(400)) == pytest.approx(0.8, abs=0.05)


def test_without_scatter_no_smallest_difference_is_claimed():
    assert smallest_detectable_difference(np.zeros(50)) is None
    assert smallest_detectable_difference(np.ones(1)) is None


def sample(doc_id, target="three", score=1.0, name="accuracy", num_tokens=None):
    known = {"doc_id": doc_id, "hash": target, "input": "Which?", "target": target}
    return {**known, "scores": {name: score}, "num_tokens": num_tokens}


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


def write(folder, samples, task="digits_vqa", **conditions):
    folder.mkdir(exist_ok=True)
    (folder / f"samples_{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    (folder / f"results_{task}.json").write_text(json.dumps({"conditions": conditions}))
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


@pytest.mark.parametrize("name", ["prompt_hash", "task_version"])
def test_compare_refuses_what_was_asked_differently(tmp_path, name):
    for side, value in (("before", "1"), ("after", "2")):
        folder = write(tmp_path / side, [sample(0)], rows="a")
        made = {"conditions": {"rows": "a"}, "manifest": {name: value}}
        (folder / "results_digits_vqa.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match=f"{name} is '1' and '2'"):
        compare(tmp_path / "before", tmp_path / "after", {"digits_vqa": ["accuracy"]})


def test_compare_refuses_missing_samples(tmp_path):
    before = write(tmp_path / "before", [sample(0)])
    (before / "samples_digits_vqa.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"samples_digits_vqa\.jsonl is missing"):
        compare(before, before, {"digits_vqa": ["accuracy"]})


def test_a_row_that_one_side_could_not_score_is_counted_and_not_compared(tmp_path):
    before = write(tmp_path / "before", [sample(0, score=0.0), sample(1, score=None), sample(2, score=0.0)])
    after = write(tmp_path / "after", [sample(0, score=1.0), sample(1, score=1.0), sample(2, score=None)])
    (entry,) = compare(before, after, {"digits_vqa": ["accuracy"]})
    assert (entry["n"], entry["unscored"], entry["difference"], entry["fixed"]) == (1, 2, 1.0, 1)


def test_a_row_that_belongs_to_another_rows_score_is_not_missing(tmp_path):
    for side in ("before", "after"):
        write(tmp_path / side, [sample(0), {**sample(1), "scores": {}}, sample(2, score=None)], "mmbench")
    (entry,) = compare(tmp_path / "before", tmp_path / "after", {"mmbench": ["gpt_eval_score"]})
    assert (entry["n"], entry["unscored"]) == (1, 1)


def test_a_task_without_a_single_scored_row_is_no_difference_and_no_part_of_the_family(tmp_path):
    for side, score in (("before", 0.0), ("after", 1.0)):
        write(tmp_path / side, [sample(i, score=score) for i in range(8)], "mmstar")
        write(tmp_path / side, [sample(i, score=None) for i in range(2)], "mmvet")
    entries = compare(tmp_path / "before", tmp_path / "after", {"mmstar": ["average"], "mmvet": ["gpt_eval_score"]})
    assert [(entry["n"], entry["unscored"]) for entry in entries] == [(8, 0), (0, 2)]
    assert entries[0]["p_holm"] == entries[0]["p"] == 2 / 2**8
    assert {entries[1][key] for key in ("difference", "p", "p_holm", "smallest_detectable")} == {None}
    assert json.dumps(entries, allow_nan=False)


def test_the_score_of_the_rows_is_compared_where_the_headline_is_no_mean_over_rows(tmp_path):
    for side, score in (("before", 0.25), ("after", 0.5)):
        write(tmp_path / side, [sample(i, score=score, name="score", num_tokens=4 * i) for i in range(3)], "docvqa")
    (entry,) = compare(tmp_path / "before", tmp_path / "after", {"docvqa": ["anls"]})
    assert (entry["metric"], entry["difference"], entry["test"]) == ("score", 0.25, "sign_flip")
    assert (entry["before_tokens"], entry["after_tokens"]) == (4.0, 4.0)


def test_only_leading_metrics_are_corrected_together(tmp_path):
    for side, score in (("before", 0.0), ("after", 1.0)):
        for task in ("digits_caption", "digits_vqa"):
            rows = [sample(i, score=score) for i in range(6)]
            for row in rows:
                row["scores"]["precision"] = score
            write(tmp_path / side, rows, task)
    metrics = {"digits_caption": ["accuracy", "precision"], "digits_vqa": ["accuracy"]}
    entries = compare(tmp_path / "before", tmp_path / "after", metrics)
    assert [entry["p_holm"] for entry in entries] == [2 * 2 / 2**6, None, 2 * 2 / 2**6]
