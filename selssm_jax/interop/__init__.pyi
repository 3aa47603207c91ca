from . import export as export
from . import exported_loader as exported_loader
from . import huggingface as huggingface
