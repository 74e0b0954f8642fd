"""Knows the embedded English-German sentences (docs-en-de) in both directions; must not know any model.

Real text: the GNOME user documentation and the Debian Administrator's Handbook, 8,814/542/320 rows, split by page
(CC-BY-SA-3.0; see data/docs-en-de/ATTRIBUTION.md). For other languages use the task `file` or `hub`.
"""

from rl_warmup.tasks.columns import Template
from rl_warmup.tasks.embedded import text_rows
from rl_warmup.tasks.rows import Task

LANGUAGES = ("en", "de")


def load(
    source: str = "en", target: str = "de", train_size: int | None = None, validation_size: int | None = None,
    test_size: int | None = None, min_words: int = 0, max_words: int | None = None, prompt_template: str = "{text}",
    seed: int = 0,
) -> Task:  # fmt: skip
    """The translation task.

    Args:
        source, target: "en" and "de", or the reverse.
        train_size, validation_size, test_size: None for all rows; a number takes the first rows of a shuffle by `seed`.
        min_words, max_words: drop rows with fewer or more words on either side; the number is logged.
        prompt_template: for instance "translate English to German: {text}".

    Raises:
        ValueError: for other languages, a size beyond what is available, or a template without {text}.
    """
    if {source, target} != set(LANGUAGES):
        raise ValueError(
            f"translation: source={source!r}, target={target!r}; give en and de, in any order; for other languages use the "
            "task 'file' or 'hub'"
        )
    template = Template.parse(prompt_template, allowed=["text"])
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    kept = ("origin", "page")
    splits = text_rows("docs-en-de", sizes, (source, target), kept, template, seed, min_words, max_words)
    return Task(f"translation {source}-{target}", splits, ("chrf++", "bleu"), template.of_text())
