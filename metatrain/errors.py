"""The errors of `metatrain`, as one tree.

MetatrainError
├── BaseModelError        a base model cannot be found, read or trusted
│   └── UnsupportedDelta  a kind of delta does not work on the base model's architecture
├── ArtifactError         an initialization or adapter fails a check on loading
├── DataError             a data file cannot be read, or has too few examples for the requested episodes
├── RecipeError           a recipe has an unknown key or an invalid value
├── PluginError           a component that an installed package registers cannot be used
├── NoMetaGradient        the loss does not depend on a parameter that meta-training should move
└── AdaptationError       the inner loop cannot produce a valid adapter
    ├── NonFinite         a loss or weight is NaN or infinite
    └── DeadlineExceeded  the inner loop passed its deadline and stopped between two steps
"""

from quickstudy.one_line import one_line


class MetatrainError(Exception):
    """The base class of all errors of `metatrain`. The message is one short line that a user can act on.

    Messages quote files, so they are cut and cleaned here (see `one_line`). `exit_code`: the exit code of a command that raises it.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


class BaseModelError(MetatrainError):
    pass


class UnsupportedDelta(BaseModelError):
    pass


class ArtifactError(MetatrainError):
    pass


class DataError(MetatrainError):
    pass


class RecipeError(MetatrainError):
    pass


class PluginError(MetatrainError):
    pass


class NoMetaGradient(MetatrainError):
    pass


class AdaptationError(MetatrainError):
    pass


class NonFinite(AdaptationError):
    pass


class DeadlineExceeded(AdaptationError):
    pass


def first_line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message, to quote in another message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
