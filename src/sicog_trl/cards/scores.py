"""Scores in the text of a model's card, as a table of what its metadata say."""

from typing import Any

from huggingface_hub.repocard_data import model_index_to_eval_results
from markupsafe import Markup

from ..report import aligned_table, markdown_text
from .common import between, listed


HARNESS = "lmms-eval"
BEGIN, END = "<!-- sicog-trl: scores, written anew by every evaluation -->", "<!-- sicog-trl: end of scores -->"


def scores_part(metadata: dict[str, Any]) -> Markup:
    """Return what stands between the marks of the scores: a table of the `model-index`, or a sentence."""
    rows = []
    for model in metadata.get("model-index") or []:
        for result in model.get("results") or []:
            for metric in result.get("metrics") or []:
                rows.append(_row(result, metric))
    table = "This model was not evaluated yet."
    if rows:
        header = ["benchmark", "metric", "measured by", "rows", "score"]
        table = aligned_table(header, rows, left=3)
        table += "\n\nScores are raw values of the harness; most go from 0 to 1."
    return Markup(f"{BEGIN}\n{table}\n{END}")


def _row(result: dict[str, Any], metric: dict[str, Any]) -> list[str]:
    dataset, args = result.get("dataset") or {}, metric.get("args")
    args = args if isinstance(args, dict) else {}
    by = " ".join(str(args[key]) for key in ("harness", "version") if args.get(key))
    value = metric.get("value")
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    name = metric.get("name") or metric.get("type")
    source = (result.get("source") or {}).get("name")
    texts = (dataset.get("name") or dataset.get("type"), name, by or source or "not said", args.get("rows", ""), shown)
    # a pipe is escaped by the table too, and once is enough
    return [str(markdown_text(str(text))).replace("\\|", "|") for text in texts]


def show_scores(text: str, metadata: dict[str, Any]) -> str:
    """
    Return the text of a card with the table of its scores written anew; as it is if it has no place for one.

    Args:
        text (`str`):
            The card, with or without its metadata.
        metadata (`dict[str, Any]`):
            Its metadata, with a `model-index` in it.
    """
    return between(text, scores_part(metadata), BEGIN, END) or text


def key_of(metric: dict[str, Any]) -> tuple[Any, ...] | None:
    """Return what makes a metric the same as one of an earlier evaluation; `None` if it was not written here."""
    args = metric.get("args")
    if not isinstance(args, dict) or args.get("harness") != HARNESS or "protocol" not in args:
        return None
    return metric.get("type"), args.get("task"), args["protocol"]


def without(results: list[dict[str, Any]], replaced: set[tuple[Any, ...] | None]) -> list[dict[str, Any]]:
    """Return results less the metrics that are written anew."""
    kept = []
    for result in results:
        metrics = [metric for metric in result.get("metrics") or [] if key_of(metric) not in replaced]
        if metrics or not result.get("metrics"):
            kept.append({**result, "metrics": metrics} if metrics else result)
    return kept


def check_index(name: str, index: Any) -> None:
    """Refuse a `model-index` of the card `name` that the Hub's own library cannot read back."""
    try:
        model_index_to_eval_results(index)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{name}: an entry of its model-index is incomplete ({type(error).__name__}: {error}); "
            "put it right or remove it first"
        ) from error


def joined_index(existing: dict[str, Any], ours: dict[str, Any], same_weights: bool) -> list[dict[str, Any]]:
    """
    Return the `model-index` of two cards in one.

    Args:
        existing (`dict[str, Any]`):
            Metadata of the card on the Hub. Results of others stay. Those that this package wrote stay only if the
            weights do: they would be read as scores of the new ones.
        ours (`dict[str, Any]`):
            Metadata of the card in the folder, whose results take the place of the same ones.
        same_weights (`bool`):
            Whether both have the same weights.
    """
    there, here = (listed(card.get("model-index") or []) for card in (existing, ours))
    if not there:
        return here
    results = there[0].get("results") or []
    new = [result for model in here for result in model.get("results") or []]
    replaced = new if same_weights else [*new, *results]
    known = {key_of(metric) for result in replaced for metric in result.get("metrics") or []} - {None}
    kept = [result for result in without(results, known) if result not in new]
    return [{**there[0], "results": [*kept, *new]}, *there[1:]]
