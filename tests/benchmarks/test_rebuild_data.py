"""The Debian archive's indices -> rows, on three packages written by hand."""

import gzip
import json

import pytest

from benchmarks import rebuild_data
from benchmarks.rebuild_data import Description, build, describe, family, likeness, split_of, split_rows, stanzas

PACKAGES = """\
Package: unadf
Section: utils
Description: Extract files from a dump
Description-md5: aaa

Package: libfoo-dev
Source: foo (1.2)
Section: libdevel
Description: library of foo (headers)
Description-md5: bbb

Package: untranslated
Section: misc
Description: nobody translated this one
Description-md5: ccc
"""
ENGLISH = """\
Package: unadf
Description-md5: aaa
Description-en: Extract files from a dump
 This tool lists files in a dump of a disk. It was
 written long ago.
 .
 It can:
  - list the files of one directory
    and of all others;
  * extract them
    for a   friend.

Package: libfoo-dev
Description-md5: bbb
Description-en: library of foo (headers)
 Foo reads and writes the files of a disk that everybody has forgotten. These are its headers.
"""
GERMAN = """\
Package: unadf
Description-md5: aaa
Description-de: Dateien aus einem Abbild holen
 Das Programm zeigt die Dateien im Abbild einer Platte. Es ist alt.
 .
 Es kann:
  - Dateien zeigen;
  - sie auspacken.

Package: libfoo-dev
Description-md5: bbb
Description-de: Bibliothek foo (Header)
 Foo liest und schreibt Dateien einer vergessenen Platte, und dies sind die Header.
"""


def test_stanzas_keep_continued_lines():
    assert list(stanzas("A: 1\nB: two\n three\n\n\nA: 2\n")) == [{"A": "1", "B": "two\nthree"}, {"A": "2"}]


def test_a_description_falls_into_synopsis_paragraphs_and_items():
    field = next(stanzas(ENGLISH))["Description-en"]
    assert describe(field) == Description(
        "Extract files from a dump",
        ("This tool lists files in a dump of a disk. It was written long ago.", "It can:"),
        ("list the files of one directory and of all others;", "extract them for a friend."),
    )
    assert describe("name\ntext\n  a table\nmore text") == Description("name", ("text", "more text"), ())


def test_a_family_shares_a_split():
    assert family("linux-6.1") == family("linux-6.12") == "linux"
    assert family("7zip") == "zip"
    assert family("0.9") == "0.9"
    assert split_of("linux-6.1") == split_of("linux-6.12")
    names = [f"source{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600)]
    shares = {split: sum(split_of(name) == split for name in names) / 600 for split in rebuild_data.SPLITS}
    assert shares["train"] == pytest.approx(0.94, abs=0.03)
    assert min(shares.values()) > 0


def test_texts_that_differ_in_numbers_and_case_only_stay_out_of_training(monkeypatch):
    assert likeness("The  Foo-2 tool.") == likeness("the foo 3 TOOL") == "the foo tool"
    monkeypatch.setattr(rebuild_data, "split_of", {"a": "test", "b": "train", "c": "train"}.__getitem__)
    rows = [
        {"en": "One thing", "de": "Eine Sache", "source": "b"},
        {"en": "one thing.", "de": "ein Ding", "source": "a"},
        {"en": "two", "de": "zwei", "source": "c"},
        {"en": "two", "de": "zwo", "source": "b"},
    ]
    found = split_rows(rows, ("en", "de"))
    assert [row["de"] for row in found["test"]] == ["ein Ding"]
    assert [row["de"] for row in found["train"]] == ["zwei"]


def test_packages_that_share_their_first_paragraph_make_one_summary():
    lead = "A library that reads and writes the disks of a machine that nobody remembers at all."
    english = {key: Description(f"disks of {key}", (lead, f"These are {key}."), ()) for key in ("aaa", "bbb")}
    packages = [{"Package": f"lib{key}", "Description-md5": key} for key in ("aaa", "bbb", "missing")]
    (row,) = rebuild_data.summaries(packages, english)
    assert row["summary"] == "disks of aaa"
    assert row["document"] == f"{lead}\nThese are aaa."
    assert row["source"] == "libaaa"


@pytest.fixture
def indices(tmp_path):
    lists = tmp_path / "apt" / "lists"
    lists.mkdir(parents=True)
    prefix = "deb.example_debian_dists_unstable_main"
    (lists / f"{prefix}_binary-amd64_Packages").write_text(PACKAGES)
    (lists / f"{prefix}_i18n_Translation-en.gz").write_bytes(gzip.compress(ENGLISH.encode()))
    (lists / f"{prefix}_i18n_Translation-de").write_text(GERMAN)
    (lists / f"{prefix}_i18n_Translation-fr").write_text("")
    return tmp_path / "apt"


def test_the_archive_becomes_rows(indices, tmp_path, monkeypatch):
    monkeypatch.setattr(rebuild_data, "split_of", lambda source: "test" if source == "foo" else "train")
    build(indices, tmp_path / "data")

    def read(name):
        text = gzip.decompress((tmp_path / "data" / name).read_bytes()).decode()
        return [json.loads(line) for line in text.splitlines()]

    (summary,) = read("debian_sum/debian-sum.test.jsonl.gz")
    assert summary["document"] == (
        "Foo reads and writes the files of a disk that everybody has forgotten. These are its headers."
    )
    assert (summary["summary"], summary["package"], summary["source"], summary["section"]) == (
        "library of foo (headers)", "libfoo-dev", "foo", "libdevel",
    )  # fmt: skip
    pairs = {(row["kind"], row["en"], row["de"]) for row in read("ddtp/ddtp-en-de.train.jsonl.gz")}
    assert pairs == {
        ("synopsis", "Extract files from a dump", "Dateien aus einem Abbild holen"),
        (
            "sentence", "This tool lists files in a dump of a disk.",
            "Das Programm zeigt die Dateien im Abbild einer Platte.",
        ),
        ("sentence", "It was written long ago.", "Es ist alt."),
        ("sentence", "It can:", "Es kann:"),
        ("item", "list the files of one directory and of all others;", "Dateien zeigen;"),
        ("item", "extract them for a friend.", "sie auspacken."),
    }  # fmt: skip
    kinds = [row["kind"] for row in read("ddtp/ddtp-en-de.test.jsonl.gz")]
    assert sorted(kinds) == ["paragraph", "synopsis"]  # two English sentences, one German
    assert read("ddtp/ddtp-en-fr.train.jsonl.gz") == []


def test_missing_indices_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds 0 indices named .*_Packages.*rebuild_data fetch"):
        build(tmp_path, tmp_path / "data")
