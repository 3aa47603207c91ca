"""The groups `optimizer` and `training`."""

import dataclasses
from typing import Annotated, Literal

from selssm_jax.config.fields import Count, Least, NonNegative, Positive, Seed, Share, Within, check_fields
from selssm_jax.errors import InputError

Momentum = Annotated[float, Within(0.0, 0.9999999)]  # of an exponential moving average


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up and cosine decay; no decay of weights on A, dt, gate biases and norms."""

    peak_rate: NonNegative = 2e-3
    end_rate: NonNegative = 2e-5
    warmup_steps: Count = 100
    weight_decay: NonNegative = 0.1
    b1: Momentum = 0.9
    b2: Momentum = 0.99
    clip_norm: NonNegative = 1.0  # of the whole gradient; 0: no clipping
    accumulate: Positive = 1  # micro-batches of one step: each of data.batch_size // accumulate examples

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.{}".format)


@dataclasses.dataclass(frozen=True)
class Training:
    """How long, how often, on how many devices, and what is added to the loss."""

    steps: Positive = 1000
    seed: Seed = 0  # of parameters, dropout and noise
    # folder of a run whose parameters, model and vocabulary training begins with; "": parameters are drawn
    start: str = ""
    log_every: Positive = 10
    eval_every: Positive = 200
    checkpoint_every: Positive = 200
    keep_checkpoints: Positive = 2
    select: Literal["best", "last"] = "best"  # which parameters eval.py reads: best on validation, or the last
    # decay of an exponential moving average of the parameters, which is what is evaluated and selected; 0: none
    average: Momentum = 0.0
    patience: Count = 0  # validations without a better one after which training stops; 0: none
    # steps in a row that are left out because their loss or gradient is not finite: one more ends training; 0: the
    # first does
    skip_nonfinite: Count = 0
    devices: Count = 0  # 0: all there are
    # how they share a batch: so many groups share its rows (0: as many as there are), and the devices of a group, so
    # many, share the steps of a sequence
    mesh: tuple[int, ...] = (0, 1)
    shard_parameters: bool = False  # the groups share parameters and optimizer state too, each whole in a step alone
    # steps that are read at a time, each piece twice: memory does not grow with the length, gradients are exact;
    # 0: all; -1: pieces where all would hold a GiB
    piece: Annotated[int, Least(-1)] = -1
    # huber: squares errors up to one deviation, takes larger ones as they are; mae: takes all as they are, which
    # forecasts the median; of forecasts of one number, as quantiles (data.quantiles) have a loss of their own
    forecast_loss: Literal["mse", "huber", "mae"] = "mse"
    gate_l1: NonNegative = 0.0  # weight of the mean gate value
    gate_l0: NonNegative = 0.0  # weight of the expected share of open gates (hard_concrete)
    # share of the components that gates update in the mean, reached by a Lagrange multiplier; 0: none
    target_dimension: Share = 0.0
    multiplier_rate: NonNegative = 0.01  # step size of the multiplier's dual ascent
    # of the nats of memory a block, in the mean over steps, which needs model.selective.process_noise or
    # model.kalman.sampled; of other "kalman" blocks and "kalman_attention", of the nats that a step gains
    information_weight: NonNegative = 0.0
    information_bound: Literal["vib", "capacity"] = "vib"
    # forecasting: which steps' nats are priced: all in their mean, or the last one's, which the forecast is read from
    information_steps: Literal["all", "last"] = "all"
    # weight of the ratio loss of model.resample.rule="boundary", least where one step in `rate` is read; H-Net: 0.03
    resample_ratio: NonNegative = 0.0
    penalty_warmup: Count = 0  # steps over which the weight of every penalty grows from 0; 0: none

    def __post_init__(self) -> None:
        check_fields(self, "training.{}".format)
        if len(self.mesh) != 2 or self.mesh[0] < 0 or self.mesh[1] < 1:
            raise InputError(
                f"training.mesh={self.mesh} is no (groups that share rows, devices that share a sequence): use two "
                "numbers, for example (0, 1), or (0, 4) for 4 devices a sequence"
            )
        if self.piece > 0 and self.information_weight:
            raise InputError(
                f"training.piece={self.piece} reads a part of a sequence at a time, but "
                f"training.information_weight={self.information_weight} weighs the whole of it: set one to 0"
            )
        if self.target_dimension and self.gate_l1:
            raise InputError(
                f"training.target_dimension={self.target_dimension} weighs the mean gate by a multiplier of its own, "
                f"found training.gate_l1={self.gate_l1} beside it: set one of the two to 0"
            )
        if self.target_dimension and not self.multiplier_rate:
            raise InputError(
                "training.multiplier_rate=0.0 keeps the multiplier of training.target_dimension at 0: use for example "
                "0.01"
            )
        if self.penalty_warmup and not self.penalised:
            raise InputError(
                f"training.penalty_warmup={self.penalty_warmup} has no penalty to warm up: set training.gate_l1, "
                "gate_l0, target_dimension, information_weight or resample_ratio, or penalty_warmup=0"
            )
        if self.penalty_warmup >= self.steps:
            raise InputError(
                f"training.penalty_warmup={self.penalty_warmup} ends with no step of training.steps={self.steps} left "
                "at full weight: use fewer, or more steps"
            )

    @property
    def penalised(self) -> bool:
        """Whether anything is added to the task's loss."""
        weights = self.gate_l1, self.gate_l0, self.target_dimension, self.information_weight, self.resample_ratio
        return any(weights)
