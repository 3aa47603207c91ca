from . import (
    event_trace as event_trace,
)
from . import (
    finetune as finetune,
)
from . import (
    hankel as hankel,
)
from . import (
    pruning as pruning,
)
from . import (
    quantization as quantization,
)
from . import (
    reduction as reduction,
)
from . import (
    search as search,
)
from . import (
    sparse_decode as sparse_decode,
)
from . import (
    streaming as streaming,
)
from .compress import register_method as register_method
from .quantization import Quantizer as Quantizer
from .reduction import balanced_truncation as balanced_truncation
from .reduction import merge_equal_poles as merge_equal_poles
from .streaming import PackedModel as PackedModel
