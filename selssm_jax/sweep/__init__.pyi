from . import command as command
from . import compared_models as compared_models
from . import runner as runner
