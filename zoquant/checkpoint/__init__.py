"""From files to a model and back: load, inspect, export.

What a format looks like stands in `backends`. Begin with `loading` and `exporting`; what formats of folders share is in
`folder`.
"""

from zoquant.checkpoint.diagnosis import doctor
from zoquant.checkpoint.exporting import export
from zoquant.checkpoint.inspection import inspect
from zoquant.checkpoint.loading import load

__all__ = ["doctor", "export", "inspect", "load"]
