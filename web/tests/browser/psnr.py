"""Print how near two pictures of the same size are: python psnr.py A B → dB."""

import sys

import numpy as np
from PIL import Image

a, b = (np.asarray(Image.open(path).convert("RGB"), float) for path in sys.argv[1:])
assert a.shape == b.shape, f"{a.shape} and {b.shape}"
print(10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-9)))
