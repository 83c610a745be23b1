"""What a trained model is published with: our card in the place of TRL's, and a private repository."""

from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy

from ..cards import model_card
from ..cards.lineage import lineage
from ..files import write_text
from ..hub.model_config import PushModelConfig
from ..hub.models import claim_repository, overview, push_model, rehearse


class Publishing:
    """
    Write the card of this package, and push the finished model in one commit.

    `Trainer` writes its own card with every checkpoint and every push, and pushes the folder as it is: with pickled
    arguments and settings that name places of this machine. Its options keep their meaning, but for two things:
    repositories are private unless `hub_private_repo` says otherwise, and checkpoints are not pushed.
    """

    record: dict[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # `Trainer` pickles its arguments beside the weights; a token is written nowhere.
        self._hub_token, self.args.hub_token = self.args.hub_token, None
        if hasattr(self.model, "create_or_update_model_card"):
            # PEFT would write its own whenever it saves, with the path of the base model in it.
            self.model.create_or_update_model_card = lambda output_dir: None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"hub_strategy: {self.args.hub_strategy.value} is not possible: checkpoints hold pickles and are not "
                "pushed; leave it out, and the finished model is pushed in one commit"
            )
        if self.is_world_process_zero():
            repository = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            readme = Path(self.args.output_dir, "README.md")
            token = token or self.args.hub_token
            self.hub_model_id = claim_repository(repository, self._private(private), token, readme)
            self.push_in_progress = None

    def _private(self, private: bool | None = None) -> bool:
        wanted = self.args.hub_private_repo if private is None else private
        return True if wanted is None else wanted

    def remember(self, settings: dict[str, Any]) -> None:
        """Look up what the model comes from, and whether a card can be written, before hours go into training."""
        made_from = {"method": self._name.lower(), "rows": len(self.train_dataset), **lineage(settings)}
        self.record = {"made_from": made_from}
        model_card(self.args.output_dir, self.record)
        if self.args.push_to_hub and self.hub_model_id:  # the main process has one
            rehearse(self._push_config(), self.record, HfApi(token=self._hub_token))

    def _push_config(self) -> PushModelConfig:
        where = {"hub_model_id": self.hub_model_id, "hub_revision": self.args.hub_revision}
        return PushModelConfig(model_name_or_path=self.args.output_dir, private=self._private(), **where)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card, from [`remember`] on; names and tags that TRL would put there are not needed."""
        if self.record and self.is_world_process_zero():
            name = self.hub_model_id if self.args.push_to_hub else None
            card = model_card(self.args.output_dir, self.record, name)
            write_text(Path(self.args.output_dir, "README.md"), card)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Checkpoints stay here."""

    def push_to_hub(self, commit_message: str | None = "End of training", **kwargs: Any) -> None:
        """Push what was saved: weights, processor and card in one commit."""
        if not self.is_world_process_zero():
            return
        api = HfApi(token=self._hub_token)
        report = push_model(self._push_config(), self.args.output_dir, api, self.record, commit_message)
        PartialState().print(overview(report))
