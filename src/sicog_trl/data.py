"""The column contract: what each artefact of the line holds, and how it is written and read.

An artefact is a Hub dataset or a folder with `data/<split>-00000-of-00001.parquet`, which `datasets.load_dataset`
reads alike. Rows are followed by `id`, never by position.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, List, Value, interleave_datasets, load_dataset

from .files import is_local, missing_folder, replacing, write_text


MESSAGES = List({"role": Value("string"), "content": Value("string")})
IMAGES = List(Image())

IMAGES_FEATURES = Features(
    {
        "id": Value("string"),
        "images": IMAGES,
        "question": Value("string"),
        "answer": Value("string"),  # only ever used to measure the quality of labels
    }
)
CANDIDATE = {
    "text": Value("string"),
    "mode": Value("string"),
    "prompt": Value("string"),  # the user turn as the model saw it
    "seed": Value("int64"),
    "finish_reason": Value("string"),  # "stop", "length", or what else a server says
    "num_tokens": Value("int32"),  # null if a server does not tell
    "corruption": Value("string"),  # how the image was damaged, if it was
    "mean_logprob": Value("float32"),  # of its tokens under the model, in nats; null unless it was asked for
}
CANDIDATES_FEATURES = Features(
    {**IMAGES_FEATURES, "task": Value("string"), "candidates": List(CANDIDATE), "error": Value("string")}
)
CURATED_FEATURES = Features(
    {
        "id": Value("string"),
        "images": IMAGES,
        "prompt": MESSAGES,
        "completion": MESSAGES,
        "task": Value("string"),
        "mode": Value("string"),
        "consistency": Value("float64"),
        "num_candidates": Value("int32"),
    }
)
ANNOTATED_FEATURES = Features(
    {
        "id": Value("string"),
        "source_id": Value("string"),  # the row of images, or image and question, that several annotations share
        "images": IMAGES,
        "prompt": MESSAGES,
        "completion": MESSAGES,
        "task": Value("string"),
        "mode": Value("string"),
    }
)
PREFERENCE_FEATURES = Features(
    {
        "id": Value("string"),
        "images": IMAGES,
        "prompt": MESSAGES,
        "chosen": MESSAGES,
        "rejected": MESSAGES,
        "task": Value("string"),
        "mode": Value("string"),  # of both sides
        "chosen_from": Value("string"),  # "annotated", or "candidate" if the model wrote it itself
        "rejected_from": Value("string"),  # "damaged" or "ranked"
        "corruption": Value("string"),  # how the image behind the rejected side was damaged, if it was
        "margin": Value("float64"),  # by how much the sides differ, see `sicog_trl.preferences`
    }
)
DROPPED_FEATURES = Features(
    {
        "id": Value("string"),
        "images": IMAGES,
        "task": Value("string"),
        "candidates": List(CANDIDATE),
        "consistency": Value("float64"),
        "reason": Value("string"),
    }
)
TRAINING_COLUMNS = ("images", "messages", "prompt", "completion", "chosen", "rejected")


@dataclass
class MixtureConfig:
    """
    Datasets to train on, mixed with fixed weights.

    Args:
        datasets (`list[dict]`, *optional*):
            One mapping per source with the keys `path` (Hub id or folder), `config`, `split` (`"train"` if missing)
            and `weight` (1.0 if missing). Leave it out to train on `dataset_name` alone.
        mixture_seed (`int`, *optional*, defaults to `0`):
            Seed of the interleaving.
    """

    datasets: list[dict] | None = field(
        default=None, metadata={"help": "Sources: mappings with path, config, split and weight."}
    )
    mixture_seed: int = field(default=0, metadata={"help": "Seed of the interleaving."})


def load(name: str, config: str | None = None, split: str = "train", revision: str | None = None) -> Dataset:
    """
    Load one split of an artefact.

    Args:
        name (`str`):
            Folder of Parquet files or Hub id.
        config (`str`, *optional*):
            Configuration of a Hub dataset, or sub-folder of a local one.
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split.
        revision (`str`, *optional*):
            Branch, tag or commit of a Hub dataset.

    Returns:
        `datasets.Dataset`: the rows; images are decoded only when they are read.
    """
    if not is_local(name):
        return load_dataset(name, config, split=split, revision=revision)
    files = split_files(name, config, split)
    if not sum(pq.read_metadata(file).num_rows for file in files):
        # `load_dataset` takes a split without rows for a split that is not there
        features = Features.from_arrow_schema(pq.read_schema(files[0]))
        return Dataset.from_dict({column: [] for column in features}, features=features)
    return load_dataset("parquet", data_files={split: [str(file) for file in files]}, split=split)


def split_files(name: str | Path, config: str | None, split: str) -> list[Path]:
    """Return the Parquet files of a split of a local artefact folder; that one is missing is an error."""
    folder = Path(name, config) if config else Path(name)
    if not folder.is_dir():
        raise missing_folder("dataset", folder)
    files = sorted((folder / "data").glob(f"{split}-{'[0-9]' * 5}-of-{'[0-9]' * 5}.parquet"))
    if not files:
        found = sorted({file.name.split("-")[0] for file in (folder / "data").glob("*.parquet")})
        raise FileNotFoundError(f"{folder} has no split {split!r}; it has: {', '.join(found) or 'nothing'}")
    of = {int(file.stem.rsplit("-of-", 1)[1]) for file in files}
    if of != {len(files)}:
        raise FileNotFoundError(
            f"{folder}: {len(files)} of {' or '.join(map(str, sorted(of)))} files of split {split!r} are there; "
            "run the stage that writes it again"
        )
    return files


def save(dataset: Dataset, output_dir: str | Path, split: str) -> Path:
    """Write `dataset` as the split `split` of the artefact folder `output_dir`, in one step or not at all."""
    schema = dataset.features.arrow_schema
    with writing(output_dir, split, schema) as writer:
        for batch in dataset.with_format("arrow").iter(1000):
            writer.write_table(batch.cast(schema))
    return split_file(output_dir, split)


def split_file(output_dir: str | Path, split: str) -> Path:
    """Return the file of a split that is written whole, as one file."""
    return Path(output_dir, "data", f"{split}-00000-of-00001.parquet")


@contextmanager
def writing(output_dir: str | Path, split: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a split batch by batch; it appears under its name only when the block ends without an error."""
    with replacing(split_file(output_dir, split)) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        yield writer


def num_rows(name: str | Path, split: str) -> int:
    """Return the number of rows of a split of a local artefact folder, from the Parquet footers alone."""
    return sum(pq.read_metadata(file).num_rows for file in Path(name, "data").glob(f"{split}-*-of-*.parquet"))


def write_card(output_dir: str | Path, splits: Sequence[str]) -> None:
    """
    Write the `README.md` that lets `datasets.load_dataset(output_dir, <split>, split=<split>)` find the splits; the
    first one needs no name.

    Each split is a configuration of its own, because `load_dataset` wants one set of columns in all splits of one. One
    without rows cannot be loaded that way, so the card does not promise it. `datasets` knows a folder with a card by
    its last name and what the card says, not by its files: without a hash in the description `runs/b/curate` would be
    read from the cache of `runs/a/curate`.
    """
    counts = {split: num_rows(output_dir, split) for split in splits}
    lines = ["---", "configs:"] if any(counts.values()) else ["---"]
    for split, count in counts.items():
        if count:
            lines += [f"- config_name: {split}", *["  default: true"] * (split == splits[0])]
            lines += [f"  description: sha256:{_digest(output_dir, split)}"]
            lines += [f"  data_files: [{{split: {split}, path: data/{split}-*}}]"]
    lines += ["---", "", *[f"- {count} rows in `{split}`" for split, count in counts.items()]]
    write_text(Path(output_dir, "README.md"), "\n".join(lines) + "\n")


def _digest(output_dir: str | Path, split: str) -> str:
    """Return a hash of the settings of an artefact, which name its input, and of the footer of a split."""
    settings = Path(output_dir, "settings.json")
    digest = hashlib.sha256(settings.read_bytes() if settings.exists() else b"")
    with open(split_file(output_dir, split), "rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        digest.update(file.read(length))
    return digest.hexdigest()


def load_mixture(mixture: MixtureConfig) -> Dataset:
    """
    Load the sources of `mixture` and interleave them by weight.

    A source that runs out is started again until every source has been seen whole once, so that the weights hold over
    the whole dataset. Columns that training does not read are left out, but for an `id` that all sources have. Rows of
    a source without images get an empty list of them if another source has some: text-only data may be mixed in
    (SICOG's pre-training does).

    Returns:
        `datasets.Dataset`: with the columns of TRL's vision format (`images`, `prompt`, `completion` or `chosen` and
        `rejected`; or `messages`).
    """
    parts, weights = [], []
    for number, source in enumerate(mixture.datasets or []):
        weights.append(_check_source(f"datasets[{number}]", source))
        split = source.get("split") or "train"
        part = load(source["path"], source.get("config"), split)
        if not len(part):
            raise ValueError(f"datasets[{number}]: the split {split!r} of {source['path']} is empty; leave it out")
        if "image" in part.column_names and "images" not in part.column_names:
            raise ValueError(
                f"datasets[{number}]: {source['path']} has one image in the column 'image'; a mixture reads lists of "
                "them from 'images', so write the dataset with that column"
            )
        parts.append(part.select_columns([name for name in ("id", *TRAINING_COLUMNS) if name in part.column_names]))
    if not parts:
        raise ValueError("datasets is empty: name at least one source with a `path`")
    if len(parts) == 1:
        return parts[0]
    parts = _alike(parts)
    columns = [set(part.column_names) for part in parts]
    if any(names != columns[0] for names in columns):
        raise ValueError(f"the sources of the mixture have different training columns: {[sorted(c) for c in columns]}")
    return interleave_datasets(
        parts,
        probabilities=[weight / sum(weights) for weight in weights],
        seed=mixture.mixture_seed,
        stopping_strategy="all_exhausted",
    )


def _alike(parts: list[Dataset]) -> list[Dataset]:
    """Give sources the same features: text-only ones an empty list of images, all of them the order of our fields."""
    if any("images" in part.column_names for part in parts):
        parts = [
            part if "images" in part.column_names else part.add_column("images", [[]] * len(part), feature=IMAGES)
            for part in parts
        ]
    if not all("id" in part.column_names for part in parts):  # it only names a row in an error
        parts = [part.select_columns([name for name in part.column_names if name != "id"]) for part in parts]
    wanted = {**dict.fromkeys(TRAINING_COLUMNS, MESSAGES), "images": IMAGES, "id": Value("string")}
    for number, part in enumerate(parts):
        for name in set(part.column_names) - {"id", "images"}:
            message = getattr(part.features[name], "feature", None)
            if not isinstance(message, dict) or not isinstance(message.get("content"), Value):
                raise ValueError(
                    f"datasets[{number}]: the column {name!r} holds {part.features[name]}; a mixture reads messages, "
                    "[{'role': ..., 'content': ...}] with one text as content"
                )
        features = Features({name: wanted[name] for name in part.features})
        if features != part.features:
            parts[number] = part.cast(features)
    return parts


def _check_source(name: str, source: dict) -> float:
    """Return the weight of a source of a mixture, whose keys are checked first."""
    known = {"path", "config", "split", "weight"}
    if unknown := set(source) - known:
        raise ValueError(f"{name}: unknown key {sorted(unknown)[0]!r}; known are {sorted(known)}")
    if not source.get("path"):
        raise ValueError(f"{name}: the key 'path' is missing; it names a Hub id or a folder")
    weight = source.get("weight", 1.0)
    # YAML reads a number such as 1e-3 as text.
    try:
        number = float(weight)
    except (TypeError, ValueError):
        number = math.nan
    if not (0 < number < math.inf):
        raise ValueError(f"{name} ({source['path']}): weight is a number above 0, got {weight!r}")
    return number
