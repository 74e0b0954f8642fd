"""What an optimizer step costs beside an SFT step on the same prompts: SFT, the naive loop, ours with k = all, 2, 1.

    python -m benchmarks.step_cost --quick      # the project's targets, under 4 minutes on one core
    python -m benchmarks.step_cost              # every shape and group size: an hour or more

`ours_k2` trains on 2 of the n warmups (`backward_samples`), `ours_all` on all; `sft_ours` is our trainer as SFT.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.results import Row, arguments, plot, save, write_csv
from benchmarks.shapes import GROUP_SIZES, SHAPES
from benchmarks.targets import compare

VARIANTS = ("sft", "sft_ours", "naive", "ours_all", "ours_k2", "ours_k1")
RIVALS = ("trl_grpo", "latro")


def make_steps(workload: Any, folder: str, n: int, variants: Sequence[str]) -> dict[str, Any]:
    """The steps of all variants that make sense at this n. Stock variants share one model, ours another."""
    from benchmarks.ours import ours
    from benchmarks.rivals import rival_steps
    from benchmarks.stock import adamw, naive, sft

    stock, patched = workload.model(), workload.model()
    stock_adam, patched_adam = adamw(stock), adamw(patched)
    makers = {
        "sft": lambda: sft(workload, stock, stock_adam),
        "sft_ours": lambda: ours(workload, patched, patched_adam, folder, n, objective="sft"),
        "naive": lambda: naive(workload, stock, stock_adam, n),
        "ours_all": lambda: ours(workload, patched, patched_adam, folder, n),
        "ours_k2": lambda: ours(workload, patched, patched_adam, folder, n, backward_samples=2),
        "ours_k1": lambda: ours(workload, patched, patched_adam, folder, n, backward_samples=1),
    }
    fewer = {"ours_k2": 2, "ours_k1": 1}
    steps = {name: make() for name, make in makers.items() if name in variants and fewer.get(name, 0) < n}
    if set(RIVALS) & set(variants):
        steps |= {name: step for name, step in rival_steps(workload, folder, n).items() if name in variants}
    return steps


def measure_steps(
    bench: str, shape: str, n: int, variants: Sequence[str], repeats: int, memory: bool = True, slow: Sequence[str] = ()
) -> list[Row]:
    """Rows of one shape and one group size, ratios to SFT; prints how long its warmups are and how it goes."""
    import torch

    from benchmarks.measure import measure, rows
    from benchmarks.workloads import make_workload, mean_warmup_length

    torch.set_num_threads(1)
    began = time.perf_counter()
    workload = make_workload(SHAPES[shape])
    length = mean_warmup_length(workload, workload.model())
    with tempfile.TemporaryDirectory() as folder:
        costs = measure(make_steps(workload, folder, n, variants), repeats, memory, slow)
    found = rows(bench, shape, n, costs, "sft")
    ratios = "  ".join(f"{row.variant} {row.ratio:.2f}" for row in found)
    spent = time.perf_counter() - began
    print(f"{shape} n={n}, mean warmup {length:.1f} tokens: {ratios}  ({spent:.0f} s)", flush=True)
    return found


def quick(repeats: int) -> list[Row]:
    """What the targets need, and no more: without peak memory, which the tests watch."""
    from benchmarks.sampler import measure_sampling

    rows: list[Row] = []
    for n in (8, 4):  # the larger first: the process has grown by then, and fewer rounds pay for fresh pages
        rows += measure_steps("step_cost", "t5-d256", n, ["sft", "ours_all", "ours_k1"], repeats, memory=False)
        rows += measure_sampling("t5-d256", n, repeats, memory=False)
        variants = ["sft", "ours_all", "ours_k1", *RIVALS]
        rows += measure_steps("step_cost", "llama-d256", n, variants, repeats, memory=False, slow=RIVALS)
    return sorted(rows, key=lambda row: row.n or 0)


def main() -> None:
    """Measure what the command line asks for."""
    parser = arguments(__doc__, n=GROUP_SIZES, shapes=list(SHAPES))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="default: all")
    parser.add_argument("--quick", action="store_true", help="only what the targets need; writes quick.*")
    args = parser.parse_args()
    if args.quick:
        rows = quick(args.repeats)
        save(args.out, "quick", rows, compare(rows))
        return
    rows = []
    for shape in args.shapes:
        for n in args.n:
            rows += measure_steps("step_cost", shape, n, ["sft", *args.variants], args.repeats)
            write_csv(args.out / "step_cost.csv", rows)  # hours of work: keep what there is
    plot(args.out / "step_cost.png", rows)
    save(args.out, "step_cost", rows, compare(rows))


if __name__ == "__main__":
    main()
