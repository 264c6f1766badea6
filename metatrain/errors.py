"""What can go wrong in the maths and its files.

MetatrainError
├── BaseModelError        a base model that cannot be found, read or trusted
│   └── UnsupportedDelta  the load-time probe refused this architecture with this delta
├── ArtifactError         an initialization or adapter that does not load strictly
├── DataError             a task file, split or episode request that cannot be met
├── RecipeError           a recipe key or value
├── NoMetaGradient        a parameter that meta-training should move and the loss does not depend on
└── AdaptationError       an inner loop that cannot give a sound adapter
    ├── NonFinite         a loss or weight left the real numbers
    └── DeadlineExceeded  the inner loop was stopped between two steps
"""


class MetatrainError(Exception):
    """Root of the tree; its message is one line that a user can act on."""


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


class NoMetaGradient(MetatrainError):
    pass


class AdaptationError(MetatrainError):
    pass


class NonFinite(AdaptationError):
    pass


class DeadlineExceeded(AdaptationError):
    pass


def first_line(error: BaseException) -> str:
    """Return an exception's type and the first line of what it says, to be quoted in a message of ours."""
    said = str(error).splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
