"""Figure 1 of Gatys et al. 2016: style and content reconstructions from white noise, layer by layer.

python scripts/figures/figure1.py                       # → docs/images/gatys2016_figure1.jpg
python scripts/figures/figure1.py loss_network=vgg16    # fetched where it is not on this machine
"""

from sheet import STYLE_LAYERS, arguments, make_sheet


def main() -> None:
    style, content = [], []
    for depth, layer in enumerate(STYLE_LAYERS, start=1):
        layers = ", ".join(f"{name}: {1 / depth}" for name in STYLE_LAYERS[:depth])
        style.append(["experiment=gatys2016_figure1_style", f"loss.style_layers={{{layers}}}"])
        content.append(["experiment=gatys2016_figure1_content", f"loss.content_layers={{{layer}: 1}}"])
    print(
        make_sheet(
            "gatys2016_figure1",
            "Reconstructions from white noise (Gatys et al. 2016, figure 1)",
            [style, content],
            ["style, layers up to", "content, layer"],
            STYLE_LAYERS,
            arguments(__doc__),
        )
    )


if __name__ == "__main__":
    main()
