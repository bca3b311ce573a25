"""Compute the style targets that ship with the package: what each painting is compared by, as vgg16_slim sees it.

    python scripts/make_style_targets.py            # remake all after vgg16_slim has changed; fetches the paintings
    python scripts/make_style_targets.py my.jpg -o my.safetensors --size 256 --size 384

Train from such a file with: train style=custom style.targets=my.safetensors style.size=256
"""

from __future__ import annotations

import argparse
from pathlib import Path

from omegaconf import OmegaConf

from nst_fast.assets import ASSETS, shipped
from nst_fast.loss.perceptual_loss import ENERGY, SLICED
from nst_fast.loss.pretrained import create_loss_network
from nst_fast.loss.style_targets import COLOURS, fetch_painting, make_style_targets

SIZES = (181, 362, 512)  # px, short side of the painting: half of training's, training's, nst-optimize's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "picture", nargs="?", type=Path, help="a picture of your own (default: every style in configs/)"
    )
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument(
        "--size",
        type=int,
        action="append",
        help=f"px, may be repeated (default: {', '.join(map(str, SIZES))})",
    )
    options = parser.parse_args()
    if options.output and options.output.suffix != ".safetensors":
        parser.error(f"-o is {options.output}; a name that ends in .safetensors is needed")
    network = create_loss_network("vgg16_slim")
    # For the default loss's style, with energies of whatever content is compared in.
    loss = OmegaConf.load(shipped("configs") / "loss" / "balanced.yaml")
    names = [*loss.style_layers, *(SLICED + layer for layer in loss.sliced_layers)]
    names += [ENERGY + layer for layer in network.layers]
    names.append(COLOURS)
    if options.picture:
        jobs = {options.picture: options.output or options.picture.with_suffix(".safetensors")}
    else:
        styles = [OmegaConf.load(path) for path in sorted((shipped("configs") / "style").glob("*.yaml"))]
        shipped_targets = ASSETS / "style_targets"
        jobs = {
            fetch_painting(style.url, style.sha256): shipped_targets / f"{style.name}.safetensors"
            for style in styles
            if style.url
        }
    for picture, output in jobs.items():
        sizes = options.size or SIZES
        make_style_targets(picture, network, sizes, names).save(output)
        print(f"{output}: {output.stat().st_size / 1000:.0f} kB, sizes {', '.join(map(str, sizes))}")


if __name__ == "__main__":
    main()
