"""From the columns of any dataset to those of the images contract, in Arrow; nothing is decoded."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features, Image, Json


def is_question(text: str | None) -> bool:
    """Return whether a row with this question is asked for reasoning, and not for a description."""
    return bool((text or "").strip())


def json_keys(features: Features) -> set[str]:
    """Return the keys that the `json` field of a WebDataset may have: known, or unknown until it is read."""
    feature = features.get("json")
    if isinstance(feature, dict):
        return set(feature)
    return {"id", "question", "answer"} if isinstance(feature, Json) else set()


def from_json(array: pa.Array | pa.ChunkedArray, key: str) -> pa.Array | pa.ChunkedArray:
    if pa.types.is_struct(array.type):
        if array.type.get_field_index(key) < 0:
            return pa.nulls(len(array), pa.string())
        return as_text(pc.struct_field(array, key), f"json.{key}", Features())
    values = []
    for text in array.to_pylist():
        content = json.loads(text) if isinstance(text, str) else text
        value = content.get(key) if isinstance(content, dict) else None
        if isinstance(value, (list, dict)):
            raise ValueError(f"the key {key!r} of a json field holds {value!r:.100}; one text or number is needed")
        values.append(value if value is None or isinstance(value, str) else json.dumps(value))
    return pa.array(values, pa.string())


def as_text(array: pa.Array | pa.ChunkedArray, name: str, features: Features) -> pa.Array | pa.ChunkedArray:
    if isinstance(label := features.get(name), ClassLabel):
        return pc.take(pa.array(label.names), pc.if_else(pc.less(array, 0), None, array))
    if pa.types.is_nested(array.type) or pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        raise ValueError(f"the column {name!r} holds {array.type}; one text or number per row is needed")
    return array.cast(pa.string())


def as_images(array: pa.Array, name: str) -> tuple[np.ndarray, pa.StructArray]:
    """Return how many images each row has, and all of them one after the other."""
    if _is_list(array.type):
        counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        return counts, _as_structs(array.flatten(), name)
    images = _as_structs(array, name)
    return images.is_valid().to_numpy(zero_copy_only=False).astype(np.int64), images.drop_null()


def _as_structs(array: pa.Array, name: str) -> pa.StructArray:
    kind = array.type
    if pa.types.is_null(kind):
        return pa.nulls(len(array), Image.pa_type)
    fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not fields & {"bytes", "path"} and not any(fits(kind) for fits in plain):
        raise ValueError(f"the column {name!r} holds {kind}; images are needed: bytes, a path, or a struct of both")
    return Image().cast_storage(array)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def join(lists: list[tuple[np.ndarray, pa.StructArray]], bare: np.ndarray) -> tuple[np.ndarray, pa.StructArray]:
    """Put the images of several columns in the order of the rows; a bare row that has none gets one that is null."""
    counts = sum((counts for counts, _ in lists), np.zeros(len(bare), np.int64))
    lonely = np.flatnonzero((counts == 0) & bare)
    if len(lists) == 1 and not len(lonely):
        return lists[0]
    values = pa.concat_arrays([*(values for _, values in lists), pa.nulls(len(lonely), Image.pa_type)])
    owners = [np.repeat(np.arange(len(bare)), counts) for counts, _ in lists]
    order = np.argsort(np.concatenate([*owners, lonely]), kind="stable")
    counts[lonely] = 1
    return counts, values.take(pa.array(order))
