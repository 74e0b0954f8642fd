"""`rl-warmup export RUN --output FOLDER`: a trained model as full weights in a folder of its own, for plain transformers.

An adapter is merged into its base model (--merge). The folder holds no optimizer, logs or predictions.
"""

from __future__ import annotations

from rl_warmup.cli.main import OptionParser, place, quick_imports

SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def command(args: list[str]) -> None:
    """Write the folder; print its path and what to do next."""
    parser = OptionParser(prog="rl-warmup export", description=__doc__)
    parser.add_argument("run", type=place, metavar="RUN", help="folder of a run, a checkpoint or an adapter of it")
    parser.add_argument("--output", type=place, required=True, metavar="FOLDER", help="a new or empty folder")
    parser.add_argument("--merge", action="store_true", help="merge the adapter into its base model")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        type=lambda text: SHORT.get(text, text),
        help="of the weights; default float32",
    )
    options = parser.parse_args(args)

    with quick_imports():
        from rl_warmup.inference.export import export

    written = export(options.run, options.output, options.merge, options.dtype)
    print(f"{written}\nIts figures are not known yet: `rl-warmup evaluate {written}`, then `rl-warmup card {written}`.")
