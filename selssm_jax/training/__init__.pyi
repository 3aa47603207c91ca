from . import (
    checkpoint as checkpoint,
)
from . import (
    evaluation as evaluation,
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
from . import (
    together as together,
)
from .loop import Outcome as Outcome
from .loop import fit as fit
from .step import TrainState as TrainState
from .step import train_step as train_step
from .together import fit_together as fit_together
