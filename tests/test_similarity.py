"""How much candidates agree: the arithmetic by hand, votes, and the words that vectors confuse."""

import numpy as np
import pytest
from curating import BLUE, RED, answered, described, looked, reasoned, said
from scipy.sparse import csr_matrix

from sicog_trl.curation.decisive import decisive_words
from sicog_trl.curation.embedding import embedder
from sicog_trl.curation.similarity import coarse_fault, read_candidate, score_rows, self_consistency


def test_score_is_the_mean_over_the_others_by_hand():
    """Design §5: the released code averages the similarity to itself in, s_paper = (1 + (n - 1) s) / n."""
    vectors = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    candidates = described("A cat.", "A tabby cat.", "A dog.")
    for given in (vectors, csr_matrix(vectors)):
        scores = self_consistency(candidates, "description", lambda texts, given=given: given)
        assert scores == pytest.approx([(0.6 + 0.0) / 2, (0.6 + 0.8) / 2, (0.0 + 0.8) / 2])
    paper = (vectors @ vectors.T).mean(axis=1)
    assert paper == pytest.approx((1 + 2 * np.array(scores)) / 3)
    vetoed = described("A cat.", "A red cat.", "A cat.")
    assert self_consistency(vetoed, "description", lambda texts: vectors[:2]) == pytest.approx([0.5, 0, 0.5])


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_agreement_does_not_depend_on_the_number_of_candidates(count):
    embed = embedder("word_ngram")
    assert self_consistency(described(*[RED] * count), "description", embed) == pytest.approx([1.0] * count)
    assert self_consistency(answered(*["7"] * count), "reasoning", embed) == pytest.approx([1.0] * count)


def test_one_candidate_agrees_with_nobody():
    assert self_consistency(described(RED), "description", embedder("word_ngram")) == [0.0]


@pytest.mark.parametrize("similarity", ["word_ngram", "char_ngram"])
def test_vectors_have_length_one_and_order_counts(similarity):
    embed = embedder(similarity)
    vectors = embed([RED, BLUE, "x", ""])
    lengths = np.sqrt(vectors.multiply(vectors).sum(axis=1)).A1
    assert lengths == pytest.approx([1, 1, 1, 0])
    if similarity == "word_ngram":
        pair = embed(["a red three and a blue seven", "a blue three and a red seven"])
        assert (pair @ pair.T)[0, 1] < 0.8  # the same words in another order
    with pytest.raises(ValueError, match="unknown similarity 'minilm'"):
        embedder("minilm")


def test_captions_are_compared_by_their_last_part():
    candidates = [looked(RED), *described(RED)]
    assert self_consistency(candidates, "description", embedder("word_ngram")) == pytest.approx([1, 1])


def test_answers_are_a_majority_vote():
    candidates = [reasoned("7", "One way."), reasoned("Seven.", "Another."), *answered("8", "7.0")]
    assert self_consistency(candidates, "reasoning", embedder("word_ngram")) == pytest.approx([2 / 3, 2 / 3, 0, 2 / 3])


def test_broken_candidates_lower_the_scores_of_the_rest():
    candidates = [*described(RED, RED, " "), said(RED, "detailed_description", "length")]
    assert self_consistency(candidates, "description", embedder("word_ngram")) == pytest.approx([1 / 3, 1 / 3, 0, 0])


def test_veto_separates_what_vectors_confuse():
    embed = embedder("word_ngram")
    pair = described(RED, BLUE)
    assert self_consistency(pair, "description", embed, veto=True) == [0, 0]
    assert min(self_consistency(pair, "description", embed, veto=False)) > 0.5
    same = described("A red three.", "A large red three.")
    assert min(self_consistency(same, "description", embed, veto=True)) > 0.2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Two red birds, not three; 1,5 m left.", ("two", "red", "not", "three", "1,5", "left")),
        ("It isn't there.", ("isn't",)),
        ("Reduced topics, bright leftovers", ()),
        ("7. 12.5", ("7", "12.5")),
    ],
)
def test_decisive_words(text, words):
    assert decisive_words(text) == words


def test_faults():
    def fault_of(text: str, mode: str, finish_reason: str = "stop", corruption: str | None = None) -> str | None:
        return coarse_fault(read_candidate(text, mode, finish_reason, corruption)[1])

    assert fault_of(" \n", "short_caption") == "empty"
    assert fault_of("x", "short_caption", "length") == "truncated"
    assert fault_of("x", "chain_of_thought") == "incomplete"
    assert fault_of("x", "short_caption", corruption="mask") == "corrupted"
    assert fault_of("7", "direct_answer") is None


# What the released code of SICOG got wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 9])
def test_defect_16_neither_the_number_of_candidates_nor_the_length_of_a_vector_moves_a_score(count):
    """Its mean counts the similarity to itself, and two of its encoders return vectors that are not normalised."""
    rng = np.random.default_rng(0)
    directions = {f"scene {i}": rng.random(8) for i in range(count)}
    texts = list(directions)
    products = np.array(
        [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in directions.values()] for b in directions.values()]
    )
    by_hand = (products.sum(axis=1) - 1) / (count - 1)
    for longer in (1, 100):
        vectors = {text: vector * (longer if i == 0 else 1) for i, (text, vector) in enumerate(directions.items())}
        scores = self_consistency(
            described(*texts), "description", lambda some, vectors=vectors: np.array([vectors[t] for t in some]), False
        )
        assert scores == pytest.approx(by_hand, abs=1e-6)


def test_defect_17_an_encoder_that_sees_no_difference_does_not_make_twelve_thirteen():
    def blind(texts):
        return np.ones((len(texts), 4))

    assert self_consistency(answered("12", "13", "12"), "reasoning", blind) == [0.5, 0, 0.5]
    assert self_consistency(answered("left", "right"), "reasoning", blind) == [0, 0]
    left = "The ball lies on the small table near the door, left of the cup."
    pair = described(left, left.replace("left", "right"))
    assert self_consistency(pair, "description", blind) == [0, 0]
    assert self_consistency(pair, "description", blind, veto=False) == [1, 1]


def test_defect_18_equal_answers_are_counted_however_they_are_written():
    """Its helpers for a majority are never called."""
    same = ["7", "Seven.", "The answer is 7.", "7.0", "**7**", "14/2"]
    assert self_consistency([reasoned(answer) for answer in same], "reasoning", embedder("word_ngram")) == [1] * 6
    assert self_consistency(answered("1,000", "1000", "0.5", ".5", "1/2"), "reasoning", embedder("word_ngram")) == [
        0.25,
        0.25,
        0.5,
        0.5,
        0.5,
    ]


# Answers -------------------------------------------------------------------------------------------------------------


def test_equal_votes_are_decided_by_nearness():
    """Two answers with two votes each, and one more that is nearer to the second: its first candidate leads."""
    answers = ["cat", "cat", "tabby", "tabby", "striped tabby"]
    parts = [[answer.lower() for answer in answers]]
    scores, nearness = score_rows(["reasoning"], parts, embedder("char_ngram"))[0]
    assert scores == [0.25, 0.25, 0.25, 0.25, 0]
    assert nearness[2] == nearness[3] > nearness[0] == nearness[1]
    scores, nearness = score_rows(["reasoning"], [["cat", "cat", "dog"]], embedder("char_ngram"))[0]
    assert nearness == [0, 0, 0]  # nothing to decide


@pytest.mark.parametrize(
    "same",
    [
        ["B", "B. red", "(B) red", "**B.** Red", "The answer is B: red", "Final answer: B. Red"],
        ["A", "(A)", "A. red", "a) A red one."],
        ["Yes", "Yes, it is.", "yes. There is a dog near the door."],
    ],
)
def test_what_says_a_short_answer_at_length_is_a_vote_for_it(same):
    embed = embedder("word_ngram")
    assert self_consistency(answered(*same), "reasoning", embed) == [1] * len(same)
    assert self_consistency(answered(same[0], "No, it is C. Blue."), "reasoning", embed) == [0, 0]


def test_what_only_begins_like_a_short_answer_is_no_vote_for_it():
    embed = embedder("word_ngram")
    for pair in (
        ["A", "A, B"],
        ["A", "A dog"],
        ["B", "A. B"],
        ["no", "Nobody."],
        ["yes", "no"],
        ["A", "A.M. or P.M."],
    ):
        assert self_consistency(answered(*pair), "reasoning", embed) == [0, 0], pair


def test_answers_of_which_nothing_is_left_are_not_equal_for_that():
    assert self_consistency(answered("?", "...", "the", "..."), "reasoning", embedder("word_ngram")) == [
        0,
        pytest.approx(1 / 3),
        0,
        pytest.approx(1 / 3),
    ]


def test_an_answer_of_endless_digits_is_compared_as_text():
    """Python refuses to read more than 4,300 digits as a number."""
    assert self_consistency(answered("9" * 5000, "9" * 5000, "8"), "reasoning", embedder("word_ngram")) == [
        0.5,
        0.5,
        0,
    ]


def test_free_text_answers_agree_by_similarity_and_short_ones_do_not():
    long = ["The man on the ladder is painting the wall.", "The man on a ladder paints the wall.", "Nobody can tell."]
    scores = self_consistency(answered(*long), "reasoning", embedder("word_ngram"))
    assert 0 < scores[0] < 1 and scores[1] == scores[0] and scores[2] == 0
    assert self_consistency(answered("tabby cat", "a black cat"), "reasoning", embedder("char_ngram")) == [0, 0]
    coloured = answered("The car in front is red.", "The car in front is blue.")
    assert self_consistency(coloured, "reasoning", embedder("word_ngram")) == [0, 0]
    # Equal ones still agree wholly.
    assert self_consistency(answered(long[0], long[0].upper()), "reasoning", embedder("word_ngram")) == [1, 1]


# Decisive words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Two cats sit there.", "2 cats sit there."),
        ("A grey cat sits there.", "A gray cat sits there."),
        ("It isn't a cat.", "It is not a cat."),
        ("It can't be.", "It cannot be."),
        ("There are 1,000 of them.", "There are 1000 of them."),
        ("It is 7.0 m long.", "It is 7 m long."),
        ("It is 7m long.", "It is 7 m long."),
        ("There is no cat there.", "There isn't any cat there."),
        ("Thirteen cats sit there.", "13 cats sit there."),
        ("It lasts 5-10 days.", "It lasts 5 - 10 days."),
    ],
)
def test_spellings_of_one_thing_are_no_disagreement(one, other):
    assert min(self_consistency(described(one, other), "description", embedder("char_ngram"))) > 0.3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Two cats sit there.", "3 cats sit there."),
        ("A grey cat sits there.", "A black cat sits there."),
        ("It is a cat.", "It isn\N{RIGHT SINGLE QUOTATION MARK}t a cat."),
        ("A cat left of a dog.", "A cat right of a dog."),
        ("The 1st of May.", "The 2nd of May."),
        ("Thirteen cats sit there.", "Fourteen cats sit there."),
        ("It is -5 degrees.", "It is 5 degrees."),
        ("有3只猫坐在那里", "有2只猫坐在那里"),
        ("A red cat and a blue dog.", "A blue cat and a red dog."),
    ],
)
def test_sentences_that_differ_in_what_matters_disagree(one, other):
    assert self_consistency(described(one, other), "description", embedder("char_ngram")) == [0, 0]


def test_paragraphs_disagree_by_what_they_contradict_and_not_by_what_they_leave_out():
    """Two honest captions of a hundred words never name all the same colours; a veto would leave nothing to keep."""
    filler = " ".join(["The rest of the room holds furniture that somebody has moved about."] * 5)
    base = f"A red chair stands near two tables. {filler}"
    more = f"A red chair stands near two tables on a white floor. {filler}"
    other = f"A blue chair stands near two tables. {filler}"
    denied = f"A red chair stands near two tables, not alone. {filler}"

    def agreement(text):
        def same(texts):
            return np.ones((len(texts), 2))

        return self_consistency(described(base, text), "description", same)[0]

    assert agreement(base) == agreement(more) == 1
    assert agreement(other) == pytest.approx(1 - 2 / 4)  # of red, two, blue, two
    assert agreement(denied) == pytest.approx(1 - 1 / 5)


# Many rows at once ---------------------------------------------------------------------------------------------------


def test_rows_of_any_shape_are_scored_together_as_one_by_one():
    rows = [
        ("description", [RED, RED, BLUE]),
        ("reasoning", ["7", None, "seven"]),
        ("description", [None, RED]),
        ("description", []),
        ("reasoning", ["1", "2", "2", "1"]),
        ("description", ["A dog.", "A large dog.", "A large old dog.", "A cat."]),
    ]
    embed = embedder("word_ngram")
    tasks, parts = zip(*rows, strict=True)
    assert score_rows(tasks, parts, embed) == [score_rows([task], [row], embed)[0] for task, row in rows]
    assert score_rows([], [], embed) == []


def test_each_text_is_embedded_once_for_a_whole_batch():
    asked = []

    def embed(texts):
        asked.append(list(texts))
        return np.ones((len(texts), 2))

    score_rows(["description"] * 3, [["A dog.", "A cat.", "A dog."]] * 3, embed)
    assert asked == [["A dog.", "A cat."]]
