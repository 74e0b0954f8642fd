"""Run folders as something to look at: tables, curves, one page, one summary.

    write_report(["runs/demo"], "runs/demo/report")  # report.html, summary.md, *.png

`collect` reads folders, `differences` compares arms, `curves` lines them up, `words` says it, `page`, `summary` and
`plots` write it down. Knows: the files of run folders. Must not know: how runs are made, trained or scored.
"""

from rl_warmup.experiments.report.build import write_report
from rl_warmup.experiments.report.plots import plot_curves, require_extras
from rl_warmup.experiments.report.tables import NAMES, mean_and_deviation, result_table, text_table

__all__ = ["NAMES", "mean_and_deviation", "plot_curves", "require_extras", "result_table", "text_table", "write_report"]
