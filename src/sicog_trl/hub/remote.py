"""What is on the Hub already, and what a push does to it."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile


class Remote:
    """
    A repository as it is now; nothing if it is not there.

    Args:
        api (`huggingface_hub.HfApi`):
            How the Hub is reached. A dry run needs no connection.
        config ([`PushConfig`] or [`PushModelConfig`]):
            Names the repository, and for a model the branch.
        repo_type (`str`, *optional*, defaults to `"dataset"`):
            `"dataset"` or `"model"`.
    """

    def __init__(self, api: HfApi, config: Any, repo_type: str = "dataset"):
        self.api, self.repo_id, self.repo_type = api, getattr(config, f"hub_{repo_type}_id"), repo_type
        self.branch = getattr(config, "hub_revision", None)
        self.branch_is_new = False
        self.head = self.private = self.card = None
        self.files: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.state = "not there, or not for this token"
        try:
            info = self._info()
        except RepositoryNotFoundError:
            return
        except OfflineModeIsEnabled:
            if not config.dry_run:
                raise
            self.state = "not asked, offline"
            return
        self.head, self.private = info.sha, bool(info.private)
        self.state = f"at commit {info.sha[:8]}"
        if config.private and not self.private:
            raise ValueError(f"{self.repo_id} is public; say `private: false` if that is meant")
        self.files = self.at(info.sha)
        self.tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(self.repo_id, repo_type=repo_type).tags}
        if "README.md" in self.files:
            path = api.hf_hub_download(self.repo_id, "README.md", repo_type=repo_type, revision=info.sha)
            self.card = Path(path).read_text(encoding="utf-8")

    def _info(self) -> Any:
        try:
            return self.api.repo_info(self.repo_id, repo_type=self.repo_type, revision=self.branch)
        except RevisionNotFoundError:
            self.branch_is_new = True
            return self.api.repo_info(self.repo_id, repo_type=self.repo_type)

    def at(self, revision: str) -> dict[str, str]:
        """Return the files of a revision with what the Hub knows them by: SHA-256 of large ones, git's of others."""
        tree = self.api.list_repo_tree(self.repo_id, recursive=True, revision=revision, repo_type=self.repo_type)
        return {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in tree if isinstance(e, RepoFile)}

    def check_tag(self, tag: str | None, plan: dict[str, str]) -> None:
        """Refuse to push something else under a tag that is there."""
        if tag not in self.tags:
            return
        changed = [path for path, state in plan.items() if state != "unchanged"]
        if changed or self.at(self.tags[tag]) != self.files:
            what = f"{changed[0]} is {plan[changed[0]]}" if changed else "there are later commits"
            raise ValueError(f"{self.repo_id}: the tag {tag} stands for something else ({what}); choose another tag")

    def commit(
        self, local: dict[str, Path], plan: dict[str, str], private: bool, tag: str | None, message: str
    ) -> str:
        """Make the repository if it is not there, one commit with everything, and the tag; return the commit."""
        there = {"repo_id": self.repo_id, "repo_type": self.repo_type}
        if self.head is None:
            self.api.create_repo(**there, private=private, exist_ok=True)
        if self.branch and (self.head is None or self.branch_is_new):
            self.api.create_branch(**there, branch=self.branch, exist_ok=True)
        operations: list = [CommitOperationAdd(p, local[p]) for p, is_ in plan.items() if is_ in ("new", "changed")]
        operations += [CommitOperationDelete(path) for path, is_ in plan.items() if is_ == "deleted"]
        commit = self.head
        if operations:
            # `upload_folder` would make several commits of many files, and readers would see data without its card.
            options = {"commit_message": message, "parent_commit": self.head, "revision": self.branch}
            commit = self.api.create_commit(operations=operations, **there, **options).oid
        if tag and tag not in self.tags:
            self.api.create_tag(**there, tag=tag, revision=commit)
        return commit


def check_login(api: HfApi) -> None:
    """Refuse to go on without a token that the Hub accepts."""
    advice = "log in with `hf auth login`, or put a token that may write into HF_TOKEN"
    try:
        api.whoami()
    except LocalTokenNotFoundError:
        raise PermissionError(f"the Hub needs to know who pushes; {advice}") from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise PermissionError(f"the Hub does not accept the token; {advice}") from None
        raise


def compare(local: dict[str, Path], remote: dict[str, str], configs: set[str]) -> dict[str, str]:
    """Return for every path what a push does to it; older files of the same configurations go."""
    plan = {}
    for path, file in sorted(local.items()):
        known = remote.get(path)
        plan[path] = "new" if known is None else "unchanged" if known in _names(file) else "changed"
    for path in sorted(remote.keys() - local.keys()):
        match = re.fullmatch(r"data/(\w+)-\d{5}-of-\d{5}\.parquet", path)
        if match and match[1] in configs:
            plan[path] = "deleted"
    return plan


def _names(file: Path) -> tuple[str, str]:
    """Return what the Hub may know a file by: SHA-256, and git's name of its content."""
    digests = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % os.path.getsize(file))
    with open(file, "rb") as content:
        while some := content.read(1 << 20):
            for digest in digests:
                digest.update(some)
    return tuple(digest.hexdigest() for digest in digests)
