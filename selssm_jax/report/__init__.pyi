from .compression_report import render_compression as render_compression
from .compression_report import summarise_compression as summarise_compression
from .document import check_writable as check_writable
from .run_report import render as render
from .run_report import summarise as summarise
from .stream_report import render_stream as render_stream
from .stream_report import summarise_stream as summarise_stream
