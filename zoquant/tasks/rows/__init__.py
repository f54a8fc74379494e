"""Rows of data: from files, from folders of splits, from the Hugging Face Hub, from memory."""

from zoquant.tasks.rows.in_memory import DataSource, RowsInMemory
from zoquant.tasks.rows.read import has_splits, read_rows
from zoquant.tasks.rows.row import Row, row_of

__all__ = ["DataSource", "Row", "RowsInMemory", "has_splits", "read_rows", "row_of"]
