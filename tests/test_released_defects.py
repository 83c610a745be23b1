"""What the code released with SICOG does to data in silence, and the test of ours that each defect would fail.

A defect that stops a program is found by whoever runs it. These are not: they end in a file that looks right.
"""

from pathlib import Path

import pytest
from datasets import Dataset
from generating import EchoSampler
from PIL import Image

from sicog_trl.data import IMAGES_FEATURES, load
from sicog_trl.generation import CandidateConfig, ImageRows, make_plan, make_shards


TESTS = Path(__file__).parent
# What happens there -> tests that keep it out of here, as `file::test`.
DEFECTS = {
    "the conversion of annotations changes the records that it reads, so that long and short answers are the same": [
        "test_annotation.py::test_long_and_short_answers_are_made_from_the_same_untouched_record"
    ],
    "a record without its tags is cut at random instead of left out": [
        "test_annotation.py::test_a_record_without_sound_tags_is_dropped_by_name_and_never_cut"
    ],
    "an answer of the teacher with other headings becomes a short description whole": [
        "test_annotation.py::test_steps_that_do_not_read_are_named_and_no_full_text_passes_for_the_last_step"
    ],
    "the error of a paid call is saved as a caption, and the call is made again": [
        "test_annotation.py::test_an_answer_that_is_no_annotation_is_dropped_by_name_kept_raw_and_asked_again_only_on_request",
        "test_annotation.py::test_law_4_after_kill_9_only_calls_that_were_under_way_are_paid_again",
    ],
    "all processes write one file": ["test_generation.py::test_law_3_bytes_do_not_depend_on_the_number_of_processes"],
    "an image that is skipped moves all later captions to other images": [
        "test_released_defects.py::test_a_row_that_cannot_be_asked_moves_no_caption_to_another_image"
    ],
    "rows that do not divide among the processes are lost": [
        "test_released_defects.py::test_rows_that_do_not_divide_evenly_are_all_asked"
    ],
    "rejected answers are about whole images, because the damage is commented out": [
        "test_preferences.py::test_rejected_sides_are_what_the_model_says_about_damaged_images",
        "test_preferences.py::test_candidates_about_whole_images_are_refused",
    ],
    "a whole chain is rejected for a short answer": [
        "test_preferences.py::test_a_chain_is_never_paired_with_a_short_answer"
    ],
    "what is rejected may be as good as what is chosen": [
        "test_preferences.py::test_both_sides_are_of_one_kind_and_apart",
        "test_preferences.py::test_what_may_not_be_rejected_is_dropped_by_name",
    ],
    "the chain of the winner is thrown away, its answer alone is kept": [
        "test_curation_files.py::test_defect_12_the_whole_chain_is_kept_and_no_answer_is_cut"
    ],
    "text behind the answer is kept and the answer thrown away": [
        "test_prompts.py::test_an_answer_is_one_paragraph_and_a_description_may_be_several"
    ],
    "the threshold means another one for every number of candidates, and long vectors win": [
        "test_similarity.py::test_defect_16_neither_the_number_of_candidates_nor_the_length_of_a_vector_moves_a_score"
    ],
    "an encoder takes twelve for thirteen and left for right": [
        "test_similarity.py::test_defect_17_an_encoder_that_sees_no_difference_does_not_make_twelve_thirteen",
        "test_similarity.py::test_veto_separates_what_vectors_confuse",
    ],
    "equal answers are never counted": [
        "test_similarity.py::test_defect_18_equal_answers_are_counted_however_they_are_written"
    ],
    "empty, cut and malformed candidates win": [
        "test_curation_files.py::test_defect_19_faults_are_counted_in_detail_and_never_chosen"
    ],
    "training asks in other words than generation": [
        "test_digits.py::test_law_7_generation_asks_as_training_did",
        "test_annotation.py::test_a_question_loses_what_other_prompts_asked_for_and_nothing_else",
    ],
    "the loss is taken on tokens of the user's turn": [
        "test_digits.py::test_law_7_training_sees_prompt_images_and_completion"
    ],
    "a row that cannot be read is replaced by its neighbour": [
        "test_batches.py::test_an_image_that_cannot_be_read_is_named_by_its_row"
    ],
    "nothing is seeded": [
        "test_generation.py::test_law_3_bytes_do_not_depend_on_the_batch_size",
        "test_preferences.py::test_nothing_is_left_to_chance_to_the_order_of_the_candidates_or_to_the_batch",
    ],
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_has_its_test(defect):
    for name in DEFECTS[defect]:
        file, test = name.split("::")
        assert f"def {test}(" in (TESTS / file).read_text(), name


def generated(rows: list[dict], folder: Path, rows_per_shard: int) -> dict[str, tuple[list, list[str], str | None]]:
    """Return id -> images, texts and error of a run over `rows`."""
    config = CandidateConfig(description_modes={"detailed_description": 2}, rows_per_shard=rows_per_shard)
    images = ImageRows(Dataset.from_list(rows, features=IMAGES_FEATURES))
    plan = make_plan(images, config, folder, "model")
    for process in range(3):  # one after the other, in any order
        make_shards(plan, plan.missing(process, 3), config, images, EchoSampler())
    written = load(str(folder), split="candidates")
    return {row["id"]: (row["images"], [c["text"] for c in row["candidates"]], row["error"]) for row in written}


def scenes(count: int) -> list[dict]:
    shades = (Image.new("RGB", (4, 4), (10 * number, 0, 0)) for number in range(count))
    return [{"id": f"row-{n}", "images": [shade], "question": None, "answer": None} for n, shade in enumerate(shades)]


def test_a_row_that_cannot_be_asked_moves_no_caption_to_another_image(tmp_path):
    whole = generated(scenes(7), tmp_path / "whole", 2)
    broken = scenes(7)
    broken[2]["images"] = []  # nothing to look at
    found = generated(broken, tmp_path / "broken", 2)
    assert found.pop("row-2")[1:] == ([], "no_image: row 'row-2' has neither an image nor a question")
    for name, (images, texts, error) in found.items():
        number = int(name.removeprefix("row-"))
        assert images[0].getpixel((0, 0)) == (10 * number, 0, 0)
        assert texts == whole[name][1] and len(texts) == 2 and error is None


@pytest.mark.parametrize("count", [1, 7, 8])
def test_rows_that_do_not_divide_evenly_are_all_asked(count, tmp_path):
    found = generated(scenes(count), tmp_path, 2)
    assert sorted(found) == [f"row-{number}" for number in range(count)]
    assert all(len(texts) == 2 for _, texts, _ in found.values())
