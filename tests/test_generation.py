"""Predictions and controls at their edges: positions, one row, other runs, other batches, conversations, adapters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.inference.controls import control_warmups
from rl_warmup.inference.evaluation import Evaluation, others_warmups
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.inference.likelihood import target_likelihood
from rl_warmup.models.inference_settings import Inference
from rl_warmup.models.loading import load_model
from rl_warmup.models.tiny import TinySize, build_model, build_tokenizer
from rl_warmup.runtime.run_folder import write_jsonl
from rl_warmup.tasks import Task

SIZE = TinySize(width=16, layers=1, heads=2, tokenizer="words")
ROWS = [{"prompt": " ".join(["w1"] * length), "target": "w2 w3"} for length in (1, 2, 3, 5, 7)]
CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}w9"


def tokenizer_of(kind: str = "llama"):
    return build_tokenizer([" ".join([*(f"w{i}" for i in range(40)), "user"])] * 2, SIZE, encoder_decoder=kind == "t5")


def trainer_of(model, tokenizer, folder, rows=ROWS, **settings) -> WarmupTrainer:
    known = {"num_warmups": 2, "max_warmup_length": 3, "max_target_length": 4, "max_steps": 1, "report_to": "none"}
    known |= {"use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "output_dir": str(folder)}
    return WarmupTrainer(model, WarmupConfig(**{**known, **settings}), rows, processing_class=tokenizer)


def networks(positions: int) -> dict:
    ids = {"vocab_size": 60, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
    llama = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 2, "max_position_embeddings": positions, **ids}  # fmt: skip
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return {
        "gpt2": GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=positions, **ids)),
        "bart": BartForConditionalGeneration(BartConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=positions, decoder_start_token_id=1, **ids,
        )),
        "dynamic": LlamaForCausalLM(LlamaConfig(**llama, rope_parameters=dynamic)),
        "llama": LlamaForCausalLM(LlamaConfig(**llama)),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "bart", "dynamic"])
@pytest.mark.parametrize("objective", ["sft", "marginal"])
def test_a_target_that_would_be_written_beyond_the_positions_is_refused_before_training(tmp_path, name, objective):
    # <s>, 7 words, 3 of the warmup, the separator, a target of 3; written may be up to 4, or more
    warmup = 3 if objective == "marginal" else 0
    fits = max(8, 1 + warmup + 1 + 4) if name == "bart" else 8 + warmup + 1 + 4
    model = networks(fits)[name]
    trainer = trainer_of(model, tokenizer_of("t5" if name == "bart" else "llama"), tmp_path, objective=objective)
    assert len(trainer.evaluate(ROWS)) > 3  # four tokens fit, and are written
    assert all(len(row["prediction_ids"]) <= 4 for row in trainer.predict_rows(ROWS))
    for limit, named in ((fits, f"up to {fits}"), (None, "up to 512")):
        trainer = trainer_of(model, trainer.processing_class, tmp_path, objective=objective, max_target_length=limit)
        with pytest.raises(ValueError, match=rf"row (0|4).*{named}.*{fits}"):
            trainer.predict_rows(ROWS)
        with pytest.raises(ValueError, match=rf"row (0|4).*{named}.*{fits}"):
            trainer.evaluate(ROWS)


def test_rope_with_fixed_angles_may_go_on_writing(tmp_path):
    trainer = trainer_of(networks(15)["llama"], tokenizer_of(), tmp_path, max_target_length=30)
    assert len(trainer.predict_rows(ROWS)) == 5


EXACT = {"name": "prediction_metric", "kwargs": {"metric": "exact_match"}}


@pytest.mark.parametrize("extra", [{"proposals": ["draft"]}, {"rewards": [EXACT]}])
def test_targets_written_while_training_need_their_room_too(tmp_path, extra):
    model, tokenizer = networks(16)["gpt2"], tokenizer_of()
    trainer_of(model, tokenizer, tmp_path, **extra).train()
    with pytest.raises(ValueError, match=r"train row.*up to 9"):
        trainer_of(model, tokenizer, tmp_path, max_target_length=9, **extra)


def test_a_forced_warmup_needs_room_as_well(tmp_path):
    trainer = trainer_of(networks(16)["gpt2"], tokenizer_of(), tmp_path)
    forced = [[5] * length for length in (1, 2, 3, 4, 5)]
    with pytest.raises(ValueError, match="row 4.*forced warmup.*16"):
        trainer.predict_rows(ROWS, forced=forced)
    assert len(trainer.predict_rows(ROWS[:4], forced=forced[:4])) == 4


@pytest.fixture
def warmup_generator(lab) -> WarmupGenerator:
    """Of a T5 and a Llama whose warmups are up to three words."""
    return WarmupGenerator(
        lab.model, lab.tokenizer, lab.layout, Inference(lab.constraints(max_length=3), "", max_target_length=4)
    )


@pytest.fixture
def rows(lab) -> list[dict]:
    return [lab.row("a b c"[: 2 * i + 1], "d e") for i in (0, 1, 2, 0, 2)]


def test_what_is_sampled_does_not_depend_on_the_batch(warmup_generator, rows):
    bounds, best, drawn = [], [], []
    for size in (1, 2, 5):
        bounds.append(target_likelihood(warmup_generator, rows, counts=(1, 4), batch_size=size)["bound"][4]["mean"])
        best.append([row["warmup_ids"] for row in warmup_generator.generate(rows, num_warmups=3, batch_size=size)])
        drawn.append([row["warmup_ids"] for row in warmup_generator.predict(rows, size, sample_warmup=True, seed=2)])
    assert bounds == pytest.approx([bounds[0]] * 3, rel=1e-5)
    assert best[1:] == best[:1] * 2
    assert drawn[1:] == drawn[:1] * 2
    assert drawn[0][0] != drawn[0][3] or drawn[0][2] != drawn[0][4]  # equal prompts, streams of their own


def test_generate_draws_by_the_same_streams_where_our_sampler_does_not_reach(warmup_generator, rows, monkeypatch):
    own = target_likelihood(warmup_generator, rows, counts=(4,), batch_size=2)["bound"][4]["mean"]
    monkeypatch.setattr("rl_warmup.engine.paths._decoding", lambda *args: None)
    theirs = target_likelihood(warmup_generator, rows, counts=(4,), batch_size=3)["bound"][4]["mean"]
    assert theirs == pytest.approx(own, rel=1e-5)


def task_of(rows) -> Task:
    named = [{"id": str(i), "prompt": row["prompt"], "target": row["target"]} for i, row in enumerate(rows)]
    return Task("t", {"train": [], "validation": [], "test": named}, ("exact_match",))


def test_one_row_is_measured_without_shuffling(warmup_generator, rows, tmp_path, capsys):
    controls = ["shuffled", "empty_warmup", "filler", "sampled", "rerank"]
    found = Evaluation(controls, likelihood=True, num_warmups=2).run(
        warmup_generator, task_of(rows[:1]), "test", tmp_path
    )
    assert set(found["metrics"]) == {"", *controls} - {"shuffled"}
    assert found["rows"] == 1
    assert found["likelihood"]["bound"][16]["std_error"] is None
    assert "shuffled" in capsys.readouterr().out


def predicted(*prompts) -> list[dict]:
    return [{"prompt": prompt, "warmup_ids": [place]} for place, prompt in enumerate(prompts)]


def shuffled(own: list[dict]) -> list[int]:
    return [place for (place,) in control_warmups("shuffled", own)]


def test_shuffling_takes_the_warmup_of_another_prompt():
    assert shuffled(predicted(*"abcdef")) == [5, 0, 1, 4, 2, 3]  # one cycle; published figures rest on this shuffle
    talk = [[{"role": "user", "content": text}] for text in "abcd"]
    for own in (predicted(*"aaaabbbbccccdddd"), predicted(*"aabbbccccc"), predicted(*talk * 3)):
        source = shuffled(own)
        assert sorted(source) == list(range(len(own)))
        assert all(own[i]["prompt"] != own[source[i]]["prompt"] for i in range(len(own)))
    source = shuffled(
        predicted(*"aaaaaabc")
    )  # most rows have one prompt, so the two others' warmups serve them in turn
    assert sorted(source[:6]) == [6, 6, 6, 7, 7, 7]
    assert all(place < 6 for place in source[6:])
    with pytest.raises(ValueError, match="two prompts"):
        control_warmups("shuffled", predicted("a", "a"))


def test_warmups_of_another_run_have_to_fit_rows_and_tokens(warmup_generator, rows, tmp_path):
    own = warmup_generator.predict(rows)
    write_jsonl(tmp_path / "predictions.jsonl", own)
    assert others_warmups(tmp_path, warmup_generator, rows) == [row["warmup_ids"] for row in own]
    for place, bad in ((0, {"prompt": "h"}), (2, {"warmup": "h h h h"}), (3, {"warmup_ids": [10**6]})):
        write_jsonl(
            tmp_path / "predictions.jsonl", [{**row, **(bad if i == place else {})} for i, row in enumerate(own)]
        )
        with pytest.raises(ValueError, match="predictions.jsonl"):
            others_warmups(tmp_path, warmup_generator, rows)
    write_jsonl(tmp_path / "predictions.jsonl", own[:4])
    with pytest.raises(ValueError, match="4 rows"):
        Evaluation(["other_run"], other_run=str(tmp_path)).run(
            warmup_generator, task_of(rows), "test", tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_a_text_becomes_a_conversation_where_training_had_conversations(tmp_path):
    tokenizer = tokenizer_of()
    tokenizer.chat_template = CHAT
    talk = [{"prompt": [{"role": "user", "content": row["prompt"]}], "target": row["target"]} for row in ROWS]
    trainer = trainer_of(build_model("llama", tokenizer, SIZE), tokenizer, tmp_path, talk)
    trainer.save_model()
    warmup_generator = WarmupGenerator.load(tmp_path, "cpu")
    assert warmup_generator.settings.chat
    text, said = (
        warmup_generator.encoded([{"prompt": "w1 w2"}]),
        warmup_generator.encoded([{"prompt": [{"role": "user", "content": "w1 w2"}]}]),
    )
    assert text[0]["prompt_ids"] == said[0]["prompt_ids"]
    assert len(text[0]["prompt_ids"]) > len(warmup_generator.tokenizer("w1 w2")["input_ids"])
    assert text[0]["prompt"] == "w1 w2"


@pytest.fixture
def base(tmp_path):
    """A saved Llama with tied embeddings."""
    tokenizer = tokenizer_of()
    build_model("llama", tokenizer, SIZE).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base", tokenizer


@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head"], ["q_proj", "embed_tokens"]])
def test_a_peft_model_on_tied_embeddings_is_refused(base, tmp_path, modules):
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base[0]), LoraConfig(r=2, target_modules=modules))
    with pytest.raises(ValueError, match="tied"):
        trainer_of(adapted, base[1], tmp_path / "run")


def test_a_peft_model_is_loaded_again_as_it_was_trained(base, tmp_path):
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base[0]), lora)
    trainer = trainer_of(adapted, base[1], tmp_path / "run", learning_rate=0.01)
    trainer.train()
    trainer.save_model()
    again = trainer_of(load_model(str(tmp_path / "run"))[0], base[1], tmp_path / "again")
    assert again.evaluate(ROWS)["eval_loss"] == pytest.approx(trainer.evaluate(ROWS)["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("fault", ["name", "random weights", "prompts"])
def test_peft_models_that_could_not_be_loaded_again_are_refused(base, tmp_path, fault):
    from peft import PromptTuningConfig

    model = AutoModelForCausalLM.from_pretrained(base[0])
    if fault == "random weights":
        model = build_model("llama", base[1], SIZE)
    config = LoraConfig(r=2, target_modules=["q_proj"])
    if fault == "prompts":
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    adapted = get_peft_model(model, config, **({"adapter_name": "mine"} if fault == "name" else {}))
    named = {"name": "mine", "random weights": "random weights", "prompts": "PROMPT_TUNING"}[fault]
    with pytest.raises(ValueError, match=named):
        trainer_of(adapted, base[1], tmp_path / "run")


def test_settings_cannot_be_changed_under_a_writer(warmup_generator):
    with pytest.raises(AttributeError):
        warmup_generator.settings.max_target_length = 7
    assert replace(warmup_generator.settings, mode="empty").mode == "empty"
    assert torch.equal(warmup_generator.settings.constraints.banned, warmup_generator.constraints.banned)


@pytest.mark.parametrize("many", [0, 10**9])
def test_an_absurd_number_of_candidates_is_refused_before_anything_is_generated(many):
    with pytest.raises(ValueError, match="num_warmups"):
        Evaluation(["rerank"], num_warmups=many).check()
