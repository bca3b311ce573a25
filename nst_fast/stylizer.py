"""Stylize pictures with an exported model, on onnxruntime: no torch is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from nst_fast.errors import UserError
from nst_fast.images import to_rgb

METADATA_PREFIX = "nst_fast."


class Stylizer:
    """A reusable inference session: picture in, stylized picture of the same size out.

    Args:
        model: an ONNX file that `nst-export` or `train` wrote: ``image`` uint8 (N, H, W, 3) RGB → ``stylized``.
        threads: for the session; 0 takes every core.

    Raises UserError where the file is missing, is no ONNX model or is not one of ours.
    """

    def __init__(self, model: str | Path, threads: int = 0) -> None:
        path = Path(model)
        if not os.path.isfile(path):
            raise UserError(f"no model at {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{path} is no ONNX model that onnxruntime can load: {reason}") from error
        metadata: Mapping[str, str] = self.session.get_modelmeta().custom_metadata_map
        inputs = self.session.get_inputs()
        self.metadata = {
            key.removeprefix(METADATA_PREFIX): value
            for key, value in metadata.items()
            if key.startswith(METADATA_PREFIX)
        }
        if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or "min_size" not in self.metadata:
            raise UserError(
                f"{path} is no nst_fast model: one uint8 input (N, H, W, 3) and {METADATA_PREFIX}min_size are needed"
            )
        self.min_size = int(self.metadata["min_size"])

    def stylize_array(self, pictures: np.ndarray) -> np.ndarray:
        """Return stylized uint8 RGB (N, H, W, 3) of pictures of the same shape and type."""
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or 0 in pictures.shape:
            raise ValueError(f"got {pictures.dtype} {pictures.shape}; uint8 (N, H, W, 3), none of them 0, is needed")
        height, width = pictures.shape[1:3]
        rows, columns = max(0, self.min_size - height), max(0, self.min_size - width)
        if rows or columns:
            before = (rows // 2, columns // 2)
            around = ((0, 0), (before[0], rows - before[0]), (before[1], columns - before[1]), (0, 0))
            padded = self.session.run(None, {"image": np.pad(pictures, around, mode="edge")})[0]
            return padded[:, before[0] : before[0] + height, before[1] : before[1] + width]
        return self.session.run(None, {"image": pictures})[0]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the stylized picture, RGB, of exactly the picture's size after its EXIF orientation is applied."""
        pixels = np.asarray(to_rgb(image))
        return Image.fromarray(np.ascontiguousarray(self.stylize_array(pixels[None])[0]))
