"""What the demo's page says below each table.

Knows: what every experiment compares. Must not know: what came out, so that nothing is claimed that did not happen.
"""

SKILLS = """\
The same question on a bed of our own. The starting model knows six ways to go on from a ledger (copy it, copy it
backwards, running totals oldest first, running maximum, differences, doubles) and was never shown this task: the
running totals newest first, of which the first word needs the whole sum. The pairs do not say that totals oldest first
would help."""

EXPLANATIONS = {
    "legs": """\
Questions that nobody here wrote (reasoning-gym's leg_counting), answers alone, no warmup given by anybody. The starting
model has four habits for such a question: it works it out, repeats it, repeats it backwards, or lists legs per animal.
`reading` first samples that model for every question and trains the generator on these samples while the policy stays
where it is; once the generator tells useful samples from others, the policy takes over, held by a KL to the start.
`marginal` is the same without the hold, `marginal_kl` has the KL from the first update, `sft` answers at once,
`sft_equal_compute` does so for at least the seconds of `reading` (the time to sample the start included), `filler` has
the same room for meaningless tokens. What this shows: a model that has a useful habit among others finds it from pairs
alone, and shuffling warmups across questions destroys the result: they are read. What it does not show: no skill is
invented, and the start was trained on such habits.""",
    "skills": SKILLS,
    "rare": SKILLS + " Here only one or two samples of a hundred are the useful skill.",
    "copies": """\
The counter-example: this start can only copy the ledger, so there is nothing to find. `reading` should notice that no
sample helps, say so (warnings.jsonl), go on as plain fine-tuning, and end where `sft` ends.""",
    "ledger": """\
What this shows: a warmup can carry computation. The target lists running totals newest first, so its first word needs
the whole sum at once: compare SFT, and where they run SFT at the warmup arm's training time and the filler (as many extra
positions without content). Shuffling warmups across prompts shows whether the warmup is what is read. What it
does not show: that a warmup is found. The proposal (the target's words reversed) is given and contains the easy order;
where there is an arm `proposal`, it only imitates it, and `warmup` goes on from there with its own samples.""",
}
