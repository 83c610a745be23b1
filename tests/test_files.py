"""Files are there whole or not at all, whatever happens to the process that writes them."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sicog_trl import files
from sicog_trl.files import absolute, is_local, replacing, write_json, write_text


def test_what_was_there_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as unfinished:
        unfinished.write_text("{")
        raise RuntimeError("half way")
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_half_written_files_are_swept_if_nobody_writes_them_any_more(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_machine", lambda: "node-1.cluster.example-42")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = ".a.parquet.{}.{}.abcd1234"
    gone = [
        tmp_path / name.format("node-1.cluster.example-42", dead.pid),
        tmp_path / f".b.parquet.node-1.cluster.example-42.{dead.pid}.0123abcd",
        tmp_path / name.format("node-2.cluster.example-42", dead.pid),  # of another machine, but old
    ]
    kept = [
        tmp_path / name.format("node-1.cluster.example-42", os.getpid()),  # still at work
        tmp_path / name.format("node-3.cluster.example-42", dead.pid),  # of another machine: who knows
        tmp_path / name.format("node-1.cluster.example-7", dead.pid),  # of another container
        tmp_path / ".hidden",
        tmp_path / ".config.json.bak.1",
    ]
    for file in (*gone, *kept):
        file.write_bytes(b"")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(gone[-1], (two_days_ago, two_days_ago))
    write_text(tmp_path / "a.parquet", "new")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.parquet", *kept])


def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path):
    """The limit on the size of a file is what a test can have of a full disk: the write itself fails."""
    program = """
        import resource, sys
        from sicog_trl.files import write_text
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        write_text(sys.argv[1], "small")
        write_text(sys.argv[1], "x" * 100_000)
    """
    path = tmp_path / "a.txt"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"no room to write {path}; make some and start again" in done.stderr
    assert path.read_text() == "small"
    assert list(tmp_path.iterdir()) == [path]


def test_absolute_leaves_hub_ids_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert absolute("here") == str(tmp_path / "here")
    assert absolute("owner/name") == "owner/name"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/here") == str(tmp_path / "here")


def test_a_name_below_a_folder_that_is_here_means_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/sft", "owner/name", "runs", "name"):
        assert not is_local(name)
    Path("runs").mkdir()
    Path("owner").write_text("a file")
    assert is_local("runs") and is_local("runs/sft") and is_local("runs/")
    assert not is_local("owner/name") and not is_local("run/sft") and not is_local("name")
    for name in ("./sft", "../sft", "/sft", "~/sft", "runs/digits/sft"):
        assert is_local(name)


def test_what_is_mistyped_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    from sicog_trl.checkpoints import check_model, model_fingerprint
    from sicog_trl.data import load

    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for use, kind in ((check_model, "model"), (model_fingerprint, "model"), (load, "dataset")):
        message = f"{kind} folder runs/stf does not exist; run the stage .* on the Hub: there is a folder runs here"
        with pytest.raises(FileNotFoundError, match=message):
            use("runs/stf")
        with pytest.raises(FileNotFoundError, match=r"runs/digits/stf does not exist; run the stage [^.]*$"):
            use("runs/digits/stf")
