from . import allocator as allocator
from . import analysis as analysis
from . import compression as compression
from . import config as config
from . import data as data
from . import errors as errors
from . import generation as generation
from . import information as information
from . import interop as interop
from . import layers as layers
from . import model as model
from . import observe as observe
from . import ops as ops
from . import report as report
from . import runs as runs
from . import shapes as shapes
from . import stability as stability
from . import state_layout as state_layout
from . import sweep as sweep
from . import tasks as tasks
from . import testing as testing
from . import training as training

__version__: str
