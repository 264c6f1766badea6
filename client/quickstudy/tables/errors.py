"""The error of a table that cannot be read."""

from quickstudy.one_line import one_line, shown_path


class TableError(Exception):
    """A file that is not a table of the expected form. The message is one short line.

    Attributes:
        name: the file's name, or "standard input".
        line: the number of the line that is wrong, from 1; None if the whole file is.
        problem: what was expected and what came, without the place.
        exit_code: the exit code of a command that reads such a file: wrong usage.
    """

    exit_code = 2

    def __init__(self, name: str, problem: str, line: int | None = None) -> None:
        self.name, self.line, self.problem = name, line, one_line(problem)
        place = shown_path(name) if line is None else f"{shown_path(name)}, line {line}"
        super().__init__(one_line(f"{place}: {problem}"))
