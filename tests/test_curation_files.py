"""The curated folder: whole chains in plain headings, conversations, a card that keeps its promises."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curating import BLUE, GARBAGE, RED, answered, completions, described, ids, looked, reasoned, row, said, table

from sicog_trl.curation import CurationConfig, curate, load_candidates, writing
from sicog_trl.data import CANDIDATE, CANDIDATES_FEATURES, CURATED_FEATURES, load, save, split_file
from sicog_trl.prompts import STEP_REQUESTS
from sicog_trl.responses import split_steps


def bold(text: str) -> str:
    """Dress the headings of a chain."""
    return "\n".join(f"**{line}**" if line.startswith("Step ") else line for line in text.splitlines()) + "\n"


def test_defect_12_the_whole_chain_is_kept_and_no_answer_is_cut(tmp_path):
    """The released code keeps the short answer alone, and cuts an answer at the blank line that follows it."""
    chain = reasoned("7")["text"]
    rows = [
        row("sound", [reasoned("7", "One way."), reasoned("7", "Another.")]),
        row("goes-on", [said(f"{chain}\n\nBy the way, there is more.", "chain_of_thought")] * 2),
    ]
    summary = curate(table(*rows), CurationConfig(), tmp_path)
    text = completions(tmp_path)["sound"]
    assert split_steps(text, "chain_of_thought") == ["Count.", "Things.", "One way.", "7"]
    assert summary["dropped"] == {"incomplete": 1}
    assert summary["candidate_faults"] == {"text_after_answer": 2}


def test_defect_19_faults_are_counted_in_detail_and_never_chosen(tmp_path):
    """The released code filters nothing: empty, cut and malformed candidates are scored like the others."""
    whole = looked(RED)["text"]
    broken = {
        "empty": "  ",
        "missing_step": whole.replace("Step 3", "Then"),
        "no_steps": RED,
        "text_before_steps": f"Sure!\n{whole}",
    }
    bad = [said(text, "chain_of_description") for text in broken.values()]
    rows = [
        row("mixed", [*bad, looked(RED), looked(RED)]),
        row("cut", [said(whole, "chain_of_description", "length")]),
        row("damaged", [{**looked(RED), "corruption": "gaussian_blur"}]),
    ]
    summary = curate(table(*rows), CurationConfig(), tmp_path)
    assert summary["candidate_faults"] == {**dict.fromkeys(broken, 1), "truncated": 1, "corrupted": 1}
    assert summary["dropped"] == {"corrupted": 1, "truncated": 1}
    assert completions(tmp_path) == {"mixed": whole}
    scores = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert scores[0]["scores"] == [0, 0, 0, 0, pytest.approx(1 / 5), pytest.approx(1 / 5)]
    assert (scores[0]["winner"], scores[0]["consistency"]) == (4, pytest.approx(1 / 5))


def test_headings_are_written_plain_and_counted(tmp_path):
    plain = looked(RED)["text"]
    dressed = said(bold(plain), "chain_of_description")
    rows = [
        row("dressed", [dressed, dressed]),
        row("plain", [looked(RED)] * 2),
        row("spaced", described(f"{RED}\n", f"{RED}\n")),
    ]
    summary = curate(table(*rows), CurationConfig(), tmp_path)
    assert completions(tmp_path) == {"dressed": plain, "plain": plain, "spaced": RED}
    assert (summary["headings_normalized"], summary["whitespace_stripped"]) == (1, 1)
    # What is dropped is shown as it was said.
    curate(table(*rows), CurationConfig(strategy="self_consistency", keep=0.01), tmp_path / "dropped")
    dropped = load(str(tmp_path / "dropped"), split="dropped").remove_columns("images")[:]
    assert dropped["candidates"][0][0]["text"] == bold(plain)


# Conversations -------------------------------------------------------------------------------------------------------


def conversations() -> datasets.Dataset:
    return table(
        row("sure", [looked(RED), looked(RED), looked(RED)]),
        row("less", [looked(RED), looked(RED), looked(BLUE)]),
        row("short", described(RED, RED, RED)),
        row("asked", [reasoned("7"), reasoned("7"), *answered("7")], question="How many {things}?"),
        row("none", [looked(RED), looked(BLUE)]),
    )


def test_sure_chains_are_told_in_turns_as_well(tmp_path):
    summary = curate(conversations(), CurationConfig(min_consistency=0.4, multi_turn_min_consistency=0.9), tmp_path)
    assert ids(tmp_path, "curated") == ["sure", "less", "short", "asked"]
    spoken = load(str(tmp_path), split="multi_turn")
    assert spoken.features == CURATED_FEATURES
    assert spoken["id"][:] == [f"sure-turn-{n}" for n in range(1, 6)] + [f"asked-turn-{n}" for n in range(1, 5)]
    assert summary["multi_turn"] == {"chains": 2, "rows": 9, "score_needed": {"description": 0.9, "reasoning": 0.9}}
    turns = {one["id"]: one for one in spoken.remove_columns("images")}
    steps = split_steps(completions(tmp_path)["sure"], "chain_of_description")
    for number, (request, step) in enumerate(zip(STEP_REQUESTS["chain_of_description"], steps, strict=True), 1):
        one = turns[f"sure-turn-{number}"]
        assert one["completion"] == [{"role": "assistant", "content": step}]
        assert one["prompt"][-1] == {"role": "user", "content": request}
        assert [message["role"] for message in one["prompt"]] == ["user", "assistant"] * (number - 1) + ["user"]
    assert [m["content"] for m in turns["sure-turn-3"]["prompt"][1::2]] == steps[:2]
    asked = turns["asked-turn-1"]
    assert asked["prompt"][0]["content"] == STEP_REQUESTS["chain_of_thought"][0].format(question="How many {things}?")
    assert (asked["task"], asked["mode"], asked["consistency"]) == ("reasoning", "chain_of_thought", 1)
    assert turns["asked-turn-4"]["completion"][0]["content"] == "7"


def test_turns_have_the_images_of_their_row_undecoded(tmp_path):
    curate(conversations(), CurationConfig(multi_turn_min_consistency="q0.5"), tmp_path)
    images = pq.read_table(split_file(tmp_path, "multi_turn"))["images"].to_pylist()
    assert images and all(one == [GARBAGE] for one in images)


def test_a_quantile_of_chains_is_one_of_the_kept_ones(tmp_path):
    config = CurationConfig(min_consistency=0.4, multi_turn_min_consistency="q0.5")
    summary = curate(conversations(), config, tmp_path)
    # Of the kept chains of description (1 and 0.5) the better half, and the one of reasoning.
    assert summary["multi_turn"]["chains"] == 2


def test_turns_are_off_unless_asked_for(tmp_path):
    assert curate(conversations(), CurationConfig(), tmp_path)["multi_turn"] is None
    assert not split_file(tmp_path, "multi_turn").exists()
    truths = table(row("a", [looked(RED)] * 2, answer=RED))
    config = CurationConfig(strategy="oracle", multi_turn_min_consistency=0)
    assert curate(truths, config, tmp_path / "truth")["multi_turn"]["rows"] == 0  # a truth is no chain


# The card ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["all", "some", "none"])
def test_law_7_the_folder_loads_without_our_help_whatever_was_kept(kept, tmp_path):
    rows = [row("a", [looked(RED)] * 2)] * (kept != "none") + [row("b", described("", ""))] * (kept != "all")
    curate(table(*rows), CurationConfig(multi_turn_min_consistency=0.5), tmp_path)
    expected = {"curated": 1, "multi_turn": 5} if kept != "none" else {}
    expected |= {"dropped": 1} if kept != "all" else {}
    assert set(datasets.get_dataset_config_names(str(tmp_path))) == set(expected)
    for name, count in expected.items():
        assert len(datasets.load_dataset(str(tmp_path), name, split=name)) == count
    default = datasets.load_dataset(str(tmp_path))
    assert list(default) == (["curated"] if kept != "none" else ["dropped"])


def test_two_folders_of_one_name_are_two_datasets(tmp_path):
    """`datasets` caches a folder with a card by its last name: the card must say what is in it."""
    for name, text in (("a", RED), ("b", BLUE)):
        curate(table(row("x", described(text, text))), CurationConfig(), tmp_path / name / "curate")
    for name, text in (("a", RED), ("b", BLUE)):
        loaded = datasets.load_dataset(str(tmp_path / name / "curate"), split="curated")
        assert loaded["completion"][0][0]["content"] == text


def test_law_4_a_curation_that_dies_publishes_nothing_and_goes_on(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    rows = table(row("a", described(RED, RED)), row("b", described("", "")))
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_dropped_table", die)
        with pytest.raises(KeyboardInterrupt):
            curate(rows, CurationConfig(), tmp_path / "died")
    assert not list((tmp_path / "died").rglob("*.parquet")) and not (tmp_path / "died" / "README.md").exists()
    for folder in ("died", "whole"):
        curate(rows, CurationConfig(), tmp_path / folder)
    files = {file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("*") if file.is_file()}
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "died" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


# Several folders -----------------------------------------------------------------------------------------------------


def test_candidates_of_several_models_are_curated_as_one(tmp_path):
    looks, thinks = table(row("a", described(RED, RED))), table(row("b", answered("7", "7")))
    for name, rows in (("looks", looks), ("thinks", thinks)):
        save(rows, tmp_path / name, "candidates")
    names = [str(tmp_path / "looks"), str(tmp_path / "thinks")]
    rows = load_candidates(names)
    assert curate(rows, CurationConfig(), tmp_path / "out")["kept"] == 2
    assert load(str(tmp_path / "out"), split="curated")["task"][:] == ["description", "reasoning"]
    save(looks, tmp_path / "again", "candidates")
    with pytest.raises(ValueError, match=r"the id 'a' stands in \S+/looks and in \S+/again; ids must be unique"):
        load_candidates([*names, str(tmp_path / "again")])
    save(looks.remove_columns("error"), tmp_path / "old", "candidates")
    with pytest.raises(ValueError, match=r"/old: there is no column 'error'"):
        load_candidates([str(tmp_path / "old")])


def test_candidates_of_older_files_lack_some_fields(tmp_path):
    rows = table(row("a", described(RED, RED)), row("b", described("", "")))
    old = [
        {key: value for key, value in candidate.items() if key not in ("corruption", "mean_logprob")}
        for candidate in rows.remove_columns("images")[0]["candidates"]
    ]
    older = rows.remove_columns("candidates").add_column("candidates", pa.array([old, old]))
    curate(older, CurationConfig(keep=0.5), tmp_path)
    kept, dropped = load(str(tmp_path), split="curated"), load(str(tmp_path), split="dropped")
    assert (kept["id"][:], dropped["id"][:]) == (["a"], ["b"])
    assert dropped["candidates"][0][0]["mean_logprob"] is None
    assert dropped["candidates"][0][0]["text"] == RED


@pytest.mark.parametrize("names", [["old", "new"], ["new", "old"]])
def test_candidates_of_an_older_file_are_curated_beside_newer_ones(names, tmp_path):
    """A round that accumulates, or a second model, may meet a folder from before a field was added."""
    lacking = {name: feature for name, feature in CANDIDATE.items() if name not in ("corruption", "mean_logprob")}
    old = datasets.Features({**CANDIDATES_FEATURES, "candidates": datasets.List(lacking)})
    save(datasets.Dataset.from_list([row("old", described(RED, RED))], features=old), tmp_path / "old", "candidates")
    save(table(row("new", described(RED, RED))), tmp_path / "new", "candidates")
    rows = load_candidates([str(tmp_path / name) for name in names])
    assert rows.features == CANDIDATES_FEATURES
    curate(rows, CurationConfig(), tmp_path / "out")
    assert ids(tmp_path / "out", "curated") == names
    assert pq.read_table(split_file(tmp_path / "out", "curated"))["images"].to_pylist() == [[GARBAGE]] * 2


def test_no_name_of_candidates_is_asked_for():
    with pytest.raises(ValueError, match="dataset_name is empty"):
        load_candidates([])


def test_a_candidate_without_text_and_an_answer_without_question_are_named(tmp_path):
    for rows, message in (
        (row("a", [*described(RED), {**described(RED)[0], "text": None}]), "row 'a': a candidate has no `text`"),
        (row("b", [reasoned("7")] * 2, question=None), "row 'b': told in turns its chain begins with the question"),
        (row("c", [{**described(RED)[0], "mode": mode} for mode in (None, "haiku")]), "name the mode None"),
    ):
        with pytest.raises(ValueError, match=message):
            curate(table(rows), CurationConfig(multi_turn_min_consistency=0), tmp_path)


def test_an_unknown_mode_is_named(tmp_path):
    rows = table(row("a", [{**described(RED)[0], "mode": "haiku"}]))
    with pytest.raises(ValueError, match="the candidates name the mode 'haiku'; known are short_caption"):
        curate(rows, CurationConfig(), tmp_path)
