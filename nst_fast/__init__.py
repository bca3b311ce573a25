"""Fast neural style transfer: train one feed-forward network per style, stylize in one forward pass."""

__version__ = "0.1.0"
