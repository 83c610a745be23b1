"""Which rows stay: thresholds absolute and as quantiles, likelihood, and what somebody is told who keeps nothing."""

import pytest
from curating import BLUE, FIVE, RED, answered, completions, described, ids, row, table

from sicog_trl.curation import CurationConfig, curate
from sicog_trl.curation.selection import advice, from_paper_threshold, overview, parse_threshold, score_needed
from sicog_trl.data import load


def rows_with_scores(*agreeing: int) -> list[dict]:
    """Questions with four candidates, of which so many say the same."""
    return [
        row(f"r{number}", answered(*["1"] * count, *map(str, range(2, 6 - count))))
        for number, count in enumerate(agreeing)
    ]


def test_who_gives_no_threshold_keeps_the_best_three_quarters(tmp_path):
    summary = curate(table(*rows_with_scores(4, 3, 4, 2, 3, 4, 2, 4)), CurationConfig(), tmp_path)
    assert ids(tmp_path, "curated") == ["r0", "r1", "r2", "r4", "r5", "r7"]
    assert summary["dropped"] == {"inconsistent": 2}
    assert summary["score_needed"] == {"reasoning": pytest.approx(2 / 3)}


def test_a_quantile_is_taken_of_each_task(tmp_path):
    rows = rows_with_scores(4, 3, 4, 2)
    rows += [row(f"d{i}", described(RED, *[RED] * i, *[BLUE] * (4 - i))) for i in (1, 2, 3, 4)]
    summary = curate(table(*rows), CurationConfig(min_consistency="q0.5"), tmp_path)
    assert ids(tmp_path, "curated") == ["r0", "r2", "d3", "d4"]
    assert summary["score_needed"] == {"description": pytest.approx(0.75), "reasoning": 1.0}


def test_rows_that_score_like_the_last_that_pass_stay_too(tmp_path):
    """A row on which all agree is not `inconsistent` because a share must go."""
    assert curate(table(*rows_with_scores(4, 4, 4, 4)), CurationConfig(), tmp_path)["kept"] == 4


def test_a_winner_with_whom_nobody_agrees_passes_no_quantile(tmp_path):
    rows = table(row("a", answered("1", "2")), row("b", answered("3", "4")), row("c", answered("5", "5")))
    assert curate(rows, CurationConfig(min_consistency="q0"), tmp_path)["kept"] == 1
    assert ids(tmp_path, "curated") == ["c"]
    assert curate(rows, CurationConfig(min_consistency=0), tmp_path / "zero")["kept"] == 3


def test_who_gives_a_share_alone_gets_it_except_what_nobody_agrees_with(tmp_path):
    """The quantile that holds without a share would keep four fifths down to three quarters."""
    rows = table(*rows_with_scores(4, 3, 4, 2, 1))
    for share, kept in ((0.8, ["r0", "r1", "r2", "r3"]), (1.0, ["r0", "r1", "r2", "r3"]), (0.4, ["r0", "r2"])):
        curate(rows, CurationConfig(keep=share), tmp_path / str(share))
        assert ids(tmp_path / str(share), "curated") == kept
    assert curate(rows, CurationConfig(keep=1.0, min_consistency="q0.25"), tmp_path / "both")["kept"] == 4


def test_keep_and_min_consistency_both_apply(tmp_path):
    rows = table(*rows_with_scores(4, 3, 4, 2))
    assert curate(rows, CurationConfig(keep=0.25), tmp_path / "keep")["kept"] == 1
    assert curate(rows, CurationConfig(keep=1.0, min_consistency=0.9), tmp_path / "min")["kept"] == 2


@pytest.mark.parametrize(
    ("value", "parsed"),
    [(0.75, 0.75), ("0.75", 0.75), (1, 1.0), ("q0.25", "q0.25"), ("Q.25", "q0.25"), (None, None), ("none", None)],
)
def test_thresholds_from_yaml_and_command_line(value, parsed):
    config = CurationConfig(min_consistency=value, multi_turn_min_consistency=value)
    assert config.multi_turn_min_consistency == parsed
    assert config.min_consistency == ("q0.25" if parsed is None else parsed)
    assert type(config.multi_turn_min_consistency) is type(parsed)


@pytest.mark.parametrize("value", ["p25", "q25", 1.5, -0.1, "nan", True])
def test_what_is_no_threshold_is_refused(value):
    with pytest.raises(
        ValueError, match=r"min_consistency is a score in \[0, 1\] such as 0.75, a quantile such as q0"
    ):
        CurationConfig(min_consistency=value)


def test_a_quantile_is_one_of_the_scores():
    assert score_needed("q0.25", [0.1, 0.2, 0.3, 0.4]) == 0.2
    assert score_needed("q0.25", [0.0, 0.0, 0.0, 0.4]) > 0
    assert score_needed(parse_threshold("x", 0), [0.1]) == 0
    assert score_needed("q0.25", []) is None and score_needed(None, [1.0]) is None


@pytest.mark.parametrize(
    ("threshold", "count", "ours"),
    [(0.8, 3, 0.7), (0.85, 3, 0.775), (0.9, 3, 0.85), (0.8, 6, 0.76), (0.9, 9, 0.8875)],
)
def test_thresholds_of_the_paper_in_our_scale(threshold, count, ours):
    assert from_paper_threshold(threshold, count) == pytest.approx(ours)
    assert (1 + (count - 1) * ours) / count == pytest.approx(threshold)
    with pytest.raises(ValueError, match="one candidate has no others"):
        from_paper_threshold(threshold, 1)


# Likelihood ----------------------------------------------------------------------------------------------------------


def likely(*candidates: tuple[str, float | None]) -> list[dict]:
    return [{**described(text)[0], "mean_logprob": logprob} for text, logprob in candidates]


def test_likelihood_chooses_what_the_model_found_likeliest(tmp_path):
    rows = [
        row("a", likely((RED, -0.9), (BLUE, -0.2), (RED, -0.3))),
        row("b", likely((RED, -0.9), (RED, -0.5), (FIVE, -0.5))),  # the first of two
        row("c", [*likely((BLUE, -0.5), (RED, -0.7)), {**described(" ")[0], "mean_logprob": None}]),
    ]
    curate(table(*rows), CurationConfig(strategy="likelihood", min_consistency=0), tmp_path)
    assert completions(tmp_path) == {"a": BLUE, "b": RED, "c": BLUE}


def test_likelihood_that_was_not_recorded_is_asked_for(tmp_path):
    rows = table(row("a", likely((RED, -0.9), (BLUE, None))))
    with pytest.raises(ValueError, match=r"row 'a': .* needs `mean_logprob` of every candidate.*--logprobs true"):
        curate(rows, CurationConfig(strategy="likelihood"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strategy", ["random", "first", "longest", "likelihood"])
def test_every_ablation_keeps_as_many_rows(strategy, tmp_path):
    rows = [row(f"r{i}", likely((RED, -1.0), (RED if i % 3 else BLUE, -0.5))) for i in range(12)]
    counts = {
        name: curate(table(*rows), CurationConfig(strategy=name), tmp_path / name)["kept"]
        for name in ("self_consistency", strategy)
    }
    assert set(counts.values()) == {8}


# What is said --------------------------------------------------------------------------------------------------------


def test_who_keeps_nothing_is_told_what_to_change(tmp_path):
    rows = [row(f"r{i}", answered("1")) for i in range(3)] + [row("cut", described(""))]
    summary = curate(table(*rows), CurationConfig(), tmp_path)
    said = advice(summary)
    assert said.startswith("WARNING: 0 of 4 rows were kept.")
    assert "3 inconsistent: " in said and "min_consistency" in said and "more than one candidate" in said
    assert "1 empty: " in said
    table_of_it = overview(summary)
    assert "dropped: inconsistent" in table_of_it and "75.0%" in table_of_it
    assert "candidates with the fault empty: 1" in table_of_it and "longer" not in table_of_it
    assert "7 texts were longer" in overview({**summary, "texts_longer_than_similarity_reads": 7})
    fine = curate(table(row("a", answered("1", "1"))), CurationConfig(), tmp_path / "fine")
    assert advice(fine) is None


def test_next_to_nothing_is_told_too():
    assert advice({"rows_in": 100, "kept": 4, "dropped": {"truncated": 96}}).count("max_completion_length") == 1
    assert advice({"rows_in": 100, "kept": 5, "dropped": {"truncated": 95}}) is None


def test_settings_tell_one_spelling_of_a_threshold(tmp_path):
    """Or the same run, once from YAML and once from the command line, would refuse to go on."""
    rows = table(row("a", answered("1", "1")))
    curate(rows, CurationConfig(min_consistency=0.5), tmp_path)
    curate(rows, CurationConfig(min_consistency="0.50", similarity_batch_size=4), tmp_path)
    assert load(str(tmp_path), split="curated")["id"][:] == ["a"]
