"""What an optimizer step costs beside an SFT step on the same prompts: SFT, the naive loop, ours with k = all, 2, 1.

    python -m benchmarks.step_cost --quick      # the project's targets at n = 4 and 8, under 4 minutes on one core
    python -m benchmarks.step_cost --shapes t5-d256 llama-d256 --variants ours_all ours_k1 --n 4 16      # growth with n
    python -m benchmarks.step_cost              # every shape and group size: an hour or more

`ours_k2` trains on 2 of the n warmups (`backward_samples`), `ours_all` on all; `sft_ours` is our trainer as SFT.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Sequence
from typing import Any

from benchmarks.results import Row, arguments, plot, save, write_csv
from benchmarks.shapes import GROUP_SIZES, SHAPES
from benchmarks.targets import compare

VARIANTS = ("sft", "sft_ours", "naive", "ours_all", "ours_k2", "ours_k1")
RIVALS = ("trl_grpo", "latro")
Key = tuple[int, str]  # n and variant
Wanted = dict[int, Sequence[str]]  # n -> variants


def make_steps(workload: Any, folder: str, wanted: Wanted) -> dict[Key, Any]:
    """The steps that make sense. Stock variants share one model, ours another, rivals have their own for every n."""
    from benchmarks.ours import ours
    from benchmarks.rivals import rival_steps
    from benchmarks.stock import adamw, naive, sft

    stock, patched = workload.model(), workload.model()
    stock_adam, patched_adam = adamw(stock), adamw(patched)
    settings = {
        "sft_ours": {"objective": "sft"},
        "ours_all": {},
        "ours_k2": {"backward_samples": 2},
        "ours_k1": {"backward_samples": 1},
    }
    steps: dict[Key, Any] = {}
    for n, variants in wanted.items():
        rivals = rival_steps(workload, folder, n) if set(RIVALS) & set(variants) else {}
        for name in variants:
            if name == "sft":
                steps[n, name] = sft(workload, stock, stock_adam)
            elif name == "naive":
                steps[n, name] = naive(workload, stock, stock_adam, n)
            elif name in RIVALS:
                steps[n, name] = rivals[name]
            elif settings[name].get("backward_samples", 0) < n:
                steps[n, name] = ours(workload, patched, patched_adam, folder, n, **settings[name])
    return steps


def measure_steps(
    bench: str, shape: str, wanted: Wanted, repeats: int, memory: bool = True, slow: Collection[Key] = ()
) -> list[Row]:
    """Rows of one shape, ratios to the SFT step timed beside the same n; prints how long its warmups are and how it goes."""
    import torch

    from benchmarks.measure import measure, rows
    from benchmarks.workloads import make_workload, mean_warmup_length

    torch.set_num_threads(1)
    began = time.perf_counter()
    workload = make_workload(SHAPES[shape])
    print(f"{shape}, mean warmup {mean_warmup_length(workload, workload.model()):.1f} tokens", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        costs = measure(make_steps(workload, folder, wanted), repeats, memory, slow)
    found = []
    for n in wanted:
        found += rows(bench, shape, n, {name: cost for (of, name), cost in costs.items() if of == n}, "sft")
        print(f"  n={n}: " + "  ".join(f"{row.variant} {row.ratio:.2f}" for row in found if row.n == n), flush=True)
    print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)
    return found


def quick(repeats: int) -> list[Row]:
    """What the targets need, and no more: without peak memory, which the tests watch."""
    from benchmarks.sampler import measure_sampling

    own = ["sft", "ours_all", "ours_k1"]
    rows = measure_steps("step_cost", "t5-d256", dict.fromkeys((4, 8), own), repeats, memory=False)
    for n in (4, 8):
        rows += measure_sampling("t5-d256", n, repeats, memory=False)
    slow = {(n, name) for n in (4, 8) for name in RIVALS}
    wanted = {n: [*own, *RIVALS] for n in (4, 8)}
    return rows + measure_steps("step_cost", "llama-d256", wanted, repeats, memory=False, slow=slow)


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
    variants = list(dict.fromkeys(["sft", *args.variants]))
    for shape in args.shapes:
        rows += measure_steps("step_cost", shape, dict.fromkeys(args.n, variants), args.repeats)
        write_csv(args.out / "step_cost.csv", rows)  # hours of work: keep what there is
    plot(args.out / "step_cost.png", rows)
    save(args.out, "step_cost", rows, compare(rows))


if __name__ == "__main__":
    main()
