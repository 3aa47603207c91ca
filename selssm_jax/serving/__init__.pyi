from . import batcher as batcher
from . import pool as pool
from . import server as server
