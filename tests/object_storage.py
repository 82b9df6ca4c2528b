"""An S3 server on loopback (moto), and a proxy in front of it that refuses, flaps, or forgets what it was asked."""

import http.client
import http.server
import os
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

BUCKET = "runs"


@dataclass
class Proxy:
    """Forwards every request to the server, unless told otherwise."""

    target: tuple[str, int]
    refuse: bool = False
    """Answer 503 to everything."""
    fail_every: int = 0
    """Answer 503 to every n-th request; 0 never."""
    lose_every: int = 0
    """Forward every n-th request but drop the connection instead of answering; 0 never."""
    forget_conditions: bool = False
    """Drop `If-None-Match`, as stores do that do not know it."""
    count: int = 0
    num_failed: int = 0
    """Requests that were refused or whose answer was lost."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> str:
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        for verb in ("GET", "PUT", "POST", "DELETE", "HEAD"):
            setattr(Handler, f"do_{verb}", Handler.handle_any)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self.lock:
            self.count += 1
            fails = self.refuse or (self.fail_every > 0 and self.count % self.fail_every == 0)
            loses = self.lose_every > 0 and self.count % self.lose_every == 0
            self.num_failed += fails or loses
        if fails:
            self._send(request, 503, [], b"")
            return
        headers = dict(request.headers)
        if self.forget_conditions:
            headers.pop("If-None-Match", None)
        connection = http.client.HTTPConnection(*self.target, timeout=30)
        connection.request(request.command, request.path, body, headers)
        response = connection.getresponse()
        data = response.read()
        if loses:
            request.close_connection = True
            request.connection.close()
            return
        self._send(request, response.status, response.getheaders(), data)

    def _send(
        self, request: http.server.BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], data: bytes
    ) -> None:
        request.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # of a HEAD request: the object's, without a body
            elif name.lower() not in ("connection", "transfer-encoding"):
                request.send_header(name, value)
        request.send_header("Content-Length", length)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)


def object_storage() -> Iterator[Proxy]:
    """A fixture: an empty bucket behind a proxy, and the environment that leads there, for workers too."""
    import boto3  # type: ignore[import-untyped]  # has no stubs
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b""):
        pass  # its buckets belong to the process, not to the server: the last test's are still there
    proxy = Proxy((host, port))
    settings = {
        "AWS_ENDPOINT_URL": proxy.start(),
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    try:
        yield proxy
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.server.shutdown()
        server.stop()
