"""The library: its answers are a run's, keys do not meet, cancelling frees, and what is wrong is one sentence."""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import psutil
import pytest

import powersample
from evals.samplers.registry import SAMPLERS
from powersample import LLM, Sampling, UserError
from support.command import DEMO, in_process, python

QUESTION = "Question: Tom has 3 apples and buys 4 more. How many apples does he have?\nAnswer:"
SHORT = Sampling(num_moves=2, max_tokens=24)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", num_gpus=0, batch_size=8) as model:
        yield model


def engine_of(model: LLM) -> Any:
    return model._requests._pool._worker._engine  # type: ignore[attr-defined]


def tokens(outputs: list[powersample.RequestOutput]) -> list[list[int]]:
    return [answer.token_ids for one in outputs for answer in one.outputs]


def rows(number: int) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / "problems.jsonl").read_text().splitlines()[:number]]


def prompts(number: int) -> list[str]:
    return [f"Question: {row['question']}\nAnswer:" for row in rows(number)]


STOPS = ["Question:", "</s>", "<|im_end|>"]


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--sampler.num-moves", "3"], {"num_moves": 3}),
        (["--sampler.kind", "greedy"], {"temperature": 0}),
        (["--sampler.kind", "best_of", "--sampler.num-candidates", "3"], {"kind": "best_of", "num_candidates": 3}),
    ],
)
def test_with_keys_the_answers_are_those_of_a_run(llm: LLM, tmp_path: Path, flags: list, settings: dict) -> None:
    common = ["--inline", "--num-gpus", "0", "--model", "demo", "--data", "demo", "--limit", "3", "--num-samples", "2"]
    directory = tmp_path / "run"
    assert in_process("run", *common, "--run-dir", directory, "--task.max-new-tokens", "40", "--seed", "7", *flags) == 0
    records = [json.loads(line) for line in (directory / "records.jsonl").read_text().splitlines()]
    sampling = Sampling(**settings, n=2, max_tokens=40, stop=STOPS, seed=7)
    outputs = llm.generate(prompts(3), sampling, keys=[(row, 0) for row in range(3)])
    for record in records:
        answer = outputs[record["problem_id"]].outputs[record["sample_index"]]
        assert (answer.token_ids, answer.text) == (record["token_ids"], record["text"])
        assert answer.cumulative_logprob == record["chain"]["log_p"]
        assert answer.key == (7, record["problem_id"], record["sample_index"])


def test_texts_ids_and_chats_are_prompts_one_or_several(llm: LLM) -> None:
    ids = llm.tokenizer.encode(QUESTION)
    key = [(5, 0)]
    [from_text], [from_ids] = llm.generate(QUESTION, SHORT, keys=key), llm.generate(np.array(ids), SHORT, keys=key)  # type: ignore[arg-type]
    assert from_text.outputs[0].token_ids == from_ids.outputs[0].token_ids
    assert (from_text.prompt, from_ids.prompt, from_ids.prompt_token_ids) == (QUESTION, None, ids)
    assert tokens(llm.generate([ids, QUESTION], SHORT, keys=key * 2)) == 2 * [from_text.outputs[0].token_ids]
    with pytest.raises(UserError, match="the model's tokenizer has no chat template"):
        llm.chat([{"role": "user", "content": "Hello"}], SHORT)


def test_a_chat_is_its_template_and_variables_reach_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (DEMO / "model").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{{ sep or '!' }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    with LLM(str(folder), num_gpus=0) as model:
        turns = [{"role": "user", "content": "one"}]
        [plain] = model.chat(turns, SHORT)
        assert plain.prompt == "one!>"
        both = model.chat([turns, [*turns, {"role": "assistant", "content": "two"}, *turns]], SHORT)
        assert [one.prompt for one in both] == ["one!>", "one!two!one!>"]
        assert model.chat(turns, SHORT, chat_template_kwargs={"sep": "?"})[0].prompt == "one?>"
        assert model.submit(turns, SHORT).result().prompt == "one!>"
        with pytest.raises(UserError, match="A turn of a chat has role and content"):
            model.chat([{"role": "user"}], SHORT)
        with pytest.raises(UserError, match="chat takes conversations"):
            model.chat(["Hello"], SHORT)


def test_unnamed_requests_differ_from_one_another_and_are_the_same_after_the_same_start(llm: LLM) -> None:
    asked = [QUESTION, "Question: What is 2 + 2?\nAnswer:", QUESTION]
    hot = Sampling(temperature=1.0, max_tokens=24, n=2)
    with LLM("demo", num_gpus=0, batch_size=3) as first, LLM("demo", num_gpus=0) as second:
        once, again = first.generate(asked, hot), second.generate(asked, hot)
        more = second.generate(QUESTION, hot)
    keys = [answer.key for one in once + more for answer in one.outputs]
    assert len({*keys}) == len(keys) == 8
    assert tokens(once) == tokens(again)
    assert len({tuple(one) for one in tokens(once)[:2] + tokens(once)[4:] + tokens(more)}) > 1
    problems = {(seed, problem) for seed, problem, _ in keys}
    assert len(problems) == 2  # two prompts under one sampling
    seed, problem, sample = llm.generate(QUESTION, Sampling(temperature=1.0, max_tokens=24, seed=3))[0].outputs[0].key
    assert (seed & 0xFFFFFFFF, sample) == (3, 0)
    assert (seed, problem) not in problems


def test_an_answer_tells_its_chain_and_its_tokens(llm: LLM) -> None:
    [[power]] = [one.outputs for one in llm.generate(QUESTION, Sampling(num_moves=8, max_tokens=30, logprobs=True))]
    chain = power.chain
    assert (chain.moves, len(chain.log_p_by_move)) == (8, 9)
    assert chain.log_p_by_move[-1] == pytest.approx(power.cumulative_logprob, abs=1e-3)
    assert chain.accepted == chain.figures["accepted"] <= 8
    assert chain.generated >= len(power.token_ids)
    assert chain.log_probs is not None
    assert sum(chain.log_probs.raw) == pytest.approx(power.cumulative_logprob)
    assert len(chain.log_probs.raw) == len(chain.log_probs.tempered) == len(power.token_ids)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.5}, {"alpha": 3.0, "num_moves": 4}])
def test_log_p_of_tokens_is_the_models_own(llm: LLM, settings: dict) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    [out] = llm.generate(QUESTION, Sampling(**settings, max_tokens=20, logprobs=True))
    answer = out.outputs[0]
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)
    ids = torch.tensor([out.prompt_token_ids + answer.token_ids])
    with torch.no_grad():
        logits = model(ids).logits[0, len(out.prompt_token_ids) - 1 : -1].double()
    alpha = settings.get("alpha") or (1 / settings["temperature"] if settings["temperature"] else 1)
    drawn = ids[0, len(out.prompt_token_ids) :, None]
    raw = logits.log_softmax(-1).gather(1, drawn)[:, 0].tolist()
    tempered = (alpha * logits).log_softmax(-1).gather(1, drawn)[:, 0].tolist()
    log_probs = answer.chain.log_probs
    assert log_probs is not None
    assert log_probs.raw == pytest.approx(raw, abs=2e-4)
    assert log_probs.tempered == (pytest.approx(tempered, abs=2e-3) if settings.get("temperature") != 0 else [0.0] * 20)


def test_max_tokens_are_512_or_what_the_prompt_leaves(llm: LLM) -> None:
    assert (llm.max_length, llm.vocab_size) == (512, 1024)
    ids = llm.tokenizer.encode(QUESTION)
    long = (ids * 30)[:507]
    [out] = llm.generate([long], Sampling(temperature=0))
    assert len(out.outputs[0].token_ids) <= 5


def test_stop_strings_end_answers_and_are_left_out(llm: LLM) -> None:
    [out] = llm.generate(QUESTION, Sampling(temperature=0, max_tokens=60, stop="a"))
    assert out.outputs[0].finish_reason == "stop"
    assert "a" not in out.outputs[0].text
    [cut] = llm.generate(QUESTION, Sampling(temperature=0, max_tokens=3))
    assert (cut.outputs[0].finish_reason, len(cut.outputs[0].token_ids)) == ("length", 3)


@pytest.mark.parametrize("kind", sorted({*SAMPLERS} - {"replay"}))
def test_every_kind_of_sampler_answers(llm: LLM, kind: str) -> None:
    few: dict[str, Any] = {"num_candidates": 2} if "num_candidates" in SAMPLERS[kind].__dataclass_fields__ else {}
    [out] = llm.generate(QUESTION, Sampling(kind=kind, max_tokens=8, **few))
    assert 0 < len(out.outputs[0].token_ids) <= 8


REFUSED = [
    ({"alhpa": 2}, r"Sampling has no setting alhpa \(did you mean alpha\?\); it has "),
    ({"alpha": 0.5}, "alpha=0.5 is refused; allowed: a number from 1 to 1000."),
    ({"n": 0}, "n=0 is refused; allowed: a whole number from 1 to 65536."),
    ({"max_tokens": 0}, "max_tokens=0 is refused; allowed: a whole number from 1 to 1000000."),
    ({"kind": "powr"}, r"kind=powr is refused \(did you mean power\?\)"),
    ({"kind": "greedy", "alpha": 2}, "alpha=2 and kind=greedy do not go together: kind greedy does not read alpha"),
    ({"kind": "replay"}, "Sampling does not replay texts"),
    ({"stop": [""]}, r'stop=\[""\] is refused'),
    ({"seed": -1}, "seed=-1 is refused"),
    ({"alpha": {2}}, "alpha=.* is refused"),
    ({"stop": b"ab"}, "stop=.* is refused"),
]


@pytest.mark.parametrize(("settings", "sentence"), REFUSED)
def test_a_wrong_setting_is_refused_in_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Sampling(**settings)


@pytest.mark.parametrize(
    ("asked", "how", "sentence"),
    [
        ([], {}, "There is no prompt; give at least one."),
        ([QUESTION, ""], {}, "Prompt 1 has no tokens."),
        ([[1, 2, 1024]], {}, "Prompt 0 has a token id outside the model's, which are 0 to 1023."),
        ([[-1]], {}, "Prompt 0 has a token id outside"),
        ([[5] * 512], {}, "Prompt 0 does not fit: its 512 tokens and max_tokens 1 are more than max_length 512"),
        ([QUESTION], {"sampling": Sampling(max_tokens=500)}, "Prompt 0 does not fit"),
        ([None], {}, "Prompt 0 is neither a text, nor token ids, nor the turns of a chat."),
        ([QUESTION], {"keys": []}, "keys has 0 entries for 1 prompts; give one for each."),
        ([QUESTION], {"sampling": []}, "sampling has 0 entries for 1 prompts; give one for each."),
        ([QUESTION], {"keys": [(0, 65_536)]}, r"The key \(0, 65536\) is refused"),
        ([QUESTION], {"keys": [(-1, 0)]}, r"The key \(-1, 0\) is refused"),
        ([QUESTION], {"keys": [(0.5, 0)]}, r"The key \(0.5, 0\) is refused"),
        ([QUESTION], {"keys": [(1,)]}, r"The key \(1,\) is refused"),
        ([QUESTION], {"keys": 5}, "keys has a \\(problem, sample\\) for each prompt."),
        ([QUESTION], {"sampling": {"alpha": 2}}, "sampling is a Sampling, or a list with one for each prompt."),
        ([QUESTION], {"sampling": [None]}, "sampling is a Sampling"),
        (5, {}, "prompts is one prompt, or a list of them."),
        ({"prompt": QUESTION}, {}, "prompts is one prompt"),
        ([b"bytes"], {}, "Prompt 0 is neither a text"),
        (["half \ud800"], {}, "Prompt 0 is neither a text"),
        (np.array([1.0, 2.0]), {}, "Prompt 0 is neither a text"),
    ],
)
def test_a_wrong_prompt_is_refused_before_anything_is_asked(llm: LLM, asked: Any, how: dict, sentence: str) -> None:
    before = llm._asked_before.total()
    with pytest.raises(UserError, match=sentence):
        llm.generate(asked, **how)
    assert llm._asked_before.total() == before
    assert not llm._requests._under_way


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": "./nowhere"}, "There is no model folder nowhere"),
        ({"max_length": 513}, "max_length is 513; with this model's context it is from 2 to 512."),
        ({"max_length": 1}, "max_length is 1"),
        ({"batch_size": "many"}, "batch_size=many is refused"),
        ({"dtipe": "float32"}, r"LLM has no setting dtipe \(did you mean dtype\?\); it has "),
        ({"num_gpus": 99}, "num_gpus asks for 99 GPUs"),
    ],
)
def test_a_wrong_model_or_setting_is_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        LLM(**{"model": "demo", "num_gpus": 0, **settings})


def test_a_cancelled_request_frees_its_slots_and_the_others_answer_as_before(llm: LLM) -> None:
    engine, long = engine_of(llm), Sampling(num_moves=100_000, max_tokens=200)
    expected = tokens(llm.generate(prompts(4), SHORT, keys=[(row, 0) for row in range(4)]))
    endless = [llm.submit(prompt, long) for prompt in prompts(12)]  # more than there are slots
    kept = [llm.submit(prompt, SHORT, (row, 0)) for row, prompt in enumerate(prompts(4))]
    assert all(one.cancel() for one in endless)
    assert tokens([one.result(60) for one in kept]) == expected
    assert (engine.counters().active_slots, engine.counters().kv_pages_used) == (0, 0)
    with pytest.raises(CancelledError):
        endless[0].result()


def test_the_same_key_again_after_a_cancel_is_answered(llm: LLM) -> None:
    long = Sampling(num_moves=100_000, max_tokens=200)
    for _ in range(5):
        gone = llm.submit(QUESTION, long, (9, 0))
        kept = llm.submit(QUESTION, SHORT, (9, 0))
        twin = llm.submit(QUESTION, SHORT, (9, 0))
        gone.cancel()
        assert tokens([kept.result(60)]) == tokens([twin.result(60)])


def test_a_callback_may_ask_again(llm: LLM) -> None:
    answers: list[powersample.RequestOutput] = []
    ended = Event()

    def more(done: Future[powersample.RequestOutput]) -> None:
        answers.append(done.result())
        if len(answers) == 3:
            ended.set()
        else:
            llm.submit(QUESTION, SHORT).add_done_callback(more)

    llm.submit(QUESTION, SHORT).add_done_callback(more)
    assert ended.wait(60)
    assert [one.outputs[0].key[2] for one in answers] == [*range(*[answers[0].outputs[0].key[2] + i for i in (0, 3)])]


def test_a_request_that_no_pages_hold_is_refused_in_words(llm: LLM) -> None:
    with pytest.raises(UserError, match="an answer needs room for 4097 sequences at once"):
        llm.generate(QUESTION, Sampling(kind="smc", num_candidates=4096, max_tokens=300))


def test_what_numpy_and_generators_make_is_taken(llm: LLM) -> None:
    sampling = Sampling(alpha=np.float32(2), n=np.int64(2), max_tokens=np.int64(4), seed=np.uint64(3), stop=iter("x"))  # type: ignore[arg-type]
    assert (sampling.n, sampling.max_tokens, sampling.seed, sampling.stop) == (2, 4, 3, ("x",))
    assert Sampling(seed="3").seed == 3  # type: ignore[arg-type]
    assert repr(pickle.loads(pickle.dumps(sampling))) == repr(sampling)
    assert len(llm.generate(np.array([[5, 6], [7, 8]]), SHORT)) == 2  # type: ignore[arg-type]
    assert len(llm.generate((text for text in prompts(2)), SHORT, keys=np.array([[1, 0], [2, 0]]))) == 2  # type: ignore[arg-type]


def test_an_engine_that_fails_fails_what_is_asked() -> None:
    model = LLM(DEMO / "model", num_gpus=0)
    under_way = model.submit(QUESTION, Sampling(num_moves=100_000, max_tokens=200))
    engine_of(model)._step = lambda: 1 / 0
    with pytest.raises(powersample.WorkersLost, match="the engine has failed: division by zero"):
        under_way.result(60)
    with pytest.raises(powersample.WorkersLost):
        model.generate(QUESTION)
    model.close()


def test_a_thousand_are_taken_back_at_once(llm: LLM) -> None:
    forgets = llm._requests._dispatcher.forget
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            llm._requests._dispatcher, "forget", lambda serials: (calls.append(len(serials)), forgets(serials))
        )
        asked = [llm.submit(QUESTION, Sampling(num_moves=100_000, max_tokens=200, n=2)) for _ in range(1000)]
        with llm._requests._changed:  # the thread waits here, so that all are cancelled between two of its rounds
            assert all(one.cancel() for one in asked)
        assert llm.generate(QUESTION, SHORT)
    assert sum(calls) == 2000
    assert len(calls) < 5


def test_a_forked_child_has_no_workers(llm: LLM) -> None:
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            llm.submit(QUESTION)
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_closed_it_fails_what_is_under_way_and_takes_no_more() -> None:
    model = LLM("demo", num_gpus=0)
    under_way = model.submit(QUESTION, Sampling(num_moves=100_000, max_tokens=200))
    model.close()
    with pytest.raises(RuntimeError, match="the workers were closed"):
        under_way.result(60)
    with pytest.raises(RuntimeError, match="the workers were closed"):
        model.submit(QUESTION)
    model.close()  # a second time it does nothing


def test_a_model_that_nobody_has_any_more_is_closed() -> None:
    import gc

    model = LLM("demo", num_gpus=0)
    answer = model.submit(QUESTION, SHORT)
    requests = model._requests
    del model
    assert answer.result(60).outputs[0].token_ids
    del answer
    gc.collect()
    requests._thread.join(60)
    assert not requests._thread.is_alive()


def test_the_interpreter_ends_at_once_and_quietly_with_work_in_flight() -> None:
    program = (
        "from powersample import LLM, Sampling\n"
        "llm = LLM('demo', num_gpus=0)\n"
        f"llm.submit({QUESTION!r}, Sampling(num_moves=100_000, max_tokens=200))\n"
    )
    done = python("-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


RAY = """
import os, signal, sys, powersample
from powersample import LLM, Sampling
mine = lambda *_: print("mine", flush=True)
signal.signal(signal.SIGTERM, mine)
llm = LLM("demo", num_gpus=0, num_workers=2, batch_size=4)
assert signal.getsignal(signal.SIGTERM) is mine
prompts, sampling = PROMPTS, Sampling(num_moves=2, max_tokens=24)
keys = [(row, 0) for row in range(len(prompts))]
print("ANSWERS", repr([out.outputs[0].token_ids for out in llm.generate(prompts, sampling, keys)]))
try:
    LLM("demo", num_gpus=0, num_workers=2)
except powersample.UserError as error:
    print("SECOND", error)
endless = [llm.submit(prompt, Sampling(num_moves=100_000, max_tokens=200)) for prompt in prompts]
pids = [handle.actor.__ray_call__.remote(lambda actor: os.getpid()) for handle in llm._requests._pool._handles]
import ray
victim = ray.get(pids[0])
under_way = [llm.submit(prompt, Sampling(num_moves=40, max_tokens=60), key) for prompt, key in zip(prompts, keys)]
assert all(one.cancel() for one in endless)
os.kill(victim, signal.SIGKILL)
print("LEFT", len([one.result(120) for one in under_way]), flush=True)
last = llm.submit(prompts[0], Sampling(num_moves=100_000, max_tokens=200))
llm.close()
assert isinstance(last.exception(0), RuntimeError) and not ray.is_initialized()
llm = LLM("demo", num_gpus=0, num_workers=2, batch_size=4)
llm.submit(prompts[0], Sampling(num_moves=100_000, max_tokens=200))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_over_ray_with_a_killed_worker_cancelled_work_and_a_quiet_exit(llm: LLM, tmp_path: Path) -> None:
    asked = prompts(6)
    program = RAY.replace("PROMPTS", repr(asked))
    done = python("-c", program, timeout=900, MARK=tmp_path)  # a variable that all its processes inherit
    assert (done.returncode, done.stderr) == (0, "")
    said = dict(
        line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("ANSWERS", "LEFT", "SECOND"))
    )
    same = llm.generate(asked, SHORT, keys=[(row, 0) for row in range(6)])
    assert said.pop("SECOND").startswith("An LLM with several workers starts a Ray of its own, and this process has")
    assert said == {"ANSWERS": repr(tokens(same)), "LEFT": "6"}  # beside what Ray says of the dead worker
    left = [one for one in psutil.process_iter(["environ"]) if (one.info["environ"] or {}).get("MARK") == str(tmp_path)]
    assert not psutil.wait_procs(left, 30)[1]


def test_an_interrupt_takes_all_back(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("powersample.llm.wait", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        llm.generate(prompts(10), Sampling(num_moves=100_000, max_tokens=200))
    monkeypatch.undo()
    assert llm.generate(QUESTION, SHORT)
    assert engine_of(llm).counters().kv_pages_used == 0
