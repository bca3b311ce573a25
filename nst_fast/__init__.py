"""Fast neural style transfer: train one feed-forward network per style, stylize in one forward pass."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nst_fast.stylizing.stylizer import Stylizer as Stylizer

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `Stylizer` where it is asked for: everything else starts without onnxruntime."""
    if name == "Stylizer":
        from nst_fast.stylizing.stylizer import Stylizer

        return Stylizer
    raise AttributeError(f"module 'nst_fast' has no attribute {name!r}")
