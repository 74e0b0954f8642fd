"""A question, many runs, one answer: `recipes/sweeps/QUESTION.yaml` in, results.csv and a report out.

    run_sweep(Sweep("recipes/sweeps/num_warmups.yaml"))

`question` reads the file, `arms` turns it into complete recipes, `study` shares them out among workers (Optuna),
`worker` runs them, `answer` compares the arms. Knows: recipes, run folders, processes. Must not know: how a run trains.
"""

from rl_warmup.experiments.sweeps.worker import Outcome, SweepSettings, run_sweep, show_plan

__all__ = ["Outcome", "SweepSettings", "run_sweep", "show_plan"]
