"""What a call of `WarmupGenerator.generate` asks for: its inputs as rows, its settings checked.

Knows: plain values. Must not know: models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch

from rl_warmup.inference.selection import SELECTIONS, utility_of
from rl_warmup.models.encoding import HALF, read_all
from rl_warmup.runtime.settings import RANGES, shown

MOST = 10_000  # warmups or beams of one prompt
LARGEST = 1_000_000  # rows of a batch
ONE_EACH = "Give one text, or one for each input."


def as_rows(inputs: Any, first: int = 0) -> list[dict[str, Any]]:
    """Rows with `prompt`: of a text, a conversation, a row, or several of these (a list, a data set, any iterable).

    Args:
        first: the number of the first input, for errors.

    Raises:
        ValueError: an input that is none of them.
    """
    if hasattr(inputs, "columns") and hasattr(inputs, "iloc"):
        raise ValueError(
            "inputs: a pandas DataFrame gives its columns' names, not its rows. Give frame.to_dict('records')."
        )
    one = isinstance(inputs, str | bytes | Mapping) or _is_conversation(inputs) or not isinstance(inputs, Iterable)
    rows: list[dict[str, Any]] = []
    given_all = [inputs] if one else read_all(inputs, "inputs", "Give them to `iterate`, which holds a few at a time.")
    for number, given in enumerate(given_all, first):
        if isinstance(given, Mapping) and "prompt" in given:
            rows.append(dict(given))
        elif isinstance(given, str) or _is_conversation(given):
            rows.append({"prompt": given})
        else:
            raise ValueError(
                f"input {number}: {str(given)[:60]!r} is no text, no conversation (a list of messages) and no row with a prompt."
            )
    return rows


def several(inputs: Any) -> Iterator[Any]:
    """Several inputs, one by one. Raises ValueError for a single one, which would be taken for its letters or its keys."""
    if isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Iterable) or hasattr(inputs, "iloc"):
        raise ValueError(
            f"inputs: {shown(inputs)} is no list of inputs. Give a list, a data set or another iterable of them."
        )
    return iter(inputs)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)


def check_count(name: str, value: Any) -> None:
    """Raises ValueError unless so many warmups or beams of one prompt can be asked for."""
    if not _is_whole(value) or not 1 <= value <= MOST:
        given = f"{value:,}" if _is_whole(value) else shown(value)
        raise ValueError(f"{name}: is {given}, and each prompt is read that often. Give a whole number, 1 to {MOST:,}.")


def check_batch(batch_size: Any) -> None:
    """Raises ValueError unless so many rows can share a batch."""
    if not _is_whole(batch_size) or not 1 <= batch_size <= LARGEST:
        raise ValueError(f"batch_size: is {shown(batch_size)}. Give a whole number, 1 to {LARGEST:,}, such as 32.")


def check_forced(forced: Any, count: int, tokens: int) -> None:
    """Raises ValueError unless forced warmups are lists of ids below `tokens`, one for each of so many rows; None is allowed."""
    if forced is None:
        return
    remedy = f"Give a list of token ids, 0 to {tokens - 1}, for each row."
    if not isinstance(forced, list | tuple):
        raise ValueError(f"forced: {shown(forced)} is no list. {remedy}")
    if len(forced) != count:
        raise ValueError(f"forced: {len(forced)} warmups for {count} rows. Give one for each.")
    for place, ids in enumerate(forced):
        if not isinstance(ids, list | tuple) or not all(_is_place(i) and i < tokens for i in ids):
            raise ValueError(f"forced: number {place} is {shown(ids)}. {remedy}")


def device_of(given: Any) -> torch.device:
    """The device of that name; None is the first GPU, or the CPU where there is none. Raises ValueError: it is not here."""
    here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    try:
        if isinstance(given, bool) or str(given) == "meta":
            raise ValueError("it holds no numbers")
        found = torch.device(("cuda" if len(here) > 1 else "cpu") if given is None else given)
        torch.empty(1, device=found)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        why = f" ({str(error).splitlines()[0][:120]})" if isinstance(given, str | torch.device) else ""
        raise ValueError(
            f"device: {shown(given)} is no device of this machine{why}. Give one of {', '.join(here)}, or leave it out."
        ) from error
    return found


def first_of(places: Any) -> int:
    """The number of the first input, for errors; 0 where places are none or faulty."""
    return places[0] if isinstance(places, Sequence) and len(places) and _is_place(places[0]) else 0


def check_places(places: Any, count: int) -> None:
    """Raises ValueError unless places are numbers from 0, one for each of so many inputs; None is allowed."""
    if places is None:
        return
    if not isinstance(places, Sequence) or len(places) != count or not all(map(_is_place, places)):
        raise ValueError(
            f"places: {shown(places)} for {count} inputs. Give a whole number from 0 for each, or leave it out."
        )


def given_texts(warmup: Any, count: int) -> list[str]:
    """A given warmup for each of so many inputs. Raises ValueError: another number of them, or one that is no sound text."""
    if isinstance(warmup, bytes | Mapping) or not isinstance(warmup, Iterable):
        raise ValueError(f"warmup: {shown(warmup)} is no text. {ONE_EACH}")
    texts = [warmup] * count if isinstance(warmup, str) else read_all(warmup, "warmup", ONE_EACH)
    if len(texts) != count:
        raise ValueError(f"warmup: {len(texts)} texts for {count} inputs. {ONE_EACH}")
    for place, text in enumerate(texts):
        if not isinstance(text, str) or HALF.search(text):
            fault = "holds half a character" if isinstance(text, str) else "is no text"
            raise ValueError(f"warmup: number {place}, {shown(text)}, {fault}. Give a text, or '' for none.")
    return texts


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_place(value: Any) -> bool:
    return _is_whole(value) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and value == value  # nan differs from itself


def check_flags(**flags: Any) -> None:
    """Raises ValueError for a value that is neither True nor False: a text such as "no" would count as true."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}: is {shown(value)}. Give True or False.")


def check_tolerance(tolerance: Any) -> None:
    """Raises ValueError unless a metric may be worse by so much."""
    if not _is_number(tolerance) or tolerance < 0:
        raise ValueError(f"tolerance: is {shown(tolerance)}. Give a number of at least 0, in the metric's unit.")


def check_settings(
    mode: str, warmup: Any, num_warmups: int, select: str, utility: Any, num_beams: int, gate: Any, temperature: Any,
    batch_size: Any, seed: Any, **flags: Any,
) -> None:  # fmt: skip
    """Raises ValueError for settings of `generate` that are of a wrong type, out of range, or exclude each other.

    Args:
        flags: settings that are true or false.
    """
    if not isinstance(select, str) or select not in SELECTIONS:
        raise ValueError(f"select: {shown(select)} is none of {', '.join(SELECTIONS)}.")
    utility_of(utility)
    check_count("num_warmups", num_warmups)
    check_count("num_beams", num_beams)
    check_batch(batch_size)
    if not _is_whole(seed):
        raise ValueError(f"seed: is {shown(seed)}. Give a whole number.")
    check_flags(**flags)
    scale = RANGES["temperature"]
    if not _is_number(temperature) or not scale.low <= temperature <= scale.high:
        raise ValueError(
            f"temperature: is {shown(temperature)}. Give a number above 0, {scale.low:g} to {scale.high:g}."
        )
    if gate is not None and not _is_number(gate):
        raise ValueError(f"gate: is {shown(gate)}. Give a number (nats per token), or what calibrate_gate returns.")
    if flags.get("sample_target") and num_beams > 1:
        raise ValueError(
            "num_beams: beams search for the likeliest target, so they exclude sample_target. Leave one of the two out."
        )
    if warmup is not None and (num_warmups > 1 or gate is not None):
        raise ValueError(
            "warmup: a given warmup excludes num_warmups and gate, which use the model's own. Leave one of them out."
        )
    if mode == "empty" and (num_warmups > 1 or gate is not None):
        raise ValueError("num_warmups, gate: this model was trained without warmups, so it has none to choose from.")
