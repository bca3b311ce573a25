"""Train a style on a folder of photographs, then paint one picture in it.

    pip install "nst_fast[train]"
    python train_folder.py painting.jpg photographs/ photo.jpg painted.jpg trainer.minutes=10

Options of the command `train` may follow; `train --help` lists them.
"""

import subprocess
import sys

from nst_fast import Stylizer
from nst_fast.errors import UserError
from nst_fast.stylizing.images import load_image, save_image


def train(painting: str, photographs: str, *options: str) -> str:
    """Train a network and return its ONNX file."""
    command = [sys.executable, "-m", "nst_fast.commands.train", "style=custom", f"style.image={painting}"]
    command += ["data=folder", f"data.root={photographs}", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)  # `train` has printed why
    return done.stdout.splitlines()[-2]  # the last line is a command to type next


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    painting, photographs, photo, painted, *options = sys.argv[1:]
    try:
        photograph = load_image(photo)
        stylizer = Stylizer(train(painting, photographs, *options))
        save_image(stylizer(photograph), painted)
    except UserError as error:
        sys.exit(str(error))
