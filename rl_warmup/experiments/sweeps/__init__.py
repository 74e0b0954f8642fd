"""A question, many runs, one answer: `recipes/sweeps/QUESTION.yaml` in, results.csv and a report out.

`question` reads the file, `jobs` turns it into complete recipes, `study` shares them out among workers (Optuna),
`worker` runs them, `answer` compares the arms.
"""

from rl_warmup.experiments.sweeps.worker import Answer, SweepSettings, run_sweep, show_jobs

__all__ = ["Answer", "SweepSettings", "run_sweep", "show_jobs"]
