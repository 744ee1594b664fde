"""A worker on another machine: messages and answers as files of a folder that both machines see.

For clusters whose compute nodes have no network (``deploy/slurm``)::

    relay ─► SpoolLink ─► EXPIRES-ID.question ─► SpoolDesk ─► worker
    mmare-site status ◄── EXPIRES-ID.answer, worker ◄──┘

A file appears whole under its name. Both ends list the folder, which asks the file server; the look-up of a
name may be answered from the machine's memory for a minute (nfs(5), ``acdirmax``). A message stays until its
asker has the answer or gives up, so a worker finds what the one before it left behind.
"""

from __future__ import annotations

import logging
import os
import stat
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from client.relay.worker_link import MOST_BYTES, deadline_s, is_too_long
from client.worker_pb.site_worker_pb2 import Answer, Question, StatusAnswer
from mmare.errors import InputError, SiteCode
from mmare.host.files import own_folder, write_whole
from mmare.wire.messages import Refusal, encode

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from mmare.host.signals import Stop
    from sites.config import WorkerConfig

__all__ = ["AWAY_S", "GONE_S", "MOST_WAITING", "Spool", "SpoolDesk", "SpoolLink", "open_spool"]

LOG = logging.getLogger(__name__)

QUESTION: Final = ".question"
ANSWER: Final = ".answer"
SIGN: Final = "worker"  # the worker's status, written anew every `BEAT_S`; empty once it has ended
BEAT_S: Final = 10.0
GONE_S: Final = 60.0  # without a sign: the worker does not run now,
AWAY_S: Final = 600.0  # and is not waited for any longer, such as for its job in the queue
LEFT_S: Final = 3600.0  # after which an unfinished file was left by a process that was killed
MOST_WAITING: Final = 8  # messages; each has at most `MOST_BYTES`
QUICK_S: Final = 0.05  # first pause between two looks,
SLOW_S: Final = 1.0  # the longest,
SLOWER: Final = 1.3  # and their ratio


@dataclass(frozen=True)
class Spool:
    """The folder and its files. Methods raise `OSError`."""

    folder: Path

    def names(self) -> list[str]:
        """What is there, by expiry; what nobody waits for any more is removed."""
        names = sorted(os.listdir(self.folder))  # noqa: PTH208 - names are all it takes
        for name in names:
            if name.startswith(".") and time.time() - self._touched(name) > LEFT_S:
                self.remove(name)
        live = {name for name in names if name.endswith(QUESTION) and left_s(name) > 0}
        asked = {name.removesuffix(QUESTION) for name in live}
        for name in names:
            if (name.endswith(QUESTION) and name not in live) or (
                name.endswith(ANSWER) and name.removesuffix(ANSWER) not in asked
            ):
                self.remove(name)
        return [name for name in names if name.removesuffix(QUESTION).removesuffix(ANSWER) in asked]

    def waiting(self) -> int:
        """Number of messages without an answer."""
        names = self.names()
        return sum(name.endswith(QUESTION) for name in names) - sum(name.endswith(ANSWER) for name in names)

    def put(self, name: str, content: bytes) -> None:
        """Write a file for the users who may enter the folder."""
        shared = self.folder.stat().st_mode & stat.S_IWGRP
        write_whole(self.folder / name, content, mode=0o660 if shared else 0o600)

    def read(self, name: str) -> bytes:
        """A file's content; `ValueError` if it is longer than any message."""
        with open(self.folder / name, "rb", opener=_plainly) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(name)
        return content

    def remove(self, *names: str) -> None:
        """Remove files, if they are there and can be."""
        for name in names:
            with suppress(OSError):
                (self.folder / name).unlink()

    def silent_s(self) -> float | None:
        """Seconds since the worker's last sign, None if there is none; as of the last `names`."""
        touched = self._touched(SIGN)
        return max(time.time() - touched, 0.0) if touched else None

    def _touched(self, name: str) -> float:
        with suppress(FileNotFoundError):
            return (self.folder / name).lstat().st_mtime
        return 0.0


def _plainly(path: str, flags: int) -> int:
    """Follow no link, and wait for no writer of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def left_s(name: str) -> float:
    """Seconds until the asker of a message gives up."""
    try:
        return float(name.partition("-")[0]) - time.time()
    except ValueError:
        return 0.0


def open_spool(config: WorkerConfig) -> Spool:
    """The spool of a site, created if missing.

    Raises:
        InputError: If others can enter it, or it cannot be created or is another user's.
    """
    folder, group = config.spool, config.group_id
    assert folder is not None  # noqa: S101 - asked by the caller
    try:
        own_folder(folder)
        status = folder.stat()
        mode, ours = stat.S_IMODE(status.st_mode), status.st_uid == os.geteuid()
        allowed = ours or (group is not None and status.st_gid == group)
        if not allowed or mode & (0o077 if group is None else 0o007):
            wanted = (
                "your own, such as 0700" if group is None else f"of the group {config.group}, such as 2770"
            )
            raise InputError(
                f"[worker] spool is {folder}, of mode {mode:04o} and owner {status.st_uid}; expected one "
                f"that others cannot enter, {wanted}"
            )
        if ours and group is not None:
            os.chown(folder, -1, group)
            folder.chmod(0o2770)
    except OSError as error:
        raise InputError(f"[worker] spool is {folder}, which cannot be used ({error.strerror})") from None
    return Spool(folder)


class SpoolLink:
    """The relay's end: like `client.relay.worker_link.WorkerLink`, for a worker that a spool leads to.

    While the worker's last sign is younger than `AWAY_S`, a message waits until the study's deadline: its job
    may be on its way from one node to another.
    """

    def __init__(self, folder: Path) -> None:
        self._spool = Spool(folder)

    def __call__(self, header: str, payload: bytes) -> tuple[str, bytes]:
        """The worker's answer, or a refusal with a code."""
        if is_too_long(header, payload):
            return encode(Refusal(SiteCode.MESSAGE)), b""
        deadline = deadline_s(header)
        name = f"{time.time() + deadline:.3f}-{uuid.uuid4().hex}"
        try:
            if (waiting := self._spool.waiting()) >= MOST_WAITING:
                LOG.error("%s is full: %s messages wait for the worker", self._spool.folder, waiting)
                return encode(Refusal(SiteCode.WORKER)), b""
            question = Question(header=header, payload=payload)
            try:
                self._spool.put(name + QUESTION, question.SerializeToString())
                return self._wait(name + ANSWER, time.monotonic() + deadline)
            finally:
                self._spool.remove(name + QUESTION, name + ANSWER)
        except (OSError, ValueError, DecodeError) as error:
            LOG.error("%s: %s", self._spool.folder, error)  # noqa: TRY400 - a full disk, or a wrong file
            return encode(Refusal(SiteCode.WORKER)), b""

    def _wait(self, name: str, end: float) -> tuple[str, bytes]:
        pause_s = QUICK_S
        while time.monotonic() < end:
            if name in self._spool.names():
                answer = Answer.FromString(self._spool.read(name))
                return answer.header, answer.payload
            silent_s = self._spool.silent_s()
            if silent_s is None or silent_s > AWAY_S:
                LOG.error("%s: no sign of a worker", self._spool.folder)
                return encode(Refusal(SiteCode.WORKER)), b""
            time.sleep(pause_s)
            pause_s = min(pause_s * SLOWER, SLOW_S)
        return encode(Refusal(SiteCode.LATE)), b""

    def status(self) -> StatusAnswer | None:
        """The worker's status, at most `BEAT_S` old while it runs; None if none is running."""
        try:
            self._spool.names()
            silent_s = self._spool.silent_s()
            content = b"" if silent_s is None or silent_s > GONE_S else self._spool.read(SIGN)
            return StatusAnswer.FromString(content) if content else None
        except (OSError, ValueError, DecodeError):
            return None


class SpoolDesk:
    """The worker's end: one message after another, the one that expires first before the others.

    Args:
        spool: That no other worker serves.
        answer: Called with header, payload and the seconds left; never raises.
        status: Of the worker.
    """

    def __init__(
        self,
        spool: Spool,
        answer: Callable[[str, bytes, float], tuple[str, bytes]],
        status: Callable[[], StatusAnswer],
    ) -> None:
        self._spool = spool
        self._answer_to = answer
        self._status = status
        self._work: Future[None] | None = None
        self._beat = 0.0  # monotonic, when the next sign is due
        self._fails = False
        self._pool = ThreadPoolExecutor(max_workers=1)  # so that signs go on meanwhile

    def run(self, stop: Stop, grace_s: float) -> bool:
        """Serve until stopped; returns whether the current message was finished."""
        pause_s = QUICK_S
        while not stop.wait(pause_s):
            try:
                pause_s = QUICK_S if self._look() else min(pause_s * SLOWER, SLOW_S)
                self._fails = False
            except OSError as error:  # such as a full disk
                self._say(error)
                pause_s = SLOW_S
        self._pool.shutdown(wait=False)
        end = time.monotonic() + grace_s
        while self._work is not None and not self._work.done() and time.monotonic() < end:
            time.sleep(QUICK_S)
        with suppress(OSError):
            self._spool.put(SIGN, b"")
        return self._work is None or self._work.done()

    def _look(self) -> bool:
        """Give a sign if one is due, begin with a message if there is one; whether there was."""
        if time.monotonic() >= self._beat:
            self._spool.put(SIGN, self._status().SerializeToString())
            self._beat = time.monotonic() + BEAT_S
        names = self._spool.names()
        if self._work is not None:
            if not self._work.done():
                return False
            self._work.result()  # raises what should not have happened: the process ends
        asked = [name.removesuffix(QUESTION) for name in names if name.endswith(QUESTION)]
        name = next((each for each in asked if each + ANSWER not in names), None)
        self._work = None if name is None else self._pool.submit(self._answer, name)
        return name is not None

    def _answer(self, name: str) -> None:
        try:
            question = Question.FromString(self._spool.read(name + QUESTION))
            header, payload = self._answer_to(question.header, question.payload, left_s(name))
        except FileNotFoundError:  # nobody waits any more
            return
        except (OSError, ValueError, DecodeError):
            header, payload = encode(Refusal(SiteCode.MESSAGE)), b""
        content = Answer(header=header, payload=payload).SerializeToString()
        while left_s(name) > 0:
            try:
                if name + QUESTION in self._spool.names():
                    self._spool.put(name + ANSWER, content)
            except OSError as error:
                self._say(error)
                time.sleep(SLOW_S)
            else:
                return

    def _say(self, error: OSError) -> None:
        if not self._fails:
            LOG.warning("%s: %s; trying again", self._spool.folder, error.strerror)
        self._fails = True
