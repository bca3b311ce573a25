"""Pictures as tensors, and back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """Return a picture as float32 (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().div(255).contiguous()


def to_image(image: Tensor) -> Image.Image:
    """Return a float image (1, 3, H, W) as a picture: clipped to [0, 1], then rounded to 8 bits."""
    pixels = (image[0].detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
