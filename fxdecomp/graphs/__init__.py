"""What one may do with a graph: its inputs, copies, runs, edits, and what it remembers."""

from fxdecomp.graphs.copies import copy_owning_tensors, copy_sharing_tensors
from fxdecomp.graphs.records import Record, attach_record, record_of

__all__ = ["Record", "attach_record", "copy_owning_tensors", "copy_sharing_tensors", "record_of"]
