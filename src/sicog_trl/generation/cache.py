"""A key-value cache for long batches: room is made in advance, so that a step writes one token and copies nothing."""

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


_LEAST_ROOM = 64  # tokens


class GrowingLayer(DynamicLayer):
    """
    Keys and values of a layer as views of tensors with room for more.

    The layer that it replaces allocates both anew for each token, which at large batches takes longer than the model.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states of shape `(batch_size, num_heads, length, head_dim)` and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room: dict[str, torch.Tensor] = {}
            self.views: dict[str, torch.Tensor] = {}
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def _append(self, name: str, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        start = old.shape[-2] if old.numel() else 0
        length = start + new.shape[-2]
        room = self.room.get(name)
        # Whoever selects rows or crops puts tensors of their own in place of the view.
        if room is None or old is not self.views[name] or length > room.shape[-2]:
            room = new.new_empty((*new.shape[:-2], length + max(_LEAST_ROOM, length // 2), new.shape[-1]))
            if start:
                room[..., :start, :] = old
        room[..., start:length, :] = new
        self.room[name], self.views[name] = room, room[..., :length, :]
        return self.views[name]


def growing_cache(model: PreTrainedModel) -> Cache | None:
    """Return an empty cache for one call of `generate`, or `None` for a model that needs another kind."""
    if model.config.is_encoder_decoder or not model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    # Only plain layers: those with a sliding window or a state keep what they need in their own way.
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache if all(hasattr(layer, "batch_repeat_interleave") for layer in cache.layers) else None
