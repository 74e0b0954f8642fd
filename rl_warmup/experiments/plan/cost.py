"""Operations of one update, and bytes of a device at its fullest moment, by short formulas.

An addition and a multiplication are two operations; rows count as equally long. `tests/plan` holds operations within 10 % of
torch's count, and the peak within 25 % of the allocator's.
"""

from __future__ import annotations

from rl_warmup.experiments.plan.work import Work

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
MAX_LIVE = 1_000_000_000  # stage3_max_live_parameters of the shipped configurations
# Of engine.fast.logprobs; more logits than the first do not wait for the weights of their rows, but are made again.
KEPT_LOGITS, LOGITS_PER_CHUNK, ROWS_PER_CHUNK = 1 << 26, 1 << 21, 256
TOKENS_AT_ONCE, PAIRS_AT_ONCE = 1 << 14, 1 << 26  # of engine.fast.passes and engine.fast.sampling


def count_flops(work: Work, alone: bool = True) -> dict[str, float]:
    """Operations of one update of one process: `sampling`, `scoring` without gradient (where only some warmups get one),
    `forward`, `backward`, and their `total`. One process `alone`, without DeepSpeed, may sample and train from one reading
    of the prompts.
    """
    shape, (x, c, y), n = work.shape, work.mean, work.warmups
    t5, once, draws = shape.kind == "t5", work.reads_once(alone), work.trained < n
    rows, scored = work.rows(work.mean)
    token, head = 2.0 * shape.layers * shape.layer_weights, 2.0 * shape.head_size
    pair = 4.0 * shape.inner * shape.layers  # one token looks at another, in every layer
    # each row reads its prompt anew, or projects the encoder's output anew, where nothing is shared
    copies = 1.0 if work.shares_prompts(alone) else rows
    if t5:
        cross = 4.0 * shape.width * shape.inner * shape.layers
        encoder = 2.0 * shape.encoder_layers * (shape.encoder_layer_weights + 2 * shape.inner * x)
        read, gradient_read = x * (encoder + cross), x * (encoder + cross * (rows if work.checkpointing else 1))
    else:
        read = x * (token + pair * x)
        gradient_read = copies * read
    written, after = n * c, n * y * draws
    sampling = (n > 0) * (not once) * read + written * (token + pair * (x + c / 2) + head)
    scoring = after * (token + pair * (x + c + y) + head)
    if t5 and after and not once and rows > work.trained:  # for its rows without a sampled warmup
        scoring += read
    body = gradient_read + (scored + rows) * (token + pair * (x + scored / rows + 1))
    again = 0.0
    if not draws and n > 1:  # weights are known only after the forward
        again = max(0.0, 1 - KEPT_LOGITS / (work.prompts * scored * shape.vocab))
    backward = (2 + work.checkpointing) * body + (2 + again) * scored * head
    parts = {"sampling": sampling, "scoring": scoring, "forward": body + scored * head, "backward": backward}
    parts["total"] = sum(parts.values())
    return {name: work.prompts * work.micro_batches * part for name, part in parts.items()}


def count_memory(work: Work, strategy: str, devices: int, context: float = 0.0) -> dict[str, float]:
    """Bytes at the fullest moment of one micro-batch of the longest rows, where `devices` share the state under one of
    STRATEGIES (`ddp` on one device is plain training) and the runtime itself takes `context`.

    Returns:
        `parameters`, `gradients` and `optimizer` as they are split; `gathered`, weights that ZeRO-3 fetches for a pass;
        `activations` that wait for the backward; `recomputed`, with gradient checkpointing one layer in full after the head is
        done; `logits`, the head's working space in training; `cache`, what sampling needs; `context`; their `peak`; `host`,
        what a process keeps in main memory.
    """
    shape, p, w = work.shape, work.shape.parameters, work.weight_bytes(strategy)
    numbers = 4 if work.precision == "float32" else 2  # bytes of what products give
    stage3, half_head = strategy.startswith("zero3"), 4 * shape.head_size * (w == 2)  # the head's float32 copy
    rows, scored = (work.prompts * part for part in work.rows(work.longest, worst=True))
    chunk = min(scored, max(ROWS_PER_CHUNK, LOGITS_PER_CHUNK // shape.vocab)) * shape.vocab
    kept = min(scored * shape.vocab, KEPT_LOGITS) if work.trained == work.warmups > 1 else 0.0
    alone = strategy == "ddp" and devices == 1
    found = _states(work, strategy, devices) | _activations(work, alone, rows, scored, numbers, w)
    found["gathered"] = stage3 * w * min(p, MAX_LIVE)
    found["logits"] = 4 * (2 * chunk + kept + scored * shape.width) + 2 * half_head
    found["cache"] = _sampling(work, numbers) + half_head + stage3 * w * p
    found["context"] = context
    # sampling and training take turns, and there are no gradients yet while warmups are drawn
    training = found["gradients"] + found["gathered"] + found["activations"] + max(found["logits"], found["recomputed"])
    found["peak"] = found["parameters"] + found["optimizer"] + max(training, found["cache"]) + context
    return found


def _states(work: Work, strategy: str, devices: int) -> dict[str, float]:
    p, w, share = work.shape.parameters, work.weight_bytes(strategy), work.shape.parameters / devices
    adam, host = work.optimizer_bytes, 0.0
    if strategy == "ddp":
        copies = 2 * p if work.precision == "autocast" else 0  # bf16 weights, until the end of a forward
        parameters, gradients, optimizer = float(w * p + copies), float(w * p * min(devices, 2)), adam * p * w / 4
    else:
        stage = int(strategy[4])
        optimizer = (4 + adam) * share  # float32 weights and the optimizer's numbers, whatever the working precision
        parameters, gradients = (w * (share if stage >= least else p) for least in (3, 2))
        if strategy.endswith("offload"):
            host, optimizer = optimizer + 4 * share, 0.0
            if stage == 3:
                host, parameters, gradients = host + w * share, 0.0, 0.0
    return {"parameters": parameters, "gradients": gradients, "optimizer": optimizer, "host": host}


def _activations(work: Work, alone: bool, rows: float, scored: float, e: int, w: int) -> dict[str, float]:
    """For every token and layer norms, attention and feed-forward; with checkpointing the input of every layer."""
    shape, x, inner = work.shape, work.longest.prompt, work.shape.inner
    tokens, read, row = scored + rows, work.prompts * x, scored / rows + 1
    norm = (9 if w == 2 else 12) * shape.width
    if shape.kind == "t5":  # the learned bias rules fused attention out: probabilities in float32
        wide = shape.feed_forward * e * (7 if shape.gated else 1.5)
        attention, bias = (12 + e) * inner, 4 * shape.heads
        encoder = read * (2 * norm + wide + attention + bias * x)
        copied = (rows + work.prompts) * x * 2 * inner * e  # keys and values of the prompt for every row
        decoder = tokens * (3 * norm + wide + attention + 2 * e * inner + bias * row) + copied
        layers, largest = shape.encoder_layers * encoder + shape.layers * decoder, max(encoder, decoder)
        ends = read + tokens
        inputs = shape.encoder_layers * read + shape.layers * tokens + rows * x
    else:
        shared = work.shares_prompts(alone)
        ends = tokens + (read if shared else rows * x)
        token = 2 * norm + 4 * e * shape.feed_forward + 4 * e * inner
        largest = ends * token + shared * rows * x * 2 * e * inner
        layers, inputs = shape.layers * largest, shape.layers * ends
    kept = inputs * shape.width * w if work.checkpointing else layers
    return {"activations": ends * norm + scored * shape.width * w + kept, "recomputed": work.checkpointing * largest}


def _sampling(work: Work, e: int) -> float:
    """Keys and values of the whole update's prompts and warmups, and the working space of a draw or of scoring."""
    if not work.warmups:
        return 0.0
    shape, prompts, (x, c, y) = work.shape, work.prompts * work.micro_batches, work.longest
    rows, room = prompts * work.warmups, max(ROWS_PER_CHUNK, LOGITS_PER_CHUNK // shape.vocab)
    cache = prompts * (2 * x + work.warmups * (c + 1)) * 2 * shape.layers * shape.kv_inner * e
    logits: float = 4 * min(rows, room)
    if work.trained < work.warmups:
        tokens, logits = min(rows * y, TOKENS_AT_ONCE), max(logits, 2 * min(rows * y, room))
        pairs = min(tokens * shape.heads * (x + c + y), PAIRS_AT_ONCE)
        cache += 3 * e * (pairs + tokens * (shape.inner + shape.feed_forward))
    return cache + 4 * logits * shape.vocab
