"""A small HTTP server of one run: `python -m selssm_jax.serving --workdir RUN`.

POST   /v1/predict               {"inputs": ...}: the answer from an empty memory
POST   /v1/sessions              begins a session, {"session": NAME}
POST   /v1/sessions/NAME         {"inputs": ...}: the answer after these steps, read into its memory
POST   /v1/generate              {"prompt": ...}: the text that follows, from an empty memory, or that of a "session"
DELETE /v1/sessions/NAME         forgets it
GET    /health, /metrics         what runs; counts and times in the text format of Prometheus

Inputs are a text, token numbers, or rows of values in the units of the run's data. It is made for machines that are
trusted: put a proxy before it for names, passwords and encryption.
"""

import contextlib
import dataclasses
import json
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from selssm_jax import __version__
from selssm_jax.config.fields import build, check_fields
from selssm_jax.errors import ArgumentError, first_line
from selssm_jax.generation import Written, write_through
from selssm_jax.predict import Classes, Forecast, NextToken, Tags, TrainedModel
from selssm_jax.serving.batcher import Batcher, Failed, Full, UnknownSession
from selssm_jax.serving.pool import SessionPool
from selssm_jax.tasks.registry import kind_of

LARGEST = 1 << 20  # bytes of a request
MOST_TOKENS = 1024  # that a request may have written
LONGEST = 20  # digits of a length
PATIENCE = 60.0  # seconds that are waited at the end for requests that run
TOP = 10  # tokens of an answer
LATENCIES = 10_000  # of the last requests, whose quantiles are told
PREDICT, SESSIONS, GENERATE, HEALTH, METRICS = "/v1/predict", "/v1/sessions", "/v1/generate", "/health", "/metrics"


class Refused(Exception):
    """A request that is answered with an error: its status, and why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclasses.dataclass(frozen=True)
class Writing:
    """A request for text: `session` names the memory that it goes on from and is read into, empty: none; `stream` asks
    for its pieces as they are written; all else is as `TrainedModel.generate` has it.
    """

    prompt: str = ""
    session: str = ""
    tokens: int = 200
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stream: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "{}".format)

    @property
    def options(self) -> dict[str, Any]:
        """How it is written."""
        beside = ("prompt", "session", "stream")
        return {name: value for name, value in vars(self).items() if name not in beside}


class Service:
    """What the server does, without HTTP: answers as JSON values.

    Args:
      trained: the run. capacity: sessions that are held, at most. most_tokens: that a request may have written.
      options: of `Batcher`.
    """

    def __init__(
        self, trained: TrainedModel, *, capacity: int = 1024, most_tokens: int = MOST_TOKENS, **options: Any
    ) -> None:
        self._trained, self._capacity, self._most_tokens = trained, capacity, most_tokens
        self._pool = SessionPool(trained, capacity)
        self._batcher = Batcher(self._pool, capacity, **options)
        self._seconds: deque[float] = deque(maxlen=LATENCIES)
        self._answers: Counter[HTTPStatus] = Counter()
        self._counting = threading.Lock()
        self._began = time.time()

    def answer(self, method: str, path: str, body: bytes) -> tuple[HTTPStatus, Any]:
        """Returns the status and the value of an answer, an iterator of values where it is a stream; everything that a
        request does wrong is an answer.
        """
        begun = time.perf_counter()
        try:
            status, value = HTTPStatus.OK, self._dispatch(method, path.rstrip("/"), body)
        except Refused as refusal:
            status, value = refusal.status, {"error": refusal.reason}
        except UnknownSession:
            status, value = HTTPStatus.NOT_FOUND, {"error": "no such session: it was ended, or idle for too long"}
        except Full as error:
            status, value = HTTPStatus.TOO_MANY_REQUESTS, {"error": str(error)}
        except Failed as error:
            status, value = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)}
        except ValueError as error:
            status, value = HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except Exception as error:  # whoever asks is told, and the server goes on
            status, value = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"the server failed ({first_line(error)})"}
        with self._counting:
            self._seconds.append(time.perf_counter() - begun)
            self._answers[status] += 1
        return status, value

    def close(self) -> None:
        """Answers what waits and takes nothing new."""
        self._batcher.close()

    def _dispatch(self, method: str, path: str, body: bytes) -> Any:
        name = path.removeprefix(f"{SESSIONS}/") if path.startswith(f"{SESSIONS}/") else ""
        match method, path:
            case "GET", "/health":
                return self._health()
            case "GET", "/metrics":
                return self._metrics()
            case "POST", "/v1/predict":
                inputs, first_row = self._read_inputs(body)
                if not isinstance(inputs, str) and inputs.ndim > 1 and kind_of(self._trained.model.config.task).tokens:
                    raise ValueError("inputs are several sequences of tokens: send one")
                return _as_json(self._trained.predict(inputs, first_row=first_row))
            case "POST", "/v1/generate":
                return self._generate(_parse_writing(body))
            case "POST", "/v1/sessions":
                self._pool.check_window()
                return {"session": self._batcher.begin()}
            case "POST", _ if name:
                return self._advance(name, body)
            case "DELETE", _ if name:
                self._batcher.end(name)
                return {"ended": name}
        known = name or path in (PREDICT, SESSIONS, GENERATE, HEALTH, METRICS)
        raise Refused(
            HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND,
            f"{method} {path} is not served: see the first lines of `python -m selssm_jax.serving --help`",
        )

    def _read_inputs(self, body: bytes) -> tuple[Any, int | None]:
        """The inputs of a request, and first_row of a run that reads it."""
        inputs, first_row = _parse(body)
        if first_row is not None and not self._trained.config.data.period:
            raise ValueError("first_row is of a run that takes a cycle off (data.period), which this one does not")
        return inputs, first_row

    def _advance(self, name: str, body: bytes) -> Any:
        inputs, first_row = self._read_inputs(body)
        ready = self._trained.prepare(inputs, first_row, continued=True)
        rows = np.asarray(ready.batch["inputs"])
        if len(rows) > 1 or rows.shape[1] % self._pool.stride:
            raise ValueError(
                f"inputs are {len(rows)} sequences of {rows.shape[1]} steps: a session reads one, and a multiple of "
                f"{self._pool.stride} steps at a time"
            )
        outputs = self._batcher.advance(name, rows[0])
        return _as_json(self._trained.decode(outputs[None], ready._replace(single=True)))

    def _generate(self, asked: Writing) -> Any:
        if asked.tokens > self._most_tokens:
            raise ArgumentError(
                "tokens",
                f"={asked.tokens} are more than the server writes, {self._most_tokens}: ask for fewer, or start it "
                "with another --most_tokens",
            )
        pieces = self._write(asked)
        if not asked.stream:
            return deque(pieces, maxlen=1)[0]
        return _tell_errors(next(pieces), pieces)  # what can be said before the first piece has a status of its own

    def _write(self, asked: Writing) -> Generator[dict[str, Any], None, None]:
        """Pieces of text, and in the end the whole, written from a copy of a session's memory: what fails, and who goes
        away, leaves it as it was.
        """
        with self._batcher.branch(asked.session) as copy:

            def read(tokens: np.ndarray) -> np.ndarray:
                return self._batcher.advance(copy, tokens, holds=True)

            def keep(tokens: np.ndarray) -> None:
                if asked.session:
                    self._batcher.advance(asked.session, tokens, holds=True)

            how = {"continued": bool(asked.session), **asked.options}
            for piece in write_through(read, keep, self._trained.dataset, asked.prompt, **how):
                yield _as_json(piece) if isinstance(piece, Written) else {"piece": piece}

    def _health(self) -> dict[str, Any]:
        task = self._trained.dataset.task
        return {
            "status": "ok",
            "selssm_jax": __version__,
            "task": task.kind,
            "step": self._trained.step_number,
            "sessions": self._batcher.measure()["sessions"],
            "capacity": self._capacity,
            "session_bytes": self._pool.session_bytes,
            "seconds": round(time.time() - self._began, 1),
        }

    def _metrics(self) -> str:
        with self._counting:
            seconds, answers = np.array(self._seconds or [0.0]), dict(self._answers)
        lines = [f"selssm_{name} {value}" for name, value in self._batcher.measure().items()]
        lines += [f'selssm_answers{{status="{int(status)}"}} {count}' for status, count in answers.items()]
        lines += [
            f'selssm_seconds{{quantile="{share}"}} {np.quantile(seconds, share):.6f}' for share in (0.5, 0.9, 0.99)
        ]
        return "\n".join([*lines, f"selssm_session_bytes {self._pool.session_bytes}", ""])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    timeout = 60  # seconds without a byte
    service: Service
    server: "Server"

    def _serve(self) -> None:
        with self.server.count_request():
            self._answer()

    do_GET = do_POST = do_DELETE = do_PUT = _serve

    def _answer(self) -> None:
        try:
            status, value = self.service.answer(self.command, self.path, self._body())
        except Refused as refusal:
            status, value, self.close_connection = refusal.status, {"error": refusal.reason}, True
        if isinstance(value, Generator):
            self._stream(value)
            return
        self.close_connection = self.close_connection or self.server.is_ending
        is_text = isinstance(value, str)
        content = (value if is_text else _dump_json(value)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; version=0.0.4" if is_text else "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, values: Generator[Any, None, None]) -> None:
        """Sends JSON lines as they come, of which the end of the connection is the end."""
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.closing(values):
            for value in values:
                self.wfile.write(f"{_dump_json(value)}\n".encode())

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "give a Content-Length")
        if not length.isascii() or not length.isdigit():
            raise Refused(HTTPStatus.BAD_REQUEST, "Content-Length is no whole number: give how many bytes follow")
        if len(length) > LONGEST or int(length) > self.server.request_bytes:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a request has at most {self.server.request_bytes} bytes: send less, or start the server with a "
                "larger --request_bytes",
            )
        return self.rfile.read(int(length))

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: /metrics counts."""


class Server(ThreadingHTTPServer):
    """The HTTP server of a service, which reads requests of up to `request_bytes`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, service: Service, host: str, port: int, *, request_bytes: int = LARGEST) -> None:
        handler = type("Handler", (_Handler,), {"service": service})
        super().__init__((host, port), handler)
        self.service, self.request_bytes, self.is_ending = service, request_bytes, False
        self._running = 0
        self._changed = threading.Condition()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says what failed, but nothing of a client that went away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @contextlib.contextmanager
    def count_request(self) -> Iterator[None]:
        """Counts a request among those that run, until its answer is sent."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def finish(self) -> None:
        """Refuses new connections, and waits until the requests that run are answered; idle connections are left."""
        self.is_ending = True
        self.server_close()
        with self._changed:
            self._changed.wait_for(lambda: not self._running, PATIENCE)
        self.service.close()

    def serve_until_signal(self) -> None:
        """Serves until SIGTERM or SIGINT, then answers what waits."""

        def stop(*_: Any) -> None:
            threading.Thread(target=self.shutdown).start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        self.serve_forever()
        self.finish()


def _load_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'the request is no JSON ({error}): send an object, {{"inputs": ...}} or {{"prompt": ...}}'
        ) from error


def _dump_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _tell_errors(first: Any, rest: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """A stream whose last value is an error where one comes."""
    with contextlib.closing(rest):
        try:
            yield first
            yield from rest
        except (Full, Failed, ValueError) as error:
            yield {"error": str(error)}


def _parse_writing(body: bytes) -> Writing:
    """A request for text. Raises ValueError where it is none."""
    request = _load_json(body)
    stop = request.get("stop", []) if isinstance(request, dict) else []
    if not (isinstance(stop, list) and all(isinstance(text, str) for text in stop)):
        raise ValueError(f'stop is {stop!r}, expected a list of texts, for example ["\\n\\n"]')
    return build(Writing, request, "the request")


def _parse(body: bytes) -> tuple[Any, int | None]:
    """The inputs of a request, and first_row. Raises ValueError where it has none."""
    request = _load_json(body)
    if not isinstance(request, dict) or not {"inputs"} <= set(request) <= {"inputs", "first_row"}:
        raise ValueError('the request is no {"inputs": ...}, with "first_row" for a run that takes a cycle off')
    inputs, first_row = request["inputs"], request.get("first_row")
    if first_row is not None and (type(first_row) is not int or abs(first_row) > 2**53):
        raise ValueError(f"first_row is {first_row!r}, expected a whole number")
    if isinstance(inputs, str):
        return inputs, first_row
    try:
        values = np.array(inputs)
    except ValueError as error:
        raise ValueError("inputs hold rows of unequal length: send a text, tokens, or rows of values") from error
    if values.dtype.kind not in "iuf" or values.size == 0 or values.ndim > 2:
        raise ValueError("inputs are no sequence of numbers: send one text, its tokens, or rows of values")
    return values, first_row


def _as_json(answer: Any) -> Any:
    match answer:
        case Forecast():
            return {"channels": answer.channels, "values": _as_numbers(answer.values)}
        case Classes():
            odds = dict(zip(answer.classes, _as_numbers(answer.probabilities), strict=True))
            return {"label": answer.label, "probabilities": odds}
        case Tags():
            return {"tokens": answer.tokens, "labels": answer.labels}
        case Written():
            return {"text": answer.text, "tokens": answer.tokens, "log_probs": _as_numbers(answer.log_probs)}
        case NextToken():
            best = np.argsort(-answer.probabilities)[:TOP]
            names = [answer.vocabulary[index] for index in best]
            return {"tokens": list(map(list, zip(names, _as_numbers(answer.probabilities[best]), strict=True)))}
    return {"outputs": _as_numbers(answer)}


def _as_numbers(values: Any) -> Any:
    """Lists of numbers, null where one is not finite, which JSON has no word for."""
    numbers = np.asarray(values).astype(object)
    numbers[~np.isfinite(np.asarray(values))] = None
    return numbers.tolist()
