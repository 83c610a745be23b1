"""What a dataset card says, what it leaves alone, and what is refused before anything is published."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, Features, Image, Value, load_dataset
from hub_server import HubServer, Stored
from huggingface_hub import DatasetCard
from pushing import ADVERSE, REPO, TOKEN, api, make_run, png, settings

from sicog_trl.data import ANNOTATED_FEATURES, CANDIDATES_FEATURES, save
from sicog_trl.files import write_json
from sicog_trl.hub import push, validate_card


SAID = "```` </code> <script>alert(1)</script> ![x](http://evil.example/x.png)\n---\n# A heading"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), rows=30)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def card(config, folder: Path) -> str:
    """The card of a dry run, which asks nobody."""
    push(config, folder)
    return (folder / "README.md").read_text()


def annotated(folder: Path, text: str, images=None, count: int = 3, prompt: str = "Look.") -> str:
    message = [{"role": "assistant", "content": text}]
    asked = [{"role": "user", "content": prompt}]
    one = {"source_id": "s", "images": images or [], "prompt": asked, "completion": message, "task": "description"}
    rows = [{"id": f"row-{number}", "mode": "my_mode", **one} for number in range(count)]
    save(Dataset.from_list(rows, features=ANNOTATED_FEATURES), folder, "annotated")
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_license": None}, "image_license is None: nothing is pushed without the licences"),
        ({"text_license": ""}, "text_license is ''"),
        ({"text_license": "unknown"}, "text_license 'unknown' is none that the Hub knows"),
        ({"image_license": "Flickr terms"}, "say in image_license_link"),
        ({"artefacts": []}, "artefacts is empty"),
        ({"artefacts": ["runs/x"]}, r"artefacts\[0\] is 'runs/x'; write it as `path: runs/x`"),
        ({"artefacts": [{"path": "x", "splt": "y"}]}, r"artefacts\[0\]: unknown key 'splt'"),
        ({"artefacts": [{"path": "x", "config": "y"}]}, "a `split` if it has a `config`"),
        ({"images": "url"}, "unknown images 'url'"),
        ({"image_reference": "{row}"}, "image_reference knows id, source_id, path and number"),
        ({"tag": "../main"}, "tag holds letters"),
        ({"tag": "main"}, "is not 'main'"),
        ({"private": None}, "private is true or false, got None"),
        ({"hub_dataset_id": "digits"}, "hub_dataset_id is owner/name"),
        ({"hub_dataset_id": "me/digits.git"}, "hub_dataset_id is owner/name"),
    ],
)
def test_what_may_not_be_pushed_is_refused_before_anything_is_read(run, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(run, **{"dry_run": True, **changes})


def test_a_card_says_what_made_the_data_and_what_it_holds(run, tmp_path, offline):
    text = card(settings(run, dry_run=True, tag="round-1", source_datasets=["me/scenes"]), tmp_path)
    for said in (
        "| model | me/teacher@0123 |",
        "| generation_seed | 7 |",
        "| sampler · temperature | 0.7 |",
        "| similarity | word_ngram |",
        "| min_consistency | 0.6 |",
        "Describe the image in detail.",
        "{question}\nAnswer with a single word or phrase.",
        "| images | cc-by-4.0 |",
        "| text | apache-2.0 |",
        "| source datasets | me/scenes |",
        'load_dataset("me/digits", "curated", split="curated", revision="round-1")',
    ):
        assert said in text
    rows = {split: Dataset.from_parquet(str(run / "curated/data" / f"{split}-*")) for split in ("curated", "dropped")}
    reasons = rows["dropped"].to_pandas()["reason"].value_counts()
    for reason, count in reasons.items():
        assert f"| {reason} | {count} |" in text
    histogram = re.findall(r"^\| (?:below )?[0-9.]+(?: to [0-9.]+)? \| (\d+) \|", text, re.MULTILINE)
    scored = [score for split in rows.values() for score in split["consistency"] if score is not None]
    assert sum(map(int, histogram)) == len([score for score in scored if score == score])
    assert text.count("```json\n") == 3
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["license"] == ["cc-by-4.0", "apache-2.0"] and metadata["source_datasets"] == ["me/scenes"]


def test_settings_of_steps_whose_rows_are_not_published_can_be_told(run, tmp_path, offline):
    only = settings(run, artefacts=[{"path": str(run / "curated"), "split": "curated"}], dry_run=True)
    assert "me/teacher" not in card(only, tmp_path)
    only.made_by = [str(run / "candidates")]
    assert "| model | me/teacher@0123 |" in card(only, tmp_path)


def test_a_card_names_the_datasets_that_a_step_read_and_no_folder_of_this_machine(run, tmp_path, offline):
    read = {"dataset_name": ["me/digits@0123abc", f"{tmp_path}/deep/candidates"], "rejected_dataset_name": []}
    write_json(tmp_path / "pairs" / "summary.json", read)
    plan = {"dataset_name": "runs/of/mine/world", "sampler": {"max_tokens": 77, "api_key": "secret"}}
    write_json(tmp_path / "made" / "plan.json", plan)
    made_by = [str(tmp_path / "pairs"), str(tmp_path / "made")]
    text = card(settings(run, dry_run=True, made_by=made_by), tmp_path / "push")
    assert "| dataset_name | me/digits@0123abc, candidates |" in text and "| dataset_name | world |" in text
    assert "| sampler · max_tokens | 77 |" in text and "rejected_dataset_name" not in text
    assert not any(word in text for word in ("secret", str(tmp_path), "runs/of"))


def test_a_card_says_whether_the_data_was_compared_with_benchmarks(run, tmp_path, offline):
    only = settings(run, artefacts=[{"path": str(run / "curated"), "split": "curated"}], dry_run=True)
    assert "Nothing here says that it was compared with evaluation sets" in card(only, tmp_path / "push")
    nearest = [{"id": "a", "row": 3, "image": f"{tmp_path}/a.png"}]
    contaminated = {"mmstar": {"rows": 2, "image": 2, "nearest": nearest}}
    summary = {"rows_in": 9, "contaminated": contaminated, "benchmarks": {"mmstar": {"images": 5}, "pope": {}}}
    write_json(tmp_path / "clean" / "summary.json", summary)
    only.made_by = [str(tmp_path / "clean")]
    text = card(only, tmp_path / "push")
    assert "rows near to these benchmarks were taken out: mmstar, pope." in text
    assert "| contaminated · mmstar · image | 2 |" in text and "nearest" not in text


@pytest.mark.parametrize("said", [SAID, ADVERSE])
def test_what_models_wrote_cannot_leave_its_block(said, tmp_path, offline):
    folder = annotated(tmp_path / "run", said, prompt=said)
    write_json(tmp_path / "run" / "settings.json", {"<script>": "a | b\n---\nlicense: mit"})
    artefacts = [{"path": folder}]
    text = card(settings(tmp_path, artefacts=artefacts, dry_run=True), tmp_path / "push")
    outside = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"<script|<img|evil\.example|javascript:|^# A heading", outside, re.MULTILINE)
    assert validate_card(text, ["data/annotated-00000-of-00001.parquet"])["license"] == ["cc-by-4.0", "apache-2.0"]


def test_other_prompts_than_ours_are_told_verbatim(tmp_path, offline):
    artefacts = [{"path": annotated(tmp_path / "run", "A three.")}]
    text = card(settings(tmp_path, artefacts=artefacts, dry_run=True), tmp_path / "push")
    assert "In 3 texts:\n\n```\nLook.\n```" in text


def test_prompts_are_told_to_the_letter_and_a_mark_of_the_card_in_a_text_ends_nothing(hub, tmp_path):
    prompt = "First:\n\n\n\n  look.\n``` \nThen " + "tell " * 400 + "."
    mark = "<!-- sicog-trl: end -->"
    for text in (f"One {mark}", f"Two {mark}"):
        artefacts = [{"path": annotated(tmp_path / "run", text, prompt=prompt)}]
        push(settings(tmp_path, artefacts=artefacts), tmp_path / "push", api(hub))
    card = hub.files(REPO)["README.md"].decode()
    assert f"````\n{prompt}\n````" in card and card.count("## How to cite") == 1 and "One <!" not in card


def test_places_of_the_machine_are_not_told_by_errors_and_what_could_not_be_read_is_null(tmp_path, offline):
    folder = tmp_path / "My pictures"
    folder.mkdir()
    (folder / "good.png").write_bytes(png(3))
    (folder / "text.png").write_text("root:x:0:0")
    told = {
        "gone.png": f"unreadable_image: row 'a': no such file: {folder}/gone.png",
        "text.png": f"unreadable_image: [Errno 13] not allowed: '{tmp_path}/other place/text.png'",
        "good.png": "server_error: 500: http://10.1.2.3:8000/v1/models and /srv/models/teacher failed, or/and not",
    }
    rows = [
        {"id": name, "images": [{"bytes": None, "path": str(folder / name)}], "task": "description", "error": error}
        for name, error in told.items()
    ]
    features = Features({name: CANDIDATES_FEATURES[name] for name in ("id", "images", "task", "error")})
    save(Dataset.from_list(rows, features=features), tmp_path / "run", "candidates")
    text = card(settings(tmp_path, artefacts=[{"path": str(tmp_path / "run")}], dry_run=True), tmp_path / "push")
    pushed = Dataset.from_parquet(str(tmp_path / "push" / "data" / "*.parquet"))
    assert pushed["error"][:] == [
        "unreadable_image: row 'a': no such file: gone.png",
        "unreadable_image: [Errno 13] not allowed: 'text.png'",
        "server_error: 500: a server and teacher failed, or/and not",
    ]
    assert [row[0] and row[0].size for row in pushed["images"]] == [None, None, (8, 8)]
    assert "In `candidates` 2 images are null" in text and "| unreadable_image | 2 |" in text
    assert str(tmp_path) not in text and "My pictures" not in text
    # and a row that does not say so is not pushed without its image
    rows[0]["error"] = None
    save(Dataset.from_list(rows, features=features), tmp_path / "run", "candidates")
    with pytest.raises(FileNotFoundError, match=r"row 'gone.png': its image .*gone.png is not there"):
        card(settings(tmp_path, artefacts=[{"path": str(tmp_path / "run")}], dry_run=True), tmp_path / "push")


def test_an_address_in_the_place_of_a_path_tells_its_last_part_without_what_signs_it(tmp_path, offline):
    image = {"bytes": png(1), "path": "https://store.example/a/b.png?X-Signature=secret"}
    artefacts = [{"path": annotated(tmp_path / "run", "A three.", [image])}]
    card(settings(tmp_path, artefacts=artefacts, dry_run=True), tmp_path / "push")
    [written] = (tmp_path / "push" / "data").glob("*.parquet")
    assert pq.read_table(written)["images"].to_pylist()[0] == [{"bytes": png(1), "path": "b.png"}]


def test_large_images_are_held_a_few_at_a_time(tmp_path, offline, monkeypatch):
    """An Arrow array ends at two gigabytes; rows of images in files are larger than their Parquet file tells."""
    (tmp_path / "1.png").write_bytes(png(1))
    embedded, named = {"bytes": png(2), "path": None}, {"bytes": None, "path": str(tmp_path / "1.png")}
    artefacts = [{"path": annotated(tmp_path / "run", "A three.", [embedded, named], count=30)}]
    config = settings(tmp_path, artefacts=artefacts, dry_run=True)
    card(config, tmp_path / "whole")
    monkeypatch.setattr("sicog_trl.hub.images.HELD_BYTES", 5 * len(png(1) + png(2)))
    card(config, tmp_path / "pieces")
    [whole, pieces] = [next((tmp_path / n / "data").glob("*.parquet")) for n in ("whole", "pieces")]
    assert pq.read_table(pieces).equals(pq.read_table(whole))
    assert [pq.ParquetFile(file).num_row_groups for file in (whole, pieces)] == [1, 6]


@pytest.mark.parametrize(
    "content", ["A red three.", [{"type": "image", "text": None}, {"type": "text", "text": "A red three."}]]
)
def test_messages_in_either_form_are_counted(tmp_path, offline, content):
    rows = {
        "id": ["a"],
        "messages": [[{"role": "user", "content": content}, {"role": "assistant", "content": content}]],
    }
    save(Dataset.from_dict(rows), tmp_path / "run", "mine")
    text = card(settings(tmp_path, artefacts=[{"path": str(tmp_path / "run")}], dry_run=True), tmp_path / "push")
    assert re.search(r"\| mine +\| words of messages +\| +1 \| +6.0 \|", text)


def test_long_texts_of_sample_rows_are_cut_and_it_is_said(tmp_path, offline):
    artefacts = [{"path": annotated(tmp_path / "run", "word " * 1_000, prompt="long " * 100_000)}]
    write_json(tmp_path / "run" / "settings.json", {"strategy": "x" * 100_000})
    text = card(settings(tmp_path, artefacts=artefacts, dry_run=True), tmp_path / "push")
    assert "[4,400 more characters]" in text and len(text) < 20_000


def test_a_token_in_what_would_be_published_is_refused(tmp_path, offline):
    artefacts = [{"path": annotated(tmp_path / "run", f"My token is {TOKEN}.")}]
    with pytest.raises(
        ValueError, match=r"looks like an access token, hf_abc…, stands in line \d+ of the card.* revoke it"
    ):
        card(settings(tmp_path, artefacts=artefacts, dry_run=True), tmp_path / "push")


def test_a_name_that_only_looks_a_little_like_a_token_is_no_reason_to_refuse(tmp_path, offline):
    artefacts = [
        {"path": annotated(tmp_path / "run", "A multitask-visual-instruction-tuning-mix of risk-assessments.")}
    ]
    assert "multitask-visual" in card(settings(tmp_path, artefacts=artefacts, dry_run=True), tmp_path / "push")


def test_licences_that_the_hub_does_not_know_are_named_with_their_link(tmp_path, offline):
    artefacts = [{"path": annotated(tmp_path / "run", "A three.")}]
    changes = {"image_license": "Flickr terms", "image_license_link": "https://terms.example", "dry_run": True}
    text = card(settings(tmp_path, artefacts=artefacts, **changes), tmp_path / "push")
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["license"] == ["other", "apache-2.0"]
    assert (metadata["license_name"], metadata["license_link"]) == ("flickr-terms", "https://terms.example")
    text = card(settings(tmp_path, artefacts=artefacts, images="reference", **changes), tmp_path / "push")
    assert yaml.safe_load(text.split("---")[1])["license"] == "apache-2.0"


def test_images_are_put_into_the_rows_and_other_files_are_not(tmp_path, offline):
    image, other = tmp_path / "1.png", tmp_path / "passwords"
    image.write_bytes(png(3))
    other.write_text("root:x:0:0")
    changes = {"dry_run": True}
    artefacts = [{"path": annotated(tmp_path / "good", "A three.", [{"bytes": None, "path": str(image)}])}]
    push(settings(tmp_path, artefacts=artefacts, **changes), tmp_path / "push")
    [written] = (tmp_path / "push" / "data").glob("*.parquet")
    assert png(3) in written.read_bytes() or Dataset.from_parquet(str(written))[0]["images"][0].getpixel((0, 0)) == (
        3,
        3,
        3,
    )
    for path, message in (
        (str(other), "row 'row-0': .*passwords is no image"),
        ("http://127.0.0.1:1/x.png", "row 'row-0': .* which nothing fetches here"),
        (str(tmp_path / "gone.png"), "row 'row-0': .* is not there"),
    ):
        artefacts = [{"path": annotated(tmp_path / "bad", "A three.", [{"bytes": None, "path": path}])}]
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            push(settings(tmp_path, artefacts=artefacts, **changes), tmp_path / "push")


def test_the_same_rows_give_the_same_bytes(run, tmp_path, offline):
    config = settings(run, dry_run=True)
    first, second = (push(config, tmp_path / name) for name in "ab")
    assert first == second
    contents = [{f.name: f.read_bytes() for f in (tmp_path / n).rglob("*") if f.is_file()} for n in "ab"]
    assert contents[0] == contents[1] and {"README.md", "curated-00000-of-00001.parquet"} < set(contents[0])


def test_columns_that_are_not_the_contract_are_named(tmp_path, offline):
    for columns, features, message in (
        (
            {"id": ["a"], "image": [None]},
            {"id": Value("string"), "image": Image()},
            "image outside the column `images`",
        ),
        ({"id": ["a"], "images": ["x"]}, {"id": Value("string"), "images": Value("string")}, "no list of images"),
        ({"name": ["a"]}, {"name": Value("string")}, "no column `id`"),
    ):
        save(Dataset.from_dict(columns, features=Features(features)), tmp_path / "run", "train")
        with pytest.raises(ValueError, match=message):
            push(settings(tmp_path, artefacts=[{"path": str(tmp_path / "run")}], dry_run=True), tmp_path / "push")


def test_splits_without_rows_are_left_out_and_named(run, tmp_path, offline):
    empty = Dataset.from_dict({"id": []}, features=Features({"id": Value("string")}))
    save(empty, tmp_path / "run", "nothing")
    artefacts = [{"path": str(run / "candidates")}, {"path": str(tmp_path / "run")}]
    report = push(settings(run, artefacts=artefacts, dry_run=True), tmp_path / "push")
    assert report["left_out"] == ["nothing"] and list(report["rows"]) == ["candidates"]
    with pytest.raises(ValueError, match="none of the artefacts has a row"):
        push(settings(run, artefacts=artefacts[1:], dry_run=True), tmp_path / "push")


def test_folders_that_cannot_be_told_apart_or_are_not_there_are_refused(run, tmp_path, offline):
    twice = [{"path": str(run / "candidates")}] * 2
    with pytest.raises(ValueError, match=r"artefacts\[1\]: .* has a configuration 'candidates' too"):
        push(settings(run, artefacts=twice, dry_run=True), tmp_path)
    apart = [twice[0], {"path": str(run / "candidates"), "split": "candidates", "config": "more"}]
    assert list(push(settings(run, artefacts=apart, dry_run=True), tmp_path)["rows"]) == ["candidates", "more"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"artefacts\[0\]: .*empty holds no"):
        push(settings(run, artefacts=[{"path": str(tmp_path / "empty")}], dry_run=True), tmp_path)
    with pytest.raises(FileNotFoundError, match="gone does not exist; run the stage that writes it first"):
        push(settings(run, artefacts=[{"path": str(tmp_path / "gone")}], dry_run=True), tmp_path)
    with pytest.raises(ValueError, match="is output_dir too"):
        push(settings(run, dry_run=True), run / "candidates")


def test_metadata_and_text_of_others_stay(hub: HubServer, run, tmp_path):
    Dataset.from_dict({"x": [1, 2]}).push_to_hub(REPO, "theirs", private=True)
    repo = hub.dataset(REPO)
    theirs = DatasetCard(hub.files(REPO)["README.md"].decode())
    theirs.data["tags"], theirs.data["license"], theirs.data["custom"] = ["mine"], ["cc-by-4.0", "apache-2.0"], "kept"
    theirs.text = "# My own words\n\nThey stay."
    files = {**repo.commits[repo.branches["main"]], "README.md": Stored(str(theirs).encode(), False)}
    repo.commit(files, "a card by hand")
    before = yaml.safe_load(str(theirs).split("---")[1])

    push(settings(run, pretty_name="Digits"), tmp_path / "push", api(hub))
    text = hub.files(REPO)["README.md"].decode()
    after = yaml.safe_load(text.split("---")[1])
    assert after["custom"] == "kept" and after["tags"][0] == "mine" and "synthetic" in after["tags"]
    assert after["pretty_name"] == "Digits" and "# My own words\n\nThey stay." in text
    infos = {info["config_name"]: info for info in after["dataset_info"]}
    assert infos["theirs"] == before["dataset_info"] and set(infos) == {"theirs", "curated", "dropped", "candidates"}
    configs = {config["config_name"]: config["data_files"] for config in after["configs"]}
    assert configs["theirs"] == before["configs"][0]["data_files"] and set(configs) == set(infos)
    assert any(path.startswith("theirs/") for path in hub.files(REPO))

    # once more: the part of an earlier push is replaced, nothing is written twice
    push(settings(run, pretty_name="Another name", tag="round-2"), tmp_path / "push", api(hub))
    again = hub.files(REPO)["README.md"].decode()
    assert again.count("## How to load it") == 1 and again.count("They stay.") == 1 and 'revision="round-2"' in again
    assert yaml.safe_load(again.split("---")[1]) == after


@pytest.mark.parametrize(
    ("config", "split", "files"), [("default", "curated", "data/curated-*"), ("curated", "train", "curated/train-*")]
)
def test_rows_of_others_are_not_replaced(hub: HubServer, run, tmp_path, config, split, files):
    Dataset.from_dict({"x": [1, 2]}).push_to_hub(REPO, config, split=split, private=True)
    before = hub.files(REPO)
    message = f"the configuration {config!r} has the files {files}, which no push of 'curated' made"
    with pytest.raises(ValueError, match=re.escape(message)):
        push(settings(run), tmp_path / "push", api(hub))
    assert hub.files(REPO) == before
    artefacts = [{"path": str(run / "curated"), "split": "curated", "config": "consistent"}]
    push(settings(run, artefacts=artefacts), tmp_path / "push", api(hub))
    assert load_dataset(REPO, config, split=split)["x"][:] == [1, 2]


def test_files_of_no_configuration_are_not_replaced(hub: HubServer, run, tmp_path):
    api(hub).create_repo(REPO, repo_type="dataset", private=True)
    repo = hub.dataset(REPO)
    repo.commit({"data/curated-00000-of-00002.parquet": Stored(b"theirs", True)}, "by hand")
    with pytest.raises(ValueError, match=r"data/curated-00000-of-00002.parquet belongs to no configuration"):
        push(settings(run), tmp_path / "push", api(hub))


def test_a_card_with_other_licences_is_not_contradicted(hub: HubServer, run, tmp_path):
    push(settings(run), tmp_path / "push", api(hub))
    with pytest.raises(ValueError, match=r"says license: \['cc-by-4.0', 'apache-2.0'\], and this push cc0-1.0"):
        push(settings(run, image_license="cc0-1.0", text_license="cc0-1.0"), tmp_path / "push", api(hub))
    assert len(hub.dataset(REPO).commits) == 2


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: my-own", "license 'my-own' is none that the Hub knows"),
        ("pretty_name: x", "license 'None'"),
        ("license: other", "needs license_name and license_link"),
        ("license: mit\nlanguage: [English]", "language 'English' is no ISO 639 code"),
        ("license: mit\nconfigs:\n- config_name: a\n  data_files: data/b-*", "names data/b-*, which matches no file"),
        ("license: mit\nconfigs:\n- data_files: data/a-*", "cannot be read"),
        ("license: mit\nconfigs:\n- {config_name: a, default: true, data_files: data/a-*}\n"
         "- {config_name: b, default: true, data_files: data/a-*}", "cannot be read"),
        ("license: [", "cannot be read"),
    ],
)  # fmt: skip
def test_wrong_cards_are_found_without_the_hub(metadata, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        validate_card(f"---\n{metadata}\n---\n# A card\n", ["data/a-00000-of-00001.parquet"])


@pytest.mark.parametrize("files", ["data/a-*", ["data/a-*", "**/*.parquet"], [{"split": "a", "path": ["data/a-*"]}]])
def test_right_cards_pass_in_whatever_form_they_name_their_files(files):
    metadata = yaml.safe_dump(
        {"license": "mit", "language": "en", "configs": [{"config_name": "a", "data_files": files}]}
    )
    assert validate_card(f"---\n{metadata}---\n# A card\n", ["data/a-00000-of-00001.parquet"])["license"] == "mit"
