"""A Hugging Face Hub with one repository, as far as ``snapshot_download`` looks at it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from weights_server import Answer, Handler, status

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """Files of a repository; ``sent`` replaces what is sent of a file, not what is announced.

    Files that end in ``.json`` are kept in git, the others in its large file storage, whose
    content is known by its SHA-256.
    """

    id: str
    files: Mapping[str, bytes]
    sent: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def answer(self) -> Answer:
        """How the server answers, whatever is asked."""
        return self._answer

    def _answer(self, handler: Handler) -> None:
        path = handler.path.partition("?")[0]
        place = f"/{self.id}/resolve/{COMMIT}/"
        if path == f"/api/models/{self.id}/revision/main":
            names = [{"rfilename": name} for name in self.files]
            body = json.dumps({"id": self.id, "sha": COMMIT, "siblings": names}).encode()
            handler.respond(200, body, Content_Type="application/json")
        elif path == f"/api/models/{self.id}/tree/{COMMIT}":
            body = json.dumps([self._entry(name) for name in self.files]).encode()
            handler.respond(200, body, Content_Type="application/json")
        elif path.startswith(place) and (name := path.removeprefix(place)) in self.files:
            self._send(handler, name)
        else:
            status(404, X_Error_Code="RepoNotFound")(handler)

    def _entry(self, name: str) -> dict[str, object]:
        digest, size = self._digest(name), len(self.files[name])
        large = {"lfs": {"oid": digest, "size": size, "pointerSize": 134}}
        small = {"type": "file", "path": name, "size": size, "oid": digest[:40]}
        return small | (large if _is_large(name) else {})

    def _digest(self, name: str) -> str:
        kind = "sha256" if _is_large(name) else "sha1"
        return hashlib.new(kind, self.files[name], usedforsecurity=False).hexdigest()

    def _send(self, handler: Handler, name: str) -> None:
        content = self.files[name]
        digest = self._digest(name)
        linked = {"X_Linked_Etag": f'"{digest}"', "X_Linked_Size": str(len(content))}
        headers = {"ETag": f'"{digest}"', "X_Repo_Commit": COMMIT} | (
            linked if _is_large(name) else {}
        )
        if handler.command == "HEAD":
            handler.respond(200, Content_Length=str(len(content)), **headers)
            return
        self.asked.append(name)
        handler.respond(200, self.sent.get(name, content), **headers)


def _is_large(name: str) -> bool:
    return not name.endswith(".json")
