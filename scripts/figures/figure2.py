"""Figure 2 of Gatys et al. 2016: painting over photograph, from white noise, iteration by iteration.

python scripts/figures/figure2.py                       # → docs/images/gatys2016_figure2.jpg
python scripts/figures/figure2.py loss_network=vgg16    # fetched where it is not on this machine
"""

from sheet import arguments, make_sheet

ITERATIONS = (10, 50, 200, 500)


def main() -> None:
    cells = [[["experiment=gatys2016", f"iterations={n}"] for n in ITERATIONS]]
    title = "The Starry Night over a photograph, from white noise (Gatys et al. 2016, figure 2)"
    columns = [f"{n} iterations" for n in ITERATIONS]
    print(make_sheet("gatys2016_figure2", title, cells, [""], columns, arguments(__doc__)))


if __name__ == "__main__":
    main()
