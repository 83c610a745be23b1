"""What the benchmark of curation curates: rows like those of the paper, their vectors, and an encoder to time."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from sicog_trl.data import CANDIDATES_FEATURES, writing
from sicog_trl.prompts import prompt_for
from sicog_trl.responses import build_steps


DIMENSION = 384  # of MiniLM, the usual small sentence encoder
GROUPS = 16_384  # rows whose vectors differ; later rows have those of earlier ones
_THINGS = "man woman dog car street tree table chair window cup bird boat house field sign lamp road wall".split()
_LOOKS = "small large old bright striped wooden wet red blue green white brown round empty broken quiet".split()
_DOES = "stands sits lies waits moves rests leans shines".split()
_PLACES = ["near", "beside", "behind", "under", "above", "left of", "right of", "in front of", "across from"]
_MODES = {
    "description": ("chain_of_description", "chain_of_description", "detailed_description"),
    "reasoning": ("chain_of_thought", "chain_of_thought", "direct_answer"),
}


def sentences(count: int = 5000, seed: int = 0) -> list[str]:
    """Return sentences of about ten words."""
    rng = np.random.default_rng(seed)
    pick = lambda words: words[rng.integers(len(words))]  # noqa: E731
    return [
        f"A {pick(_LOOKS)} {pick(_THINGS)} {pick(_DOES)} {pick(_PLACES)} the {pick(_LOOKS)} {pick(_THINGS)}."
        for _ in range(count)
    ]


def code(number: int) -> str:
    """Return a number in letters: a digit would be a decisive word."""
    letters = ""
    while number or not letters:
        number, rest = divmod(number, 26)
        letters += ascii_lowercase[rest]
    return f"scene {letters}q"


def given_vectors(path: Path, seed: int = 0, groups: int = GROUPS) -> None:
    """Write vectors whose three per row are as near to each other as captions of one picture are (about 0.8)."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((groups, 1, DIMENSION), dtype=np.float32)
    own = rng.standard_normal((groups, 3, DIMENSION), dtype=np.float32)
    vectors = common + own * rng.uniform(0.3, 0.7, (groups, 1, 1)).astype(np.float32)
    np.save(path, (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).reshape(-1, DIMENSION))


def lookup(path: Path) -> Callable[[Sequence[str]], np.ndarray]:
    """Return an `embed` that only looks up: by the code that a text ends in, else by the hash of the text."""
    vectors = np.load(path, mmap_mode="r")

    def index(text: str) -> int:
        word = text.rstrip(".").rpartition("scene ")[2]
        if word == text.rstrip("."):
            return zlib.crc32(text.encode()) % len(vectors)
        return sum(ascii_lowercase.index(letter) * 26**place for place, letter in enumerate(word[:-1])) % len(vectors)

    return lambda texts: vectors[np.fromiter(map(index, texts), dtype=np.int64, count=len(texts))]


def write_candidates(folder: Path, rows: int, seed: int = 0) -> None:
    """Write an artefact of candidates: half descriptions, half reasoning, one picture of a few bytes in each row."""
    pool = sentences()
    schema = CANDIDATES_FEATURES.arrow_schema
    image = folder / "dot.png"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(image)
    dot = [{"bytes": image.read_bytes(), "path": None}]
    image.unlink()
    with writing(folder, "candidates", schema) as writer:
        for start in range(0, rows, 1000):
            some = [{**row, "images": dot} for row in _rows(pool, range(start, min(rows, start + 1000)), seed)]
            writer.write_table(pa.Table.from_pylist(some, schema=schema))


def _rows(pool: list[str], numbers: Sequence[int], seed: int) -> Iterator[dict[str, Any]]:
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        task = "reasoning" if number % 2 else "description"
        question = f"{pool[rng.integers(len(pool))]} How many are there?" if number % 2 else None
        candidates = [_candidate(pool, rng, number, c, mode, question) for c, mode in enumerate(_MODES[task])]
        yield {"id": f"row-{number:07}", "question": question, "task": task, "candidates": candidates}


def _candidate(
    pool: list[str], rng: np.random.Generator, number: int, c: int, mode: str, question: str | None
) -> dict[str, Any]:
    draws = iter(rng.integers(len(pool), size=24).tolist())

    def say(count: int) -> str:
        return " ".join(pool[next(draws)] for _ in range(count))

    if mode in _MODES["description"]:
        last = f"{say(int(rng.integers(7, 11)))} So ends {code(number * 3 + c)}."  # 60 to 100 words
    else:
        wrong = rng.random() < 0.3
        free = number % 10 == 1  # a tenth of the questions has no short answer
        last = f"It is there because {say(1)[:-1]} in {code(number * 3 + c)}" if free else str(number % 20 + 7 * wrong)
    text = last
    if mode == "chain_of_description":
        text = build_steps(mode, [say(2), say(2), say(2), say(2), last])
    if mode == "chain_of_thought":
        text = build_steps(mode, [say(1), say(3), say(5), last])
    fate = rng.random()
    text = text.replace("Step 3", "So") if fate < 0.02 else text
    return {
        "text": text,
        "mode": mode,
        "prompt": prompt_for(mode, question),
        "seed": number * 3 + c,
        "finish_reason": "length" if fate > 0.98 else "stop",
        "num_tokens": len(text.split()),
    }


def random_encoder(folder: Path, texts: Sequence[str]) -> str:
    """Write a sentence-transformers model of the shape of MiniLM-L6 with random weights; its words are of `texts`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({word.strip(".,").lower() for text in texts for word in text.split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner = folder / "bert"
    inner.mkdir(parents=True)
    (inner / "vocab.txt").write_text("\n".join([*special, ".", ",", *words]), encoding="utf-8")
    BertTokenizerFast(str(inner / "vocab.txt"), model_max_length=256).save_pretrained(inner)
    config = BertConfig(
        vocab_size=30_522,
        hidden_size=DIMENSION,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=4 * DIMENSION,
    )
    BertModel(config).save_pretrained(inner)
    encoder = Transformer(str(inner), max_seq_length=256)
    model = SentenceTransformer(modules=[encoder, Pooling(DIMENSION)], device="cpu")
    model.save(str(folder / "encoder"))
    return str(folder / "encoder")
