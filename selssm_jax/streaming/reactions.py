"""What a stream does when the world has changed."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Reaction:
    """What follows a rise of the error that the detector sees. As it stands: nothing; several go together.

    Attributes:
      rate: what steps of the optimiser are times right after a change; the factor falls back to 1 as 1 + (rate - 1)
        exp(-t / rate_steps).
      rate_steps: truths in which it does.
      reset_optimizer: whether the optimiser forgets its moments.
      memory: the share of the mixers' states that stays, 0: an empty memory; 1: all of it.
      fork: truths for which a fresh learner, with the parameters that the stream began with, learns beside; then the
        one with the smaller sum of errors over this time goes on alone. 0: none. A change that is seen while one is
        tried begins no other. It doubles the memory of the stream.

    Raises:
      ValueError: for values out of range.
    """

    rate: float = 1.0
    rate_steps: int = 500
    reset_optimizer: bool = False
    memory: float = 1.0
    fork: int = 0

    def __post_init__(self) -> None:
        if not self.rate > 0 or self.rate_steps < 1:
            raise ValueError(
                f"rate={self.rate}, rate_steps={self.rate_steps} are out of range: use a factor above 0, and at least "
                "one truth"
            )
        if not 0 <= self.memory <= 1:
            raise ValueError(f"memory={self.memory} is out of range: use the share of the memory that stays, 0 to 1")
        if self.fork < 0:
            raise ValueError(f"fork={self.fork} is out of range: use the number of truths of a trial, or 0")
