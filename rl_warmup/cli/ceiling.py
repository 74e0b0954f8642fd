"""`rl-warmup ceiling --config RECIPE --warmups FILE`: can warmups pay on this data at all? (docs/will-warmups-pay.md)

Compares plain fine-tuning with imitation of given good warmups, from the same start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl_warmup.cli.main import OptionParser, count, place, quick_imports

OF_GROUPS: dict[str, Any] = {
    "backward_samples": None, "target_ess": None, "stored_warmups": None, "anchor_weight": 0.0, "proposal_only": False,
}  # fmt: skip


def command(args: list[str]) -> None:
    """Write the arms as a sweep file, do its missing runs, and print the answer."""
    epilog = (
        "Repeat the command after a stop. It runs the sweep file DIR/ceiling.yaml. All settings of a recipe are flags too, for "
        "both arms: --max_steps 1000."
    )
    parser = OptionParser(prog="rl-warmup ceiling", description=__doc__, epilog=epilog, allow_abbrev=False)
    parser.add_argument(
        "--config", type=place, required=True, metavar="RECIPE", help="recipe with the task and the start"
    )
    parser.add_argument("--warmups", required=True, nargs="+", metavar="FILE",
                        help="warmups of the training rows (docs/stored-warmups.md); each file is an arm")  # fmt: skip
    parser.add_argument("--metric", help="the metric to compare; default: the recipe's metric_for_best_model")
    parser.add_argument("--seeds", type=count, default=3, help="number of seeds of each arm; default 3")
    parser.add_argument(
        "--output", type=place, metavar="DIR", default="runs/ceiling", help="folder of the runs; default runs/ceiling"
    )
    parser.add_argument("--jobs", type=count, default=1, help="runs at a time; default 1")
    options, further = parser.parse_known_args(args)

    with quick_imports():
        from rl_warmup.experiments.sweeps import SweepSettings, run_sweep
        from rl_warmup.inference.samples import check_warmups
        from rl_warmup.runtime.ownership import run_of
        from rl_warmup.runtime.recipe_file import read_values
        from rl_warmup.runtime.shipped import find_recipe

    changes = read_values(None, further)
    recipe = {**read_values(options.config), **changes}
    metric = options.metric or str(recipe.get("metric_for_best_model") or "").removeprefix("eval_")
    if metric in ("", "loss"):
        raise ValueError(f"--metric: {options.config} has no metric_for_best_model; give a metric, e.g. exact_match.")
    output = Path(options.output)
    if run_of(output):
        raise ValueError(f"--output: {output} is in a run's folder. Give a folder for the runs of all arms.")
    arms = {"sft": {"objective": "sft", "proposals": []}, **_ceilings(options.warmups)}
    for file in options.warmups:
        check_warmups(Path(file))
    output.mkdir(parents=True, exist_ok=True)
    question = {
        "question": "Could warmups pay here? Good ones imitated, beside plain fine-tuning",
        "base": str(find_recipe(options.config).resolve()),
        "runs": {name: _without_groups(recipe, arm) for name, arm in arms.items()},
        "settings": changes, "seeds": options.seeds, "metric": metric, "control": "sft",
    }  # fmt: skip
    file = output / "ceiling.yaml"
    file.write_text(json.dumps(question, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    answer = run_sweep(file, SweepSettings(output, options.jobs))
    print("\n" + answer.text + "\n\n" + "\n".join(map(str, answer.files)))
    if answer.failed:
        raise ValueError(
            f"Runs failed: {', '.join(answer.failed)}; the table lacks them. See train.log in their folders."
        )


def _without_groups(recipe: dict[str, Any], arm: dict[str, Any]) -> dict[str, Any]:
    """An arm that also resets the recipe's settings of groups and proposals, as it has one warmup per prompt or none."""
    return {**{name: value for name, value in OF_GROUPS.items() if recipe.get(name, value) != value}, **arm}


def _ceilings(files: list[str]) -> dict[str, dict[str, Any]]:
    """An arm for each file: it imitates the file's warmups in all updates and samples nothing."""
    arms: dict[str, dict[str, Any]] = {}
    for file in map(Path, files):
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            raise ValueError(f"--warmups: {file} {what}; give a file of warmups (docs/stored-warmups.md).")
        name = file.stem
        if name in arms or name == "sft":
            raise ValueError(f"--warmups: two arms would be called {name}; give the files different names.")
        arms[name] = {
            "objective": "marginal", "proposals": ["stored"], "stored_warmups": str(file.resolve()), "proposal_only": True,
            "num_warmups": 1,
        }  # fmt: skip
    return arms
