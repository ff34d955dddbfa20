"""A stand-in for the hub on this machine: one repository, the four kinds of requests that a snapshot takes."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


class Hub:
    """Serves the files of `folder` as the repository `name`.

    Attributes:
        breaks_at: bytes of a file after which the connection is cut; None: never.
        breaks: how many times it is.
        ranges: the Range header of every request for a file's content, in order.
        requests: method and path of every request.
    """

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.breaks_at, self.breaks = None, 1000
        self.ranges, self.requests = [], []

    @contextmanager
    def serving(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path, _, _ = self.path.partition("?")
        self.hub.requests.append(f"{self.command} {path}")
        files = {file.name: file for file in self.hub.folder.iterdir()}
        if re.fullmatch(f"/api/models/{self.hub.name}(/revision/[^/]+)?", path):
            return self.send_json({"id": self.hub.name, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        if path.startswith(f"/api/models/{self.hub.name}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": self.tag(file)} for name, file in files.items()
            ]
            return self.send_json(entries)
        name = path.rpartition("/")[2]
        if path == f"/{self.hub.name}/resolve/{COMMIT}/{name}" and name in files:
            return self.send_file(files[name])
        return self.send_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    @staticmethod
    def tag(file):
        """Files of numbers lie in the large file storage, by their sha256; others are blobs of git."""
        large = file.suffix in (".safetensors", ".bin")
        return (hashlib.sha256 if large else hashlib.sha1)(file.read_bytes()).hexdigest()

    def send_json(self, content, status=200, headers=()):
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {**dict(headers), "Content-Type": "application/json", "Content-Length": len(body)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_file(self, file):
        data, wanted = file.read_bytes(), self.headers.get("Range")
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        self.send_response(206 if start else 200)
        for key, value in {
            "ETag": f'"{self.tag(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes", "Content-Length": len(data) - start,
        }.items():  # fmt: skip
            self.send_header(key, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.hub.ranges.append((file.name, wanted))
            end = self.hub.breaks_at
            if end is not None and len(data) > end and self.hub.breaks:
                self.hub.breaks -= 1
                self.wfile.write(data[start : max(start, end)])
                self.wfile.flush()
                self.connection.close()
                self.close_connection = True
            else:
                self.wfile.write(data[start:])
