"""What tells the weights of one model from those of another."""

import pytest

from sicog_trl.provenance import weights_fingerprint


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, which is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def download(cache, commit: str, file: str) -> None:
    """Leave what a download of the newest commit leaves."""
    folder = cache / "models--owner--name"
    for path, text in ((folder / "snapshots" / commit / file, "{}"), (folder / "refs" / "main", commit)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
def test_new_weights_under_the_same_id_are_other_weights(cache, file):
    assert weights_fingerprint("owner/name") == "owner/name@main"  # nobody tells
    for commit in ("a" * 40, "b" * 40):
        download(cache, commit, file)
        assert weights_fingerprint("owner/name") == f"owner/name@{commit}"
    assert weights_fingerprint("owner/name", "a" * 40) == f"owner/name@{'a' * 40}"


def test_a_name_that_the_hub_cannot_have_stays_a_name(cache):
    assert weights_fingerprint("not a/name") == "not a/name@main"
    assert weights_fingerprint("owner/name", "v1") == "owner/name@v1"
