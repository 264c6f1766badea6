"""Deprecated name of the Python client, kept for one version: use `from quickstudy import Client`."""

import warnings

from quickstudy import *  # noqa: F403
from quickstudy import __all__ as __all__

warnings.warn("service.client is now quickstudy: write `from quickstudy import Client`", DeprecationWarning, stacklevel=2)
