"""How many predictions of a run another program reproduces, greedily: CTranslate2, ONNX Runtime, transformers' own server.

    python -m benchmarks.serving RUN --program ctranslate2     # pip install ctranslate2
    python benchmarks/serving.py RUN --program onnx            # own environment: pip install 'optimum-onnx[onnxruntime]'
    python -m benchmarks.serving RUN --program server          # pip install 'transformers[serving]'; decoder-only

RUN is a folder with predictions.jsonl. Each line that is printed is one way of using the program. This file imports nothing of
rl_warmup, as programs may need another transformers. docs/serving.md has the numbers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerFast

Written = list[tuple[list[int], list[int]]]  # warmup and target of every row
TEMPLATE = "{{ bos_token }}{{ messages[-1]['content'] }}"  # a text alone, as a run without conversations reads it


class Run:
    """What a folder says about itself."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.rows = [json.loads(line) for line in (self.folder / "predictions.jsonl").read_text("utf-8").splitlines()]
        self.settings, self.config = (
            json.loads((self.folder / name).read_text("utf-8")) for name in ("generation_config.json", "config.json")
        )
        self.law, self.end = self.settings["warmup"], self.settings["eos_token_id"]
        # by its file: transformers 4 does not know the class that 5 names
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(self.folder / "tokenizer.json"))
        self.encoder_decoder = bool(self.config.get("is_encoder_decoder"))
        self.writes_warmups = self.law["max_length"] > 0

    def split(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """Warmup and target of what was written in one go."""
        separator = self.law["separator_id"]
        place = ids.index(separator) if separator in ids else len(ids)
        return ids[:place], self.ended(ids[place + 1 :])

    def ended(self, ids: list[int]) -> list[int]:
        """A target without its end token, cut at its limit."""
        return (ids[: ids.index(self.end)] if self.end in ids else ids)[: self.law["max_target_length"]]

    def equal(self, written: Written) -> int:
        """How many rows have the warmup and the target that were measured."""
        wanted = [(row["warmup_ids"], row["prediction_ids"]) for row in self.rows]
        return sum(pair == found for pair, found in zip(wanted, written, strict=True))


def ctranslate2(run: Run) -> Iterator[tuple[str, int]]:
    """One call under the folder's stock fields, and two calls: the warmup up to the separator or its limit, then the target."""
    from ctranslate2 import Generator, Translator
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as place:
        TransformersConverter(str(run.folder)).convert(place, force=True)
        model = (Translator if run.encoder_decoder else Generator)(place)
    tokens = run.tokenizer.convert_ids_to_tokens
    prompts = [tokens(run.tokenizer(row["prompt"])["input_ids"]) for row in run.rows]

    def write(before: list[list[str]], limit: int, end: int, never: list[int], shortest: int = 0) -> list[list[int]]:
        """The ids written after each prompt and the tokens `before`, of these many at most."""
        shared = {"end_token": tokens(end), "suppress_sequences": [[token] for token in tokens(never)], "beam_size": 1}
        if not run.encoder_decoder:
            begun = [prompt + own for prompt, own in zip(prompts, before, strict=True)]
            shared |= {"max_length": limit, "min_length": shortest, "include_prompt_in_result": False}
            return [result.sequences_ids[0] for result in model.generate_batch(begun, **shared)]
        longest = limit + max(map(len, before))  # a prefix counts
        shared |= {"max_decoding_length": longest, "min_decoding_length": shortest, "target_prefix": before}
        found = [result.hypotheses[0] for result in model.translate_batch(prompts, **shared)]
        return [run.tokenizer.convert_tokens_to_ids(row[len(own) :]) for row, own in zip(found, before, strict=True)]

    never, nothing = run.settings.get("suppress_tokens") or [], [[] for _ in run.rows]
    separator = [tokens(run.law["separator_id"])]
    if not run.writes_warmups:
        found = write([separator for _ in run.rows], run.law["max_target_length"], run.end, never)
        yield "one call, the separator given", run.equal([([], run.ended(ids)) for ids in found])
        return
    found = write(nothing, run.settings["max_new_tokens"], run.end, never, run.settings["min_new_tokens"])
    yield "one call", run.equal([run.split(ids) for ids in found])
    in_warmups = never + run.law["not_in_warmups"]
    warmups = write(nothing, run.law["max_length"], run.law["separator_id"], in_warmups, run.law["min_length"])
    before = [tokens(ids) + separator for ids in warmups]
    targets = map(run.ended, write(before, run.law["max_target_length"], run.end, never))
    yield "two calls", run.equal(list(zip(warmups, targets, strict=True)))


def onnx(run: Run) -> Iterator[tuple[str, int]]:
    """`generate` of the exported model with the folder's stock fields, and with the limits of its code as well."""
    from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM

    model = (ORTModelForSeq2SeqLM if run.encoder_decoder else ORTModelForCausalLM).from_pretrained(
        run.folder, export=True, trust_remote_code=False
    )
    spec = importlib.util.spec_from_file_location("own", run.folder / "custom_generate" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)

    def write(prompt: str, limits: bool) -> tuple[list[int], list[int]]:
        inputs = run.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        more = {"logits_processor": [code.WarmupThenTarget(run.law, run.end)]} if limits else {}
        out = model.generate(**inputs, generation_config=GenerationConfig(**run.settings), **more)
        return run.split(out[0, 1 if run.encoder_decoder else inputs["input_ids"].size(1) :].tolist())

    for limits, name in [(False, "stock fields"), (True, "with the folder's limits")][: 1 + run.writes_warmups]:
        yield name, run.equal([write(row["prompt"], limits) for row in run.rows])


def server(run: Run, port: int = 8123) -> Iterator[tuple[str, int]]:
    """`transformers serve` of a copy, asked for chat completions; with and without the folder's code."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "model")
        shutil.copytree(run.folder, folder)
        if not (folder / "chat_template.jinja").exists():
            (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        for code in (False, True)[: 1 + run.writes_warmups]:
            flags = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", *["--trust-remote-code"] * code]
            command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
            with Path(place, "log").open("w") as log:
                process = subprocess.Popen(
                    [*command, str(folder), *flags], stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}
                )
            try:
                yield f"chat, {'with' if code else 'without'} the folder's code", _asked(run, folder, port, process)
            finally:
                process.terminate()
                process.wait()


def _asked(run: Run, folder: Path, port: int, process: subprocess.Popen) -> int:
    """How many answers of a server have the warmup as reasoning and the prediction as content."""
    equal = 0
    for row in run.rows:
        body: dict[str, Any] = {"model": str(folder), "messages": [{"role": "user", "content": row["prompt"]}]}
        body["max_tokens"] = run.settings["max_new_tokens"]
        message = _post(f"http://127.0.0.1:{port}/v1/chat/completions", body, process)["choices"][0]["message"]
        found = [(message.get(key) or "").strip() for key in ("reasoning_content", "content")]
        equal += found == [row["warmup"], row["prediction"]]
    return equal


def _post(address: str, body: dict[str, Any], process: subprocess.Popen, seconds: float = 180) -> Any:
    """The answer of a server that may still be starting. Raises TimeoutError after `seconds`, RuntimeError if it has ended."""
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError("The server ended: pip install 'transformers[serving]'.")
        try:
            return json.load(urllib.request.urlopen(request, timeout=60))
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                raise
            time.sleep(1)
    raise TimeoutError(f"No answer from {address} in {seconds} s.")


PROGRAMS = {"ctranslate2": ctranslate2, "onnx": onnx, "server": server}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", help="folders with predictions.jsonl")
    parser.add_argument("--program", choices=PROGRAMS, required=True)
    args = parser.parse_args()
    for folder in args.run:
        run = Run(folder)
        if args.program == "server" and run.encoder_decoder:
            print(f"{folder}: transformers serve takes decoder-only models alone.")
            continue
        for way, equal in PROGRAMS[args.program](run):
            print(f"{folder}: {args.program}, {way}: {equal} of {len(run.rows)} rows equal", flush=True)


if __name__ == "__main__":
    main()
