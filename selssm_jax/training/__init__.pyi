from . import (
    checkpoint as checkpoint,
)
from . import (
    evaluation as evaluation,
)
from . import (
    multi_seed as multi_seed,
)
from . import (
    objectives as objectives,
)
from . import (
    optimizer as optimizer,
)
from . import (
    parallel as parallel,
)
from .loop import Outcome as Outcome
from .loop import fit as fit
from .multi_seed import fit_seeds as fit_seeds
from .step import TrainState as TrainState
from .step import train_step as train_step
