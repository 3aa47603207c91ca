"""The group `model.resample`: which blocks of a pattern read fewer steps than there are, and which steps these are."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

from selssm_jax.config.fields import Count, Least, Positive, Within, check_fields
from selssm_jax.config.mixers import MixerConfig, list_noises
from selssm_jax.errors import InputError

Rule = Literal["none", "static", "equal_time", "boundary", "information"]
Bits = Annotated[float, Within(1e-3, 1e6)]
# Keys that some rules alone read.
READERS: dict[str, tuple[str, ...]] = {
    "spare": ("equal_time", "boundary", "information"),
    "causal": ("equal_time",),
    "window": ("static", "equal_time"),
    "bits": ("information",),
}


@dataclasses.dataclass(frozen=True)
class ResampleConfig:
    """Which steps the blocks first, ..., last - 1 of a pattern read; between them what they answered last is held."""

    # static: every rate-th step; equal_time: steps equally spaced in cumulated step sizes that are learned (SeRpEnt);
    # boundary: where a step is unlike the one before it (H-Net); information: where the bits that the "kalman" block
    # before them has gained pass a multiple of `bits`; none: all blocks read all steps
    rule: Rule = "none"
    rate: Positive = 4  # the blocks read at most one step in so many, and `spare` more
    first: Count = 0  # the first block that reads fewer steps
    last: Count = 0  # the block behind the last one that does; 0: all from `first` on
    # steps beyond every rate-th that may be read soon after one another; what is chosen beyond them is not read
    spare: Count = 8
    # equal_time: a step size of 1 is one step of the blocks; False, for whole signals: the sum over a signal is divided
    causal: bool = True
    # static and equal_time: a step that is read gathers so many of those since the one before, itself the last
    window: Annotated[int, Least(1, 4096)] = 8
    bits: Bits = 1.0  # information: gained between two steps that are read

    def __post_init__(self) -> None:
        check_fields(self, "model.resample.{}".format)
        for key, rules in READERS.items():
            value, default = getattr(self, key), type(self).__dataclass_fields__[key].default
            if value != default and self.rule not in ("none", *rules):
                raise InputError(
                    f"model.resample.{key}={value} is read by model.resample.rule={' or '.join(map(repr, rules))} "
                    f"alone, found {self.rule!r}: use {key}={default}, or rule={rules[0]!r}"
                )

    @property
    def gathers(self) -> bool:
        """Whether a step that is read gathers others."""
        return self.rule in READERS["window"] and self.window > 1

    def span(self, count: int) -> tuple[int, int]:
        """Returns (first, last) of the blocks, of `count`, that read fewer steps; (0, 0) where none does."""
        return (0, 0) if self.rule == "none" else (self.first, self.last or count)

    def capacity(self, steps: int) -> int:
        """Returns how many of so many steps the blocks have room for, ceil(steps / rate) and the spare ones."""
        return min(steps, -(-steps // self.rate) + self.spare_steps)

    @property
    def spare_steps(self) -> int:
        """The spare steps of the rule: a rule that counts steps needs none."""
        return self.spare if self.rule in READERS["spare"] and self.causal else 0

    def check(self, pattern: Sequence[str], mixers: Sequence[MixerConfig]) -> None:
        """Raises InputError where the blocks of a pattern, and what they are set to, cannot be read so."""
        if self.rule == "none":
            return
        first, last = self.span(len(pattern))
        if not first < last <= len(pattern):
            raise InputError(
                f"model.resample.first={self.first} and last={self.last} are no part of the {len(pattern)} blocks of "
                f"model.pattern: use first < last <= {len(pattern)}, or last=0 for all from first on"
            )
        if self.rule == "information" and (not first or pattern[first - 1] != "kalman"):
            before = repr(pattern[first - 1]) if first else "no block"
            raise InputError(
                "model.resample.rule='information' reads the bits that the block before them gains, found "
                f"{before} before block {first}: use model.pattern with 'kalman' there and model.resample.first behind "
                "it, or another rule"
            )
        for name, mixer in zip(pattern[first:last], mixers[first:last], strict=True):
            for key in list_noises(mixer):
                raise InputError(
                    f"model.{name}.{key}={getattr(mixer, key)} draws noise, and what blocks of model.resample carry is "
                    f"read a second time, with other noise: use model.{name}.{key}={getattr(type(mixer)(), key)}, or "
                    "model.resample.rule='none'"
                )

    def without(self, index: int, count: int) -> "ResampleConfig":
        """Returns what is left of it when block `index` of `count` is removed; nothing where no block is left."""
        first, last = self.span(count)
        moved = dataclasses.replace(self, first=first - (index < first), last=last - (index < last))
        return moved if moved.first < moved.last else ResampleConfig()
