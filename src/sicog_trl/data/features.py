"""The columns of each artefact of the line."""

from datasets import Features, Image, List, Value


MESSAGES = List({"role": Value("string"), "content": Value("string")})
IMAGES = List(Image())
# In place of `images` where copies are forbidden: what names each image, and the SHA-256 of its bytes.
REFERENCES, HASHES = "image_references", "image_hashes"

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
