"""The page of a run: served on a port of this machine for a browser, or asked without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import uvicorn
from starlette.testclient import TestClient

from pipeline.view import server
from pipeline.view.opened import OpenedRun

TOKEN = "t" * 48


def visit(run: OpenedRun) -> TestClient:
    """Visitor of a run's page who has shown the token, without a browser and without a port."""
    client = TestClient(server.create_app(run, token=TOKEN, port=8181), base_url="http://localhost:8181")
    client.get(f"/?token={TOKEN}")
    return client


@contextmanager
def serving(run: OpenedRun) -> Iterator[str]:
    """URL of a run's page."""
    listening = uvicorn.Config(lambda: None, host="127.0.0.1", port=0).bind_socket()
    port = listening.getsockname()[1]
    app = server.create_app(run, token=TOKEN, port=port)
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", **server.LIMITS))
    thread = Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        running.should_exit = True
        thread.join()
