"""Shards: a fixed range of input rows becomes one Parquet file that exists if and only if it is complete.

So a run can be killed at any moment and started again, by one process or by many: what is done is there, what is not
there is to do, and two workers that make the same shard write the same bytes to the same name.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import claim, replacing


@dataclass(frozen=True)
class Plan:
    """
    The division of a run into shards.

    Args:
        output_dir (`Path`):
            Folder of the run; shards stand in `data/`.
        num_rows (`int`):
            Rows of the input.
        rows_per_shard (`int`):
            Rows of a shard; the last one may have fewer.
    """

    output_dir: Path
    num_rows: int
    rows_per_shard: int

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_rows // self.rows_per_shard)

    def rows(self, shard: int) -> range:
        """Return the input rows of a shard."""
        return range(shard * self.rows_per_shard, min((shard + 1) * self.rows_per_shard, self.num_rows))

    def path(self, shard: int) -> Path:
        """Return where a shard is published."""
        return self.output_dir / "data" / f"candidates-{shard:05d}-of-{self.num_shards:05d}.parquet"

    def missing(self) -> list[int]:
        """Return the shards that are not published yet."""
        return [shard for shard in range(self.num_shards) if not self.path(shard).exists()]


def make_plan(output_dir: str | Path, num_rows: int, rows_per_shard: int, fingerprint: dict[str, Any]) -> Plan:
    """
    Write `plan.json`, or check it if the run was started before.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
        num_rows (`int`):
            Rows of the input.
        rows_per_shard (`int`):
            Rows of a shard.
        fingerprint (`dict[str, Any]`):
            Everything that decides the text of the candidates. Engine, batch size and number of workers do not.

    Raises:
        [`AnotherRunError`]: if the run in the folder was started with another fingerprint.
    """
    claim(Path(output_dir, "plan.json"), {"num_rows": num_rows, "rows_per_shard": rows_per_shard, **fingerprint})
    return Plan(Path(output_dir), num_rows, rows_per_shard)


def publish(table: pa.Table, path: Path) -> None:
    """Write a shard beside its place and rename it there."""
    with replacing(path) as unfinished:
        pq.write_table(table, unfinished)


def remove_unfinished(output_dir: str | Path) -> None:
    """Delete what processes of this machine that no longer live left half written."""
    for file in Path(output_dir, "data").glob(".candidates-*"):
        written, _, _ = file.name.rpartition(".")
        start, _, pid = written.rpartition(".")
        if start.endswith(f".parquet.{socket.gethostname()}") and not _lives(int(pid)):
            file.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
