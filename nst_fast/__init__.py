"""Fast neural style transfer: train a feed-forward network, stylize in one or two forward passes."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nst_fast.stylizing.stylizer import Stylizer as Stylizer

__version__ = "0.1.0"

# onnxruntime keeps a device's id in the home folder and reports to its maker, unless this is set when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Import `Stylizer` where it is asked for: everything else starts without onnxruntime."""
    if name == "Stylizer":
        from nst_fast.stylizing.stylizer import Stylizer

        return Stylizer
    raise AttributeError(f"module 'nst_fast' has no attribute {name!r}")
