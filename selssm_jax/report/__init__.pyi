from . import compression as compression
from . import report as report
from . import run as run
