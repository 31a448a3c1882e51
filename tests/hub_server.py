"""A Hugging Face hub and a host of releases on this machine, for tests: they serve what a dictionary holds."""

import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """What is served, and how.

    Attributes:
      files: "owner/name/file" of the hub, or "releases/file" -> content.
      cut: path -> bytes after which the connection breaks, once each.
      pages: paths that are answered with a web page, as some proxies do.
      requests: (method, path, value of Range) in the order of arrival.
      url: where it is.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, list[int]] = {}
        self.pages: set[str] = set()
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = ""

    def downloads(self, name: str) -> list[str | None]:
        """The Range of every GET of a file."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith(f"/{name}")]


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status: int, body: bytes, headers: dict[str, str], send: int | None = None):
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:send])
            if send is not None:
                self.wfile.flush()
                self.close_connection = True

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = urllib.parse.unquote(self.path.partition("?")[0].strip("/"))
            server.requests.append((self.command, path, self.headers.get("Range")))
            if path.startswith("api/models/"):
                repository = "/".join(path.split("/")[2:4])
                names = [name.removeprefix(f"{repository}/") for name in server.files if name.startswith(repository)]
                if not names:
                    return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                listing = [{"rfilename": name} for name in names]
                body = json.dumps({"id": repository, "sha": COMMIT, "siblings": listing}).encode()
                return self.answer(200, body, {"Content-Type": "application/json"})
            name = path
            if "/resolve/" in path:
                repository, _, rest = path.partition("/resolve/")
                name = f"{repository}/{rest.partition('/')[2]}"
            if name in server.pages:
                return self.answer(200, b"<html>Please log in</html>", {"Content-Type": "text/html; charset=utf-8"})
            if name not in server.files:
                return self.answer(404, b"not found", {"X-Error-Code": "EntryNotFound"})
            content = server.files[name]
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            headers = {"ETag": tag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            status, body = 200, content
            span = self.headers.get("Range")
            if span and self.headers.get("If-Range", tag) == tag:
                start = int(span.removeprefix("bytes=").split("-")[0])
                if start >= len(content):
                    return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                status, body = 206, content[start:]
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            cuts = server.cut.get(name, []) if self.command == "GET" else []
            return self.answer(status, body, headers, cuts.pop(0) if cuts else None)

    return Handler


@contextmanager
def serve() -> Iterator[Server]:
    """Runs a server on a free port of this machine."""
    server = Server()
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{http_server.server_address[1]}"
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()
