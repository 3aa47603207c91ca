"""The trials of one model, shared by all workers of a sweep: every point of its grid is tried once, by one of them.

Workers share the sweep's folder. One that chooses a point holds FOLDER/.lock for a moment; while it trains, it holds
FOLDER/MODEL/.trial_N.lock, which the system lets go of when the process ends, however it ends. A trial that runs
without it is therefore lost: it is failed, and its point is tried again.
"""

import contextlib
import pathlib
import sys
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import IO

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from selssm_jax.errors import InputError
from selssm_jax.sweep.compared_models import Point
from selssm_jax.sweep.locks import LOCK, hold, try_hold

IDENTITY = ".identity"  # of the sweep's folder, which a study in a storage elsewhere remembers
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def open_study(
    storage: BaseStorage, folder: pathlib.Path, name: str, direction: StudyDirection, pruner: BasePruner | None = None
) -> optuna.Study:
    """Returns the study of a name, made where it is not there yet, once.

    Raises:
      InputError: for a study of another folder, whose workers could not see which trials run here.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with hold(folder / LOCK):
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction=direction,
            load_if_exists=True,
            pruner=pruner,
            sampler=RandomSampler(),  # it is never asked: points are those of a grid
        )
        mine = _identify(folder)
        if study.user_attrs.setdefault("folder", mine) != mine:
            raise InputError(
                f"sweep.storage holds this sweep for another folder than {folder}: workers share one --workdir, on one "
                "machine or a network file system; use that, or another storage"
            )
        study.set_user_attr("folder", mine)
    return study


def _identify(folder: pathlib.Path) -> str:
    """A name of the folder that stays when it is moved."""
    path = folder / IDENTITY
    if not path.is_file():
        path.write_text(f"{uuid.uuid4().hex}\n")
    return path.read_text().strip()


class SharedStudy:
    """The points of a model's grid, and which of them were tried.

    Attributes:
      points: the grid; the run of point N is FOLDER/MODEL/trial_N.
    """

    def __init__(
        self, study: optuna.Study, folder: pathlib.Path, model: str, extend: Callable[[list[Point]], list[Point]]
    ) -> None:
        """Takes up a study that `open_study` opened.

        Args:
          folder: of the sweep. extend: returns the grid that is asked for, given the points that are there already.
        """
        self.study, self._folder, self._model = study, folder, model
        (folder / model).mkdir(parents=True, exist_ok=True)
        with hold(folder / LOCK):
            before = study.user_attrs.get("points", [])
            self.points = extend(before)
            if self.points != before:
                study.set_user_attr("points", self.points)

    def list_done(self) -> dict[int, FrozenTrial]:
        """Returns the trials that came to an end, complete or pruned, by the number of their point."""
        done = self.study.get_trials(deepcopy=False, states=DONE)
        return {
            number: next(trial for trial in done if trial.params == point)
            for number, point in enumerate(self.points)
            if any(trial.params == point for trial in done)
        }

    def claim(self, axes: dict[str, BaseDistribution]) -> "Claim | None":
        """Returns the next point that no worker has tried or tries, for this one to try; None where there is none."""
        with hold(self._folder / LOCK):
            self._fail_lost()
            taken = [
                trial.params for trial in self.study.get_trials(deepcopy=False, states=(*DONE, TrialState.RUNNING))
            ]
            free = (number for number, point in enumerate(self.points) if point not in taken)
            locks = ((number, try_hold(self._lock_of(number))) for number in free)
            number, lock = next(((number, lock) for number, lock in locks if lock is not None), (None, None))
            if number is None or lock is None:
                return None
            with contextlib.ExitStack() as undone:
                undone.enter_context(lock)
                self.study.enqueue_trial(self.points[number], user_attrs={"number": number})
                claim = Claim(self.study, self.study.ask(axes), number, self.points[number], lock)
                undone.pop_all()
                return claim

    def _fail_lost(self) -> None:
        """Fails the trials whose worker is gone, and those that one left before it began them."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            number = trial.user_attrs["number"]
            lock = try_hold(self._lock_of(number))
            if lock is not None:
                lock.close()
                self.study.tell(trial.number, state=TrialState.FAIL)
                print(f"{self._model} trial_{number} was left by a worker that is gone: it goes on", file=sys.stderr)
        for _ in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self.study.tell(self.study.ask(), state=TrialState.FAIL)

    def _lock_of(self, number: int) -> pathlib.Path:
        return self._folder / self._model / f".trial_{number}.lock"


class Claim:
    """A point that this worker tries. As a context it is given up at the end, failed unless it was told.

    Attributes:
      trial: Optuna's. number: of the point.
    """

    def __init__(self, study: optuna.Study, trial: optuna.Trial, number: int, point: Point, lock: IO[str]) -> None:
        self.trial, self.number, self.point = trial, number, point
        self._study, self._lock, self._told = study, lock, False

    def tell(self, value: float | None, **attributes: object) -> None:
        """Tells Optuna how it ended: with a value, or pruned where that is None."""
        for name, attribute in attributes.items():
            self.trial.set_user_attr(name, attribute)
        self._study.tell(self.trial, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)
        self._told = True

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if not self._told:
                self._study.tell(self.trial, state=TrialState.FAIL)
