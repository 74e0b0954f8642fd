"""Knows the embedded GNOME help pages and their one-line summaries (gnome-sum-en); must not know any model.

Real text, small: 266/13/13 rows, split by page (CC-BY-SA-3.0; see data/gnome-sum-en/ATTRIBUTION.md). Thirteen test rows
are too few to measure quality; use the task `file` or `hub` for that.
"""

from rl_warmup.tasks.columns import Template
from rl_warmup.tasks.embedded import text_rows
from rl_warmup.tasks.rows import Task


def load(
    train_size: int | None = None, validation_size: int | None = None, test_size: int | None = None,
    max_words: int | None = None, prompt_template: str = "{text}", seed: int = 0,
) -> Task:  # fmt: skip
    """The summarization task: a help page as prompt, its one-line description as target.

    Args:
        train_size, validation_size, test_size: None for all rows; a number takes the first rows of a shuffle by `seed`.
        max_words: drop rows whose page or summary has more words; the number is logged.
        prompt_template: for instance "summarize: {text}".

    Raises:
        ValueError: for a size beyond what is available, or a template without {text}.
    """
    template = Template.parse(prompt_template, allowed=["text"])
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    columns = ("document", "summary")
    splits = text_rows("gnome-sum-en", sizes, columns, ("page",), template, seed, max_words=max_words)
    return Task("summarization", splits, ("rougeL", "rouge1", "rouge2"), template.of_text())
