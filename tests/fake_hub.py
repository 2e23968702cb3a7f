"""A hub on this machine, as far as huggingface_hub asks one: who am I, repositories, uploads (LFS too), downloads.

It answers over HTTP, so that the real client runs against it: give a process `hub.environment`.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_writing"
ROLES = {TOKEN: "write", "hf_reading": "read"}  # by token
SHA = "0" * 40  # of every commit
REPO = r"(?P<repo>[\w.-]+/[\w.-]+?)"


class Hub(ThreadingHTTPServer):
    """A context manager.

    Attributes:
        repos: Files by path, by repository.
        private: Names of repositories that were made private.
        is_full: Whether commits are refused.
        environment: Variables with which a process takes it for the hub.
    """

    daemon_threads = True

    def __init__(self, home):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.is_full = False
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.environment = {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # whose storage is no HTTP that could be imitated here
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.dispatch(
            (r"/api/whoami-v2", self.whoami),
            (rf"/api/models/{REPO}(/revision/\w+)?", self.info),
            (rf"/api/models/{REPO}/tree/\w+", self.tree),
            (rf"/{REPO}/resolve/\w+/(?P<path>.+)", self.file),
        )

    do_HEAD = do_GET

    def do_POST(self):
        self.dispatch(
            (r"/api/repos/create", self.create),
            (r"/api/validate-yaml", self.validate),
            (rf"/api/models/{REPO}/preupload/main", self.preupload),
            (rf"/{REPO}\.git/info/lfs/objects/batch", self.batch),
            (rf"/api/models/{REPO}/commit/main", self.commit),
        )

    def do_PUT(self):
        self.dispatch((r"/lfs/(?P<oid>\w+)", self.put))

    def dispatch(self, *routes):
        self.body = self.read_body()
        for pattern, answer in routes:
            if match := re.fullmatch(pattern, self.path.partition("?")[0]):
                self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                is_allowed = self.token in ROLES or self.command == "PUT"  # what is put has a secret address
                return answer(**match.groupdict()) if is_allowed else self.reply(401, {"error": "Invalid token."})
        return self.reply(404, {"error": "Not found."})

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, status, content, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def whoami(self):
        token = {"displayName": "tests", "role": ROLES[self.token]}
        self.reply(200, {"type": "user", "name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": token}})

    def create(self):
        wanted = json.loads(self.body)
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        self.server.repos.setdefault(name, {})
        if wanted.get("visibility") == "private":
            self.server.private.add(name)
        self.reply(200, {"url": f"{self.server.address}/{name}"})

    def validate(self):
        header = json.loads(self.body)["content"].split("---")[1]
        is_good = isinstance(yaml.safe_load(header), dict)
        self.reply(200 if is_good else 400, {"errors": [], "warnings": []})

    def preupload(self, repo):
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        self.reply(200 if repo in self.server.repos else 404, {"files": files})

    def batch(self, repo):
        objects = json.loads(self.body)["objects"]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{self.server.address}/lfs/{item['oid']}"}}
        self.reply(200, {"transfer": "basic", "objects": objects})

    def put(self, oid):
        is_whole = hashlib.sha256(self.body).hexdigest() == oid
        self.server.objects[oid] = self.body
        self.reply(200 if is_whole else 400, {})

    def commit(self, repo):
        if self.server.is_full:
            return self.reply(403, {"error": "Storage limit reached."})
        files = self.server.repos[repo]
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if item["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        return self.reply(200, {"commitUrl": f"{self.server.address}/{repo}/commit/{SHA}", "commitOid": SHA})

    def info(self, repo):
        if repo not in self.server.repos:
            return self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        files = [{"rfilename": path} for path in self.server.repos[repo]]
        return self.reply(200, {"id": repo, "sha": SHA, "siblings": files})

    def tree(self, repo):
        if repo not in self.server.repos:
            return self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        files = self.server.repos[repo].items()
        return self.reply(200, [{"type": "file", "path": path, "size": len(data), "oid": SHA} for path, data in files])

    def file(self, repo, path):
        files = self.server.repos.get(repo)
        if files is None or path not in files:
            code = "RepoNotFound" if files is None else "EntryNotFound"
            return self.reply(404, {"error": "Not found"}, X_Error_Code=code, X_Repo_Commit=SHA)
        etag = hashlib.sha1(files[path]).hexdigest()
        return self.reply(200, files[path], X_Repo_Commit=SHA, ETag=f'"{etag}"')
