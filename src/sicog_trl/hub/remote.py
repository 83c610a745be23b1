"""What is on the Hub already, and what a push does to it."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from ..cards.lineage import PUSHED
from ..files import write_json


_MOST_FILES = 10_000  # of one folder, says the Hub's page on the limits of repositories
_FILES_AT_ONCE = 8  # ours: what was sent is known to the Hub when a group is through
# What the client of HTTP raises, whichever `huggingface_hub` has, and of that what comes of the Hub not being there.
_UNREACHABLE = (HfHubHTTPError.__bases__[0], ConnectionError, TimeoutError)
_AGAIN = "start again later, what was sent is kept there"
_ADVICE = {
    401: "the Hub does not accept the token; log in again with `hf auth login`",
    402: "the Hub wants to be paid for this, or has no room left for the owner",
    403: "the token may not write there; use one with the permission to write to this repository, or to its owner",
    409: "somebody else made it, or the tag, meanwhile; start again",
    412: "somebody else pushed meanwhile, and nothing of theirs was changed; start again",
    429: f"the Hub asks to wait; {_AGAIN}",
}


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
        self.api, self.config, self.repo_type = api, config, repo_type
        self.repo_id = getattr(config, f"hub_{repo_type}_id")
        self.branch = getattr(config, "hub_revision", None)
        self.branch_is_new = False
        self.head = self.private = self.card = None
        self.files: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.state = "not there, or not for this token"
        try:
            info = self._info()
        except GatedRepoError:
            raise PermissionError(
                f"{self.repo_id} is gated, and its owner has not let this token in; ask for access on its page"
            ) from None
        except RepositoryNotFoundError:
            return
        except HfHubHTTPError:
            raise
        except _UNREACHABLE as error:
            if not config.dry_run:
                raise
            self.state = f"not asked, {'offline' if isinstance(error, OfflineModeIsEnabled) else type(error).__name__}"
            return
        if info.id != self.repo_id:
            raise ValueError(f"{self.repo_id} is {info.id} now; say so in `hub_{repo_type}_id`, which the card names")
        self.head, self.private = info.sha, bool(info.private)
        self.state = f"at commit {info.sha[:8]}"
        if config.private and not self.private:
            raise ValueError(f"{self.repo_id} is public; say `private: false` if that is meant")
        if self.private and not config.private:
            self.state += " and private, and stays that: `private: false` is for one that a push makes"
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

    def push(
        self, local: dict[str, Path], plan: dict[str, str], output_dir: Path, message: str, **more: Any
    ) -> dict[str, Any]:
        """Commit what is planned unless it is a dry run; return what was done, with `more`, and record it."""
        if len(local) > _MOST_FILES:
            raise ValueError(f"{len(local):,} files are more than {_MOST_FILES:,}; raise `max_shard_size`")
        self.check_tag(self.config.tag, plan)
        report = {
            "repository": self.repo_id,
            "before": self.state,
            "commit": None,
            "tag": self.config.tag,
            "private": self.config.private if self.private is None else self.private,
            **more,
            "files": {p: {"bytes": local[p].stat().st_size if p in local else 0, "is": s} for p, s in plan.items()},
        }
        if not self.config.dry_run:
            report["commit"] = self.commit(local, plan, message)
            write_json(output_dir / PUSHED, report)
        return report

    def commit(self, local: dict[str, Path], plan: dict[str, str], message: str) -> str:
        """Make the repository if it is not there, one commit with everything, and the tag; return the commit."""
        there = {"repo_id": self.repo_id, "repo_type": self.repo_type}
        additions = [CommitOperationAdd(p, local[p]) for p, is_ in plan.items() if is_ in ("new", "changed")]
        deletions = [CommitOperationDelete(path) for path, is_ in plan.items() if is_ == "deleted"]
        commit, tag = self.head, self.config.tag
        if self.head is None:
            self.api.create_repo(**there, private=self.config.private)
        if self.branch and (self.head is None or self.branch_is_new):
            self.api.create_branch(**there, branch=self.branch, exist_ok=True)
        for start in range(0, len(additions), _FILES_AT_ONCE):
            some = additions[start : start + _FILES_AT_ONCE]
            self.api.preupload_lfs_files(**there, additions=some, revision=self.branch)
        if additions or deletions:
            # `upload_folder` would make several commits of many files, and readers would see data without a card.
            options = {"commit_message": message, "parent_commit": self.head, "revision": self.branch}
            commit = self.api.create_commit(operations=[*additions, *deletions], **there, **options).oid
        if tag and tag not in self.tags:
            self.api.create_tag(**there, tag=tag, revision=commit)
        return commit


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Say what to do where the Hub refuses, is out of order or cannot be reached."""
    try:
        yield
    except HfHubHTTPError as error:
        status, said = error.response.status_code, error.server_message or error
        if status >= 500:
            raise ConnectionError(
                f"{repo_id}: the Hub is out of order ({status}); {_AGAIN}. It says: {said}"
            ) from error
        if status not in _ADVICE:
            raise
        kind = PermissionError if status in (401, 402, 403) else RuntimeError
        raise kind(f"{repo_id}: {_ADVICE[status]}. The Hub says: {said}") from error
    except _UNREACHABLE as error:
        # Uploads by Xet fail with this one class, and say the status in the text.
        if not (status := re.search(r"\((40[134]) .*xet-write-token", str(error))):
            raise ConnectionError(f"{repo_id}: the Hub cannot be reached; {_AGAIN}: {error}") from error
        if status[1] != "404":
            raise PermissionError(f"{repo_id}: {_ADVICE[int(status[1])]}. The Hub says: {error}") from error
        raise ConnectionError(f"{repo_id}: no uploads by Xet there; set HF_HUB_DISABLE_XET=1: {error}") from error
    except RuntimeError as error:
        if not str(error).startswith("Error while uploading"):
            raise
        raise ConnectionError(f"{repo_id}: {error} {_AGAIN.capitalize()}: {error.__cause__}") from error


def check_login(api: HfApi) -> None:
    """Refuse to go on without a token that the Hub accepts."""
    advice = "log in with `hf auth login`, or put a token that may write into HF_TOKEN"
    try:
        token = api.whoami().get("auth", {}).get("accessToken", {})
    except LocalTokenNotFoundError:
        raise PermissionError(f"the Hub needs to know who pushes; {advice}") from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise PermissionError(f"the Hub does not accept the token; {advice}") from None
        raise
    if token.get("role") == "read":
        raise PermissionError(f"the token may only read; {advice}")


def compare(local: dict[str, Path], remote: dict[str, str], configs: set[str]) -> dict[str, str]:
    """Return for every path what a push does to it; older files of the same configurations go."""
    plan = {}
    for path, file in sorted(local.items()):
        known = remote.get(path)
        plan[path] = "new" if known is None else "unchanged" if known in names_of(file) else "changed"
    for path in sorted(remote.keys() - local.keys()):
        match = re.fullmatch(r"data/(\w+)-\d{5}-of-\d{5}\.parquet", path)
        if match and match[1] in configs:
            plan[path] = "deleted"
    return plan


def names_of(file: Path) -> tuple[str, str]:
    """Return what the Hub may know a file by: SHA-256, and git's name of its content."""
    stat = os.stat(file)
    return _names(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=_MOST_FILES)  # a file is asked for by the card and by the comparison
def _names(file: Path, size: int, changed: int) -> tuple[str, str]:
    digests = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with open(file, "rb") as content:
        while some := content.read(1 << 20):
            for digest in digests:
                digest.update(some)
    return tuple(digest.hexdigest() for digest in digests)
