"""Texts as vectors, by models of sentence-transformers built here: normalised, batched, and nothing cut in silence."""

import json
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate import PartialState
from curating import BLUE, RED, answered, completions, described, ids, row, table
from trl import TrlParser

from sicog_trl.curation import CurationConfig, curate
from sicog_trl.curation.embedding import embedder
from sicog_trl.data import save


pytest.importorskip("sentence_transformers", reason="the extra `similarity` is not installed")
ROOT = Path(__file__).parents[1]
WORDS = "a one two red blue three five digit on dark background at the top left cat dog sits stands there".split()


@pytest.fixture(scope="session")
def bag(tmp_path_factory) -> str:
    """A model that counts words, and knows no longest text."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW

    folder = tmp_path_factory.mktemp("bag")
    SentenceTransformer(modules=[BoW(vocab=WORDS)], device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def short_sighted(tmp_path_factory) -> str:
    """A tiny transformer that reads eight tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    inner = folder / "bert"
    inner.mkdir()
    (inner / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]))
    BertTokenizerFast(str(inner / "vocab.txt"), model_max_length=8).save_pretrained(inner)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=64, **shape)).save_pretrained(inner)
    modules = [Transformer(str(inner), max_seq_length=8), Pooling(16)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return str(folder / "model")


def test_vectors_of_a_model_have_length_one(bag, short_sighted):
    for model in (bag, short_sighted):
        vectors = embedder(model)(["a red cat", "a blue dog sits there"])
        assert vectors.dtype == np.float32
        assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    counts = embedder(bag)(["red red blue", "red blue"])
    assert counts[0] @ counts[1] == pytest.approx(3 / np.sqrt(10), abs=1e-6)


def test_defect_19_texts_that_a_model_cuts_are_counted(bag, short_sighted, tmp_path):
    """The released code lets its encoder cut captions at 512 or 1024 tokens; nobody hears of it."""
    short, long = "a red cat sits there .", "a red cat sits there at the top left"  # 6 + 2 and 9 + 2 tokens
    embed = embedder(short_sighted)
    embed([short, long, long])
    assert embed.num_cut == 2
    embed([long])
    assert embed.num_cut == 3
    endless = embedder(bag)
    endless(["red " * 1000])
    assert endless.num_cut == 0
    rows = table(row("x", described(short, f"{short} {short}", short)), row("y", answered("1", "1")))
    config = CurationConfig(similarity=short_sighted, veto=False)
    assert curate(rows, config, tmp_path)["texts_longer_than_similarity_reads"] == 1


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_do_not_depend_on_how_many_texts_a_model_reads_at_once(batch_size, short_sighted, tmp_path):
    """Sums in other batches differ in their last bits, which must not break a tie by chance."""
    texts = ["a cat", "a cat sits there", "a dog stands there", "one cat"]
    rows = table(*[row(f"r{i}", described(*texts[i:], *texts[:i])) for i in range(4)])
    found = {}
    for size in (2, batch_size):
        config = CurationConfig(similarity=short_sighted, similarity_batch_size=size, veto=False)
        found[size] = (curate(rows, config, tmp_path / str(size)), completions(tmp_path / str(size)))
    assert found[2] == found[batch_size]


@pytest.mark.parametrize("name", ["word_nrgam", "no/such-model"])
def test_what_is_no_similarity_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"unknown similarity '{name}': choose word_ngram or char_ngram, or the id"):
        embedder(name)


def test_a_similarity_whose_library_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match=r"unknown similarity 'all-MiniLM-L6-v2'.*install the extra `similarity`"):
        embedder("all-MiniLM-L6-v2")


@pytest.fixture
def recipe() -> Callable[..., None]:
    """The recipe as a function of its command line, in this process: torch is not loaded again."""
    spec = util.spec_from_file_location("recipe_curate", ROOT / "recipes" / "curate.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield lambda *line: module.main(*TrlParser(module.ARGUMENTS).parse_args_and_config(line))
    PartialState._reset_state()


def test_the_recipe_takes_a_model_by_name_and_several_folders(bag, recipe, tmp_path, capsys):
    looks = [row("a", described(RED, RED)), row("b", described(RED, BLUE)), row("c", described("", ""))]
    save(table(*looks), tmp_path / "looks", "candidates")
    save(table(row("d", answered("7", "seven"))), tmp_path / "thinks", "candidates")
    config = {"dataset_name": [str(tmp_path / "looks"), str(tmp_path / "thinks")], "output_dir": str(tmp_path / "out")}
    (tmp_path / "curate.yaml").write_text(yaml.safe_dump({**config, "similarity": bag, "min_consistency": 0.3}))
    recipe("--config", str(tmp_path / "curate.yaml"), "--min_consistency", "q0.5")
    assert ids(tmp_path / "out", "curated") == ["a", "d"]
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["dropped"] == {"empty": 1, "inconsistent": 1}
    assert "dropped: empty" in said.out and "WARNING" not in said.err
    scalar = {"dataset_name": str(tmp_path / "thinks"), "output_dir": str(tmp_path / "none"), "min_consistency": 0.75}
    (tmp_path / "curate.yaml").write_text(yaml.safe_dump({**scalar, "keep": 0.1}))
    recipe("--config", str(tmp_path / "curate.yaml"))
    assert "WARNING: 0 of 1 rows were kept." in capsys.readouterr().err
