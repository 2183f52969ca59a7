"""Lease on a run, in numbered objects beside it: only one driver works on a run at a time.

    _run/owner-000001.json, owner-000002.json, ...       the highest generation holds the run

A driver takes a run by creating the next generation, which only one driver can (put-if-absent), and keeps it by
rewriting its object with a growing beat. A second driver watches the beats: while they continue, it is refused with the
name of the holder; after a lease without a beat, it takes over. The driver that lost the run sees the newer generation
and stops. Clocks are never compared.
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
    """Driver of one generation of the lease."""

    model_config = ConfigDict(frozen=True)

    token: str
    """Unique to the driver."""
    host: str
    boot_id: str
    """Boot id of the host's kernel; it changes when the machine restarts."""
    pid: int
    since: str
    """ISO time, for people."""
    command: str
    lease_s: float = 30.0
    """A driver without a beat for this long loses the run, seconds; older records lack it."""
    beat: int = 0
    """Counter that grows while the driver lives."""
    released: bool = False

    def __str__(self) -> str:
        return f"{self.host} pid {self.pid} since {self.since} ({self.command})"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _dead_here(owner: Owner) -> bool:
    """True when the owner was a process on this machine that no longer exists."""
    if owner.host != socket.gethostname() or not owner.boot_id or owner.boot_id != _boot_id():
        return False
    return not Path(f"/proc/{owner.pid}").exists()


def owner_url(folder: Url, generation: int) -> Url:
    """URL of the record of one generation of a lease."""
    return folder / f"owner-{generation:06d}.json"


def read_owner(folder: Url, generation: int) -> Owner:
    """Driver of one generation of a lease."""
    url = owner_url(folder, generation)
    data = objects.read_bytes(url, max_bytes=1 << 16)
    with objects.naming_damage(url, hint="delete it if no other driver works on this run"):
        return Owner.model_validate_json(data)


def latest_generation(folder: Url) -> int:
    """Highest generation of a lease; 0 when no driver has held it."""
    try:
        names = [file.path for file in objects.list_files(folder)]
    except NothingThere:
        return 0
    return max((int(name[6:12]) for name in names if name.startswith("owner-")), default=0)


def latest_owner(run_url: Url) -> Owner | None:
    """Driver that took a run last; None when no driver has."""
    folder = run_url / "_run"
    generation = latest_generation(folder)
    return read_owner(folder, generation) if generation else None


class Lease:
    """Lease on a run while the `with` block lasts.

    When another driver takes the run, the main thread is interrupted as by Ctrl-C, and leaving the block raises
    `OwnedElsewhere` in place of KeyboardInterrupt.
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
            lease_s=lease_s,
        )
        self.generation = 0
        self.lost_to = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Take the run.

        Raises:
            OwnedElsewhere: another live driver holds the run, or took it at the same moment.
        """
        latest = latest_generation(self.folder)
        if latest:
            self._wait_until_free(latest)
        self.generation = latest + 1
        if not objects.put_if_absent(self._url(self.generation), self._record()):
            winner = self._read(self.generation)
            raise OwnedElsewhere(
                f"another driver just took this run: {winner}", hint="wait until it has finished, or stop it"
            )
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=self.lease_s)
        if self.lost_to:
            hint = "that driver continues the run; follow its log"
            raise OwnedElsewhere(f"this run was taken over by {self.lost_to}", hint=hint) from error
        self.me = self.me.model_copy(update={"released": True})
        objects.put(self._url(self.generation), self._record())

    def _record(self) -> bytes:
        return self.me.model_dump_json().encode()

    def _url(self, generation: int) -> Url:
        return owner_url(self.folder, generation)

    def _read(self, generation: int) -> Owner:
        return read_owner(self.folder, generation)

    def _successor(self) -> str:
        """Driver that has taken the run from this one; empty while this driver holds it."""
        if objects.exists(self._url(self.generation + 1)):
            return str(self._read(self.generation + 1))
        try:
            mine = self._read(self.generation)
        except FileNotFoundError:
            return "another driver, whose lease was deleted since"
        return "" if mine.token == self.me.token else str(mine)

    def _wait_until_free(self, generation: int) -> None:
        """Return when the holder has released the run or is silent for a lease; raise OwnedElsewhere when it beats."""
        first = self._read(generation)
        if first.released or _dead_here(first):
            return
        log.info("this run is held by %s: waiting %g s for a sign of life", first, self.lease_s)
        silent_at = time.monotonic() + self.lease_s
        while time.monotonic() < silent_at:
            time.sleep(self.lease_s / BEATS_PER_LEASE / 2)
            now = self._read(generation)
            if now.released:
                return
            if now.beat != first.beat:
                hint = "wait until it has finished, or stop it; the run of a dead driver is taken over automatically"
                raise OwnedElsewhere(f"this run is held by a live driver: {now}", hint=hint)
        log.warning("took over from %s, silent for %g s", first, self.lease_s)

    def _keep(self) -> None:
        """Renew the lease until the block ends, or until a newer generation shows that the run is lost."""
        while not self._stop.wait(self.lease_s / BEATS_PER_LEASE):
            try:
                if lost_to := self._successor():
                    self.lost_to = lost_to
                    log.error("this run was taken over by %s: stopping", lost_to)
                    # A shell starts background jobs with SIGINT ignored: then only SIGTERM stops us.
                    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
                    os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGINT)
                    return
                self.me = self.me.model_copy(update={"beat": self.me.beat + 1})
                objects.put(self._url(self.generation), self._record())
            except (StorageError, FileNotFoundError) as error:
                log.warning("could not renew the lease, trying again: %s", error)
