"""Claim: on two cores a server holds 1,000 sessions, each with its own past, and does not grow over 100,000 requests.

  python benchmarks/serving.py --rounds 100000

A model of the quickstart's shape, parameters as drawn, served over loopback HTTP by a process of its own; this process
is its 32 clients, on the same cores. Every request reads one token into the memory of one of 1,000 sessions, in turn.
The answers of some sessions are compared with the text read offline. A Transformer of the same width and depth would
hold a cache of keys and values for every session, which grows with every token.
"""

import http.client
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np

from configs import quickstart
from selssm_jax.config import Experiment, Task
from selssm_jax.data import vocabulary
from selssm_jax.data.pipeline import Dataset
from selssm_jax.model import SequenceModel
from selssm_jax.predict import load
from selssm_jax.training.checkpoint import Workdir

SESSIONS, CLIENTS, CHECKED, SEED = 1_000, 32, 8, 0


def benchmark(rounds: int) -> dict[str, Any]:
    """Serves `rounds` requests and tells times, memory and errors."""
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place) / "run"
        write_run(folder)
        process, address = start(folder)
        try:
            found = load_with(address, process.pid, rounds)
            error = compare(address, load(folder))
            health = ask(address, "GET", "/health")
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    config = Experiment.from_config_dict(quickstart.get_config()).model
    return {
        "dtype": "float32",
        "setting": {"sessions": SESSIONS, "clients": CLIENTS, "requests": rounds, "seed": SEED},
        "ratios": {
            "sessions held": {"found": health["sessions"], "at_least": SESSIONS},
            "resident memory after all requests / after the first tenth": {"found": found["growth"], "at_most": 1.05},
            "largest difference of a probability from the text read offline": {"found": error, "at_most": 1e-5},
            "requests that were not answered": {"found": found["failed"], "at_most": 0},
            "exit code after SIGTERM": {"found": code, "at_most": 0},
            "bytes of a session / those of a cache of 1,024 tokens": {
                "found": health["session_bytes"] / cache_bytes(config, 1024)
            },
        },
        "requests_per_second": found["per_second"],
        "seconds": found["seconds"],
        "session_bytes": health["session_bytes"],
        "cache_bytes_of_1024_tokens": cache_bytes(config, 1024),
    }


def cache_bytes(config: Any, tokens: int) -> int:
    """Bytes of the keys and values of a Transformer of the same width and depth, in float32."""
    return 2 * 4 * tokens * config.d_model * len(config.pattern)


def write_run(folder: pathlib.Path) -> None:
    """A run of the quickstart's model on all bytes, parameters as drawn."""
    experiment = Experiment.from_config_dict(quickstart.get_config())
    task = Task("language", vocab=256, length=experiment.data.length)
    model = SequenceModel(experiment.model.of_task(task))
    params = jax.jit(model.init)(jax.random.key(SEED), jnp.zeros((1, 8), jnp.int32))["params"]
    dataset = Dataset(task, None, None, {"source": "text"}, None, vocabulary=vocabulary.BYTES, level="byte")  # type: ignore[arg-type]
    run = Workdir(str(folder), experiment)
    run.describe(dataset.metadata())
    run.save_best(1, params, {})
    run.close()


def start(folder: pathlib.Path) -> tuple[subprocess.Popen[str], str]:
    """The server's process, and its address."""
    command = [sys.executable, "-m", "selssm_jax.serving", f"--workdir={folder}", "--port=0", f"--sessions={SESSIONS}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().rpartition("http://")[2].strip()


def ask(address: str, method: str, path: str, body: Any = None, connection: Any = None) -> Any:
    """The value of an answer."""
    connection = connection or http.client.HTTPConnection(address, timeout=120)
    connection.request(method, path, b"" if body is None else json.dumps(body))
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {content!r}")
    return json.loads(content)


def load_with(address: str, pid: int, requests: int) -> dict[str, Any]:
    """Begins all sessions and sends one token at a time to each of them in turn, by all clients at once."""
    names = [ask(address, "POST", "/v1/sessions")["session"] for _ in range(SESSIONS)]
    seconds: list[list[float]] = [[] for _ in range(CLIENTS)]
    failed, memory = [0] * CLIENTS, {}

    def client(number: int) -> None:
        connection, mine = http.client.HTTPConnection(address, timeout=120), names[number::CLIENTS]
        for index in range(requests // CLIENTS):
            begun = time.perf_counter()
            try:
                ask(address, "POST", f"/v1/sessions/{mine[index % len(mine)]}", {"inputs": "a"}, connection)
            except (OSError, RuntimeError, http.client.HTTPException):
                failed[number] += 1
            seconds[number].append(time.perf_counter() - begun)
            if number == 0 and index == requests // CLIENTS // 10:
                memory["before"] = resident(pid)

    begun = time.perf_counter()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, every = time.perf_counter() - begun, np.concatenate([np.array(each) for each in seconds])
    for name in names[:CHECKED]:  # room for the sessions that are compared
        ask(address, "DELETE", f"/v1/sessions/{name}")
    return {
        "per_second": round(len(every) / wall, 1),
        "seconds": {f"p{share}": round(float(np.percentile(every, share)), 5) for share in (50, 90, 99)},
        "failed": sum(failed),
        "growth": round(resident(pid) / memory["before"], 4),
    }


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    found = re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def compare(address: str, trained: Any) -> float:
    """The largest difference of a probability that new sessions were told from the same text read offline."""
    largest, rng = 0.0, np.random.default_rng(SEED)
    for _ in range(CHECKED):
        text = "".join(map(chr, rng.integers(97, 123, 64)))
        name = ask(address, "POST", "/v1/sessions")["session"]
        for token in text[:-1]:
            ask(address, "POST", f"/v1/sessions/{name}", {"inputs": token})
        told = dict(ask(address, "POST", f"/v1/sessions/{name}", {"inputs": text[-1]})["tokens"])
        expected = trained.predict(text)
        for token, probability in zip(expected.vocabulary, expected.probabilities, strict=True):
            if token in told:
                largest = max(largest, abs(told[token] - float(probability)))
    return largest


if __name__ == "__main__":
    measure.run("serving", __doc__, benchmark, rounds=100_000)
