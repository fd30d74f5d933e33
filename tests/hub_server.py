"""A Hub on loopback that speaks what an upload and a download use, and can fail as the real one does."""

import base64
import hashlib
import http.server
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import yaml

OWNER = "ada"


class Hub:
    """Repositories, large files and faults of one server.

    `token` is the one that it knows.
    `fault(method, path)` may give a status to answer with, or "drop" to break the connection in the middle.
    """

    token = "hf_" + "goodTOKEN1234567"

    def __init__(self):
        self.repos, self.large, self.seen = {}, {}, []
        self.fault = lambda method, path: None
        self.served = {}  # folders that are repositories of others, by id

    def start(self):
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm, wbufsize = True, -1  # answers go out at once, and whole

            def answer(self, status, body=None, **headers):
                content = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                if "Content_Length" not in headers:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def handle_any(self):
                path = self.path.partition("?")[0]
                length = int(self.headers.get("Content-Length") or 0)
                hub.seen.append((self.command, path, self.headers.get("Authorization")))
                fault = hub.fault(self.command, path)
                if fault == "drop":
                    self.rfile.read(length // 2)
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                body = self.rfile.read(length)
                if fault:
                    self.answer(fault, {"error": f"fault {fault}"})
                else:
                    hub.route(self, path, body)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def route(self, handler, path, body):
        parts = path.strip("/").split("/")
        if "resolve" in parts or handler.command == "HEAD":
            return self.download(handler, parts)
        if "tree" in parts:  # templates beside the usual one: nobody has any
            return handler.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        if parts[0] == "api" and (told := self.info("/".join(parts[2:4]))):
            return handler.answer(200, told)
        if path.startswith("/lfs/"):
            if hashlib.sha256(body).hexdigest() != parts[1]:
                return handler.answer(400, {"error": "another digest"})
            self.large[parts[1]] = body
            return handler.answer(200)
        if handler.headers.get("Authorization") != f"Bearer {self.token}":
            return handler.answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/validate-yaml":
            return handler.answer(200, {"errors": [], "warnings": []})
        asked = json.loads(body) if body and not path.endswith("/commit/main") else {}
        if path == "/api/repos/create":
            return self.create(handler, asked)
        repo_id = "/".join(parts[:2]).removesuffix(".git") if parts[0] != "api" else "/".join(parts[2:4])
        repo = self.repos.get(repo_id)
        if repo is None:
            return handler.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if path.endswith("/preupload/main"):
            modes = [self.mode(repo, file) for file in asked["files"]]
            return handler.answer(200, {"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            return handler.answer(200, {"transfer": "basic", "objects": [self.action(of) for of in asked["objects"]]})
        if path.endswith("/commit/main"):
            return self.commit(handler, repo_id, repo, body)
        return handler.answer(200, {"id": repo_id, "private": repo.private, "sha": repo.commits[-1], "siblings": []})

    def info(self, repo_id):
        """What the Hub says of a repository of others, which anybody may ask."""
        card = Path(self.served.get(repo_id, "/nowhere")) / "README.md"
        if repo_id not in self.served:
            return None
        front = card.read_text().split("---")[1] if card.is_file() else ""
        there = [{"rfilename": path.name} for path in Path(self.served[repo_id]).iterdir()]
        return {"id": repo_id, "private": False, "sha": "1" * 40, "siblings": there, "cardData": yaml.safe_load(front)}

    def create(self, handler, asked):
        owner, name = asked.get("organization") or OWNER, asked["name"]
        if owner != OWNER:
            return handler.answer(403, {"error": f"You don't have the rights to create a model under {owner}"})
        answer = {"url": f"{self.url}/{owner}/{name}"}
        if f"{owner}/{name}" in self.repos:
            return handler.answer(409, answer | {"error": "You already created this model repo"})
        private = asked.get("visibility") == "private"
        self.repos[f"{owner}/{name}"] = SimpleNamespace(private=private, files={}, commits=["0" * 40])
        return handler.answer(200, answer)

    def mode(self, repo, file):
        large, there = file["path"].endswith((".safetensors", "tokenizer.json")), repo.files.get(file["path"])
        oid = None
        if there is not None:
            blob = there if large else b"blob %d\0" % len(there) + there
            oid = (hashlib.sha256 if large else hashlib.sha1)(blob).hexdigest()
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": oid,
        }

    def action(self, of):
        wanted = {"actions": {"upload": {"href": f"{self.url}/lfs/{of['oid']}"}}}
        return {"oid": of["oid"], "size": of["size"]} | ({} if of["oid"] in self.large else wanted)

    def commit(self, handler, repo_id, repo, body):
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines[1:]:
            value = line["value"]
            large = line["key"] == "lfsFile"
            repo.files[value["path"]] = self.large[value["oid"]] if large else base64.b64decode(value["content"])
        oid = hashlib.sha1(body).hexdigest()
        repo.commits.append(oid)
        return handler.answer(200, {"commitUrl": f"{self.url}/{repo_id}/commit/{oid}", "commitOid": oid})

    def download(self, handler, parts):
        """Files of a repository, or of a folder that stands for one."""
        parts = parts[parts[0] == "datasets" :]
        repo_id, name = "/".join(parts[:2]), "/".join(parts[4:])
        content = self.repos[repo_id].files.get(name) if repo_id in self.repos else None
        path = Path(self.served.get(repo_id, "/nowhere")) / name
        if content is None and name and path.is_file():
            content = path.read_bytes()
        if content is None:
            return handler.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        etag = hashlib.sha256(content).hexdigest()
        told = {"X_Repo_Commit": "1" * 40, "ETag": f'"{etag}"', "Content_Length": str(len(content))}
        return handler.answer(200, content, **told)

    def requests(self, method, ending):
        """How often a path was asked for."""
        return sum(asked == method and ending in path for asked, path, _ in self.seen)
