"""The reader of tables: CSV, TSV, JSON Lines and JSON arrays, packed or not.

It is the only one: the commands that read files and `metatrain` use it, so that a file means the same everywhere. It needs only the
standard library, and reads row by row, so that long files need little memory.
"""

from quickstudy.tables.errors import TableError
from quickstudy.tables.formats import FORMATS, Format
from quickstudy.tables.repeats import repeated
from quickstudy.tables.suspicious import Example, Hint, hints_about
from quickstudy.tables.table import USUAL_NAMES, Table, missing_column, open_table, table_of
from quickstudy.tables.values import is_blank, label_problem, text_problem

__all__ = [
    "FORMATS",
    "USUAL_NAMES",
    "Example",
    "Format",
    "Hint",
    "Table",
    "TableError",
    "hints_about",
    "is_blank",
    "label_problem",
    "missing_column",
    "open_table",
    "repeated",
    "table_of",
    "text_problem",
]
