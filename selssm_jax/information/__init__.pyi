from . import (
    bottleneck as bottleneck,
)
from . import (
    bracket as bracket,
)
from . import (
    discrete as discrete,
)
from . import (
    estimators as estimators,
)
from . import (
    gaussian as gaussian,
)
from . import (
    limits as limits,
)
from . import (
    neighbours as neighbours,
)
from . import (
    rate_distortion as rate_distortion,
)
from . import (
    retention as retention,
)
from . import (
    samplers as samplers,
)
from . import (
    variational as variational,
)
from ._estimate import Estimate as Estimate
from .bracket import Bracket as Bracket
from .estimators import estimate as estimate
from .limits import data_processing as data_processing
from .limits import fano_error as fano_error
from .retention import Probe as Probe
