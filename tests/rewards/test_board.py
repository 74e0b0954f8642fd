"""The board: what functions receive, what is added up, and what stops a run."""

import asyncio
import functools
import threading

import pytest
import torch
from trl.rewards import get_soft_overlong_punishment, think_format_reward

from rl_warmup.rewards import Reward, RewardSet


class NoText:
    """A tokenizer whose text nobody may ask for."""

    def decode(self, *args, **kwargs):
        raise AssertionError("decoded")

    batch_decode = __call__ = decode


# ---------------------------------------------------------------------- the fast path


@pytest.mark.parametrize("specs", [[], ["target_logprob"]])
def test_no_rewards_means_the_targets_likelihood_and_decodes_nothing(each_world, specs):
    scores = each_world.judge(each_world.board(specs, NoText()))
    assert torch.equal(scores.total, each_world.target_logps)
    assert list(scores.by_name) == ["target_logprob"]
    assert scores.total.dtype == torch.float32
    assert each_world.baseline_calls == 0


def test_the_fast_path_keeps_the_weight_and_drops_the_gradient(world):
    logps = world.target_logps.clone().requires_grad_()
    scores = world.judge([{"name": "target_logprob", "weight": 0.5}], target_logps=logps)
    assert torch.equal(scores.total, world.target_logps * 0.5)
    assert not scores.total.requires_grad


def test_the_slow_path_agrees_with_the_fast_one(world):
    nothing = Reward("nothing", 0.0, lambda completion_ids: [1.0] * len(completion_ids))
    assert torch.equal(world.judge(["target_logprob", nothing]).total, world.judge([]).total)


def test_a_batch_without_groups_has_no_scores(world):
    batch = world.batch
    control = type(batch)(**{**vars(batch), "group_size": 0})
    none = torch.zeros(0)
    for specs in ([], ["gain", "prompt_overlap"]):
        scores = world.judge(
            specs, batch=control, target_logps=none, target_token_logps=world.token_logps[:0], warmup_logps=none
        )
        assert scores.total.shape == (0,)


# ---------------------------------------------------------------------- what functions receive


def test_a_function_with_kwargs_gets_everything_cheap(world):
    seen = {}

    def look(**kwargs):
        seen.update(kwargs)
        return [0.0] * 4

    state = object()
    world.judge([look], trainer_state=state)
    assert seen.pop("trainer_state") is state
    assert seen.pop("prompts") == ["red green"] * 2 + [[{"role": "user", "content": "blue"}]] * 2
    assert seen.pop("completions") == [
        "red one",
        "green red red",
        [{"role": "assistant", "content": "<think> blue </think> one"}],
        [{"role": "assistant", "content": ""}],
    ]
    assert seen.pop("completion_ids") == [[6, 9], [7, 6, 6], [4, 8, 5, 9], []]
    assert seen.pop("target") == ["one two", "one two", "three", "three"]
    assert seen.pop("target_ids") == [[9, 10, 1]] * 2 + [[11, 1]] * 2
    assert seen.pop("prompt_ids") == [[6, 7]] * 2 + [[8]] * 2
    assert seen.pop("warmup_finish") == ["separator", "length", "separator", "proposal"]
    assert seen.pop("warmup_logps") == world.warmup_logprob[:4].tolist()
    assert seen.pop("target_logps") == world.target_logps.tolist()
    tokens = seen.pop("target_token_logps")
    assert list(map(len, tokens)) == [3, 3, 2, 2]
    assert [sum(row) for row in tokens] == pytest.approx(world.target_logps.tolist(), abs=1e-5)
    assert seen == {"id": ["a", "a", "b", "b"], "colour": ["red", "red", None, None]}
    assert world.baseline_calls == 0


def test_a_function_without_kwargs_gets_what_it_names(world):
    def named(completion_ids, colour, batch, baseline_target_logps, strict=True):
        assert colour == ["red", "red", None, None]
        assert strict is True
        assert batch.seq_ids.shape[0] == len(batch.warmups) == 4
        return baseline_target_logps

    scores = world.judge(world.board([named], NoText()))
    assert torch.equal(scores.total, world.target_logprob[4:].repeat_interleave(2))
    assert world.baseline_calls == 1


def test_the_baseline_is_made_once_for_several_functions(world):
    world.judge(["gain", lambda baseline_target_logps: baseline_target_logps])
    assert world.baseline_calls == 1


def test_kwargs_of_the_recipe_win_over_columns_of_the_data(world):
    def count(completion_ids, colour, **kwargs):
        assert "colour" not in kwargs
        return [float(colour == "fixed")] * 4

    assert world.judge([functools.partial(count, colour="fixed")]).total.tolist() == [1.0] * 4


# ---------------------------------------------------------------------- TRL's own functions, unchanged


def test_think_format_reward_of_trl(world):
    conversational = [{**row, "prompt": [{"role": "user", "content": "x"}]} for row in world.batch.prompts]
    batch = type(world.batch)(**{**vars(world.batch), "prompts": conversational})
    scores = world.judge([think_format_reward], batch=batch)
    assert scores.by_name["think_format_reward"].tolist() == [0.0, 0.0, 1.0, 0.0]


def test_soft_overlong_punishment_of_trl(world):
    scores = world.judge([get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2)])
    assert scores.by_name["soft_overlong_punishment_reward"].tolist() == [0.0, -0.5, -1.0, 0.0]


# ---------------------------------------------------------------------- coroutines


async def slow(completion_ids, **kwargs):
    await asyncio.sleep(0)
    return [float(len(ids)) for ids in completion_ids]


class SlowObject:
    async def __call__(self, completion_ids):
        return await slow(completion_ids)


def test_coroutines_are_awaited(world):
    partial = Reward("partial", 10.0, functools.partial(slow, extra=1))
    scores = world.judge([slow, SlowObject(), partial])
    assert scores.total.tolist() == [24.0, 36.0, 48.0, 0.0]


def test_coroutines_run_beside_each_other_and_beside_plain_functions(world):
    met = threading.Barrier(2, timeout=5)
    first_waits, second_came = asyncio.Event(), []

    async def first(completion_ids):
        await asyncio.wait_for(first_waits.wait(), 5)
        return [1.0] * 4

    async def second(completion_ids):
        await asyncio.to_thread(met.wait)
        second_came.append(True)
        first_waits.set()
        return [1.0] * 4

    def plain(completion_ids):
        met.wait()
        return [1.0] * 4

    assert world.judge([plain, first, second]).total.tolist() == [3.0] * 4
    assert second_came


def test_a_caller_may_have_a_running_loop(world):
    async def notebook():
        return world.judge([slow])

    assert asyncio.run(notebook()).total.tolist() == [2.0, 3.0, 4.0, 0.0]


def test_an_error_in_a_coroutine_names_it(world):
    async def broken(completion_ids):
        raise KeyError("reply")

    where = r"\(test_board.py, line \d+\)"
    with pytest.raises(ValueError, match=f"Reward 'broken' failed with KeyError: 'reply' {where}") as caught:
        world.judge([broken])
    assert isinstance(caught.value.__cause__, KeyError)


# ---------------------------------------------------------------------- adding up


def test_weights_and_unscored_rows(world):
    some = Reward("some", 2.0, lambda completion_ids: [1.0, None, 3, torch.tensor(4.0)])
    scores = world.judge(["target_logprob", some])
    expected = world.target_logps + torch.tensor([2.0, 0.0, 6.0, 8.0])
    assert torch.allclose(scores.total, expected)
    assert scores.by_name["some"].isnan().tolist() == [False, True, False, False]


def test_a_row_that_nobody_scores_is_named(world):
    some = Reward("some", 2.0, lambda completion_ids: [1.0, 1.0, None, 1.0])
    other = Reward("other", 2.0, lambda completion_ids: [None] * 4)
    with pytest.raises(ValueError, match=r"No reward scores row 2 \(id 'b', warmup 0\): some, other returned None"):
        world.judge([some, other])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300, "1.0", [1.0]])
def test_what_is_no_finite_number_is_named_and_never_zero(world, value):
    odd = Reward("odd", 1.0, lambda completion_ids: [0.0, value, 0.0, 0.0])
    with pytest.raises(
        ValueError, match=r"Reward 'odd' returned .* for row 1 \(id 'a', warmup 1\); return a list of 4"
    ):
        world.judge(["target_logprob", odd])


@pytest.mark.parametrize(
    ("result", "message"),
    [([1.0], "returned 1 values"), (1.0, "returned float 1.0"), (None, "returned NoneType"), ("abcd", "returned str")],
)
def test_wrong_results_are_named(world, result, message):
    with pytest.raises(ValueError, match=f"Reward 'odd' {message}.*; return a list of 4"):
        world.judge([Reward("odd", 1.0, lambda completion_ids: result)])


def test_an_exception_inside_is_chained(world):
    def broken(completions, **kwargs):
        return [1 / 0]

    with pytest.raises(ValueError, match="Reward 'broken' failed with ZeroDivisionError: division by zero") as caught:
        world.judge([broken])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# ---------------------------------------------------------------------- what cannot work


def test_an_argument_that_nothing_fills(world):
    def judge(completions, solution):
        return [0.0] * 4

    with pytest.raises(
        ValueError, match=r"Reward 'judge' needs an argument 'solution'.*\(id, colour\), nor one of prompts"
    ):
        world.judge([judge])


def test_a_column_with_the_name_of_an_argument(world):
    prompts = [{**row, "target_logps": 0} for row in world.batch.prompts]
    batch = type(world.batch)(**{**vars(world.batch), "prompts": prompts})
    with pytest.raises(ValueError, match="a column 'target_logps', .*Rename"):
        world.judge(["prompt_overlap"], batch=batch)


def test_the_same_name_twice(world):
    with pytest.raises(ValueError, match="'gain' is listed 2 times.*remove one"):
        world.board(["gain", "prompt_overlap", {"name": "gain", "weight": 2}])


@pytest.mark.parametrize("specs", ["gain", {"name": "gain"}, None])
def test_rewards_have_to_be_a_list(world, specs):
    with pytest.raises(ValueError, match="give a list"):
        world.board(specs)


def test_shapes_are_checked(world):
    with pytest.raises(ValueError, match=r"target_logps has the shape \(6,\); give \(4,\)"):
        world.judge([], target_logps=world.target_logprob)
    with pytest.raises(ValueError, match="target_token_logps has the shape"):
        world.judge([], target_token_logps=world.token_logps)
    with pytest.raises(ValueError, match=r"baseline_target_logps returned the shape \(2,\)"):
        world.judge(["gain"], baseline_target_logps=lambda: torch.zeros(2))
    with pytest.raises(ValueError, match="needs baseline_target_logps, but the caller has none"):
        world.judge(["gain"], baseline_target_logps=None)


def test_prepare_is_called_once_and_its_errors_are_named(world):
    class Prepared:
        calls = 0

        def prepare(self, tokenizer, layout, constraints, device):
            self.calls += 1
            assert (tokenizer, layout, constraints, device) == (world.tokenizer, world.layout, world.constraints, "cpu")

        def __call__(self, completion_ids):
            return [float(self.calls)] * 4

    class Broken(Prepared):
        def prepare(self, **kwargs):
            raise OSError("no judge")

    board = world.board([Prepared()])
    assert isinstance(board, RewardSet)
    world.judge(board)
    assert world.judge(board).total.tolist() == [1.0] * 4
    with pytest.raises(ValueError, match="Reward 'Broken' cannot be prepared: OSError: no judge"):
        world.board([Broken()])
