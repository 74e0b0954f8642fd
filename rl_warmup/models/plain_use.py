"""What a saved model needs so that plain transformers writes what was measured: its generation settings, code, a README.

Knows: the inference settings, fields of transformers' `GenerationConfig`. Must not know: training, tasks.
Stock fields ban tokens, force the separator of a model without warmups and bound the whole text. They cannot end a warmup
at its limit, or keep the end token out of warmups alone: custom_generate/generate.py does.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from rl_warmup.models import custom_generate
from rl_warmup.models.chat import NONE
from rl_warmup.models.inference_settings import Inference
from rl_warmup.models.tokens import LayoutTokens
from rl_warmup.runtime.ownership import CARD

CODE, README, MARK = "custom_generate/generate.py", "README.md", f"{CARD}: how to use this model -->"


def stock_settings(model: Any, settings: Inference, tokens: LayoutTokens) -> GenerationConfig:
    """The generation settings of a trained model: greedy, nothing of the starting model's own."""
    law, start = settings.constraints, getattr(model.config, "decoder_start_token_id", None)
    writes_warmups, suppressed = settings.mode == "policy", settings.suppressed(tokens)
    shortest, longest = (law.min_length, law.max_length) if writes_warmups else (0, 0)
    limits = {
        "separator_id": tokens.separator_id, "min_length": shortest, "max_length": longest,
        "max_target_length": settings.max_target_length,
        "not_in_warmups": [i for i in tokens.banned_ids if i not in set(suppressed)],
    }  # fmt: skip
    fields: dict[str, Any] = {"suppress_tokens": suppressed or None}
    if writes_warmups:
        fields |= {"min_new_tokens": shortest + 1}  # the end token stands after the separator at the earliest
        fields |= {"begin_suppress_tokens": [tokens.separator_id]} if shortest else {}
    elif model.config.is_encoder_decoder:
        fields["forced_bos_token_id"] = tokens.separator_id
    else:  # transformers forces a first token for encoder-decoders alone
        others = set(range(len(tokens.banned))) - {tokens.separator_id, *suppressed}
        fields["begin_suppress_tokens"] = sorted(others)
    return GenerationConfig(
        do_sample=False, max_new_tokens=longest + 1 + settings.max_target_length, pad_token_id=tokens.pad_id,
        eos_token_id=tokens.eos_id, decoder_start_token_id=start, warmup=limits, **fields,
    )  # fmt: skip


def save_for_plain_use(folder: str | Path, model: Any, settings: Inference, tokens: LayoutTokens) -> None:
    """Write generation_config.json, custom_generate/generate.py and the README's section beside saved weights."""
    folder = Path(folder)
    stock_settings(model, settings, tokens).save_pretrained(folder)
    (folder / CODE).parent.mkdir(exist_ok=True)
    shutil.copyfile(str(custom_generate.__file__), folder / CODE)
    page, adapter = folder / README, (folder / "adapter_config.json").is_file()
    before = page.read_text(encoding="utf-8").partition(MARK)[0] if page.is_file() else ""
    section = how_to_use(model, settings, tokens, adapter)
    page.write_text(f"{before.rstrip()}\n\n{MARK}\n{section}".lstrip(), encoding="utf-8")


def how_to_use(model: Any, settings: Inference, tokens: LayoutTokens, adapter: bool) -> str:
    """The section of the folder's README: load, write, split. `adapter`: whether the folder holds one, not a whole model."""
    auto = "AutoModelForSeq2SeqLM" if model.config.is_encoder_decoder else "AutoModelForCausalLM"
    law, limit = settings.constraints, settings.max_prompt_length
    cut = settings.prompt_truncation
    cutting = f", truncation=True, max_length={limit}" if limit and cut != "error" else ""
    side = ', truncation_side="left"' if limit and cut == "left" else ""
    begin = 1 if model.config.is_encoder_decoder else 'inputs["input_ids"].size(1)'
    writes = settings.mode == "policy"
    what = f"a warmup of {law.min_length} to {law.max_length} tokens, " if writes else ""
    agree = f"""`trust_remote_code=True` runs custom_generate/generate.py (read it first), which does what the stock fields of
generation_config.json cannot express: a warmup of {law.max_length} tokens is ended, no end token ends one, and none is
shorter than {law.min_length}. Without that argument the text is the same where the model writes the separator by itself. Many
models end the text there instead, without a target; those trained with `proposals: [reference]` mostly do, as the separator
began as a copy of the end token. A program without this code then needs two calls: up to the separator, with the end token
banned; then from prompt, warmup and separator on."""
    if not writes:
        agree = "It was trained without warmups, so the separator comes first; generation_config.json sees to that, without code."
    config = ', generation_config=GenerationConfig.from_pretrained(".")' if adapter else ""
    more = ', custom_generate=".", trust_remote_code=True' if adapter and writes else ""
    trust = ", trust_remote_code=True" if writes and not adapter else ""
    lost = "The warmup did not end, so no target was written: see below what trust_remote_code does."
    check = f'if {tokens.separator_id} not in ids:\n    raise SystemExit("{lost}")\n' if writes else ""
    templated = settings.chat and settings.chat_template != NONE
    unlike = (
        "; a conversation cut on the left keeps its begin token there, and loses it here" if templated and side else ""
    )
    programs = (
        "transformers and peft (and the base model that adapter_config.json names)" if adapter else "transformers"
    )
    imports = f"{auto}, AutoTokenizer" + (", GenerationConfig" if adapter else "")
    return f"""# How to use this model

It writes {what}the separator `{tokens.separator}` (token {tokens.separator_id}) and then the target. With rl_warmup:

```python
from rl_warmup import WarmupGenerator

print(WarmupGenerator.from_pretrained(".").generate(["a prompt"])[0]["prediction"])
```

With {programs} alone, token for token what `predictions.jsonl` holds (greedy; in 16 bits, or in other batches, ties may
fall otherwise{unlike}):

```python
from transformers import {imports}

tokenizer = AutoTokenizer.from_pretrained("."{side})
model = {auto}.from_pretrained("."{trust})
{_reading(settings, cutting)}
ids = model.generate(**inputs{config}{more})[0, {begin}:].tolist()
{check}place = ids.index({tokens.separator_id})
warmup, target = ids[:place], ids[place + 1 :][:{settings.max_target_length}]
print(tokenizer.decode(warmup, skip_special_tokens=True))
print(tokenizer.decode(target, skip_special_tokens=True))
```

{agree} Decoding all of `ids` at once would glue the warmup to the target, so split them first.
"""


def _reading(settings: Inference, cutting: str) -> str:
    """The lines that make the model's inputs of a prompt, with these arguments that cut it."""
    prompt = settings.prompt("a prompt")
    if not settings.chat:
        return f'inputs = tokenizer({prompt!r}{cutting}, return_tensors="pt")'
    messages = settings.chat_format().messages(prompt)
    if settings.chat_template == NONE:
        text = "\n".join(message["content"] for message in messages)
        return (
            f"text = {text!r}  # the contents of a conversation, a message per line\n"
            f'inputs = tokenizer(text{cutting}, return_tensors="pt")'
        )
    kwargs = "".join(f", {key}={value!r}" for key, value in settings.chat_template_kwargs.items())
    how = f"add_generation_prompt=True, return_dict=True{kwargs}{cutting}"
    return f'messages = {messages!r}\ninputs = tokenizer.apply_chat_template(messages, {how}, return_tensors="pt")'
