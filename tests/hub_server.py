"""
A stand-in for the Hub, on loopback, that the real clients talk to by `HF_ENDPOINT`: those of `huggingface_hub`,
`datasets` and `transformers`.

```python
with HubServer() as hub:
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    hub.fault = lambda method, path: "cut" if method == "PUT" else None
    print(hub.requests, hub.received)
```
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"  # of the form that real ones have
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Stored:
    """A file of a commit."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> str:
        """The name that git has for the content."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob


@dataclass
class Repo:
    """A repository: commits with all of their files, and names for them."""

    private: bool
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, Stored], message: str, branch: str = "main") -> str:
        seed = json.dumps([len(self.commits), message, sorted((path, file.etag) for path, file in files.items())])
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid], self.messages[oid], self.branches[branch] = files, message, oid
        return oid

    def resolve(self, revision: str) -> str | None:
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision in self.commits and revision) or None
        )


class HubServer(ThreadingHTTPServer):
    """
    A server in a thread of this process.

    Args:
        token (`str`, *optional*, defaults to `TOKEN`):
            The one token that it knows; writing and private repositories need it, others get 401.

    Attributes:
        fault (`Callable[[str, str], str | None]`):
            Says for method and path of each request what goes wrong: `"cut"` (the connection ends when half of the
            body has come), `"lost"` (it is done, and the answer never comes) or a status such as `"503"`, with the
            Hub's name of the error if it has one (`"403 GatedRepo"`).
        role (`str`):
            What the token may do: `"write"` or `"read"`.
        renamed (`dict[str, str]`):
            Ids that repositories had before.
        requests (`list[tuple[str, str]]`):
            Method and path of all requests.
        received (`list[str]`):
            SHA-256 of every large file that came whole, as it came.
        part_size (`int`, *optional*):
            Files larger than this go up in parts.
        repos (`dict[tuple[str, str], Repo]`):
            By type (`"datasets"`, `"models"`) and id.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, token: str = TOKEN):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self.received: list[str] = []
        self.large: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_size: int | None = None
        self.role = "write"
        self.renamed: dict[str, str] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away is no news."""

    def dataset(self, repo_id: str) -> Repo:
        """Return a dataset repository."""
        return self.repos["datasets", repo_id]

    def model(self, repo_id: str) -> Repo:
        """Return a model repository."""
        return self.repos["models", repo_id]

    def files(self, repo_id: str, revision: str = "main", kind: str = "datasets") -> dict[str, bytes]:
        """Return the files of a repository."""
        repo = self.repos[kind, repo_id]
        return {path: file.content for path, file in repo.commits[repo.resolve(revision)].items()}


class _Cut(Exception):
    pass


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code


_KIND = r"(?P<kind>datasets|models)"
_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
_API = rf"/api/{_KIND}/{_ID}"
_ROUTES: list[tuple[str, str, str]] = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", rf"{_API}(/revision/(?P<revision>[^/]+))?", "info"),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?", "tree"),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("GET", rf"{_API}/refs", "refs"),
    ("GET", rf"{_API}/commits/(?P<revision>[^/]+)", "commits"),
    ("POST", rf"{_API}/tag/(?P<revision>[^/]+)", "tag"),
    ("DELETE", rf"{_API}/tag/(?P<revision>[^/]+)", "delete_tag"),
    ("POST", rf"{_API}/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", rf"/({_KIND}/)?{_ID}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/large/(?P<oid>[0-9a-f]{64})", "put"),
    ("PUT", r"/large/(?P<oid>[0-9a-f]{64})/part/(?P<number>\d+)", "part"),
    ("POST", r"/large/(?P<oid>[0-9a-f]{64})", "complete"),
    ("POST", r"/large/(?P<oid>[0-9a-f]{64})/verify", "verify"),
    ("GET|HEAD", rf"/({_KIND}/)?{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: object) -> None:
        """Be quiet."""

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        with self.server.lock:
            self.server.requests.append((self.command, self.path))
            fault = self.server.fault(self.command, self.path)
        try:
            body = self._body(fault == "cut")
            if fault and fault[0].isdecimal():
                raise _Refused(int(fault[:3]), "made to fail", fault[4:] or None)
            with self.server.lock:
                answer = self._answer(parts.path, body)
            if fault == "lost":
                raise _Cut
            if answer is not None:
                self._send(*answer)
        except _Refused as refused:
            headers = {"X-Error-Message": refused.message}
            headers |= {"Location" if refused.status == 307 else "X-Error-Code": refused.code} if refused.code else {}
            self._send(refused.status, {"error": refused.message}, headers)
        except _Cut:
            self.close_connection = True
            self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _body(self, cut: bool) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if cut:
                    raise _Cut
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length // 2 if cut else length)
        if cut:
            raise _Cut
        return body

    def _answer(self, path: str, body: bytes) -> tuple[int, object, dict] | None:
        for methods, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split("|"):
                found = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                if "id" in found:
                    found["repo"] = self._repo(found.get("kind", "models"), found.pop("id"), name)
                    found.pop("kind", None)
                return getattr(self, f"on_{name}")(body=body, **found)
        raise _Refused(404, f"the stand-in has no {self.command} {path}")

    def _send(self, status: int, content: object, headers: dict | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _knows(self) -> bool:
        given = self.headers.get("Authorization")
        if given and given != f"Bearer {self.server.token}":
            raise _Refused(401, "Invalid credentials in Authorization header")
        return bool(given)

    def _authorize(self) -> None:
        if not self._knows():
            raise _Refused(401, "Invalid username or password.")

    def _repo(self, kind: str, repo_id: str, action: str) -> Repo:
        if action not in ("info", "tree", "paths_info", "refs", "commits", "resolve"):
            self._authorize()
        known = self._knows()
        if repo_id in self.server.renamed:
            raise _Refused(307, "Moved", self.path.replace(repo_id, self.server.renamed[repo_id]))
        repo = self.server.repos.get((kind, repo_id))
        if repo is None or (repo.private and not known):
            raise _Refused(404 if known else 401, "Repository not found", "RepoNotFound")
        self.repo_id = repo_id
        return repo

    def _commit(self, repo: Repo, revision: str) -> tuple[str, dict[str, Stored]]:
        oid = repo.resolve(revision)
        if oid is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, repo.commits[oid]

    def on_whoami(self, body: bytes) -> tuple:
        self._authorize()
        return 200, {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": self.server.role}}}

    def on_create(self, body: bytes) -> tuple:
        self._authorize()
        wanted = json.loads(body)
        kind = f"{wanted.get('type', 'model')}s"
        repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        url = f"{self.server.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        if (kind, repo_id) in self.server.repos:
            return 409, {"error": "You already created this repo", "url": url}
        repo = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        repo.commit({".gitattributes": Stored(b"*.parquet filter=lfs\n", False)}, "initial commit")
        self.server.repos[kind, repo_id] = repo
        return 200, {"url": url, "name": repo_id}

    def on_validate(self, body: bytes) -> tuple:
        content = json.loads(body)["content"]
        try:
            metadata = yaml.safe_load(content.split("---")[1]) if content.startswith("---") else {}
            errors = [] if isinstance(metadata, dict) else [{"message": "metadata is no mapping"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        return (400 if errors else 200), {"errors": errors, "warnings": []}

    def on_info(self, body: bytes, repo: Repo, revision: str = "main") -> tuple:
        oid, files = self._commit(repo, revision)
        content = {"id": self.repo_id, "sha": oid, "private": repo.private, "tags": [], "lastModified": DATE}
        return 200, {**content, "createdAt": DATE, "siblings": [{"rfilename": path} for path in sorted(files)]}

    def on_preupload(self, body: bytes, repo: Repo, revision: str) -> tuple:
        _, files = self._commit(repo, revision)
        answers = []
        for file in json.loads(body)["files"]:
            is_lfs = file["path"].endswith((".parquet", ".safetensors")) or file["size"] > 10_000_000
            answer = {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": files[file["path"]].etag} if file["path"] in files else {}))
        return 200, {"files": answers}

    def on_batch(self, body: bytes, repo: Repo) -> tuple:
        objects = []
        for wanted in json.loads(body)["objects"]:
            place = f"{self.server.endpoint}/large/{wanted['oid']}"
            size, header = self.server.part_size, {}
            if size and wanted["size"] > size:
                numbers = range(1, 1 + -(-wanted["size"] // size))
                header = {"chunk_size": str(size), **{str(n): f"{place}/part/{n}" for n in numbers}}
            actions = {
                "upload": {"href": place, "header": header},
                "verify": {"href": f"{place}/verify", "header": {}},
            }
            objects.append(wanted | ({} if wanted["oid"] in self.server.large else {"actions": actions}))
        return 200, {"transfer": "basic", "objects": objects}

    def on_put(self, body: bytes, oid: str) -> tuple:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "the content is not what it should be")
        self.server.large[oid] = body
        self.server.received.append(oid)
        return 200, b"", {"ETag": f'"{oid}"'}

    def on_part(self, body: bytes, oid: str, number: str) -> tuple:
        self.server.parts[oid, int(number)] = body
        return 200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}

    def on_complete(self, body: bytes, oid: str) -> tuple:
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        return self.on_put(b"".join(self.server.parts.pop((oid, number)) for number in numbers), oid)

    def on_verify(self, body: bytes, oid: str) -> tuple:
        self._authorize()
        if len(self.server.large.get(oid, b"")) != json.loads(body)["size"]:
            raise _Refused(404, "not there")
        return 200, {}

    def on_commit(self, body: bytes, repo: Repo, revision: str) -> tuple:
        head, files = self._commit(repo, revision)
        files, message = dict(files), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, head):
                    raise _Refused(412, "A commit has happened since. Please refresh and try again.")
            elif line["key"] == "file":
                files[value["path"]] = Stored(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.large:
                    raise _Refused(400, f"{value['path']} was never uploaded")
                files[value["path"]] = Stored(self.server.large[value["oid"]], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(files, message, revision)
        return 200, {"commitUrl": f"{self.server.endpoint}/datasets/{self.repo_id}/commit/{oid}", "commitOid": oid}

    def _entry(self, path: str, file: Stored) -> dict:
        entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.blob}
        entry["lastCommit"] = {"id": "0" * 40, "title": "", "date": DATE}
        if file.is_lfs:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
        return entry

    def _entries(self, files: dict[str, Stored], folder: str, recursive: bool) -> list[dict]:
        found, prefix = {}, f"{folder}/" if folder else ""
        for path, file in sorted(files.items()):
            if path.startswith(prefix):
                inside = path[len(prefix) :].split("/")
                for depth in range(1, len(inside) if recursive else min(2, len(inside))):
                    name = prefix + "/".join(inside[:depth])
                    found[name] = {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
                if recursive or len(inside) == 1:
                    found[path] = self._entry(path, file)
        return list(found.values())

    def on_tree(self, body: bytes, repo: Repo, revision: str, path: str = "") -> tuple:
        _, files = self._commit(repo, revision)
        entries = self._entries(files, path.strip("/"), self.query.get("recursive", ["false"])[0].lower() == "true")
        if path and not entries:
            raise _Refused(404, f"{path} does not exist", "EntryNotFound")
        return 200, entries

    def on_paths_info(self, body: bytes, repo: Repo, revision: str) -> tuple:
        _, files = self._commit(repo, revision)
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode())["paths"]
        folders = {str(entry["path"]): entry for entry in self._entries(files, "", True)}
        return 200, [folders[path] for path in paths if path in folders]

    def on_refs(self, body: bytes, repo: Repo) -> tuple:
        def listed(names: dict[str, str], where: str) -> list[dict]:
            return [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": oid} for n, oid in names.items()]

        return 200, {"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []}

    def on_commits(self, body: bytes, repo: Repo, revision: str) -> tuple:
        self._commit(repo, revision)
        oids = reversed(repo.commits)
        return 200, [{"id": o, "title": repo.messages[o], "message": "", "date": DATE, "authors": []} for o in oids]

    def on_tag(self, body: bytes, repo: Repo, revision: str) -> tuple:
        name = json.loads(body)["tag"]
        if name in repo.tags:
            raise _Refused(409, f"Reference already exists: {name}")
        repo.tags[name] = self._commit(repo, revision)[0]
        return 200, {}

    def on_delete_tag(self, body: bytes, repo: Repo, revision: str) -> tuple:
        del repo.tags[revision]
        return 200, {}

    def on_branch(self, body: bytes, repo: Repo, revision: str) -> tuple:
        if revision in repo.branches:
            raise _Refused(409, f"Reference already exists: {revision}")
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        repo.branches[revision] = self._commit(repo, start)[0]
        return 200, {}

    def on_resolve(self, body: bytes, repo: Repo, revision: str, path: str) -> tuple:
        oid, files = self._commit(repo, revision)
        if path not in files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        file = files[path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return 200, file.content, headers
        start, last = int(wanted[1]), min(int(wanted[2] or len(file.content)), len(file.content) - 1)
        if start >= len(file.content):
            return 416, b"", {**headers, "Content-Range": f"bytes */{len(file.content)}"}
        headers["Content-Range"] = f"bytes {start}-{last}/{len(file.content)}"
        return 206, file.content[start : last + 1], headers
