"""One driver at a time: a lease on a run, kept in numbered objects beside it.

    _run/owner-000001.json, owner-000002.json, ...       the highest generation holds the run

A driver takes a run by creating the next generation, which only one can (put-if-absent), and keeps it by writing its
own object again and again. Whoever wants a run that is held watches those beats: they go on, and it is refused by name;
they stop for a lease, and it takes over. The driver that lost the run sees the newer generation and stops. Clocks are
never compared.
"""

import logging
import os
import signal
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ConfigDict

from pipeline.errors import NothingThere, OwnedElsewhere, StorageError
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

BEATS_PER_LEASE = 6


class Owner(BaseModel):
    """One generation of ownership."""

    model_config = ConfigDict(frozen=True)

    token: str
    """Unique to the driver."""
    host: str
    boot_id: str
    """Of the host's kernel: tells a restarted machine from one that kept running."""
    pid: int
    since: str
    """ISO time, for people."""
    command: str
    beat: int = 0
    """Grows while the driver lives."""
    released: bool = False

    def __str__(self) -> str:
        return f"{self.host} pid {self.pid} since {self.since} ({self.command})"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _dead_here(owner: Owner) -> bool:
    """Whether the owner was a process of this very machine that no longer exists."""
    if owner.host != socket.gethostname() or not owner.boot_id or owner.boot_id != _boot_id():
        return False
    return not Path(f"/proc/{owner.pid}").exists()


class Lease:
    """Holds a run while the `with` block lasts.

    Losing it interrupts the main thread as Ctrl-C does; leaving the block then raises `OwnedElsewhere` in place of
    KeyboardInterrupt.
    """

    def __init__(self, run_url: Url, *, lease_s: float, command: str) -> None:
        self.folder = run_url / "_run"
        self.lease_s = lease_s
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.me = Owner(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            boot_id=_boot_id(),
            pid=os.getpid(),
            since=now,
            command=command,
        )
        self.generation = 0
        self.lost_to = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Take the run.

        Raises:
            OwnedElsewhere: another live driver holds it, or took it at the same moment.
        """
        latest = self._latest()
        if latest:
            self._wait_until_free(latest)
        self.generation = latest + 1
        if not objects.put_if_absent(self._url(self.generation), self._record()):
            winner = self._read(self.generation)
            raise OwnedElsewhere(f"another driver just took this run: {winner}", hint="only one driver works at a time")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=self.lease_s)
        if self.lost_to:
            raise OwnedElsewhere(f"this run was taken over by {self.lost_to}", hint="it goes on there") from error
        self.me = self.me.model_copy(update={"released": True})
        objects.put(self._url(self.generation), self._record())

    def _url(self, generation: int) -> Url:
        return self.folder / f"owner-{generation:06d}.json"

    def _record(self) -> bytes:
        return self.me.model_dump_json().encode()

    def _read(self, generation: int) -> Owner:
        return Owner.model_validate_json(objects.read_bytes(self._url(generation), max_bytes=1 << 16))

    def _latest(self) -> int:
        """The highest generation there is; 0 when the run was never held."""
        try:
            names = [found.path for found in objects.list_files(self.folder)]
        except NothingThere:
            return 0
        return max((int(name[6:12]) for name in names if name.startswith("owner-")), default=0)

    def _successor(self) -> str:
        """Who holds the run in our place; empty as long as we do."""
        if objects.exists(self._url(self.generation + 1)):
            return str(self._read(self.generation + 1))
        try:
            mine = self._read(self.generation)
        except FileNotFoundError:
            return "somebody who has cleaned up since"
        return "" if mine.token == self.me.token else str(mine)

    def _wait_until_free(self, generation: int) -> None:
        """Return once the holder has released the run or has been silent for a lease; refuse when it shows life."""
        first = self._read(generation)
        if first.released or _dead_here(first):
            return
        log.info("this run is held by %s: watching for %g s whether it is alive", first, self.lease_s)
        silent_at = time.monotonic() + self.lease_s
        while time.monotonic() < silent_at:
            time.sleep(self.lease_s / BEATS_PER_LEASE / 2)
            now = self._read(generation)
            if now.released:
                return
            if now.beat != first.beat:
                hint = "wait for it, or stop it; a driver that died is taken over by itself"
                raise OwnedElsewhere(f"this run is held by a live driver: {now}", hint=hint)
        log.warning("took over from %s, silent for %g s", first, self.lease_s)

    def _keep(self) -> None:
        """Beat until told to stop, or until a newer generation shows that the run is lost."""
        while not self._stop.wait(self.lease_s / BEATS_PER_LEASE):
            try:
                if lost_to := self._successor():
                    self.lost_to = lost_to
                    log.error("this run was taken over by %s: stopping", lost_to)
                    # A shell starts background jobs with SIGINT ignored: then only SIGTERM stops us.
                    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
                    os.kill(os.getpid(), signal.SIGTERM if deaf else signal.SIGINT)
                    return
                self.me = self.me.model_copy(update={"beat": self.me.beat + 1})
                objects.put(self._url(self.generation), self._record())
            except (StorageError, FileNotFoundError) as error:
                log.warning("could not renew the lease, trying again: %s", error)
