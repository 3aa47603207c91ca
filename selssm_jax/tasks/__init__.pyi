from .base import Ends as Ends
from .base import TaskKind as TaskKind
from .registry import TASKS as TASKS
from .registry import kind_of as kind_of
from .registry import register_task as register_task
from .scores import METRICS as METRICS
from .scores import Metric as Metric
