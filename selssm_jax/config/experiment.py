"""The configuration of a run: its groups, the rules between them, and its forms as ConfigDict and JSON.

A file `configs/NAME.py` returns `Experiment(...).to_config_dict()`; `Experiment.from_config_dict` reads it back after
command-line overrides and refuses, by name, every unknown key, wrong type and impossible value.
"""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import ml_collections

from selssm_jax.config import renames
from selssm_jax.config.analysis import Compress, Explain, Measure, Streaming
from selssm_jax.config.data import SOURCES, TASKS, Data, sources_of
from selssm_jax.config.fields import assign, build, check_fields, flatten, parse
from selssm_jax.config.mixers import BUILT_IN, GATES, MIXERS, NOISES, NONE, list_gated
from selssm_jax.config.model import Model
from selssm_jax.config.sweep import COMPARED, Sweep
from selssm_jax.config.training import Optimizer, Training
from selssm_jax.errors import ArgumentError, InputError

# of a state whose information is weighed: its variance stays in float32
LEAST_NOISE, LEAST_OPEN, LEAST_TEMPERATURE = 1e-6, -10.0, 0.3
OF_FILES = ("data.gaps",)  # how another file is read, which evaluation may be told too
EVALUATION = ("measure", "compress", "explain", "stream")  # groups that evaluation reads
UNREAD = (*EVALUATION, "sweep")  # groups that a run's training does not read
# Keys that are read with another alone.
ONLY_WITH = {
    "model.selective.solver": "model.selective.gate_state",
    "model.memory_scope": "model.memory_bits",
    "model.memory_tables": "model.memory_bits",
    "model.memory_rounding": "model.memory_bits",
    "data.course": "data.period",
    **{
        f"model.resample.{key}": "model.resample.rule"
        for key in ("rate", "first", "last", "spare", "causal", "window", "bits")
    },
    "training.multiplier_rate": "training.target_dimension",
    "training.information_bound": "training.information_weight",
    "training.information_steps": "training.information_weight",
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run, whole: saved beside its checkpoints, so that a run describes itself."""

    name: str = "experiment"
    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    measure: Measure = Measure()
    compress: Compress = Compress()
    explain: Explain = Explain()
    stream: Streaming = Streaming()
    sweep: Sweep = Sweep()

    def __post_init__(self) -> None:
        check_fields(self, "config.{}".format)
        self._check_task()
        self._check_resampling()
        self._check_blocks()
        self._check_batches()
        self._check_gates()
        if self.training.information_weight:
            self._check_information()

    def _check_task(self) -> None:
        """Raises InputError for what the data's kind of task has not."""
        whole = tuple(source for source, kind in SOURCES.items() if TASKS[kind].whole)
        if self.model.bidirectional and self.data.source not in whole:
            raise InputError(
                "model.bidirectional=True reads a whole signal before it answers, found "
                f"data.source={self.data.source!r}, where answers come on the way: use bidirectional=False, or one of "
                f"{', '.join(whole)}"
            )
        series = sources_of("training.forecast_loss")
        if self.training.forecast_loss != "mse" and self.data.source not in series:
            raise InputError(
                f"training.forecast_loss={self.training.forecast_loss!r} is a loss of forecasts, found "
                f"data.source={self.data.source!r}, which has none: leave it out, or use one of {', '.join(series)}"
            )
        if self.training.forecast_loss != "mse" and self.data.quantiles:
            raise InputError(
                f"training.forecast_loss={self.training.forecast_loss!r} is a loss of forecasts of one number, found "
                f"data.quantiles={self.data.quantiles}, which are trained by their pinball loss: use "
                "training.forecast_loss='mse', its default, or data.quantiles=()"
            )

    def _check_resampling(self) -> None:
        """Raises InputError where the future would choose the steps that an answer is made of, and for a ratio loss of
        nothing.
        """
        whole = tuple(source for source, kind in SOURCES.items() if TASKS[kind].whole)
        resample, ratio = self.model.resample, self.training.resample_ratio
        if not resample.causal and self.data.source not in whole:
            raise InputError(
                "model.resample.causal=False reads a whole signal before it chooses steps, found "
                f"data.source={self.data.source!r}, where answers come on the way and the future must not choose: use "
                f"model.resample.causal=True, or one of {', '.join(whole)}"
            )
        if ratio and (resample.rule != "boundary" or resample.rate < 2):
            raise InputError(
                f"training.resample_ratio={ratio} weighs how many boundaries there are, found model.resample.rule="
                f"{resample.rule!r} and rate={resample.rate}: use rule='boundary' and a rate of at least 2, or "
                "training.resample_ratio=0"
            )
        if ratio and self.training.piece > 0:
            raise InputError(
                f"training.resample_ratio={ratio} weighs the steps of a whole sequence, found training.piece="
                f"{self.training.piece}: use piece=0, or training.resample_ratio=0"
            )

    def _check_blocks(self) -> None:
        """Raises InputError for a model without any mixer, and for a block that has neither mixer nor MLP."""
        if not self.model.kinds:
            raise InputError(
                f"model.pattern={self.model.pattern} has no mixer, so no step would know of an earlier one: name at "
                "least one"
            )
        for index, block in enumerate(self.model.blocks):
            if not block.kinds and not block.mlp_ratio:
                raise InputError(
                    f"block {index} has neither a mixer nor an MLP, found model.pattern[{index}]={NONE!r} and an "
                    "mlp_ratio of 0: take it out of model.pattern, or give it one of them"
                )

    def _check_batches(self) -> None:
        """Raises InputError for steps that are only warm-up, and batches that cannot be cut."""
        if self.optimizer.warmup_steps >= self.training.steps:
            raise InputError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} leaves nothing of "
                f"training.steps={self.training.steps}: use fewer warm-up steps or more steps"
            )
        if self.data.batch_size % self.optimizer.accumulate:
            raise InputError(
                f"data.batch_size={self.data.batch_size} cannot be cut into "
                f"optimizer.accumulate={self.optimizer.accumulate} equal micro-batches: use a multiple of it"
            )

    def _check_gates(self) -> None:
        """Raises InputError where noise, a certificate or a penalty is asked of gates that are not there, or not of
        that kind.
        """
        model, training = self.model, self.training
        for key in (*NOISES, "certified"):
            if getattr(model.selective, key) and "selective" not in model.pattern:
                raise InputError(_say_unread(f"model.selective.{key}", model.pattern, ("selective",), "model.pattern"))
        if (training.gate_l1 or training.target_dimension) and not set(list_gated()) & set(model.pattern):
            raise InputError(
                f"training.gate_l1={training.gate_l1} and target_dimension={training.target_dimension} weigh gates, "
                f"and no mixer of model.pattern={model.pattern} has any: set both to 0, or use one of "
                f"{', '.join(list_gated())}"
            )
        if (training.gate_l1 or training.target_dimension) and self._gates_sum_to_one():
            raise InputError(
                f"training.gate_l1={training.gate_l1} and target_dimension={training.target_dimension} weigh how open "
                "gates are, found model.selective.gate='softmax', whose gates sum to 1 at every step: set both to 0, "
                "and write to fewer places by a low model.selective.gate_temperature"
            )
        if training.gate_l0 and "selective" not in model.pattern:
            raise InputError(
                f"training.gate_l0={training.gate_l0} weighs gates of 'selective' blocks, found model.pattern="
                f"{model.pattern}: use 'selective', or training.gate_l1"
            )
        if training.gate_l0 and model.selective.gate != "hard_concrete":
            raise InputError(
                "training.gate_l0 needs a gate with a differentiable L0, found "
                f"model.selective.gate={model.selective.gate!r}: use 'hard_concrete', or training.gate_l1"
            )
        if "selective" in model.pattern and 0 < training.target_dimension <= model.selective.gate_floor:
            raise InputError(
                f"training.target_dimension={training.target_dimension} cannot be reached by gates of at least "
                f"model.selective.gate_floor={model.selective.gate_floor}: raise the target, or lower the floor"
            )

    def _gates_sum_to_one(self) -> bool:
        """Whether the sum of all gates that there are is the same at every step."""
        return self.model.selective.gate == "softmax" and set(list_gated()) & self.model.kinds == {"selective"}

    def _check_information(self) -> None:
        """Raises InputError where the state has no density given the inputs, or its information is not known."""
        layer, weight, say = self.model.selective, "training.information_weight", "model.selective.{}".format
        if self.training.information_steps == "last":
            self._check_last()
        if self.model.knows_gains:
            self._check_gains()
            return
        if self.model.kinds != {"selective"}:
            raise InputError(
                f"{weight} prices the noisy memory of 'selective' blocks, or the nats that 'kalman' and "
                "'kalman_attention' blocks gain, found "
                f"model.pattern={self.model.pattern}: use blocks of one kind, or 0"
            )
        if not layer.process_noise:
            raise InputError(
                f"{weight}={self.training.information_weight} needs a state with noise, found "
                f"{say('process_noise')}=0.0: without it the state holds infinitely many nats; use for example "
                f"{say('process_noise')}=0.3, or blocks of 'kalman', whose gates know their nats"
            )
        if layer.transition == "dense":
            raise InputError(
                f"{weight} is defined for components that do not mix, found {say('transition')}='dense': use "
                "'diagonal' or 'complex'"
            )
        if layer.process_noise < LEAST_NOISE:
            raise InputError(
                f"{weight} takes the logarithm of the state's variance, found "
                f"{say('process_noise')}={layer.process_noise}, whose square float32 cannot hold once a gate has let "
                f"it in: use at least {LEAST_NOISE}"
            )
        if layer.gate_bias < LEAST_OPEN and not layer.gate_floor:
            raise InputError(
                f"{weight} needs noise at every step, but gates of {say('gate_bias')}={layer.gate_bias} are so small "
                f"that float32 has no square of them: use {say('gate_floor')}=0.001 or so, or a bias of at least "
                f"{LEAST_OPEN}"
            )
        if layer.gate == "softmax" and layer.gate_temperature < LEAST_TEMPERATURE and not layer.gate_floor:
            raise InputError(
                f"{weight} needs noise at every step, but softmax gates of {say('gate_temperature')}="
                f"{layer.gate_temperature} can be so small that float32 has no square of them: use "
                f"{say('gate_floor')}=0.001 or so, or a temperature of at least {LEAST_TEMPERATURE}"
            )
        if GATES[layer.gate].closes and not layer.gate_floor:
            raise InputError(
                f"{weight} needs noise at every step, but gates of {say('gate')}={layer.gate!r} can be exactly 0 and "
                f"let none in: use {say('gate_floor')}=0.001 or so, or {say('gate')}='sigmoid'"
            )
        if self.training.information_bound == "capacity":
            self._check_capacity()
        if self.optimizer.accumulate > 1:
            raise InputError(
                f"{weight} reads the moments of a whole batch, found optimizer.accumulate={self.optimizer.accumulate}: "
                "use 1, and more devices or model.remat=True where memory is short"
            )

    def _check_gains(self) -> None:
        """Raises InputError for a bound of memory where its nats are known, and for nats of two kinds."""
        if self.model.kalman.sampled and "kalman" in self.model.kinds and self.model.kinds != {"kalman"}:
            raise InputError(
                "training.information_weight prices what the samples of 'kalman' blocks hold, but of other blocks what "
                f"a step gains, found model.kalman.sampled=True and model.pattern={self.model.pattern}: use blocks of "
                "one kind, or model.kalman.sampled=False"
            )
        if self.training.information_bound != "vib":
            raise InputError(
                f"training.information_bound={self.training.information_bound!r} is of the noisy memory of 'selective' "
                f"blocks, found model.pattern={self.model.pattern}, whose gates know their nats: leave it at 'vib'"
            )

    def _check_last(self) -> None:
        """Raises InputError where the answer is read from more than the last step, or that is on another device."""
        last = "training.information_steps='last'"
        if self.data.source not in sources_of("training.information_steps"):
            raise InputError(
                f"{last} prices the memory that a forecast is read from, found data.source={self.data.source!r}, of "
                "which other steps are asked too: use 'all'"
            )
        if self.model.head_context != 1:
            raise InputError(
                f"{last} prices the one step that a forecast is read from, found "
                f"model.head_context={self.model.head_context}: use model.head_context=1, or 'all'"
            )
        if self.training.mesh[1] > 1:
            raise InputError(
                f"{last} looks for the last step on every device, found training.mesh={self.training.mesh}, whose "
                "devices share the steps of a sequence: use (0, 1), or 'all'"
            )

    def _check_capacity(self) -> None:
        """Raises InputError where gates read what a capacity must not depend on."""
        layer, bound = self.model.selective, "training.information_bound='capacity'"
        if layer.gate != "constant":
            raise InputError(
                f"{bound} is of the memory of gates that do not read the input, found "
                f"model.selective.gate={layer.gate!r}: use information_bound='vib', or model.selective.gate='constant'"
            )
        for key, wanted in (("gate_state", "none"), ("transition", "diagonal")):
            if getattr(layer, key) != wanted:
                raise InputError(
                    f"{bound} is of a model.selective.{key}={wanted!r}, found {getattr(layer, key)!r}: use "
                    "information_bound='vib'"
                )

    def refuse_unread(self, base: "Experiment | None" = None, *, sweep: bool = False) -> None:
        """Raises InputError for a key that is set, away from its default, and that nothing of this experiment reads.

        The models of a sweep read too, of one that is asked for or whose group is set. For what is begun: runs of older
        versions may hold such keys, and go on.

        Args:
          base: the experiment of a config file before anything was overridden: what it sets and reads may lie idle once
            its data or mixers are others.
        """
        inherited = (
            {}
            if base is None
            else {path: value for path, value in base._list_changes().items() if path not in base.unread(sweep=sweep)}
        )
        changed = self._list_changes()
        for path, message in self.unread(sweep=sweep).items():
            if path not in inherited or inherited[path] != changed[path]:
                raise InputError(message)

    def unread(self, *, sweep: bool = False) -> dict[str, str]:
        """Returns the keys that are set and that nothing reads, each with what is to be said of it."""
        swept = [COMPARED[name].mixer for name in self.sweep.models] if sweep or self.sweep != Sweep() else []
        mixers, changed, found = {*self.model.pattern, *swept}, self._list_changes(), {}
        for path in changed:
            readers = self._list_mixers(path)
            if readers and not set(readers) & mixers:
                found[path] = _say_unread(path, self.model.pattern, readers, "model.pattern")
            elif self.data.source not in sources_of(path):
                found[path] = _say_unread(path, self.data.source, sources_of(path), "data.source")
            elif path in ONLY_WITH and ONLY_WITH[path] not in changed:
                found[path] = (
                    f"{path} is read with {ONLY_WITH[path]} alone, which is not set: leave it out, or set both"
                )
        return found

    def _list_mixers(self, path: str) -> tuple[str, ...]:
        """The mixers that alone read a key; none where others do."""
        whatever = path.startswith("model.resample.") or (path == "model.norm_epsilon" and self.model.norm == "rms")
        if whatever or not path.startswith("model."):
            return ()
        name, _, key = path.removeprefix("model.").removeprefix("own.").partition(".")
        return (name,) if key else tuple(mixer for mixer, there in MIXERS.items() if name in there.keys)

    def _list_changes(self) -> dict[str, Any]:
        """The keys of data, model and training that are not at their defaults, and their values."""
        defaults = dict(flatten(Experiment().to_config_dict().to_dict()))
        values = flatten({name: dataclasses.asdict(getattr(self, name)) for name in ("data", "model", "training")})
        return {
            path: value
            for path, value in values
            if defaults[path] != value and path != "data.source" and not path.startswith("model.task.")
        }

    def to_config_dict(self) -> ml_collections.ConfigDict:
        """Returns the same values as a ConfigDict with locked keys, for `--config.key=value`; those of every registered
        mixer are among them.
        """
        values = dataclasses.asdict(self)
        own = {name: dataclasses.asdict(self.model.mixer(name)) for name in MIXERS if name not in BUILT_IN}
        return ml_collections.ConfigDict(values | {"model": values["model"] | {"own": own}}).lock()

    @classmethod
    def from_config_dict(cls, config: ml_collections.ConfigDict) -> "Experiment":
        """Returns the experiment that a ConfigDict describes. Raises InputError that names the key and the fix."""
        return cls.from_dict(config.to_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Experiment":
        """Returns the experiment that nested dictionaries describe. Raises InputError that names the key and the
        fix.
        """
        return build(cls, values, "config")

    @classmethod
    def from_older(cls, values: Any) -> "Experiment":
        """Returns the experiment that a run of an earlier version saved, by the names that its keys have now. Raises
        InputError as `from_dict` does.
        """
        renamed: dict[str, Any] = {}
        for path, value in renames.update(dict(flatten(values))).items() if isinstance(values, dict) else ():
            assign(renamed, path, value)
        return cls.from_dict(renamed or values)

    def overridden(self, assignments: Iterable[str]) -> "Experiment":
        """Returns the experiment with "group.key=value" for keys that evaluation reads, of the groups measure,
        compress, explain and stream, and data.gaps; values as in JSON.

        Raises InputError for other groups, and for what is refused anywhere else.
        """
        values = dataclasses.asdict(self)
        for assignment in assignments:
            name, _, text = assignment.partition("=")
            group, _, key = name.partition(".")
            if group not in EVALUATION and name not in OF_FILES:
                raise ArgumentError(
                    "override",
                    f"={assignment!r} is of no group that evaluation reads: give KEY=VALUE of "
                    f"{', '.join(EVALUATION)}, as measure.samples=500, or {OF_FILES[0]}=VALUE; another file is --file",
                )
            values[group] = values[group] | {key: parse(text)}
        return self.from_dict(values)

    def to_json(self) -> str:
        """Returns the experiment as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Experiment":
        """Returns the experiment that `to_json` wrote. Raises InputError for anything else."""
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise InputError(
                f"the experiment is not JSON ({error}): restore config.json or start in a new workdir"
            ) from error


def _say_unread(path: str, value: Any, readers: tuple[str, ...], where: str) -> str:
    """What is said of a key that nothing reads."""
    who = f"the mixer {readers[0]!r}" if where == "model.pattern" and len(readers) == 1 else ", ".join(readers)
    return f"{path} is read by {who} alone, which {where}={value!r} lacks: leave it out, or use one"
