"""What the reports say of contamination and of what was published; text of rows stays text on every page."""

import json
import re
import shutil
from pathlib import Path

import pytest
from test_decontamination import QUESTION, benchmark_of, check, photo, pool_of, resized, stored
from test_report import both, make_run

from sicog_trl.report import write_contamination_report
from sicog_trl.report.contamination import MAX_TEXT, NUM_DUPLICATES, find_pairs, read_check
from sicog_trl.report.pages import write_pages


HOSTILE = "<script>alert(1)</script><svg onload=alert(2)></svg> [x](https://evil.example) ![i](//evil.example/i) | `c`"


def make_check(folder: Path, name: str = "asked", text: str = "", **settings) -> list:
    """Check a pool with a copy of a picture, one of a question, a duplicate and a broken image."""
    asked = [photo(seed) for seed in range(3)]
    rows = [
        {"id": f"copy{text}", "images": [stored(resized(asked[1]))], "question": f"What{text}?"},
        {"id": f"words{text}", "images": [stored(photo(50))], "question": f"{QUESTION} {text}"},
        {"id": f"kept{text}", "images": [stored(photo(60))], "question": f"Where{text}?"},
        {"id": f"again{text}", "images": [stored(resized(photo(60)))], "question": f"Where{text}?"},
        {"id": f"broken{text}", "images": [{"bytes": b"<svg onload=alert(3)>", "path": None}], "question": "Why?"},
    ]
    benchmarks = [benchmark_of([{"image": stored(each), "question": f"{QUESTION} {text}"} for each in asked], name)]
    summary, _ = check(pool_of(rows), benchmarks, folder, **settings)
    (folder / "summary.json").write_text(json.dumps(summary))
    return benchmarks


def pages(folder: Path, *given) -> tuple[str, str]:
    page = write_contamination_report(folder, *given)
    return page.read_text(), page.with_suffix(".md").read_text()


def test_a_check_says_what_came_in_what_went_and_why_with_both_pictures(tmp_path):
    for text in pages(tmp_path, make_check(tmp_path)):
        assert "5 rows came in and 1 were kept; dropped: 2 contaminated, 1 duplicate, 1 unreadable image." in text
        assert "image of asked, row 1: " in text and "of 64 bits" in text and "repeats kept" in text
        assert "question of asked, row 0: 100% of its words" in text
        assert "bits of 64 in which pictures that are near differ at most" in text and "min_similarity" in text
    page, twin = pages(tmp_path, make_check(tmp_path))
    # three pairs, both rows of which have a picture; the unreadable one is only counted
    assert page.count('<article class="card">') == 3 and page.count('src="data:image/') == 6
    images = re.findall(r"!\[image\]\[(.+?)\]", twin)
    assert len(images) == 6 and all(f"[{name}]: data:image/" in twin for name in images)
    assert "here" in page.split("asked<small>")[1][:20]  # where the benchmark is from


def test_what_was_not_compared_is_said(tmp_path):
    make_check(tmp_path / "pictures", texts=False, duplicates=False)
    page, _ = pages(tmp_path / "pictures")
    assert "Duplicates were not looked for." in page and "Texts were not compared, only pictures." in page
    assert not re.search("min_overlap|min_words|max_duplicate_distance", page) and "max_fine_distance" in page
    assert "the rows of the benchmark are not at hand" in page and "asked, row 1" in page
    blank = stored(photo(0).point(lambda value: 255))
    summary, _ = check(pool_of([{"images": [blank]}]), [], tmp_path / "alone")
    (tmp_path / "alone" / "summary.json").write_text(json.dumps(summary))
    for text in pages(tmp_path / "alone"):
        assert "1 rows came in and 1 were kept; dropped: none." in text
        assert "compared with no benchmark, only with each other" in text
    nothing = [benchmark_of([{"question": "Short?"}])]
    summary, _ = check(pool_of([{"images": [blank]}]), nothing, tmp_path / "short")
    (tmp_path / "short" / "summary.json").write_text(json.dumps(summary))
    assert all("nothing could be compared" in text for text in pages(tmp_path / "short", nothing))
    with pytest.raises(FileNotFoundError, match=r"summary\.json is missing; run recipes/decontaminate\.py"):
        write_contamination_report(tmp_path)


def test_pairs_are_from_every_benchmark_and_from_near_to_far(tmp_path):
    pictures = [photo(seed) for seed in range(20)]
    shaved = [each.crop((edge, edge, 320 - edge, 240 - edge)) for edge, each in enumerate(pictures[:15])]
    rows = [{"id": f"copy-{n}", "images": [stored(each)]} for n, each in enumerate([*shaved, *pictures[15:]])]
    rows += [{"id": f"twice-{n}", "images": [stored(photo(90))]} for n in range(9)]
    benchmarks = [
        benchmark_of([{"image": stored(each)} for each in pictures[:15]], "large"),
        benchmark_of([{"image": stored(pictures[15])}], "small"),
    ]
    summary, _ = check(pool_of(rows), benchmarks, tmp_path)
    pairs = find_pairs(tmp_path, benchmarks)
    named = [pair["sides"][1]["name"].split(",")[0] for pair in pairs if pair["reason"] == "contaminated"]
    assert named == ["large"] * 4 + ["small"]
    far = [int(re.search(r": (\d+) of 64", pair["detail"])[1]) for pair in pairs if "large" in pair["detail"]]
    assert far == sorted(far) and far[-1] > far[0]
    repeats = [pair["sides"][1]["name"] for pair in pairs if pair["reason"] == "duplicate"]
    assert repeats == ["twice-0, kept"] * NUM_DUPLICATES and summary["dropped"]["duplicate"] == 8


def test_a_pool_without_contaminated_rows_has_pairs_too(tmp_path):
    rows = [{"id": name, "images": [stored(photo(1))]} for name in ("first", "second")]
    check(pool_of(rows), [benchmark_of([{"image": stored(photo(2))}])], tmp_path)
    assert [pair["id"] for pair in find_pairs(tmp_path)] == ["second"]


def test_a_long_text_is_cut_and_says_so(tmp_path):
    page, _ = pages(tmp_path, make_check(tmp_path, text=" so on" * 1000))
    assert "more characters]" in page and " so on" * MAX_TEXT not in page
    assert len(page) < 400_000


def test_text_of_rows_and_names_of_benchmarks_stay_text(tmp_path):
    benchmarks = make_check(tmp_path, text=HOSTILE)
    benchmarks[0].origin = HOSTILE
    summary = json.loads((tmp_path / "summary.json").read_text())
    summary["benchmarks"]["asked"]["origin"] = HOSTILE
    summary["dropped"][HOSTILE] = 0
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page, twin = pages(tmp_path, benchmarks)
    assert page.count("&lt;script&gt;alert(1)") > 8
    assert "<script" not in page and "<svg" not in page
    assert "<script" not in twin and "<svg" not in twin
    assert "[x](" not in twin and "![i]" not in twin and "https://evil" not in twin
    assert all(line.count("`") % 2 == 0 or "\\`" in line for line in twin.splitlines())


def test_an_image_of_a_check_that_a_page_would_fetch_is_left_out(tmp_path):
    pages(tmp_path, make_check(tmp_path))
    pairs = json.loads((tmp_path / "pairs.json").read_text())
    hostile = ["https://evil.example/i.png", f"{pairs[0]['sides'][0]['images'][0]}\n\n<script>alert(1)</script>"]
    pairs[0]["sides"][0]["images"] += hostile
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    counts = json.loads((tmp_path / "summary.json").read_text())
    write_pages(tmp_path, "decontamination", {"contamination": [read_check(tmp_path, counts)]})
    for name in ("decontamination.html", "decontamination.md"):
        text = (tmp_path / name).read_text()
        assert "evil" not in text and "<script" not in text and "data:image/" in text


def with_check(run: Path, **changes) -> Path:
    """Put a check into a run, as the loop records it."""
    folder = run / "decontaminate"
    write_contamination_report(folder, make_check(folder, text=HOSTILE))
    counts = json.loads((folder / "summary.json").read_text())
    stage = {"name": "decontaminate", "recipe": "decontaminate.py", "arm": None, "round": None, "status": "done"}
    stage |= {"seconds": 12.0, "output_dir": str(folder), "counts": counts, **changes}
    stages = json.loads((run / "stages.json").read_text())
    (run / "stages.json").write_text(json.dumps([stage, *stages]))
    return run


def test_the_report_of_a_line_shows_its_check(tmp_path):
    page, twin = both(with_check(make_run(tmp_path)))
    for text, end in ((page, "<h2>"), (twin, "## ")):
        section = text.split(f"{end}Contamination")[1].split(f"\n{end}")[0]
        assert "5 rows came in and 1 were kept; dropped: 2 contaminated, 1 duplicate" in section
        assert "image of asked, row 1: " in section
    assert page.split("<h2>Contamination")[1].split("<h2>")[0].count('src="data:image/') == 6
    assert twin.count("[pair-1-1-1-1]") == 2  # where it is shown, and what it is
    assert "<script" not in page and "<svg onload" not in page and "<script" not in twin and "<svg" not in twin
    assert "[x](" not in twin and "https://evil" not in twin
    assert both(tmp_path) == (page, twin)


def test_a_line_without_a_check_says_so(tmp_path):
    for text in both(make_run(tmp_path)):
        assert "Not checked: this run did not compare its images with what the evaluation asks" in text
        assert "Nothing that this run has made was pushed by it." in text


def test_a_check_that_was_cut_off_is_none(tmp_path):
    for text in both(with_check(make_run(tmp_path), status="failed")):
        assert "The check has not finished." in text and "rows came in" not in text


def test_what_is_left_of_a_check_is_shown(tmp_path):
    run = with_check(make_run(tmp_path))
    shutil.rmtree(run / "decontaminate")
    for text in both(run):
        assert "5 rows came in and 1 were kept" in text and "Dropped rows beside" not in text


def push_stage(run: Path, number: int, config: dict, pushed: dict | None, status: str = "done") -> dict:
    folder = run / f"sicog/round-{number}/push"
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps({"status": status, "config": config}))
    if pushed:
        (folder / "pushed.json").write_text(json.dumps(pushed))
    place = {"arm": "sicog", "round": number, "status": status, "seconds": 3.0, "output_dir": str(folder)}
    return {"name": f"sicog/round-{number}/push", "recipe": "push.py", **place, "counts": {}}


def test_what_was_published_is_named_with_tag_and_commit(tmp_path):
    run = make_run(tmp_path)
    stages = json.loads((run / "stages.json").read_text())
    pushed = {"repository": "me/digits", "tag": "round-1", "commit": "c0ffee" * 6, "private": True}
    pushed["rows"] = {"curated": 1200, HOSTILE: 3}
    asked = {"hub_dataset_id": "me/digits"}
    stages.append(push_stage(run, 1, asked, pushed))
    stages.append(push_stage(run, 2, {**asked, "dry_run": True}, None))
    stages.append(push_stage(run, 3, {"hub_dataset_id": HOSTILE}, {**pushed, "private": False}, "failed"))
    (run / "stages.json").write_text(json.dumps(stages))
    page, twin = both(run)
    assert f"| 1 | me/digits | round-1 | {'c0ffee' * 6} | its owners | curated 1,200, " in twin
    assert "| 2 | me/digits | – | not pushed: a dry run | – | – |" in twin and "| – | not pushed | – | – |" in twin
    assert f'<td class="l">{"c0ffee" * 6}</td>' in page
    assert "<script" not in page + twin and "[x](" not in twin and "https://evil" not in twin
