"""What an unfinished compression remembers: whole items or none, of one identity, for one process."""

import jax.numpy as jnp
import numpy as np
import pytest

from runs import experiment
from selssm_jax.compression.progress import Progress, fingerprint, open_progress
from selssm_jax.errors import InputError


def test_items_come_back_as_they_were_and_others_are_not_there(tmp_path):
    progress = Progress(tmp_path)
    progress.keep(
        "a trial / of any name",
        {"method": "x", "loss": 1.5},
        {"levels": np.arange(6.0).reshape(2, 3), "step": jnp.int32(3)},
    )
    values, arrays = progress.recall("a trial / of any name")
    assert values == {"method": "x", "loss": 1.5} and arrays["step"] == 3
    np.testing.assert_array_equal(arrays["levels"], np.arange(6.0).reshape(2, 3))
    assert progress.recall("another") is None and Progress().recall("a trial / of any name") is None
    Progress().keep("nothing", {}, {})


def test_an_item_that_was_damaged_is_worked_out_again(tmp_path):
    Progress(tmp_path).keep("item", {"loss": 1.5}, {"levels": np.arange(100.0)})
    path = next(tmp_path.glob("*.item"))
    whole = path.read_bytes()
    assert Progress(tmp_path).recall("item") is not None
    for place in range(0, len(whole), 17):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert Progress(tmp_path).recall("item") is None
    path.write_bytes(whole[:200])
    assert Progress(tmp_path).recall("item") is None


def test_another_identity_starts_anew_and_a_second_process_is_refused(tmp_path):
    with open_progress(tmp_path / "work", "one") as progress:
        progress.keep("item", {}, {})
        (tmp_path / "work" / "run").mkdir()
        with (
            pytest.raises(InputError, match="another process compresses into"),
            open_progress(tmp_path / "work", "one"),
        ):
            pass
    with open_progress(tmp_path / "work", "one") as progress:
        assert progress.recall("item") is not None
    with open_progress(tmp_path / "work", "two") as progress:
        assert progress.recall("item") is None and not (tmp_path / "work" / "run").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), open_progress(tmp_path / "file", "one"):
        pass


def test_a_fingerprint_tells_configurations_and_parameters_apart():
    params = {"a": jnp.zeros(3)}
    marks = {
        fingerprint(experiment(), params, 3),
        fingerprint(experiment(), params, 4),
        fingerprint(experiment(compress__factor=4.0), params, 3),
        fingerprint(experiment(), {"a": jnp.zeros(3).at[1].set(1e-30)}, 3),
        fingerprint(experiment(), {"b": jnp.zeros(3)}, 3),
    }
    assert len(marks) == 5 and fingerprint(experiment(), params, 3) in marks
