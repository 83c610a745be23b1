"""The report: what it says, that hostile text stays text, that missing pieces are dashes, that bytes repeat."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image

from sicog_trl.data import CANDIDATES_FEATURES, CURATED_FEATURES, DROPPED_FEATURES, save
from sicog_trl.report import markdown_text, summary_table, write_report
from sicog_trl.report.chain import chain_against_direct
from sicog_trl.report.sections import difference
from sicog_trl.report.verdicts import verdict


HOSTILE = (
    "<script>alert('a')</script><svg onload=alert(1)></svg> [x](https://evil.example) | `code` ![i](//evil.example/i)"
)
MODELS = {
    "base": 0.1,
    "stage1": 0.655,
    "sicog": 0.7,
    "annotated_only": 0.662,
    "random_candidate": 0.69,
    "oracle": 0.87,
}


def png(seed: int) -> dict:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def candidate(text: str, seed: int) -> dict:
    known = {"mode": "detailed_description", "prompt": "Describe.", "finish_reason": "stop", "num_tokens": 4}
    return {"text": text, "seed": seed, **known}


def write_datasets(round_dir: Path) -> None:
    texts = ["a red three.", "a red three.", "a red eight."]
    rows = [
        {
            "id": f"row-{i}",
            "images": [{"bytes": b"no image", "path": None} if i == 9 else png(i)],
            "question": None,
            "answer": "a red three.",
            "task": "description",
            "candidates": [candidate(HOSTILE if i == 0 and n == 2 else text, n) for n, text in enumerate(texts)],
            "error": None,
        }
        for i in range(10)
    ]
    save(Dataset.from_list(rows, features=CANDIDATES_FEATURES), round_dir / "generate", "candidates")
    kept = [
        {
            "id": row["id"],
            "images": row["images"],
            "prompt": [{"role": "user", "content": "Describe."}],
            "completion": [{"role": "assistant", "content": texts[0]}],
            "task": row["task"],
            "mode": "detailed_description",
            "consistency": 0.5,
            "num_candidates": 3,
        }
        for row in rows[:6]
    ]
    save(Dataset.from_list(kept, features=CURATED_FEATURES), round_dir / "curate", "curated")
    reasons = ["inconsistent", "inconsistent", "truncated", "unreadable_image"]
    dropped = [
        {key: row[key] for key in ("id", "images", "task", "candidates")} | {"consistency": 0.1, "reason": reason}
        for row, reason in zip(rows[6:], reasons, strict=True)
    ]
    save(Dataset.from_list(dropped, features=DROPPED_FEATURES), round_dir / "curate", "dropped")
    judged = [{"id": row["id"], "task": "description", "scores": [0.512, 0.512, 0.123], "winner": 0} for row in rows]
    pq.write_table(pa.Table.from_pylist(judged), round_dir / "curate" / "scores.parquet")


def stage(run: Path, name: str, recipe: str, counts: dict, **place: object) -> dict:
    done = {"arm": None, "round": None, "status": "done", "seconds": 61.0, "output_dir": str(run / name)}
    return {"name": name, "recipe": recipe, **done, **place, "counts": counts}


def make_stages(run: Path, control_steps: int = 600) -> list[dict]:
    sft = {"steps": 600, "samples": 38400, "tokens": 900000, "first_loss": 0.5, "last_loss": 0.25}
    generated = {"rows": 10, "failed": 1, "candidates": 30, "tokens": 1200, "distinct_per_row": 2.0}
    curated = {
        "rows_in": 10,
        "kept": 6,
        "dropped": {"inconsistent": 2, "truncated": 1, "unreadable_image": 1},
        "label_accuracy_before": {"overall": 0.65, "description": 0.65},
        "label_accuracy_after": {"overall": 0.83, "description": 0.83},
        "mean_consistency": 0.5,
        "mean_length": 12.5,
        "distinct_texts": 6,
    }
    place = {"arm": "sicog", "round": 1}
    return [
        stage(run, "stage1", "sft.py", sft),
        stage(run, "sicog/round-1/generate", "generate.py", generated, **place),
        stage(run, "sicog/round-1/curate", "curate.py", curated, **place),
        stage(run, "sicog/round-1/pretrain", "sft.py", sft, **place),
        stage(
            run,
            "annotated_only/round-1/pretrain",
            "sft.py",
            sft | {"steps": control_steps},
            arm="annotated_only",
            round=1,
        ),
    ]


def comparison(before: str, after: str, low: float, high: float, task: str = "digits_caption") -> dict:
    entry = {"task": task, "metric": "object_accuracy", "before": before, "after": after}
    entry |= {"before_score": MODELS.get(before), "after_score": MODELS.get(after), "difference": (low + high) / 2}
    return entry | {"low": low, "high": high, "fixed": 30, "broken": 10, "p": 0.01}


def make_scores(low: float, high: float) -> dict:
    tasks = {
        name: {
            "digits_caption": {"object_accuracy": score, "n": 1000, "empty": 0, "truncated": 2, "mean_tokens": 30.5},
            "digits_caption_step_by_step": {"object_accuracy": score - 0.01, "complete": 1.0, "n": 1000},
        }
        for name, score in MODELS.items()
    }
    comparisons = [comparison("base", "sicog", 0.5, 0.7), comparison("annotated_only", "sicog", low, high)]
    comparisons += [
        comparison("annotated_only", "oracle", 0.2, 0.22),
        comparison("random_candidate", "sicog", 0.005, 0.015),
    ]
    return {"models": tasks, "comparisons": comparisons}


def make_run(run: Path, low: float = 0.02, high: float = 0.056, control_steps: int = 600) -> Path:
    write_datasets(run / "sicog" / "round-1")
    (run / "evaluate").mkdir()
    (run / "evaluate" / "scores.json").write_text(json.dumps(make_scores(low, high)))
    (run / "stages.json").write_text(json.dumps(make_stages(run, control_steps)))
    (run / "config.yaml").write_text("rounds: 1\nseed: 3\n")
    manifest = {"command": "python recipes/self_improve.py --config x.yaml", "commit": "abc123", "dirty": False}
    manifest |= {"versions": {"torch": "2.13.0"}, "hardware": {"cores": 2, "gpus": []}, "seed": 3}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


def both(run: Path) -> tuple[str, str]:
    page = write_report(run)
    return page.read_text(), page.with_suffix(".md").read_text()


def spoilt(value: object) -> object:
    """Put hostile text behind every text in a value."""
    if isinstance(value, dict):
        return {name: spoilt(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [spoilt(inner) for inner in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


class TestWriteReport:
    def test_says_what_was_measured(self, tmp_path):
        for text in both(make_run(tmp_path)):
            text = text.replace("\\", "")
            assert "Better than the control" in text
            assert "sicog scores 3.8 points more than annotated_only in object accuracy" in text
            assert "(95 % interval +2.0 to +5.6)" in text
            assert "66.2" in text and "65.5" in text  # the control and stage 1
            assert "+21.0" in text and "[+20.0, +22.0]" in text  # headroom of the oracle
            assert "+1.0" in text and "[+0.5, +1.5]" in text  # what the choice of candidates is worth
            assert "which the model of sicog wrote" in text and "step-by-step scores are no upper bound" in text
            assert "kept 6 (60.0 %)" in text and "inconsistent 2 (20.0 %)" in text
            assert "0 %), inconsistent" in text or "<svg" in text
            assert "65.0 %" in text and "83.0 %" in text and "+18.0" in text
            assert "Both arms trained for 600 steps after the shared start: sicog, annotated_only." in text
            assert "abc123" in text and "2.13.0" in text and "rounds: 1" in text
            assert "0.512" in text and "0.123" in text  # agreement of each candidate
            assert "accelerate launch recipes/sft.py --config" in text
            assert "data:image/png;base64," in text and "image cannot be read" in text

    @pytest.mark.parametrize(
        ("low", "high", "words", "sign"),
        [
            (0.001, 0.02, "Better than the control", "gain"),
            (-0.02, 0.03, "No gain over the control", "open"),
            (-0.03, -0.01, "Worse than the control", "loss"),
        ],
    )
    def test_leads_with_the_control_whatever_the_sign(self, tmp_path, low, high, words, sign):
        page, twin = both(make_run(tmp_path, low, high))
        assert page.index(words) < page.index("<h2>Results")
        assert f'class="verdict {sign}"' in page
        assert words in twin.split("## Results")[0]

    def test_hostile_text_stays_text(self, tmp_path):
        page, twin = both(make_run(tmp_path))
        assert "&lt;script&gt;alert(&#39;a&#39;)" in page
        assert "<script" not in page and "<svg onload" not in page
        assert "<script" not in twin and "<svg" not in twin
        assert "[x](" not in twin and "https://evil" not in twin

    def test_text_in_any_field_of_any_row_stays_text(self, tmp_path):
        run = make_run(tmp_path)
        data = run / "sicog" / "round-1"
        for path in [*data.glob("*/data/*.parquet"), data / "curate" / "scores.parquet"]:
            table = pq.read_table(path)
            pq.write_table(pa.Table.from_pylist([spoilt(row) for row in table.to_pylist()], table.schema), path)
        stages = json.loads((run / "stages.json").read_text())
        for stage in stages:
            stage |= {"status": f"done {HOSTILE}"}
            if reasons := stage["counts"].get("dropped"):
                stage["counts"]["dropped"] = {spoilt(reason): count for reason, count in reasons.items()}
                stage["counts"]["label_accuracy_before"] = {HOSTILE: 0.5}
        (run / "stages.json").write_text(json.dumps(stages))
        for name in ("manifest.json", "evaluate/scores.json"):
            content = json.loads((run / name).read_text())
            (run / name).write_text(json.dumps(spoilt(content | {"manifest": {"command": HOSTILE}})))
        (run / "config.yaml").write_text(f"output_dir: {HOSTILE}\n```\n<img src=x onerror=alert(1)>\n")
        page, twin = both(run)
        outside = re.sub(r"^(`{3,}).*?^\1$", "", twin, flags=re.DOTALL | re.MULTILINE)  # blocks of code are inert
        assert "<script" not in page and "<svg onload" not in page and "<img src=x" not in page
        assert "<script" not in outside and "<svg" not in outside and "<img" not in outside
        assert not re.search(r"(?<!\\)\]\((https?:)?//", outside) and "https://" not in outside
        cards = page.split("<h2>Samples")[1].split("<h2>")[0]
        assert cards.count('<article class="card">') == 10 and cards.count("&lt;script&gt;") > 50

    def test_is_self_contained(self, tmp_path):
        page, _ = both(make_run(tmp_path))
        assert "http://" not in page and "https://" not in page.replace(HOSTILE, "").replace(
            "https://evil.example", ""
        )
        assert "<link" not in page and "@import" not in page and "url(" not in page

    def test_same_files_same_bytes(self, tmp_path):
        run = make_run(tmp_path)
        assert both(run) == both(run)

    def test_the_run_may_have_been_moved(self, tmp_path):
        run = make_run(tmp_path)
        entries = json.loads((run / "stages.json").read_text())
        for entry in entries:
            entry["output_dir"] = "/gone/runs/quickstart/" + entry["name"]
        (run / "stages.json").write_text(json.dumps(entries))
        assert both(run)[0].count('<article class="card">') == 10

    def test_missing_pieces_are_dashes(self, tmp_path):
        page, twin = both(tmp_path)
        assert "No verdict" in page and "No verdict" in twin
        run = tmp_path / "run"
        run.mkdir()
        entry = {"name": "c", "arm": "sicog", "round": 1, "recipe": "curate.py", "counts": {}}
        (run / "stages.json").write_text(json.dumps([entry]))
        page, twin = both(run)
        assert "kept – (–)" in page and "kept – (–)" in twin
        assert "None" not in page and "nan" not in page

    def test_unfinished_and_unequal_runs_are_named(self, tmp_path):
        run = make_run(tmp_path, control_steps=300)
        entries = json.loads((run / "stages.json").read_text())
        entries[-1]["status"] = "failed"
        (run / "stages.json").write_text(json.dumps(entries))
        page, _ = both(run)
        assert "not done: annotated_only/round-1/pretrain" in page
        assert "Not a comparison at equal steps: sicog trained for 600, annotated_only for 300." in page

    def test_stages_are_repeated_as_they_were_run(self, tmp_path):
        run = make_run(tmp_path)
        command = "python -m accelerate.commands.launch --config_file gpu.yaml recipes/curate.py --config c.yaml"
        (run / "sicog" / "round-1" / "curate" / "stage.json").write_text(json.dumps({"command": command}))
        for text in both(run):
            assert command in text
            assert f"accelerate launch recipes/sft.py --config {run}/stage1/config.yaml" in text  # not recorded

    def test_broken_file_is_named(self, tmp_path):
        (tmp_path / "stages.json").write_text("[")
        with pytest.raises(ValueError, match=r"stages\.json is not JSON"):
            write_report(tmp_path)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            write_report(tmp_path / "nowhere")

    def test_step_by_step_is_compared_by_row(self, tmp_path):
        run = make_run(tmp_path)
        folder = run / "evaluate" / "sicog"
        folder.mkdir()
        for task, right in (("digits_caption", 0.0), ("digits_caption_step_by_step", 1.0)):
            rows = [{"id": f"r{i}", "scores": {"object_accuracy": right}} for i in range(20)]
            (folder / f"samples_{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        page, _ = both(run)
        assert "[+100.0, +100.0]" in page.split("Step by step against direct")[1]

    def test_rows_that_share_an_id_are_all_compared(self, tmp_path):
        scores = {"models": {"base": {task: {"accuracy": 0.5} for task in ("pope", "pope_step_by_step")}}}
        folder = tmp_path / "evaluate" / "base"
        folder.mkdir(parents=True)
        for task in scores["models"]["base"]:
            rows = [{"id": "same", "doc_id": i, "scores": {"accuracy": float(i < 10)}} for i in range(20)]
            (folder / f"samples_{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (row,) = chain_against_direct(scores, tmp_path)
        # followed by the id alone, the last row would stand for all
        assert (row["direct"], row["change"]["text"], row["change"]["interval"]) == ("50.0", "0.0", "[0.0, 0.0]")
        rows[-1]["scores"]["accuracy"] = 1.0
        (folder / "samples_pope_step_by_step.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert chain_against_direct(scores, tmp_path)[0]["change"]["text"] == "+5.0"

    def test_a_score_that_is_no_share_keeps_its_scale(self, tmp_path):
        tasks = {"mme": {"mme_perception_score": 1500.0}, "mme_step_by_step": {"mme_perception_score": 1450.0}}
        (row,) = chain_against_direct({"models": {"base": tasks}}, tmp_path)
        assert (row["direct"], row["steps"], row["change"]["text"]) == ("1,500.00", "1,450.00", "\N{MINUS SIGN}50.00")


class TestSummaryTable:
    def test_columns_are_aligned(self):
        lines = summary_table(make_scores(0.02, 0.056)).splitlines()
        assert len({len(line) for line in lines}) == 1
        assert "sicog \N{MINUS SIGN} annotated only" in lines[0]
        assert "+3.8 [+2.0, +5.6] ▲" in lines[2]
        assert "sicog \N{MINUS SIGN} random candidate" in lines[0] and "+1.0 [+0.5, +1.5] ▲" in lines[2]
        assert "oracle \N{MINUS SIGN} annotated only (headroom)" in lines[0] and "+21.0 [+20.0, +22.0] ▲" in lines[2]

    def test_controls_that_were_not_run_have_no_column(self):
        scores = make_scores(0.02, 0.056)
        scores["comparisons"] = scores["comparisons"][:2]
        assert "random candidate |" in summary_table(scores).splitlines()[0]  # its score is still there
        assert "headroom" not in summary_table(scores)
        assert "\N{MINUS SIGN} random candidate" not in summary_table(scores)

    def test_without_scores(self):
        assert summary_table({}) == "No scores were recorded."


def test_verdict_without_interval_claims_nothing():
    scores = make_scores(0.02, 0.056)
    scores["comparisons"][1] |= {"low": None, "high": None}
    assert verdict(scores, [])["sign"] == "open"


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((600, 600, 600), "All 4 arms trained for 600 steps"),
        ((600, 300, 600), "Not a comparison at equal steps: sicog trained for 600, annotated_only for 600, "),
        ((600, 600, 601), "random_candidate for 600, oracle for 601."),
        ((600, None, 600), "was not recorded; unknown: random_candidate."),
    ],
)
def test_steps_of_all_arms_are_compared(steps, words):
    arms = dict(zip(("annotated_only", "random_candidate", "oracle"), steps, strict=True))
    stages = [
        {"name": arm, "arm": arm, "recipe": "sft.py", "status": "done", "counts": {"steps": count}}
        for arm, count in {"sicog": 600, **arms}.items()
    ]
    assert words in verdict({}, stages)["notes"][-1]


def test_smaller_hallucination_is_a_gain():
    entry = {"metric": "hallucination_rate", "difference": -0.1, "low": -0.2, "high": -0.05}
    assert difference(entry)["sign"] == "gain"


def test_markdown_text_keeps_words_and_breaks_markup():
    assert markdown_text("annotated_only, __bold__\nnext") == "annotated_only, \\__bold_\\_<br>next"
