"""What a run has published: the dataset repository of each round, its tag and its commit."""

from pathlib import Path

from .gallery import stage_folder
from .pages import read_json
from .sections import MISSING, number, verb


def published(run_dir: Path, stages: list[dict]) -> list[dict[str, str]]:
    """Return one row per push of a run; one that was not made, or only tried, says so in place of its commit."""
    rows = []
    for stage in stages:
        if verb(stage) != "push":
            continue
        folder = stage_folder(run_dir, stage)
        state = read_json(folder / "stage.json", dict) if folder else {}
        asked = state.get("config") or {}
        done = read_json(folder / "pushed.json", dict) if folder and stage.get("status") == "done" else {}
        tried = "not pushed: a dry run" if asked.get("dry_run") else "not pushed"
        rows.append(
            {
                "round": number(stage.get("round")),
                "repository": str(done.get("repository") or asked.get("hub_dataset_id") or MISSING),
                "tag": str(done.get("tag") or MISSING),
                "commit": str(done.get("commit") or tried),
                "seen": {True: "its owners", False: "everybody"}.get(done.get("private"), MISSING),
                "rows": ", ".join(f"{name} {number(count)}" for name, count in (done.get("rows") or {}).items())
                or MISSING,
            }
        )
    return rows
