"""The plan of a run: a fixed range of input rows becomes one Parquet file that exists if and only if it is complete.

So a run can be killed at any moment and started again, by one process or by many: what is done is there, what is not
there is to do, and if two workers make the same shard, the one that has more candidates stays. The footer of a shard
says how many candidates of each mode its rows were asked for, so that asking for more later finds what is to do.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
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
# keys of plan.json that are compared in their own way
_NO_SETTINGS = {"num_rows", "left_out", "counts", "source", "dataset_name", "digests", "previous"}


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
        left_out (`int`, *optional*, defaults to `0`):
            Rows of the other task, which are not among the input rows.
    """

    output_dir: Path
    num_rows: int
    rows_per_shard: int
    digests: tuple[str, ...]
    counts: Counts
    previous: "Plan | None" = None
    left_out: int = 0

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
        return [
            shard
            for shard in range(shard_index, self.num_shards, num_shards)
            if not self.is_done(shard) or (retry_failed and self._footer(shard)["failed"])
        ]

    def standing(self, retry_failed: bool = False) -> str:
        """Return how far the run is, for a person; see [`~Plan.missing`]."""
        to_do = len(self.missing(retry_failed=retry_failed))
        return f"{self.output_dir}: {self.num_shards - to_do} of {self.num_shards} shards are there, {to_do} to do"

    def is_done(self, shard: int) -> bool:
        """Return whether a shard is published with at least the candidates that this plan asks for."""
        footer = self._footer(shard)
        return footer is not None and _covers(footer["counts"], self.counts)

    def read(self, shard: int) -> pa.Table | None:
        """Return the candidates and errors of a shard, or `None` if it is not published."""
        path = self.path(shard)
        return pq.read_table(path, columns=["id", "candidates", "error"]) if path.exists() else None

    def inherited(self, shard: int) -> pa.Table | None:
        """Return the candidates of the earlier round for a shard, or `None` if there was none."""
        table = self.previous.read(shard) if self.previous else None
        if self.previous and table is None:
            raise FileNotFoundError(f"previous: {self.previous.path(shard)} has gone; bring it back")
        return table

    def publish(self, shard: int, table: pa.Table) -> None:
        """Write a shard beside its place and rename it there, unless another worker has published more by now."""
        footer = self._footer(shard)
        if footer and footer["counts"] != self.counts and _covers(footer["counts"], self.counts):
            return
        failed = len(table) - table["error"].null_count
        said = {_FOOTER: json.dumps({"counts": self.counts, "failed": failed}).encode()}
        with replacing(self.path(shard)) as unfinished:
            pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **said}), unfinished)

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
    rows: ImageRows,
    config: CandidateConfig,
    output_dir: str | Path,
    model: str,
    dtype: str | None = None,
    dataset_name: str | None = None,
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
        dataset_name (`str`, *optional*):
            What the rows were read from, for whoever asks later; a Hub dataset with its commit.

    Raises:
        [`AnotherRunError`]: if what decides the text of a candidate is not what it was when the run was started; it
        names the key. Engine, batch size and number of workers decide nothing.
    """
    least = -(-len(rows) // _MAX_SHARDS)
    if config.rows_per_shard < least:
        raise ValueError(f"rows_per_shard: {config.rows_per_shard} makes too many files; give at least {least}")
    if rows.task != config.task:
        raise ValueError(f"task is {config.task!r}, but the rows are those of {rows.task!r}; make ImageRows with it")
    output_dir = Path(output_dir)
    path = output_dir / "plan.json"
    known = {"rows_per_shard": config.rows_per_shard, "model": model, "dtype": dtype, **config.settings}
    found = _check_found(path, known, config)
    previous, taken = _earlier(config, found)
    if found:
        refuse_another_run(output_dir, {"previous": found["previous"]}, {"previous": taken})
    digests = found["digests"] if found and found["source"] == rows.source else rows.digests(config.rows_per_shard)
    found = _check_found(path, known, config)  # somebody else may have planned while this one was hashing
    _refuse_other_rows(output_dir, found["digests"] if found else digests, digests, config.rows_per_shard)
    _refuse_other_rows(config.previous, previous.digests if previous else digests, digests, config.rows_per_shard)
    plan = {
        "num_rows": len(rows),
        "left_out": rows.left_out,
        **known,
        "previous": taken,
        "counts": config.counts,
        "source": rows.source,
        "dataset_name": dataset_name,
        "digests": list(digests),
    }
    if plan != found:
        (output_dir / "summary.json").unlink(missing_ok=True)  # of fewer candidates
        write_json(path, plan)
    digests = tuple(digests)
    return Plan(output_dir, len(rows), config.rows_per_shard, digests, config.counts, previous, rows.left_out)


def _check_found(path: Path, known: dict[str, Any], config: CandidateConfig) -> dict[str, Any] | None:
    """Return what a plan says that was made before, which must be the plan of this run."""
    if not path.exists():
        return None
    found = _read(path)
    try:
        refuse_another_run(path.parent, {key: found[key] for key in found.keys() - _NO_SETTINGS}, known)
    except AnotherRunError as error:
        if any((path.parent / "data").glob("candidates-*")):
            raise
        raise AnotherRunError(f"{error}; or, as no shard is published yet, delete {path}") from None
    if not _covers(config.counts, found["counts"]):
        _refuse_fewer(path.parent, found["counts"], config.counts)
    return found


def _earlier(config: CandidateConfig, found: dict[str, Any] | None) -> tuple[Plan | None, dict[str, Any] | None]:
    """Return the plan of the earlier round, all of whose shards must be there, and what this run takes from it."""
    if not config.previous:
        return None, None
    path = Path(config.previous).expanduser().resolve() / "plan.json"
    if not path.exists():
        raise FileNotFoundError(f"previous: {path} does not exist; name the folder of a finished run of generate")
    said = _read(path)
    # That round may be given more candidates later; what this run has taken from it stays what it was.
    taken = found["previous"]["counts"] if found and found["previous"] else said["counts"]
    plan = Plan(path.parent, said["num_rows"], said["rows_per_shard"], tuple(said["digests"]), taken)
    if missing := plan.missing():
        raise ValueError(f"previous: {len(missing)} shards of {plan.output_dir} are missing; finish that run first")
    for name in ("corruptions", "task"):
        if said.get(name) != getattr(config, name):
            raise ValueError(f"previous: {name} is {said.get(name)} there and {getattr(config, name)} here")
    if not _covers(config.counts, taken):
        _refuse_fewer(plan.output_dir, taken, config.counts)
    settings = {key: value for key, value in said.items() if key not in ("counts", "source", "dataset_name")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return plan, {"settings": digest, "counts": taken}


def _refuse_other_rows(
    folder: str | Path | None, found: Sequence[str], wanted: Sequence[str], rows_per_shard: int
) -> None:
    """Refuse rows whose hashes are not those that a run was started with."""
    if list(found) == list(wanted):
        return
    pairs = itertools.zip_longest(found, wanted)
    first = rows_per_shard * next(number for number, (old, new) in enumerate(pairs) if old != new)
    raise AnotherRunError(
        f"{folder} holds another run: its input is not that of this one. The first difference is in a row or an image "
        f"from row {first} on, or in how rows are cut into shards. An input that has grown or been repaired needs "
        "another output_dir"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON; bring it back, or choose another folder: {error}") from error


def _covers(counts: Counts, others: Counts) -> bool:
    """Return whether `counts` are those of `others` or more of them, in the same order of modes."""
    for key, modes in others.items():
        names, asked = [mode for mode, _ in modes], dict(counts[key])
        if list(asked)[: len(names)] != names or any(asked[mode] < count for mode, count in modes):
            return False
    return True


def _refuse_fewer(folder: Path, found: Counts, wanted: Counts) -> None:
    for key, modes in found.items():
        if not _covers({key: wanted[key]}, {key: modes}):
            raise AnotherRunError(
                f"{folder} holds another run: {key} is {dict(modes)} there and {dict(wanted[key])} here. Candidates "
                "can be added to a run, its modes in the same order, but not taken away. Ask for at least as many, or "
                "choose another folder"
            )
