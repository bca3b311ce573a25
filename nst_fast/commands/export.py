"""The command `nst-export`: a training checkpoint to ONNX."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from nst_fast.assets import INT8, find_model, is_model
from nst_fast.commands import require_training_packages, run
from nst_fast.files import refuse_existing

USAGE = """
usage: nst-export CHECKPOINT_OR_RUN [-o FILE] [--float-nchw | --int8] [--overwrite]

Export a checkpoint of `train` to one ONNX file that describes itself.

  CHECKPOINT_OR_RUN  a run's folder, such as runs/train/starry_night/<time>, or a checkpoint in it. --int8 also takes a
                     model: an .onnx file or the name of a shipped one
  -o, --output FILE  (default: <style>.onnx, <style>.float.onnx or <style>.int8.onnx in the folder where you are)
  --float-nchw       float32 (N, 3, H, W) RGB in [0, 1] in and out, instead of uint8 (N, H, W, 3)
  --int8             8-bit integers: faster on a CPU, and the pictures look alike
  --overwrite        replace a file that exists
  --version          print the version

examples:
  nst-export runs/train/starry_night/2026-01-01_12-00-00/checkpoints/last.ckpt
  nst-export last.ckpt -o models/mine.onnx
  nst-export --int8 mine.onnx
"""


def export_in_8_bits(model: Path, path: str | Path) -> Path:
    """Write an exported model in 8-bit integers, say how near it is, and return its path.

    Raises UserError where it cannot be quantised.
    """
    from nst_fast.stylizing.quantization import export_int8
    from nst_fast.stylizing.stylizer import Stylizer
    from nst_fast.training.photographs import bundled_photographs

    written = export_int8(model, path, bundled_photographs(), bundled_photographs(held_out=True))
    least = Stylizer(written, device="cpu").metadata["int8_psnr"]
    print(f"PSNR to the model in floating point: {least} dB or more on two photographs", file=sys.stderr)
    return written


def main() -> None:
    """Entry point."""

    def command(arguments: list[str]) -> None:
        parser = argparse.ArgumentParser("nst-export", add_help=False)
        parser.add_argument("checkpoint")
        parser.add_argument("-o", "--output", type=os.path.expanduser)
        kind = parser.add_mutually_exclusive_group()
        kind.add_argument("--float-nchw", action="store_true")
        kind.add_argument("--int8", action="store_true")
        parser.add_argument("--overwrite", action="store_true")
        options = parser.parse_args(arguments)
        try:
            from nst_fast.training.checkpoints import last_checkpoint, read_checkpoint
            from nst_fast.training.onnx_export import described_network, export, model_name
        except ModuleNotFoundError as error:
            require_training_packages(error)

        def free(path: str) -> Path:
            """Return where to write; raises UserError where something is there that may not be replaced."""
            if not options.overwrite:
                refuse_existing([Path(path)], "--overwrite")
            return Path(path)

        given = os.path.expanduser(options.checkpoint)
        if options.int8 and (is_model(options.checkpoint) or not os.path.lexists(given)):
            model = find_model(options.checkpoint)
            print(export_in_8_bits(model, free(options.output or f"{model.stem}{INT8}.onnx")))
            return
        source = last_checkpoint(given)
        network, metadata = described_network(read_checkpoint(source), source)
        ending = INT8 if options.int8 else ".float" if options.float_nchw else ""
        target = free(options.output or model_name(metadata["style"], ending, source))
        if not options.int8:
            print(export(network, target, metadata, options.float_nchw))
            return
        with tempfile.TemporaryDirectory() as folder:
            print(export_in_8_bits(export(network, Path(folder) / "model.onnx", metadata), target))

    run(command, "nst-export", USAGE)


if __name__ == "__main__":
    main()
