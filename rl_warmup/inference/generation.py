"""Inference: a model writes a warmup, or reads a given one, and then writes the target.

Knows: a model, its layout and sampling constraints, encoded rows. Must not know: training, rewards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch

from rl_warmup.engine import Written, generate_targets
from rl_warmup.inference.asked import (
    ONE_EACH,
    as_rows,
    check_batch,
    check_forced,
    check_places,
    check_settings,
    device_of,
    first_of,
    given_texts,
    several,
)
from rl_warmup.inference.gate import Gate, calibrate, sureness
from rl_warmup.inference.likelihood import mixtures, written_logprobs
from rl_warmup.inference.selection import Utility, expected_utility, utility_of, votes
from rl_warmup.inference.streaming import PartStreamer
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.encoding import ADDED, RowEncoder
from rl_warmup.models.inference_settings import Inference, read_layout
from rl_warmup.models.layouts import Layout, make_layout
from rl_warmup.models.loading import load_model
from rl_warmup.models.tokens import declare_tokens
from rl_warmup.runtime.run_files import require_folder
from rl_warmup.runtime.sharing import is_main, map_over_processes, uniforms
from rl_warmup.runtime.terminal import progress

WRITTEN = (  # columns of a prediction
    "warmup", "warmup_ids", "warmup_finish", "prediction", "prediction_ids", "prediction_finish",
)  # fmt: skip
LOGPROBS = ("warmup_logprob", "prediction_logprob")
FOUND = (*LOGPROBS, "score", "candidates", "gated")  # columns of some predictions
KINDS = {"prompt_ids": "encoded", "target": "rows", "completion": "rows"}  # by a column; other rows are prompts
WINDOW = 32  # batches that `iterate` holds


@dataclass
class WarmupGenerator:
    """A model ready to write warmups and targets."""

    model: Any
    tokenizer: Any
    layout: Layout
    settings: Inference  # templates, limits and sampling constraints of the model
    shared: bool = False  # whether the processes share the rows; all of them have to call

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | torch.device | None = None, **kwargs: Any
    ) -> WarmupGenerator:
        """Load a folder that training wrote: weights, tokenizer and warmup_layout.json.

        Raises ValueError: no such model, or warmup_layout.json is missing or damaged.
        """
        require_folder(folder)
        place = device_of(device)
        declared = read_layout(folder)
        if not declared:
            raise ValueError(
                f"{folder} holds no warmup_layout.json, so its separator is unknown. Give the output_dir of a training, or a "
                f"checkpoint in it."
            )
        model, tokenizer = load_model(str(folder), **{"dtype": "auto", **kwargs})
        tokens = declare_tokens(model, tokenizer, declared["separator"])
        settings = Inference.read(folder, tokens)
        model.to(place).eval()
        return cls(model, tokenizer, make_layout(model, tokens), settings)

    load = from_pretrained

    @property
    def constraints(self) -> SamplingConstraints:
        """The sampling constraints of warmups."""
        return self.settings.constraints

    @property
    def mode(self) -> str:
        """`policy`, or `empty` for a model trained without warmups."""
        return self.settings.mode

    def encoder(self) -> RowEncoder:
        """Encodes rows and prompts for this model, as training would."""
        return self.settings.encoder(self.model, self.tokenizer)

    def generate(
        self, inputs: Any, *, warmup: Any = None, num_warmups: int = 1, select: str = "marginal",
        utility: str | Utility = "chrf", sample_warmup: bool = False, sample_target: bool = False, temperature: float = 1.0,
        num_beams: int = 1, gate: float | Gate | None = None, logprobs: bool = True, batch_size: int = 32, seed: int = 0,
        places: Sequence[int] | None = None, show_progress: bool = False,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Predictions for texts, conversations or rows, in their order.

        Args:
            inputs: a text; a conversation (a list of messages); a row with `prompt`; or a list or data set of these.
            warmup: a text that is read in place of the model's warmups, or one for each input; "" is none.
            num_warmups: with more than one, so many warmups are sampled, a target is written after each, and one is taken.
            select: `marginal` takes the target of the highest log mean_i P(y|x,c_i), `mbr` the one of the highest mean
                utility against all, `vote` the most frequent one (of rows with `choices`: the choice picked most often, if
                any is).
            utility: of `mbr`: `chrf`, `rouge`, or a function of two texts.
            sample_warmup: sample one warmup instead of taking the likeliest tokens.
            sample_target, temperature: sample the target too.
            num_beams: beams of the target, which is then the likeliest found (summed log-probability).
            gate: mean log-probability per token from which a prediction without a warmup is kept; see `calibrate_gate`.
            logprobs: whether to measure `warmup_logprob` and `prediction_logprob` (one forward).
            seed: of everything sampled.
            places: the numbers of the inputs, from 0 by default: each draws by its own, and errors name it.

        Returns:
            A dict for each input: its columns, `warmup`, `warmup_ids`, `warmup_finish`, `prediction`, `prediction_ids`,
            `prediction_finish`; with `logprobs` log P(c|x) and log P(y|x,c), nats; with several warmups `score` and
            `candidates`; with a gate `gated` (whether the warmup was skipped).

        Raises:
            ValueError: settings that exclude each other, or an input that cannot be encoded.
        """
        gate = gate.threshold if isinstance(gate, Gate) else gate
        check_settings(
            self.mode, warmup, num_warmups, select, utility, num_beams, gate, temperature, batch_size, seed,
            sample_warmup=sample_warmup, sample_target=sample_target, logprobs=logprobs, show_progress=show_progress,
        )  # fmt: skip
        rows = as_rows(inputs, first_of(places))
        check_places(places, len(rows))
        rows = self.encoded(rows, places)
        places = range(len(rows)) if places is None else places
        settings: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "places": places, "num_beams": num_beams}
        settings |= {"sample_target": sample_target, "temperature": temperature, "show_progress": show_progress}
        if gate is not None:
            return self._gated(rows, gate, settings, num_warmups=num_warmups,
                               select=select, utility=utility, sample_warmup=sample_warmup, logprobs=logprobs)  # fmt: skip
        if num_warmups > 1:
            out = self._best(rows, num_warmups, select, utility, settings)
        else:
            out = self.predict(rows, forced=self._given(warmup, len(rows)), sample_warmup=sample_warmup, **settings)
        if logprobs:
            for prediction, pair in zip(out, written_logprobs(self, rows, out, batch_size), strict=True):
                prediction["warmup_logprob"], prediction["prediction_logprob"] = pair
        return out

    def iterate(
        self, inputs: Iterable[Any], batch_size: int = 32, show_progress: bool = False, warmup: Any = None, **settings: Any
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """The predictions of `generate` one by one, without holding all inputs: `WINDOW` batches are sorted at a time."""
        found = self._in_windows(inputs, batch_size, warmup, settings)
        yield from progress(found, "Predicting", show_progress and is_main())

    def _in_windows(
        self, inputs: Iterable[Any], batch_size: int, warmup: Any, settings: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        check_batch(batch_size)
        if "places" in settings:
            raise ValueError("places: `iterate` numbers its inputs from 0. Leave it out.")
        source, place = several(inputs), 0
        listed = warmup if isinstance(warmup, Iterable | None) else given_texts(warmup, 1)
        given = None if listed is None or isinstance(listed, str) else iter(listed)  # one for each input
        while window := list(islice(source, WINDOW * batch_size)):
            places = range(place, place + len(window))
            own = warmup if given is None else list(islice(given, len(window)))
            if given is not None and len(own) < len(window):
                raise ValueError(f"warmup: {place + len(own)} texts for more inputs. {ONE_EACH}")
            yield from self.generate(window, warmup=own, batch_size=batch_size, places=places, **settings)
            place += len(window)
        if given is not None and list(islice(given, 1)):
            raise ValueError(f"warmup: more texts than the {place} inputs. {ONE_EACH}")

    def stream(self, prompt: Any, warmup: str | None = None) -> Iterator[tuple[str, str]]:
        """The pieces of one prompt's text as they are written: ("warmup", piece), then ("target", piece). Greedy."""
        (row,) = self.encoded(as_rows([prompt]))
        forced = self._given("" if self.mode == "empty" and warmup is None else warmup, 1)
        self.check_room([row], forced)
        streamer = PartStreamer(self.decode, self.constraints.separator_id, self.layout.tokens.eos_id)
        suppressed = self.settings.suppressed(self.layout.tokens)
        yield from streamer.pieces(lambda: self._write([row], forced, suppressed=suppressed, streamer=streamer))

    def calibrate_gate(
        self, rows: Any, metric: Any = "exact_match", tolerance: float = 0.0, batch_size: int = 32
    ) -> Gate:
        """The `gate` of `generate` by validation rows, and what it does on them: see `gate.calibrate`."""
        return calibrate(self, as_rows(rows), metric, tolerance, batch_size)

    def predict(
        self, rows: Sequence[dict[str, Any]], batch_size: int = 32, forced: Sequence[list[int]] | None = None,
        sample_warmup: bool = False, show_progress: bool = False, seed: int | str | None = None, sample_target: bool = False,
        temperature: float = 1.0, num_beams: int = 1, places: Sequence[int] | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Predictions for rows: the text columns plus those of `WRITTEN`.

        Rows of similar length share a batch. Each row has its own random stream, so samples depend on `seed` and the row's
        place, but not on the batch or the number of processes.

        Args:
            rows: with `prompt` (and, besides other columns, `target`), or already encoded (`models.encoding`).
            forced: warmups (ids) instead of the policy's, one per row; see `controls.control_warmups`.
            sample_warmup: sample warmups instead of taking their likeliest tokens.
            seed: of what is sampled; None takes one from torch's random state.
            sample_target, temperature, num_beams, places: as `generate`; without them the target is greedy.

        Raises:
            ValueError: a row that cannot be encoded, or a forced warmup that leaves too few positions.
        """
        check_settings(
            self.mode, None, 1, "marginal", "chrf", num_beams, None, temperature, batch_size,
            0 if isinstance(seed, str | None) else seed, sample_warmup=sample_warmup, sample_target=sample_target,
            show_progress=show_progress,
        )  # fmt: skip
        rows = as_rows(rows, first_of(places))
        check_places(places, len(rows))
        rows = self.encoded(rows, places)
        check_forced(forced, len(rows), len(self.constraints.banned))
        numbers = range(len(rows)) if places is None else places
        if forced is None and self.mode == "empty":
            forced = [[] for _ in rows]
        self.check_room(rows, forced, numbers)
        suppressed = self.settings.suppressed(self.layout.tokens)
        if (sample_warmup or sample_target) and seed is None:
            seed = int(torch.randint(2**31, ()))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["prompt_ids"]))

        def write(start: int) -> list[dict[str, Any]]:
            chosen = order[start : start + batch_size]
            own = [numbers[i] for i in chosen]
            given = None if forced is None else [forced[i] for i in chosen]
            settings: dict[str, Any] = {"temperature": temperature, "suppressed": suppressed}
            if sample_warmup:
                settings["draws"] = uniforms("predict", seed, own, 1, self.constraints.max_length)
            if sample_target:
                longest = max(map(len, given), default=0) if given is not None else self.constraints.max_length
                steps = longest + 1 + self.settings.max_target_length
                settings["sample_target"] = uniforms("target", seed, own, 1, steps)
            return self._write([rows[i] for i in chosen], given, num_beams, **settings)

        starts = range(0, len(rows), batch_size)
        batches = map_over_processes(write, starts, self.shared, "Predicting" if show_progress else "")
        out = [prediction for batch in batches for prediction in batch]
        return [prediction for _, prediction in sorted(zip(order, out, strict=True), key=lambda pair: pair[0])]

    def _write(
        self, rows: Sequence[dict[str, Any]], forced: Sequence[list[int]] | None, num_beams: int = 1, **settings: Any
    ) -> list[dict[str, Any]]:
        """Predictions of one batch."""
        prompts, longest = [row["prompt_ids"] for row in rows], self.settings.max_target_length
        finishes: list[str] | None = None
        if num_beams > 1 and forced is None:  # first the warmups, then beams from them
            found = generate_targets(self.model, self.layout, self.constraints, prompts, 1, **settings)
            forced, finishes = [w.warmup.ids for w in found], [w.warmup.finish for w in found]
        written = generate_targets(
            self.model, self.layout, self.constraints, prompts, longest, forced, num_beams=num_beams, **settings
        )
        out = [self._prediction(row, w) for row, w in zip(rows, written, strict=True)]
        for prediction, finish in zip(out, finishes or (), strict=False):
            prediction["warmup_finish"] = finish
        return out

    def _best(
        self,
        rows: list[dict[str, Any]],
        num_warmups: int,
        select: str,
        utility: str | Utility,
        settings: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """The selected one of the targets written after several sampled warmups."""
        seed, measure = settings.pop("seed"), utility_of(utility) if select == "mbr" else None
        seeds = [seed if k == 0 else f"{seed}/{k}" for k in range(num_warmups)]  # seed + k is another call's
        candidates = [self.predict(rows, sample_warmup=True, seed=own, **settings) for own in seeds]
        marginal = mixtures(self, rows, candidates, settings["batch_size"]) if select == "marginal" else []
        out = []
        for place, row in enumerate(rows):
            own = [drawn[place] for drawn in candidates]
            texts = [candidate["prediction"] for candidate in own]
            if select == "marginal":
                scores = marginal[place]
            else:
                scores = expected_utility(texts, measure) if measure is not None else votes(texts, row.get("choices"))
            pairs = zip(own, scores, strict=True)
            tried = [{"warmup": c["warmup"], "prediction": c["prediction"], "score": score} for c, score in pairs]
            best = scores.index(max(scores))
            out.append({**own[best], "score": scores[best], "candidates": tried})
        return out

    def _gated(
        self, rows: list[dict[str, Any]], threshold: float, settings: dict[str, Any], **more: Any
    ) -> list[dict[str, Any]]:
        """Predictions without a warmup where they are sure enough, and with warmups for the other rows."""
        out = self.generate(rows, warmup="", **settings)
        unsure = [i for i, prediction in enumerate(out) if sureness(prediction) < threshold]
        for prediction in out:
            prediction["gated"] = True
        if unsure:
            settings["places"] = [settings["places"][i] for i in unsure]
            warmed = self.generate([rows[i] for i in unsure], **settings, **more)
            for i, prediction in zip(unsure, warmed, strict=True):
                out[i] = {**prediction, "gated": False}
        return out if more["logprobs"] else [{k: v for k, v in p.items() if k not in LOGPROBS} for p in out]

    def _given(self, warmup: Any, count: int) -> list[list[int]] | None:
        """Ids of given warmups, one for each row, without tokens that a warmup may not hold; None for the model's own."""
        if warmup is None:
            return None
        texts = given_texts(warmup, count)
        found = (self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text in texts)
        kept = [self.constraints.allowed(ids) for ids in found]
        if lost := [text for text, ids in zip(texts, kept, strict=True) if text.strip() and not ids]:
            why = "has no token that a warmup may hold: all are unknown to this tokenizer, or special"
            raise ValueError(f"warmup: {lost[0]!r:.60} {why}. Give another text, or '' for none.")
        return kept

    def encoded(self, rows: Sequence[dict[str, Any]], places: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The rows with their ids. Encoded rows stay as they are; a prompt without a target is filled into the template.

        Each row is taken by its own columns, whatever stands beside it.

        Args:
            places: the numbers of the rows, for errors and ids; of rows with targets side by side they follow each other.
        """
        kinds = [next((column for column in KINDS if column in row), "prompt") for row in rows]
        if set(kinds) <= {"prompt_ids"}:
            return list(rows)
        encoder, numbers = self.encoder(), range(len(rows)) if places is None else places
        out: list[dict[str, Any]] = []
        for kind, group in groupby(zip(rows, kinds, numbers, strict=True), lambda one: KINDS.get(one[1], "prompts")):
            part, _, own = zip(*group, strict=True)
            if kind == "rows":
                encode = encoder.encode_all if len(part) == len(rows) else encoder.encode_each
                out += encode(part, kind, first=own[0])
            elif kind == "prompts":
                found = encoder.encode_prompts([self.settings.prompt(row["prompt"]) for row in part], own)
                out += [{**ids, **row} for row, ids in zip(part, found, strict=True)]
            else:
                out += part
        if "prompt" in kinds and (unread := encoder.writable.say("prompts")) and is_main():
            print(unread, file=sys.stderr)
        return out

    def check_room(
        self, rows: Sequence[dict[str, Any]], forced: Sequence[list[int]] | None, places: Sequence[int] | None = None
    ) -> None:
        """Check that forced warmups, which may be longer than the model's, fit its positions.

        Raises ValueError: naming the row that needs more positions than there are.
        """
        longest = max(map(len, forced or ()), default=0)
        if not longest:
            return
        positions = self.encoder().positions
        if positions is None or longest <= positions.warmup:
            return
        needed = replace(positions, warmup=longest)
        for place, row in zip(range(len(rows)) if places is None else places, rows, strict=True):
            target = len(row.get("target_ids", [0]))
            needed.check(len(row["prompt_ids"]), target, f"row {place} with its forced warmup")

    def filler_ids(self) -> list[int]:
        """The warmup of the control `filler`: `...` up to the length limit."""
        ids = self.tokenizer("...", add_special_tokens=False)["input_ids"]
        return (ids * self.constraints.max_length)[: self.constraints.max_length]

    def decode(self, ids: list[int]) -> str:
        """Ids as text, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _prediction(self, row: dict[str, Any], written: Written) -> dict[str, Any]:
        is_prediction = all(name in row for name in WRITTEN)  # an earlier one, whose scores are not this one's
        made = (*ADDED, *FOUND) if is_prediction else ADDED
        text, warmup = {k: v for k, v in row.items() if k not in made}, written.warmup
        prediction, finish = self.decode(written.target), "end" if written.ended else "length"
        values = (self.decode(warmup.ids), warmup.ids, warmup.finish, prediction, written.target, finish)
        return {**text, **dict(zip(WRITTEN, values, strict=True))}
