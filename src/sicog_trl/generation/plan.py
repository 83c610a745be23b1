"""The plan of a run: a fixed range of input rows becomes one Parquet file that exists if and only if it is complete.

So a run can be killed at any moment and started again, by one process or by many: what is done is there, what is not
there is to do, and two workers that make the same shard write the same bytes to the same name. The footer of a shard
says how many candidates of each mode its rows have, so that asking for more later finds what is still to do.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import AnotherRunError, refuse_another_run, replacing, write_json
from .candidates import CandidateConfig, Counts
from .inputs import ImageRows


_MAX_SHARDS = 99_999  # five digits in a file name
_FOOTER = b"sicog_trl"
_NO_SETTINGS = {"counts", "source", "digests"}  # keys of plan.json that are compared in their own way


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
        digests (`tuple[str, ...]`):
            Hash of the input rows of each shard.
        counts (`dict[str, list]`):
            Candidates per mode that a complete shard has.
        previous ([`Plan`], *optional*):
            Finished run of an earlier round, whose candidates this one adds to.
    """

    output_dir: Path
    num_rows: int
    rows_per_shard: int
    digests: tuple[str, ...]
    counts: Counts
    previous: "Plan | None" = None

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

    def missing(self, shard_index: int = 0, num_shards: int = 1, retry_failed: bool = False) -> list[int]:
        """
        Return the shards that are still to do: not published, or published with fewer candidates than asked for.

        Args:
            shard_index, num_shards (`int`, *optional*):
                Look only at every `num_shards`-th shard, starting at `shard_index`.
            retry_failed (`bool`, *optional*, defaults to `False`):
                Also return those with rows that have an error.
        """
        return [shard for shard in range(shard_index, self.num_shards, num_shards) if self._to_do(shard, retry_failed)]

    def _to_do(self, shard: int, retry_failed: bool) -> bool:
        footer = self._footer(shard)
        return footer is None or footer["counts"] != self.counts or (retry_failed and footer["failed"] > 0)

    def read(self, shard: int) -> pa.Table | None:
        """Return the candidates and errors of a shard, or `None` if it is not published."""
        path = self.path(shard)
        return pq.read_table(path, columns=["id", "candidates", "error"]) if path.exists() else None

    def publish(self, shard: int, table: pa.Table) -> None:
        """Write a shard beside its place and rename it there."""
        failed = len(table) - table["error"].null_count
        footer = {_FOOTER: json.dumps({"counts": self.counts, "failed": failed}).encode()}
        with replacing(self.path(shard)) as unfinished:
            pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **footer}), unfinished)

    def _footer(self, shard: int) -> dict[str, Any] | None:
        try:
            metadata = pq.read_schema(self.path(shard)).metadata or {}
        except FileNotFoundError:
            return None
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.path(shard)} is no Parquet file; delete it and start again: {error}") from error
        if _FOOTER not in metadata:
            raise ValueError(f"{self.path(shard)} was not written by generate; choose another output_dir")
        return json.loads(metadata[_FOOTER])


def make_plan(
    rows: ImageRows, config: CandidateConfig, output_dir: str | Path, model: str, dtype: str | None = None
) -> Plan:
    """
    Write `plan.json`, or check it if the run was started before; a larger number of candidates is entered in it.

    The rows are hashed when the plan is written, and again only if they come from another place than then. Every
    worker checks the rows of a shard when it makes it.

    Args:
        rows ([`ImageRows`]):
            The input.
        config ([`CandidateConfig`]):
            Which candidates to sample.
        output_dir (`str` or `Path`):
            Folder of the run.
        model (`str`):
            Identifies the weights.
        dtype (`str`, *optional*):
            Precision of the weights.

    Raises:
        [`AnotherRunError`]: if what decides the text of a candidate is not what it was when the run was started; it
        names the key. Engine, batch size and number of workers decide nothing.
    """
    least = -(-len(rows) // _MAX_SHARDS)
    if config.rows_per_shard < least:
        raise ValueError(f"rows_per_shard: {config.rows_per_shard} makes too many files; give at least {least}")
    path = Path(output_dir, "plan.json")
    previous, previous_hash = _finished(config.previous) if config.previous else (None, None)
    known = {"num_rows": len(rows), "rows_per_shard": config.rows_per_shard, "model": model, "dtype": dtype}
    known |= config.settings | {"previous": previous_hash}
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if found:
        refuse_another_run(output_dir, {key: found[key] for key in found.keys() - _NO_SETTINGS}, known)
        _refuse_fewer(output_dir, found["counts"], config.counts)
    same_source = found and found["source"] == rows.source
    digests = found["digests"] if same_source else rows.digests(config.rows_per_shard)
    for folder, others in ((output_dir, found and found["digests"]), (config.previous, previous and previous.digests)):
        if others and list(others) != list(digests):
            raise AnotherRunError(
                f"{folder} holds another run: its input is not that of this one, or was cut into shards of another "
                "size. Go back to that input and rows_per_shard, or choose another folder"
            )
    plan = {**known, "counts": config.counts, "source": rows.source, "digests": digests}
    if plan != found:
        write_json(path, plan)
    return Plan(Path(output_dir), len(rows), config.rows_per_shard, tuple(digests), config.counts, previous)


def _finished(folder: str) -> tuple[Plan, str]:
    """Return the plan of an earlier round, all of whose shards must be there, and a hash of what it says."""
    path = Path(folder, "plan.json")
    if not path.exists():
        raise FileNotFoundError(f"previous: {path} does not exist; name the folder of a finished run of generate")
    found = json.loads(path.read_text(encoding="utf-8"))
    plan = Plan(path.parent, found["num_rows"], found["rows_per_shard"], tuple(found["digests"]), found["counts"])
    if missing := plan.missing():
        raise ValueError(f"previous: {len(missing)} of {plan.num_shards} shards of {folder} are missing; finish it")
    said = json.dumps({key: value for key, value in found.items() if key != "source"}, sort_keys=True)
    return plan, hashlib.sha256(said.encode()).hexdigest()[:16]


def _refuse_fewer(output_dir: str | Path, found: Counts, wanted: Counts) -> None:
    """Refuse counts that would take candidates away or put them in another order."""
    for key, modes in found.items():
        names, asked = [mode for mode, _ in modes], dict(wanted[key])
        if list(asked)[: len(names)] != names or any(asked[mode] < count for mode, count in modes):
            raise AnotherRunError(
                f"{output_dir} holds another run: {key} is {dict(modes)} there and {asked} here. Candidates can be "
                "added to a run, its modes in the same order, but not taken away. Ask for at least as many, choose "
                "another output_dir, or delete the folder"
            )
