"""Whatever is no regular file is refused by name, before a read that would wait for a writer, or never end."""

import os
import pathlib
import signal
import socket

import pytest

import runs
from experiments.paper import records
from selssm_jax import config
from selssm_jax.compression import event_trace
from selssm_jax.data.files import open_own
from selssm_jax.errors import InputError
from selssm_jax.interop import huggingface
from selssm_jax.paths import check_regular
from selssm_jax.training import checkpoint, checksums
from selssm_jax.training.checkpoint import Workdir

SECONDS = 20  # more than any refusal takes


@pytest.fixture(autouse=True)
def bounded():
    """Ends a test that waits."""

    def late(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def listening(place: pathlib.Path) -> None:
    here = os.open(place.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{place.name}")  # an address is short
    os.close(here)


PLACES = {
    "a pipe": os.mkfifo,
    "a device": lambda place: place.symlink_to("/dev/zero"),
    "a folder": pathlib.Path.mkdir,
    "a socket": listening,
}


@pytest.fixture(params=PLACES)
def strange(request, tmp_path):
    """(what it is, where), of a name that any file may have."""
    PLACES[request.param](tmp_path / "it.json")
    return request.param, tmp_path / "it.json"


def test_only_regular_files_and_links_to_them_pass(strange, tmp_path):
    kind, place = strange
    with pytest.raises(OSError, match=f"it is {kind}, expected a regular file"):
        check_regular(place)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    check_regular(tmp_path / "link")
    with pytest.raises(FileNotFoundError):
        check_regular(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (lambda place: open_own(str(place)), "data.file='{}' cannot be read"),
        (lambda place: config.load(str(place)), "config file '{}' cannot be read"),
        (records.contents, "the record {} is damaged"),
    ],
    ids=["data.file", "--config", "a record"],
)
def test_a_file_of_a_command_that_is_none_is_named(strange, read, says):
    kind, place = strange
    with pytest.raises(InputError) as refused:
        read(place)
    assert says.format(place) in str(refused.value) and f"it is {kind}, expected a regular file" in str(refused.value)


@pytest.mark.parametrize("flag", ["--config", "--config.data.file"])
def test_a_pipe_without_a_writer_ends_a_command_at_once(flag, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    smoke = (
        ()
        if flag == "--config"
        else (f"--config={runs.REPOSITORY / 'configs' / 'smoke.py'}", "--config.data.source=text")
    )
    assert runs.command("train.py", *smoke, f"{flag}={tmp_path / 'pipe'}", f"--workdir={tmp_path / 'run'}") == 2
    assert "it is a pipe, expected a regular file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["config.json", "model-1.safetensors", "model.safetensors.index.json", "tokenizer.json"]
)
def test_a_pipe_among_the_files_of_a_foreign_model_is_named(name, tmp_path):
    texts = {
        "config.json": '{"model_type": "mamba"}',
        "model.safetensors.index.json": '{"weight_map": {"a": "model-1.safetensors"}}',
    }
    for there, text in texts.items():
        (tmp_path / there).write_text(text)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} .*it is a pipe, expected a regular file"):
        huggingface.vocabulary_of(tmp_path, 300) if name == "tokenizer.json" else huggingface.load(tmp_path)


def test_a_pipe_in_the_folder_of_a_run_is_named(tmp_path):
    (tmp_path / "config.json").touch()
    os.mkfifo(tmp_path / "dataset.json")
    with pytest.raises(InputError, match=r"dataset\.json cannot be read .*it is a pipe"):
        checkpoint.read_metadata(str(tmp_path))
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"config\.json is damaged .*it is a pipe"):
        checkpoint.read_experiment(str(tmp_path))
    os.mkfifo(tmp_path / "checksums.json")
    with pytest.raises(OSError, match="it is a pipe"):
        checksums.verify(tmp_path)
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(InputError, match=r"cannot be written .*\.lock: it is a pipe"):
        Workdir(str(tmp_path), runs.experiment())


def test_a_pipe_is_no_trace(tmp_path):
    os.mkfifo(tmp_path / "trace")
    with pytest.raises(OSError, match="it is a pipe"):
        event_trace.load(tmp_path / "trace")
