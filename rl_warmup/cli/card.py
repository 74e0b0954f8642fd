"""`rl-warmup card RUN`: write the model card of a trained folder, README.md, from the files in it.

A run writes its card when it ends. Repeat the command after `rl-warmup evaluate`, or to give fields that no file tells. What was
measured on other weights than those in the folder stays out.
"""

from __future__ import annotations

from rl_warmup.cli.main import OptionParser, place, quick_imports


def command(args: list[str]) -> None:
    """Write the card; print its path."""
    parser = OptionParser(prog="rl-warmup card", description=__doc__)
    parser.add_argument("run", type=place, metavar="RUN", help="folder that training or `rl-warmup export` wrote")
    parser.add_argument(
        "--license", help="of the trained model, as the hub spells it: apache-2.0, mit, ...; left out if unknown"
    )
    parser.add_argument("--model_card", metavar="MAPPING",
                        help="further fields of the front matter: '{language: [en, de], license_link: ...}'")  # fmt: skip
    options = parser.parse_args(args)

    with quick_imports():
        from rl_warmup.inference.card import write_card
        from rl_warmup.runtime.recipe_file import flag_value

    fields = flag_value("model_card", options.model_card) if options.model_card is not None else {}
    if not isinstance(fields, dict):
        raise ValueError(f"--model_card: {options.model_card!r} is no mapping. Write '{{language: en}}'.")
    if options.license is not None and "license" in fields:
        raise ValueError("--license: is in --model_card as well. Give it once.")
    print(write_card(options.run, **({"license": options.license} if options.license is not None else {}), **fields))
