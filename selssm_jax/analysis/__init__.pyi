from . import (
    costs as costs,
)
from . import (
    data_processing as data_processing,
)
from . import (
    gate_selectivity as gate_selectivity,
)
from . import (
    gates as gates,
)
from . import (
    memory as memory,
)
from . import (
    rate_sweep as rate_sweep,
)
from . import (
    scores as scores,
)
from . import (
    state_samples as state_samples,
)
from .ahead import check_ahead as check_ahead
from .compression_analysis import analyse_compression as analyse_compression
from .results import Analysis as Analysis
from .run_analysis import analyse as analyse
