"""Style targets: a painting's Gram matrices, which is all of it that training needs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from nst_fast.assets import ASSETS, cache_folder
from nst_fast.downloads import Progress, fetch, file_hash
from nst_fast.errors import UserError
from nst_fast.files import write_atomically
from nst_fast.loss.loss_network import LossNetwork
from nst_fast.loss.losses import SLICED, style_statistic
from nst_fast.stylizing.images import load_image, resize_short_side
from nst_fast.weights import read_safetensors

FORMAT = "nst_fast style targets 1"
LONGEST_PAINTING = 16  # of a painting; at its short side a thread would be endless


@dataclass(frozen=True)
class StyleTargets:
    """Gram matrices {size: {layer: (C, C)}} of one painting as one loss network sees it.

    Attributes:
        loss_network: identity of the loss network, its name and the sha256 of its weights.
        image_sha256: sha256 of the painting's file.
        grams: for each size (short side of the painting, px) and layer.
    """

    loss_network: str
    image_sha256: str
    grams: Mapping[int, Mapping[str, Tensor]]

    def save(self, path: str | Path) -> None:
        """Write safetensors that hold the upper triangles in float32.

        Raises UserError where it cannot, or where there is more than Gram matrices: quantiles have no triangles.
        """
        others = sorted({name for grams in self.grams.values() for name in grams if name.startswith(SLICED)})
        if others:
            raise UserError(f"style targets hold Gram matrices, not {', '.join(others)}; give the picture itself")
        tensors = {
            f"{size}.{layer}": gram[tuple(torch.triu_indices(*gram.shape))].float().contiguous()
            for size, grams in self.grams.items()
            for layer, gram in grams.items()
        }
        metadata = {"format": FORMAT, "loss_network": self.loss_network, "image_sha256": self.image_sha256}
        write_atomically(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> StyleTargets:
        """Read a file that `save` wrote; raises UserError where it is something else."""
        tensors, metadata = read_safetensors(path)
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} holds no style targets: its format is {json.dumps(metadata.get('format'))}")
        grams: dict[int, dict[str, Tensor]] = {}
        for name, triangle in tensors.items():
            size, _, layer = name.partition(".")
            channels = int(((8 * triangle.numel() + 1) ** 0.5 - 1) / 2)
            whole = triangle.ndim == 1 and len(triangle) == channels * (channels + 1) / 2
            if not whole or not size.isdecimal() or len(size) > 9 or not triangle.isfinite().all():
                raise UserError(f"{path} holds no style targets: {json.dumps(name)} is no half of a Gram matrix")
            gram = torch.zeros(channels, channels)
            rows, columns = torch.triu_indices(channels, channels)
            gram[rows, columns] = triangle
            gram[columns, rows] = triangle
            grams.setdefault(int(size), {})[layer] = gram
        return cls(metadata.get("loss_network", "unknown"), metadata.get("image_sha256", "unknown"), grams)

    def at(self, size: int, loss_network: str, image_sha256: str | None = None) -> Mapping[str, Tensor]:
        """Return {layer: Gram matrix} at a size, or refuse: UserError where size, loss network or picture differ."""
        if self.loss_network != loss_network:
            raise UserError(
                f"the style targets were made with loss network {self.loss_network}, this run has {loss_network}; "
                "give the picture itself with style.image=FILE"
            )
        if image_sha256 is not None and self.image_sha256 != image_sha256:
            raise UserError(f"the style targets are of a picture with sha256 {self.image_sha256}, not {image_sha256}")
        if size not in self.grams:
            sizes = ", ".join(str(s) for s in sorted(self.grams))
            raise UserError(
                f"the style targets have sizes {sizes}, not style.size={size}; give the picture with style.image=FILE"
            )
        return self.grams[size]


def to_tensor(image: Image.Image) -> Tensor:
    """Return a picture as float32 (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().div(255).contiguous()


def to_image(image: Tensor) -> Image.Image:
    """Return a float image (1, 3, H, W) as a picture: clipped to [0, 1], then rounded to 8 bits."""
    pixels = (image[0].detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


@torch.no_grad()
def painting_statistics(
    painting: Image.Image, loss_network: LossNetwork, layers: Iterable[str], size: int
) -> dict[str, Tensor]:
    """Return a painting's statistics by name at a short side in pixels, its proportions kept; any device, on the CPU.

    Gram matrices (C, C), and the quantiles of layers named with `SLICED` before them, as `style_statistic` has them.
    Raises UserError where it is so long that no memory holds it at that size.
    """
    if max(painting.size) > LONGEST_PAINTING * min(painting.size):
        got = "×".join(map(str, painting.size))
        raise UserError(f"the painting is {got} px; one side may be {LONGEST_PAINTING} times the other: crop it")
    device = next(loss_network.parameters()).device
    image = to_tensor(resize_short_side(painting, size)).to(device)
    names = {name: name.removeprefix(SLICED) for name in layers}
    features = loss_network(image, list(dict.fromkeys(names.values())))
    return {name: style_statistic(loss_network, name, features[layer]).cpu() for name, layer in names.items()}


def make_style_targets(
    image: str | Path, loss_network: LossNetwork, sizes: Iterable[int], layers: Iterable[str] | None = None
) -> StyleTargets:
    """Return the style targets of a picture file at several sizes, for all of the network's layers unless told."""
    painting = load_image(image)
    wanted = list(layers if layers is not None else loss_network.layers)
    grams = {size: painting_statistics(painting, loss_network, wanted, size) for size in sizes}
    return StyleTargets(loss_network.identity, file_hash(image), grams)


def fetch_painting(url: str, sha256: str, progress: Progress | None = None) -> Path:
    """Return a painting's file: from the folder NST_FAST_STYLES, the cache, or its pinned address, hash checked.

    Raises UserError where it cannot be had or its sha256 differs.
    """
    name = url.rsplit("/", 1)[1]
    own = os.environ.get("NST_FAST_STYLES")
    if own:
        path = Path(own).expanduser() / name
        if not path.is_file():
            raise UserError(f"NST_FAST_STYLES={own} has no {name}")
    else:
        advice = "give the painting with style.image=FILE, or a folder with NST_FAST_STYLES=FOLDER"
        path = fetch(url, cache_folder() / "styles" / name, f"sha256:{sha256}", advice, progress)
    if (got := file_hash(path)) != sha256:
        raise UserError(f"{path} is another picture: its sha256 is {got}, {sha256} is needed")
    return path


def style_statistics(
    loss_network: LossNetwork,
    layers: Iterable[str],
    *,
    name: str,
    size: int,
    image: str | Path | None = None,
    targets: str | Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> tuple[Mapping[str, Tensor], str]:
    """Return a style's statistics by name, as `style_statistic` has them, and its picture's sha256.

    They come from the picture, a style target file, the shipped target file where it fits the loss network, layers and
    size, or else from the picture fetched from its address, in this order. Raises UserError where none can be had.
    """
    wanted = list(layers)
    shipped_targets = ASSETS / "style_targets" / f"{name}.safetensors"
    offline = ""
    if image is None and targets is not None:
        made = StyleTargets.load(targets)
        return made.at(size, loss_network.identity, sha256), made.image_sha256
    if image is None and shipped_targets.is_file():
        made = StyleTargets.load(shipped_targets)
        fits = made.loss_network == loss_network.identity and size in made.grams and made.image_sha256 == sha256
        if fits and set(wanted) <= set(made.grams[size]):
            return made.grams[size], made.image_sha256
        sizes = ", ".join(map(str, sorted(made.grams)))
        offline = f"; loss=structure loss_network=vgg19_slim at style.size {sizes} needs no picture for its own layers"
    if image is None and url is not None and sha256 is not None:
        try:
            image = fetch_painting(url, sha256, progress)
        except UserError as error:
            raise UserError(f"{error}{offline}") from error
    if image is None:
        raise UserError("a picture is needed: style=custom style.image=FILE")
    return painting_statistics(load_image(image), loss_network, wanted, size), file_hash(image)
