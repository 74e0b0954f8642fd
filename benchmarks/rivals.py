"""What other trainers cost on the Llama shape: TRL's GRPOTrainer with a log-probability reward, and LaTRO's schedule.

    python -m benchmarks.rivals

Ratios are to an SFT step; the targets compare with our own step, measured beside them. TRL's step includes its tokenizing
and its metrics, as ours does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.results import Row, arguments, save
from benchmarks.shapes import MAX_WARMUP, SHAPES
from benchmarks.targets import compare


def trl_grpo(workload: Any, model: Any, optimizer: Any, folder: str, n: int, bf16: bool = False) -> Callable[[], Any]:
    """One optimizer step of TRL's GRPOTrainer: B prompts x n completions of at most 16 tokens, no reference model.

    Its reward is log P(y|x,c) of the current model, from one padded forward without gradient. Completions end with the
    separator, so that is the end token of the tokenizer it gets. Unlike by its defaults, weights stay in float32 and
    activations are kept (gradient checkpointing would slow it down). It trains P(c|x) alone, never P(y|x,c).
    """
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.stock import row_logprobs, update
    from benchmarks.workloads import SEPARATOR, SEPARATOR_ID, make_tokenizer

    rows = [{**row, "index": i} for i, row in enumerate(workload.rows)]

    @torch.no_grad()
    def target_logprob(completion_ids: list[list[int]], index: list[int], **columns: Any) -> list[float]:
        prompts, targets = [workload.prompts[i] for i in index], [workload.targets[i] for i in index]
        with torch.autocast(workload.device.type, torch.bfloat16, enabled=bf16):
            return row_logprobs(model, prompts, completion_ids, targets, workload.device)[1].tolist()

    args = GRPOConfig(
        output_dir=folder, num_generations=n, per_device_train_batch_size=n * len(rows), beta=0.0, temperature=1.0,
        max_completion_length=MAX_WARMUP, top_k=0, generation_kwargs={"min_new_tokens": 1}, bf16=bf16,
        gradient_checkpointing=False, use_cpu=workload.device.type == "cpu", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    model.generation_config.eos_token_id = SEPARATOR_ID
    trainer = GRPOTrainer(
        model=model, reward_funcs=target_logprob, args=args, train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(workload.shape, end=SEPARATOR), optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1  # set by `train`, which is not called here
    if bf16:
        trainer.accelerator.prepare_model(model)  # autocast, likewise
    batch = [row for row in rows for _ in range(n)]

    def step() -> None:
        trainer.training_step(trainer.model, batch, None)
        update(model, optimizer)

    return step


def rival_steps(workload: Any, folder: str, n: int) -> dict[str, Callable[[], Any]]:
    """Steps of both rivals, each with a model of its own: TRL changes settings of the model it gets."""
    from benchmarks.stock import adamw, latro

    of_trl, of_latro, reference = workload.model(), workload.model(), workload.model()
    return {
        "trl_grpo": trl_grpo(workload, of_trl, adamw(of_trl), folder, n),
        "latro": latro(workload, of_latro, reference, adamw(of_latro), n),
    }


def main() -> None:
    """Measure what the command line asks for."""
    args = arguments(__doc__, n=(4, 8), shapes=["llama-d256"]).parse_args()
    from benchmarks.step_cost import measure_steps

    rows: list[Row] = []
    for name in args.shapes:
        if SHAPES[name].kind == "t5":
            raise SystemExit(f"rivals: TRL trains decoder-only models alone, {name} is none. Use llama-d256.")
        variants = ["sft", "ours_all", "ours_k1", "trl_grpo", "latro"]
        rows += measure_steps("rivals", name, dict.fromkeys(args.n, variants), args.repeats)
    save(args.out, "rivals", rows, compare(rows))


if __name__ == "__main__":
    main()
