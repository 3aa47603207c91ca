"""Sessions by name: their slots, limits and idle time, and one thread that advances all that wait together."""

import contextlib
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selssm_jax.errors import first_line
from selssm_jax.serving.pool import SessionPool

BUSY = "a request of this session is still running: try again when it is answered"


class Full(RuntimeError):
    """No more sessions, or requests, can be held now."""


class Failed(RuntimeError):
    """A program that ended in an error, whoever asked."""


class UnknownSession(KeyError):
    """A session that was never begun, or has been idle for too long."""


@dataclass
class _Session:
    """A slot and when it was last asked for.

    Attributes:
      source: the slot whose memory its next request goes on from. is_fresh: nothing was read: that is an empty one.
      is_held: advanced by `branch` alone. waiting: requests that are not finished.
    """

    slot: int
    used: float
    source: int
    is_fresh: bool = True
    is_held: bool = False
    waiting: int = 0


@dataclass
class _Request:
    session: _Session
    inputs: np.ndarray
    answer: "Future[np.ndarray]" = field(default_factory=Future)


class Batcher:
    """Holds up to `capacity` sessions and runs their requests, each session's in its own order.

    Args:
      pool: their memories. capacity: of it. batch: sessions that advance in one program, at most. queue: requests that
        may wait. idle: seconds after which a session that nobody uses makes room for a new one.
    """

    def __init__(
        self, pool: SessionPool, capacity: int, *, batch: int = 64, queue: int = 1024, idle: float = 600.0
    ) -> None:
        self._pool, self._batch, self._queue, self._idle = pool, batch, queue, idle
        self._free = list(range(capacity))[::-1]
        self._sessions: OrderedDict[str, _Session] = OrderedDict()  # the one that was used longest ago first
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.counts = {"requests": 0, "steps": 0, "batches": 0, "evicted": 0, "refused": 0}
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def begin(self) -> str:
        """Returns the name of a new session. Raises Full where all slots are in use and none has been idle for long."""
        with self._changed:
            self._evict()
            if not self._free or self._closing:
                self.counts["refused"] += 1
                raise Full("all sessions are in use: end one, or try again later")
            name, slot = secrets.token_urlsafe(16), self._free.pop()
            self._sessions[name] = _Session(slot, time.monotonic(), slot)
            return name

    def end(self, name: str) -> None:
        """Forgets a session. Raises UnknownSession, and Full where a request of it still runs."""
        with self._changed:
            self._find_unused(name)
            self._forget(name)

    @contextlib.contextmanager
    def branch(self, name: str = "") -> Iterator[str]:
        """Gives the name of a session that begins with the memory of another, or an empty one, and is forgotten at the
        end. Until then both are held: only `advance` with `holds` reads into them.

        Raises as `begin` and `end` do.
        """
        with contextlib.ExitStack() as ends:
            with self._changed:
                original = self._hold(ends, name) if name else None
                copy = self.begin()
                session = self._hold(ends, copy)
                if original:
                    session.source, session.is_fresh = original.slot, original.is_fresh
            try:
                yield copy
            finally:
                with self._changed:
                    self._forget(copy)

    def advance(self, name: str, inputs: np.ndarray, *, holds: bool = False) -> np.ndarray:
        """Returns the model's outputs after the last step of inputs (T, ...), read into the memory of a session.

        Raises UnknownSession, Full where too many requests wait, or the session is held by another than who `holds` it,
        and ValueError as `SessionPool.split` does.
        """
        with self._changed:
            session = self._find(name) if holds else self._find_free(name)
            parts = self._pool.split(inputs, fresh=session.is_fresh and not session.waiting)
            if len(self._waiting) + len(parts) > self._queue or self._closing:
                self.counts["refused"] += 1
                raise Full("too many requests wait: try again later")
            requests = [_Request(session, part) for part in parts]
            session.waiting += len(requests)
            self._waiting.extend(requests)
            self.counts["requests"] += 1
            self.counts["steps"] += len(inputs)
            self._changed.notify_all()
        wait([request.answer for request in requests])  # all of them, so that none runs when this is over
        return [request.answer.result() for request in requests][-1]

    def measure(self) -> dict[str, int]:
        """Returns how many sessions and requests there are now, and what was counted so far."""
        with self._changed:
            return {"sessions": len(self._sessions), "waiting": len(self._waiting), **self.counts}

    def close(self) -> None:
        """Answers what waits, takes nothing new, and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _find(self, name: str) -> _Session:
        if name not in self._sessions:
            raise UnknownSession(name)
        self._sessions.move_to_end(name)
        self._sessions[name].used = time.monotonic()
        return self._sessions[name]

    def _find_free(self, name: str) -> _Session:
        session = self._find(name)
        if session.is_held:
            raise Full(BUSY)
        return session

    def _find_unused(self, name: str) -> _Session:
        session = self._find_free(name)
        if session.waiting:
            raise Full(BUSY)
        return session

    def _hold(self, ends: contextlib.ExitStack, name: str) -> _Session:
        """Holds a session until `ends` do."""
        session = self._find_unused(name)
        session.is_held = True

        def release() -> None:
            with self._changed:
                session.is_held = False

        ends.callback(release)
        return session

    def _forget(self, name: str) -> None:
        self._free.append(self._sessions.pop(name).slot)

    def _evict(self) -> None:
        """Ends the sessions that nobody has used for `idle` seconds."""
        now = time.monotonic()
        for name, session in list(self._sessions.items()):
            if now - session.used < self._idle:
                return
            if not session.waiting and not session.is_held:
                self._forget(name)
                self.counts["evicted"] += 1

    def _run(self) -> None:
        while (requests := self._next()) is not None:
            try:
                outputs: Any = self._pool.advance(
                    [request.session.slot for request in requests],
                    [request.inputs for request in requests],
                    [request.session.is_fresh for request in requests],
                    [request.session.source for request in requests],
                )
            except Exception as error:  # of the program: every request is told, and the thread goes on
                self._finish(requests, read=False)
                for request in requests:
                    request.answer.set_exception(Failed(f"the model failed ({first_line(error)})"))
                continue
            self._finish(requests, read=True)
            for request, row in zip(requests, outputs, strict=True):
                request.answer.set_result(row)

    def _next(self) -> list[_Request] | None:
        """The next requests of different sessions that are equally long; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            taken: list[_Request] = []
            later: list[_Request] = []
            slots: set[int] = set()
            while self._waiting and len(taken) < self._batch:
                request = self._waiting.popleft()
                is_next = request.session.slot not in slots and len(request.inputs) == len(
                    (taken or [request])[0].inputs
                )
                (taken if is_next else later).append(request)
                slots.add(request.session.slot)
            self._waiting.extendleft(reversed(later))
            return taken

    def _finish(self, requests: list[_Request], *, read: bool) -> None:
        """A session that has read nothing yet stays fresh: its slot still holds the memory of another."""
        with self._changed:
            self.counts["batches"] += 1
            for request in requests:
                session = request.session
                session.waiting -= 1
                if read:
                    session.is_fresh, session.source = False, session.slot
