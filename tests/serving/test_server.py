"""Sessions of a server hold what their own past left, whoever else is served; what is wrong is answered and no more."""

import contextlib
import errno
import http.client
import itertools
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from selssm_jax.config import Data
from selssm_jax.predict import load
from selssm_jax.serving.batcher import Batcher, Full, UnknownSession
from selssm_jax.serving.pool import SessionPool
from selssm_jax.serving.server import LARGEST, Server, Service
from small_runs import WORDS, write_files, write_untrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for name, config in write_files(folder).items():
        write_untrained(folder / name, config)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    return {name: load(folder / name) for name in ("text", "csv", "npz")}


@pytest.fixture(scope="module")
def server(trained):
    server = Server(Service(trained["text"], capacity=16, batch=8), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.service.close()
    server.server_close()


def ask(server, method, path, body=b"", **headers):
    with contextlib.closing(http.client.HTTPConnection(*server.server_address, timeout=60)) as connection:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
    return answer.status, json.loads(content) if answer.getheader("Content-Type") == "application/json" else content


def test_each_session_is_its_own_text_under_concurrent_use(server, trained):
    model = trained["text"]

    def converse(number):
        text, answers = WORDS[7 * number : 7 * number + 16], []
        name = ask(server, "POST", "/v1/sessions")[1]["session"]
        for first in range(0, 16, 4):
            status, answer = ask(server, "POST", f"/v1/sessions/{name}", {"inputs": text[first : first + 4]})
            assert status == 200
            answers.append(answer["tokens"])
        assert ask(server, "DELETE", f"/v1/sessions/{name}")[0] == 200
        return text, answers

    with ThreadPoolExecutor(8) as threads:
        conversations = list(threads.map(converse, range(12)))
    tokens = np.stack([model.dataset.encode(text) for text, _ in conversations])
    logits, _ = jax.jit(lambda params, tokens: model.model.apply({"params": params}, tokens))(model.params, tokens)
    for offline, (_, answers) in zip(jax.nn.softmax(logits), conversations, strict=True):
        for index, answer in enumerate(answers):
            expected = dict(zip(model.dataset.vocabulary, offline[4 * index + 3].tolist(), strict=True))
            assert all(probability == pytest.approx(expected[token], abs=1e-5) for token, probability in answer)
    assert ask(server, "GET", "/health")[1]["sessions"] == 0


def test_a_slot_that_was_used_begins_empty(trained):
    pool = SessionPool(trained["text"], 2)
    first = pool.advance([0], [np.array([3, 4, 5], np.int32)], [True])
    again = pool.advance([0, 1], [np.array([3, 4, 5], np.int32)] * 2, [True, True])
    np.testing.assert_allclose(again, [*first] * 2, atol=1e-5)
    assert not np.allclose(pool.advance([0], [np.array([3, 4, 5], np.int32)], [False]), first)


def test_noise_is_drawn_anew_in_every_call_and_for_every_session(tmp_path):
    """Or what a memory holds of it would add up, step after step, as no noise does."""
    config = write_files(tmp_path)["text"]
    write_untrained(tmp_path / "noisy", config, selective__process_noise=0.5)
    pool, tokens = SessionPool(load(tmp_path / "noisy"), 2), np.array([3, 4, 5], np.int32)
    calls = [pool.advance([0, 1], [tokens] * 2, [True, True]) for _ in range(2)]
    drawn = np.concatenate(calls)
    assert all(np.abs(one - other).max() > 1e-3 for one, other in itertools.combinations(drawn, 2))


def test_forecasts_go_on_from_their_window(trained):
    rows = np.random.default_rng(0).standard_normal((20, 2))
    service = Service(trained["csv"], capacity=2)
    name = service.answer("POST", "/v1/sessions", b"")[1]["session"]
    _, begun = service.answer("POST", f"/v1/sessions/{name}", json.dumps({"inputs": rows[:16].tolist()}).encode())
    np.testing.assert_allclose(begun["values"], trained["csv"].predict(rows[:16]).values, rtol=1e-4, atol=1e-5)
    _, on = service.answer("POST", f"/v1/sessions/{name}", json.dumps({"inputs": rows[16:].tolist()}).encode())
    _, state = trained["csv"].read(rows[:16])
    np.testing.assert_allclose(on["values"], trained["csv"].read(rows[16:], state)[0].values, rtol=1e-4, atol=1e-5)
    service.close()


def test_a_session_of_a_forecast_has_the_scale_of_its_whole_window(tmp_path, folder):
    write_untrained(tmp_path / "run", Data(source="csv", file=str(folder / "waves.csv"), length=12, horizon=4))
    model = load(tmp_path / "run")
    rows = np.cumsum(np.random.default_rng(1).standard_normal((17, 2)), axis=0)  # of a level that moves
    service = Service(model, capacity=1)
    path = f"/v1/sessions/{service.answer('POST', '/v1/sessions', b'')[1]['session']}"
    status, refusal = service.answer("POST", path, json.dumps({"inputs": rows[:8].tolist()}).encode())
    assert status == 400 and "give 12 first" in refusal["error"]
    expected, state = model.read(rows[:12])
    _, begun = service.answer("POST", path, json.dumps({"inputs": rows[:12].tolist()}).encode())
    np.testing.assert_allclose(begun["values"], expected.values, rtol=1e-4, atol=1e-5)
    _, on = service.answer("POST", path, json.dumps({"inputs": rows[12:].tolist()}).encode())
    np.testing.assert_allclose(on["values"], model.read(rows[12:], state)[0].values, rtol=1e-4, atol=1e-5)
    service.close()


def test_numbers_that_float32_lacks_are_refused_and_no_answer_is_one(trained):
    rows, service = np.ones((16, 2)), Service(trained["csv"], capacity=1)
    status, answer = service.answer("POST", "/v1/predict", json.dumps({"inputs": (rows * 1e300).tolist()}).encode())
    assert status == 400 and "too large for float32" in answer["error"]
    with pytest.raises(ValueError, match="too large for float32"):
        trained["npz"].predict(np.full((40, 1), 1e300))
    status, answer = service.answer("POST", "/v1/predict", json.dumps({"inputs": (rows * 1e37).tolist()}).encode())
    assert status == 200 and "null" in json.dumps(answer, allow_nan=False)
    service.close()


def test_samples_of_a_signal_are_read_as_they_come_and_nothing_is_filled_up(trained):
    samples, service = np.sin(np.arange(40) / 2)[:, None], Service(trained["npz"], capacity=1)
    name = service.answer("POST", "/v1/sessions", b"")[1]["session"]
    for first in (0, 20):
        body = json.dumps({"inputs": samples[first : first + 20].tolist()}).encode()
        _, answer = service.answer("POST", f"/v1/sessions/{name}", body)
    expected = trained["npz"].predict(samples)
    np.testing.assert_allclose(list(answer["probabilities"].values()), expected.probabilities, rtol=1e-4)
    service.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/predict", b"{", 400),
        ("POST", "/v1/predict", b"[" * 100_000, 400),
        ("POST", "/v1/predict", b'{"inputs": []}', 400),
        ("POST", "/v1/predict", b'{"inputs": [1, [2]]}', 400),
        ("POST", "/v1/predict", b'{"inputs": [1e999]}', 400),
        ("POST", "/v1/predict", b'{"inputs": [100000]}', 400),
        ("POST", "/v1/predict", b'{"inputs": [[1, 2], [2, 1]]}', 400),
        ("POST", "/v1/generate", b'{"prompt": ""}', 400),
        ("POST", "/v1/generate", b'{"prompt": "a", "tokens": 0}', 400),
        ("POST", "/v1/generate", b'{"prompt": "a", "tokens": 1025}', 400),
        ("POST", "/v1/generate", b'{"prompt": "a", "tokens": "9"}', 400),
        ("POST", "/v1/generate", b'{"prompt": "a", "top_p": 2}', 400),
        ("POST", "/v1/generate", b'{"prompt": "a", "stop": [""]}', 400),
        ("POST", "/v1/generate", b'{"prompt": "a", "stop": "a"}', 400),
        ("POST", "/v1/generate", b'{"prompt": "a", "stop": [5]}', 400),
        ("POST", "/v1/generate", b'{"prompt": "a", "stop": null}', 400),
        ("POST", "/v1/generate", b'{"promt": "a"}', 400),
        ("POST", "/v1/generate", b'["a"]', 400),
        ("POST", "/v1/generate", b'{"prompt": "a", "session": "none"}', 404),
        ("POST", "/v1/generate", b'{"prompt": "a", "session": "none", "stream": true}', 404),
        ("GET", "/v1/generate", b"", 405),
        ("POST", "/v1/predict", b'{"inputs": "a", "more": 1}', 400),
        ("POST", "/v1/predict", b'{"inputs": "a", "first_row": 1}', 400),
        ("POST", "/v1/predict", b'{"inputs": {"a": 1}}', 400),
        ("POST", "/v1/predict", '{"inputs": "\u4e2d"}'.encode(), 400),
        ("POST", "/v1/predict", b"\xff\xfe", 400),
        ("POST", "/v1/sessions/none", b'{"inputs": "a"}', 404),
        ("DELETE", "/v1/sessions/none", b"", 404),
        ("GET", "/nothing", b"", 404),
        ("PUT", "/v1/predict", b"", 405),
        ("POST", "/v1/predict", b" " * (LARGEST + 1), 413),
    ],
)
def test_what_is_malformed_is_answered_and_the_server_goes_on(server, method, path, body, status):
    try:
        found, answer = ask(server, method, path, body)
    except (BrokenPipeError, ConnectionResetError):  # it is not read to its end
        found, answer = 413, {"error": ""}
    assert found == status and "error" in answer
    if b'"stop"' in body and b'[""]' not in body:
        assert "expected a list of texts" in answer["error"]
    assert ask(server, "GET", "/health")[0] == 200


def test_a_client_that_leaves_before_its_answer_makes_no_noise(server, capfd):
    for _ in range(3):
        with socket.create_connection(server.server_address[:2]) as client:
            client.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{}")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it is reset at once
    assert ask(server, "GET", "/health")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("length", "status"), [("9" * 5000, 413), ("-5", 400), ("", 400), ("ten", 400), ("\xb2", 400)])
def test_a_length_that_is_none_is_answered(server, length, status):
    found, answer = ask(server, "POST", "/v1/predict", **{"Content-Length": length})
    assert found == status and "error" in answer


def test_a_body_in_chunks_is_answered(server):
    found, answer = ask(server, "POST", "/v1/predict", **{"Transfer-Encoding": "chunked"})
    assert found == 411 and answer["error"] == "give a Content-Length"


def test_the_largest_request_is_an_option_that_its_refusal_names(trained):
    service = SlowService()
    server = Server(service, "127.0.0.1", 0, request_bytes=20)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service.told.set()
    assert ask(server, "POST", "/v1/predict", b'{"inputs": "a"}')[0] == 200
    status, answer = ask(server, "POST", "/v1/predict", b'{"inputs": "the state"}')
    assert status == 413 and "at most 20 bytes" in answer["error"] and "--request_bytes" in answer["error"]
    server.shutdown()
    server.server_close()


def test_every_status_is_in_the_docs(repository):
    table = re.findall(r"^\| (\d{3}) \|", (repository / "docs" / "serving.md").read_text(), re.MULTILINE)
    assert table == ["200", "400", "404", "405", "411", "413", "429", "500", "501"]


def test_the_client_of_the_docs_works(server, repository, capsys):
    (program,) = re.findall(r"```python\n(.*?)```", (repository / "docs" / "serving.md").read_text(), re.DOTALL)
    host, port = server.server_address
    exec(program.replace("localhost:8080", f"{host}:{port}"), {})
    tokens, _, text = capsys.readouterr().out.partition("\n")
    assert tokens.startswith("[[") and len(text) == 20 + 1 + 20
    assert ask(server, "GET", "/health")[1]["sessions"] == 0


def test_the_metrics_of_the_docs_are_those_that_are_told(server, repository):
    told = set(re.findall(r"^selssm_\w+", ask(server, "GET", "/metrics")[1].decode(), re.MULTILINE))
    section = (repository / "docs" / "serving.md").read_text().partition("## Metrics")[2]
    assert set(re.findall(r"`(selssm_\w+)", section)) == told


def test_another_method_is_answered(server):
    with contextlib.closing(http.client.HTTPConnection(*server.server_address, timeout=60)) as connection:
        connection.request("PATCH", "/v1/predict")
        assert connection.getresponse().status == 501


def write(service, **asked):
    return service.answer("POST", "/v1/generate", json.dumps(asked).encode())


@pytest.mark.always
def test_text_is_written_as_it_is_offline_for_many_at_once(server, trained):
    model, how = trained["text"], {"tokens": 9, "top_p": 0.9, "repetition_penalty": 1.5}
    asked = [{"prompt": WORDS[7 * seed : 7 * seed + 8], "seed": seed, **how} for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda how: ask(server, "POST", "/v1/generate", how), asked))
    for how, (status, answer) in zip(asked, answers, strict=True):
        (written,) = model.generate(**how, details=True)
        assert status == 200 and (answer["text"], tuple(answer["tokens"])) == (written.text, written.tokens)
        np.testing.assert_allclose(answer["log_probs"], written.log_probs, atol=1e-4)
    assert ask(server, "GET", "/health")[1]["sessions"] == 0


def test_a_session_holds_what_was_written_and_nothing_that_stop_cut_off(trained):
    model, service = trained["text"], Service(trained["text"], capacity=2)
    name = service.answer("POST", "/v1/sessions", b"")[1]["session"]
    path = f"/v1/sessions/{name}"
    service.answer("POST", path, json.dumps({"inputs": "the past"}).encode())
    _, state = model.read("the past")
    how = {"prompt": " and", "tokens": 8, "seed": 5}
    (whole,) = model.generate(**how, state=state, details=True)
    how["stop"] = [whole.text[4:6]]
    (written,) = model.generate(**how, state=state, details=True)
    assert len(written.text) < len(whole.text)
    status, answer = write(service, session=name, **how)
    assert status == 200 and answer["text"] == written.text
    _, after = service.answer("POST", path, b'{"inputs": "a"}')
    expected, _ = model.read("a", written.state)
    odds = dict(zip(expected.vocabulary, expected.probabilities.tolist(), strict=True))
    assert all(probability == pytest.approx(odds[token], abs=1e-5) for token, probability in after["tokens"])
    third = service.answer("POST", "/v1/sessions", b"")
    assert third[0] == 200 and write(service, prompt="a")[0] == 429  # text is written in a slot of its own
    service.close()


def test_writing_that_fails_leaves_the_memory_as_it_was_and_who_writes_is_alone(trained, monkeypatch):
    service = Service(trained["text"], capacity=2)
    name = service.answer("POST", "/v1/sessions", b"")[1]["session"]
    path, text = f"/v1/sessions/{name}", json.dumps({"inputs": "the past"}).encode()
    service.answer("POST", path, text)
    advance, calls = service._pool.advance, []

    def fail(*given):
        calls.append(given)
        return advance(*given) if len(calls) < 4 else 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(service._pool, "advance", fail)
        assert write(service, prompt=" and", session=name, tokens=6)[0] == 500
    assert len(calls) == 4
    with service._batcher.branch(name):
        for method, place, body in (
            ("POST", path, text),
            ("DELETE", path, b""),
            ("POST", "/v1/generate", json.dumps({"prompt": "a", "session": name}).encode()),
        ):
            status, answer = service.answer(method, place, body)
            assert status == 429 and "still running" in answer["error"]
    _, found = service.answer("POST", path, text)
    fresh = Service(trained["text"], capacity=1)
    path = f"/v1/sessions/{fresh.answer('POST', '/v1/sessions', b'')[1]['session']}"
    fresh.answer("POST", path, text)
    assert found == fresh.answer("POST", path, text)[1]
    service.close()
    fresh.close()


def test_a_stream_tells_text_as_it_is_written_and_in_the_end_all_of_it(server, trained, monkeypatch):
    how = {"prompt": "the past", "tokens": 9, "seed": 1}
    (written,) = trained["text"].generate(**how, details=True)

    def stream(body):
        with contextlib.closing(http.client.HTTPConnection(*server.server_address, timeout=60)) as connection:
            connection.request("POST", "/v1/generate", json.dumps(body | {"stream": True}))
            answer = connection.getresponse()
            return answer.status, [json.loads(line) for line in answer.read().splitlines()]

    status, (*pieces, last) = stream(how)
    assert status == 200 and len(pieces) > 1 and "".join(piece["piece"] for piece in pieces) == last["text"]
    assert last["text"] == written.text and tuple(last["tokens"]) == written.tokens
    advance, calls = server.service._pool.advance, []

    def fail(*given):
        calls.append(given)
        return advance(*given) if len(calls) < 4 else 1 / 0

    monkeypatch.setattr(server.service._pool, "advance", fail)
    status, lines = stream(how)
    assert status == 200 and "the model failed" in lines[-1]["error"]
    status, (refusal,) = stream(how | {"tokens": 0})
    assert status == 400 and "tokens=0 must be at least 1" in refusal["error"]
    assert ask(server, "GET", "/health")[1]["sessions"] == 0


def test_runs_of_other_tasks_write_nothing(trained):
    service = Service(trained["csv"], capacity=1)
    status, answer = write(service, prompt="a")
    assert status == 400 and "needs a run of language" in answer["error"]
    service.close()


def test_a_window_that_is_no_whole_number_of_frames_begins_no_session(tmp_path, folder):
    data = Data(source="csv", file=str(folder / "waves.csv"), length=10, horizon=4)
    write_untrained(tmp_path / "run", data, frame=4, stride=4)
    service = Service(load(tmp_path / "run"), capacity=1)
    status, answer = service.answer("POST", "/v1/sessions", b"")
    assert status == 400 and "window of 10 rows" in answer["error"] and "data.length=12" in answer["error"]
    rows = np.random.default_rng(0).standard_normal((10, 2)).tolist()
    assert service.answer("POST", "/v1/predict", json.dumps({"inputs": rows}).encode())[0] == 200
    service.close()


def test_limits_are_kept(trained):
    service = Service(trained["text"], capacity=2, idle=1000.0)
    names = [service.answer("POST", "/v1/sessions", b"")[1]["session"] for _ in range(2)]
    assert service.answer("POST", "/v1/sessions", b"")[0] == 429
    service.answer("DELETE", f"/v1/sessions/{names[0]}", b"")
    assert service.answer("POST", "/v1/sessions", b"")[0] == 200
    assert "selssm_refused 1" in service.answer("GET", "/metrics", b"")[1]
    service.close()
    assert service.answer("POST", f"/v1/sessions/{names[1]}", b'{"inputs": "a"}')[0] == 429


def test_a_model_that_fails_is_no_mistake_of_the_request(trained, monkeypatch):
    service = Service(trained["text"], capacity=1)
    name = service.answer("POST", "/v1/sessions", b"")[1]["session"]

    def fail(*_):
        raise ValueError("shapes")

    with monkeypatch.context() as patch:
        patch.setattr(service._pool, "advance", fail)
        assert service.answer("POST", f"/v1/sessions/{name}", b'{"inputs": "a"}')[0] == 500
    assert service.answer("POST", f"/v1/sessions/{name}", b'{"inputs": "a"}')[0] == 200
    monkeypatch.setattr(service, "_health", lambda: {}["none"])
    assert service.answer("GET", "/health", b"") == (500, {"error": "the server failed ('none' is missing)"})
    service.close()


def test_a_session_whose_first_request_failed_begins_empty(trained, monkeypatch):
    """Its slot still holds the memory of the session before it."""
    service = Service(trained["text"], capacity=1, idle=0.0)
    _, value = service.answer("POST", "/v1/sessions", b"")
    before = service.answer("POST", f"/v1/sessions/{value['session']}", json.dumps({"inputs": "a state"}).encode())
    assert before[0] == 200
    _, value = service.answer("POST", "/v1/sessions", b"")
    name, advance = value["session"], service._pool.advance
    monkeypatch.setattr(service._pool, "advance", lambda *given: 1 / 0)
    assert service.answer("POST", f"/v1/sessions/{name}", json.dumps({"inputs": "the"}).encode())[0] == 500
    monkeypatch.setattr(service._pool, "advance", advance)
    _, found = service.answer("POST", f"/v1/sessions/{name}", json.dumps({"inputs": "the"}).encode())
    service.close()
    fresh = Service(trained["text"], capacity=1)
    _, value = fresh.answer("POST", "/v1/sessions", b"")
    _, expected = fresh.answer("POST", f"/v1/sessions/{value['session']}", json.dumps({"inputs": "the"}).encode())
    fresh.close()
    assert found == expected


def test_who_is_idle_makes_room(trained):
    batcher = Batcher(SessionPool(trained["text"], 1), 1, idle=0.0)
    first = batcher.begin()
    batcher.advance(first, np.array([1], np.int32))
    second = batcher.begin()
    with pytest.raises(UnknownSession):
        batcher.advance(first, np.array([1], np.int32))
    assert batcher.advance(second, np.array([1], np.int32)).shape == (len(trained["text"].dataset.vocabulary),)
    batcher.close()
    with pytest.raises(Full):
        batcher.begin()


def test_a_flood_is_refused_not_held(trained):
    batcher = Batcher(SessionPool(trained["text"], 2), 2, queue=0)
    with pytest.raises(Full, match="too many"):
        batcher.advance(batcher.begin(), np.array([1], np.int32))
    batcher.close()


def test_a_signal_ends_the_command_when_all_is_answered(folder):
    command = [sys.executable, "-m", "selssm_jax.serving", f"--workdir={folder / 'text'}", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().rpartition("http://")[2].strip()
        with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
            connection.request("POST", "/v1/predict", json.dumps({"inputs": "the "}))
            assert connection.getresponse().status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


class SlowService:
    """Answers when it is told to."""

    def __init__(self):
        self.asked, self.told = threading.Event(), threading.Event()

    def answer(self, *_):
        self.asked.set()
        assert self.told.wait(30)
        return 200, {"late": True}

    def close(self):
        """Has nothing that waits."""


def is_taken(address):
    with socket.socket() as connection:
        return connection.connect_ex(address) != errno.ECONNREFUSED


def test_what_runs_at_the_end_is_answered_and_nothing_new_is_taken():
    service = SlowService()
    server = Server(service, "127.0.0.1", 0)
    serving = threading.Thread(target=lambda: (server.serve_forever(0.01), server.finish()))
    serving.start()
    address = server.server_address
    with socket.create_connection(address), ThreadPoolExecutor(1) as threads:  # one that asks nothing is open, too
        answer = threads.submit(ask, server, "POST", "/v1/predict", {"inputs": "a"})
        assert service.asked.wait(30)
        server.shutdown()
        refused_by = time.monotonic() + 10
        while is_taken(address):  # the port is closed a moment after it is asked for
            assert time.monotonic() < refused_by
            time.sleep(0.01)
        assert not answer.done()
        service.told.set()
        assert answer.result(30) == (200, {"late": True})
        serving.join(30)
        assert not serving.is_alive()
