"""eval.py as a person calls it: a report and its scores, or one message that names the thing and the fix, and exit code
2.
"""

import json
import pathlib
import shutil

import pytest

from runs import command


def broken(run, folder, change):
    """A copy of a run, changed for the worse."""
    shutil.copytree(run, folder)
    change(folder)
    return folder


def break_runs(smoke_run, folder):
    """{name of what is broken: the folder of such a run}."""

    def version(run):
        found = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(found | {"format": 99}))

    def unfit(run):
        found = json.loads((run / "config.json").read_text())
        found["experiment"]["model"]["d_sate"] = 3
        (run / "config.json").write_text(json.dumps(found))

    def untrained(run):
        for name in ("best", "checkpoints"):
            shutil.rmtree(run / name)
            (run / name).mkdir()

    def truncated(run):
        for path in [path for name in ("best", "checkpoints") for path in (run / name).rglob("*") if path.is_file()]:
            path.write_bytes(path.read_bytes()[:20])

    def occupied(run):
        shutil.rmtree(run / "report", ignore_errors=True)
        (run / "report").write_text("in the way")

    runs = {
        "newer": version,
        "unfit": unfit,
        "untrained": untrained,
        "truncated": truncated,
        "occupied": occupied,
        "damaged": lambda run: (run / "config.json").write_text("{"),
        "no data": lambda run: (run / "dataset.json").unlink(),
        "bad data": lambda run: (run / "dataset.json").write_text("[1,"),
    }
    return {name: str(broken(smoke_run, folder / name, change)) for name, change in runs.items()}


@pytest.fixture(scope="module")
def bad(smoke_run, files, tmp_path_factory):
    """{name of a mistake: (its command line, what the message must say)}."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty").mkdir()
    (folder / "stranger").mkdir()
    (folder / "stranger" / "notes.txt").write_text("not a run")
    (folder / "file").write_text("")
    run = break_runs(smoke_run, folder)
    return {
        "no workdir": ([], ["--workdir is missing", "runs/quickstart"]),
        "absent workdir": (
            ["--workdir=runs/absent"],
            ["--workdir=runs/absent does not exist", "the folder that train.py wrote"],
        ),
        "workdir is a file": ([f"--workdir={folder / 'file'}"], ["is a file", "the folder that train.py wrote"]),
        "empty workdir": ([f"--workdir={folder / 'empty'}"], ["is empty", "train first"]),
        "not a run": ([f"--workdir={folder / 'stranger'}"], ["holds no config.json", "not a run"]),
        "unknown split": ([f"--workdir={smoke_run}", "--split=tset"], ["split", "tset", "train|validation|test"]),
        "unknown flag": ([f"--workdir={smoke_run}", "--splt=test"], ["splt", "--help"]),
        "no flag": ([str(smoke_run)], [str(smoke_run), "--name=value"]),
        "newer version": ([f"--workdir={run['newer']}"], ["newer version", "format 99", "upgrade"]),
        "damaged config": ([f"--workdir={run['damaged']}"], ["config.json", "damaged", "restore it"]),
        "config with a strange key": ([f"--workdir={run['unfit']}"], ["d_sate", "did you mean 'd_state'"]),
        "no checkpoint": ([f"--workdir={run['untrained']}"], ["no checkpoint", "train it first"]),
        "truncated checkpoint": (
            [f"--workdir={run['truncated']}"],
            ["no checkpoint", "can be read", "restore the folder"],
        ),
        "no dataset.json": ([f"--workdir={run['no data']}"], ["dataset.json is missing", "restore it"]),
        "damaged dataset.json": (
            [f"--workdir={run['bad data']}"],
            ["dataset.json cannot be read as JSON", "restore it"],
        ),
        "a file where the report goes": (
            [f"--workdir={run['occupied']}"],
            ["the report cannot be written", "free that place"],
        ),
        "another file for a synthetic task": (
            [f"--workdir={smoke_run}", "--file=my.txt"],
            ["my.txt", "selective_copying", "leave --file out"],
        ),
    }


NAMES = [
    "no workdir", "absent workdir", "workdir is a "
    "file", "empty workdir", "not a run", "unknown split", "unknown flag", "no flag", "newer version",
    "damaged config", "config with a strange "
    "key", "no checkpoint", "truncated checkpoint", "no dataset.json", "damaged dataset.json",
    "a file where the report goes", "another file for a synthetic task",
]  # fmt: skip


def test_every_mistake_is_in_the_table(bad):
    assert list(bad) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_one_message_and_exit_code_2(name, bad, capsys):
    argv, expected = bad[name]
    assert command("eval.py", *argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and sum(line.startswith("error: ") for line in err.splitlines()) == 1
    for words in expected:
        assert words in err, err


def test_a_file_with_unseen_characters_or_none_is_refused(untrained, tmp_path, capsys):
    workdir = untrained("text")
    (tmp_path / "strange.txt").write_text("the state of a model is a café\n" * 60)
    assert command("eval.py", f"--workdir={workdir}", f"--file={tmp_path / 'strange.txt'}") == 2
    unseen = capsys.readouterr().err
    assert "'é'" in unseen and "vocabulary" in unseen
    assert command("eval.py", f"--workdir={workdir}", f"--file={tmp_path / 'absent.txt'}") == 2
    assert "absent.txt" in capsys.readouterr().err
    assert list(workdir.glob("report*")) == []


def test_help_says_what_can_be_asked(capsys):
    assert command("eval.py", "--help") == 0
    told = capsys.readouterr().out
    for words in (
        "--workdir",
        "--split",
        "<train|validation|test|whole>",
        "--file",
        "--local_dir",
        "python eval.py --workdir runs/quickstart",
    ):
        assert words in told


def test_a_report_is_written_and_its_scores_are_printed(smoke_run, capsys):
    assert command("eval.py", f"--workdir={smoke_run}", "--split=validation") == 0
    out, page = capsys.readouterr().out, smoke_run / "report-validation" / "index.html"
    assert out.startswith("smoke (validation)  ") and out.endswith(f"report: {page}\n")
    assert pathlib.Path(page).is_file()


@pytest.mark.exhaustive
def test_one_command_trains_reports_measures_and_compresses(tmp_path, capsys):
    steps = [
        "--config.training.steps=8",
        "--config.optimizer.warmup_steps=2",
        "--config.compress.steps=0",
        "--config.data.eval_examples=120",
    ]
    assert (
        command(
            "train.py",
            "--config=configs/smoke.py",
            f"--workdir={tmp_path / 'run'}",
            "--report",
            "--measure",
            "--compress",
            *steps,
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "It remembers" in printed and "times fewer" in printed
    assert (tmp_path / "run" / "report" / "index.html").is_file() and (
        tmp_path / "run-compressed" / "compression" / "index.html"
    ).is_file()
