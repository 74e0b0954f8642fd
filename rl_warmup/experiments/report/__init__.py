"""Run folders as something to look at: tables, curves, one page, one summary.

write_report(["runs/demo"], "runs/demo/report")  # report.html, summary.md, with matplotlib *.png
"""

from rl_warmup.experiments.report.build import write_report
from rl_warmup.experiments.report.curves import can_plot, plot_curves, require_extras
from rl_warmup.experiments.report.words import NAMES, result_table, text_table

__all__ = ["NAMES", "can_plot", "plot_curves", "require_extras", "result_table", "text_table", "write_report"]
