"""Figure 3 of Gatys et al. 2016: style layers against the ratio of content to style weight, from white noise.

python scripts/figures/figure3.py                       # → docs/images/gatys2016_figure3.jpg
python scripts/figures/figure3.py loss_network=vgg16    # fetched where it is not on this machine
"""

from sheet import STYLE_LAYERS, arguments, make_sheet

RATIOS = ("1e-5", "1e-4", "1e-3", "1e-2")  # α/β as the paper names them
# The paper's equations sum the content term over positions and divide the style term by their number; with them the
# paper's ratios give back the photograph. A thousandth of them gives its pictures: see configs/loss/gatys.yaml.
SCALE = 1e-3


def main() -> None:
    cells = [
        [
            [
                "experiment=gatys2016",
                f"loss.style_layers={{{', '.join(f'{name}: {1 / depth}' for name in STYLE_LAYERS[:depth])}}}",
                f"loss.content_weight={float(ratio) * SCALE}",
            ]
            for ratio in RATIOS
        ]
        for depth in range(1, len(STYLE_LAYERS) + 1)
    ]
    print(
        make_sheet(
            "gatys2016_figure3",
            "Style layers against α/β (Gatys et al. 2016, figure 3; here α/β = 0.001 × the figure above a column)",
            cells,
            [f"up to {layer}" for layer in STYLE_LAYERS],
            [f"α/β = {ratio}" for ratio in RATIOS],
            arguments(__doc__),
        )
    )


if __name__ == "__main__":
    main()
