"""What the tests of the Hub share: a curated run with images, and the settings of a push."""

import io
from pathlib import Path

from curating import BLUE, FIVE, RED, answered, described, row, table
from hub_server import TOKEN, HubServer
from huggingface_hub import HfApi
from PIL import Image

from sicog_trl.curation import CurationConfig, curate
from sicog_trl.data import save
from sicog_trl.files import write_json
from sicog_trl.hub import PushConfig


REPO = "me/digits"
ADVERSE = '<img src=x onerror=alert(1)> ``` </details> | [x](javascript:1) --- "A red three"'


def png(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(content, "PNG")
    return content.getvalue()


def make_run(folder: Path, rows: int = 8) -> Path:
    """Write what generate and curate write: the artefact folders `candidates` and `curated`."""
    candidates = [
        row(
            f"scene-{number}",
            described(ADVERSE, RED, RED)
            if number == 0
            else described(RED, BLUE, FIVE)[: 1 + number % 3] + described(RED),
            images=[{"bytes": png(number), "path": f"/home/somebody/secret/{number}.png"}],
        )
        for number in range(rows - 1)
    ]
    candidates.append(row("scene-question", answered("3", "3"), images=[{"bytes": png(200), "path": None}]))
    found = table(*candidates)
    save(found, folder / "candidates", "candidates")
    plan = {"model": "me/teacher@0123", "dtype": "float32", "generation_seed": 7, "source": "/home/somebody/images"}
    write_json(folder / "candidates" / "plan.json", plan)
    sampler = {"sampler": "openai", "base_url": "http://10.0.0.1/v1", "temperature": 0.7}
    write_json(folder / "candidates" / "summary.json", {"sampler": sampler})
    config = CurationConfig(similarity="word_ngram", min_consistency=0.6)
    write_json(folder / "curated" / "summary.json", curate(found, config, folder / "curated"))
    return folder


def settings(run: Path, **changes) -> PushConfig:
    """Return the settings of a push of everything in a run."""
    artefacts = [
        {"path": str(run / "curated"), "split": "curated"},
        {"path": str(run / "curated"), "split": "dropped"},
        {"path": str(run / "candidates")},
    ]
    given = {"artefacts": artefacts, "image_license": "cc-by-4.0", "text_license": "apache-2.0", "language": ["en"]}
    return PushConfig(**{"hub_dataset_id": REPO, **given, **changes})


def api(server: HubServer, token: str | bool | None = TOKEN) -> HfApi:
    return HfApi(endpoint=server.endpoint, token=token)
