"""Objectives that are no loss, and rewards from outside."""

import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import LABELS, ROWS, TEMPLATE
from zoquant.errors import DataError, RewardError
from zoquant.tasks import Classification, Generation, LanguageModeling, MultipleChoice, Prompt, Template
from zoquant.tasks.kinds.sequences import Scored
from zoquant.tasks.objective import WithObjective, with_objective
from zoquant.tasks.rewards import Generated, OutsideReward
from zoquant.tasks.template import parse_words
from zoquant.training import Job, RunFolder, Settings, run

CPU = torch.device("cpu")
QUESTIONS = [{"q": f"what {'is ' * i}it", "label": "rain"} for i in range(4)]
SEEN = [Generated("Q", "one", ("two",), {"q": "Q"})]
PYTHON = f"'{sys.executable}' -c"


@pytest.fixture
def writer(loaded: tuple[Any, Any]) -> Generation:
    return Generation(QUESTIONS, Prompt("Q: {q} A: {label}"), loaded[1], CPU, max_new_tokens=4)


def test_the_loss_is_the_task_itself(writer: Generation) -> None:
    assert with_objective(writer, "loss") is writer


def test_a_metric_is_made_larger(loaded: tuple[Any, Any], writer: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "generate", lambda model, batch: ["rain", "no rain", "x", "x"])
    batch = writer.batch(range(4))
    assert with_objective(writer, "exact-match").loss(loaded[0], batch) == -0.25
    assert with_objective(writer, "f1").loss(loaded[0], batch) == pytest.approx(-(1 + 2 / 3) / 4)
    data = Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), loaded[1], CPU)
    found = with_objective(data, "accuracy").loss(loaded[0], data.batch(range(12)))
    assert found == pytest.approx(-data.evaluate(loaded[0]).accuracy)


@pytest.mark.parametrize("parts", [1, 2])
def test_examples_of_any_length_weigh_alike(loaded: tuple[Any, Any], tmp_path: Path, parts: int) -> None:
    """A short answer that scores 1 and one of many tokens that scores 0, in one forward or in one each."""
    rows = [{"q": "a", "label": "x"}, {"q": "b", "label": "rain " * 20}]
    data = Generation(rows, Prompt("Q: {q} A: {label}"), loaded[1], CPU, max_new_tokens=4)
    task = with_objective(data, "reward", lambda seen: sum(each.row["q"] == "a" for each in seen) / len(seen))
    settings = Settings(steps=1, batch_size=2, micro_batches=parts, lr=0.0, eps=1e-2, include=("*.layers.1.*",))
    folder = RunFolder(tmp_path / "run")
    run(Job(loaded[0], task, None, settings, folder, {}))
    assert folder.read_metrics()[0]["loss"] == -0.5


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", ["generation", "choice", "text"])
def test_a_function_of_examples_weighs_them_alike(
    loaded: tuple[Any, Any], tmp_path: Path, kind: str, parts: int
) -> None:
    """A short answer that scores 1 and one of many tokens that scores 0: the mean is a half however they are cut."""
    long = "rain " * 20
    rows = [{"q": "a", "label": "x", "o": ["x", "y"]}, {"q": "b", "label": long, "o": [long, "y"]}]
    prompt, tokenizer = Prompt("Q: {q} A: {label}"), loaded[1]
    data: Any
    if kind == "generation":
        data = Generation(rows, prompt, tokenizer, CPU, max_new_tokens=4)
    elif kind == "choice":
        data = MultipleChoice(rows, prompt, ["o"], tokenizer, CPU)
    else:
        data = LanguageModeling([Scored([1, 2, 3], [False, True, True]), Scored([1] * 30, [True] * 30)], CPU)

    def short(model: Any, batch: Any) -> float:
        lengths: tuple[int, ...] = batch.rows
        return sum(length < 20 for length in lengths) / len(lengths)

    settings = Settings(steps=1, batch_size=2, micro_batches=parts, lr=0.0, eps=1e-2, include=("*.layers.1.*",))
    folder = RunFolder(tmp_path / "run")
    run(Job(loaded[0], WithObjective(data, short), None, settings, folder, {}))
    assert folder.read_metrics()[0]["loss"] == 0.5


def test_a_reward_sees_what_was_written(loaded: tuple[Any, Any], writer: Generation) -> None:
    seen: list[Generated] = []

    def reward(generations: Sequence[Generated]) -> float:
        seen.extend(generations)
        return 0.75

    task = with_objective(writer, "reward", reward)
    batch = task.batch_of_step(0, 0, 2)
    assert task.loss(loaded[0], batch) == -0.75
    assert [each.text for each in seen] == writer.generate(loaded[0], batch)
    assert [each.row for each in seen] == [QUESTIONS[i] for i in batch.examples]


def test_any_function_of_model_and_batch(loaded: tuple[Any, Any], writer: Generation) -> None:
    task = WithObjective(writer, lambda model, batch: float(batch.weight))
    assert task.loss(loaded[0], writer.batch([0])) == writer.answers[0].count
    assert len(task) == 4
    assert task.evaluate(loaded[0]).primary == "f1"


@pytest.mark.parametrize(
    ("name", "reward", "message"),
    [
        ("speed", None, "objective is 'speed', expected one of loss, accuracy"),
        ("reward", None, "objective is 'reward', but no reward is given. Name a URL or a command: --reward"),
        ("f1", OutsideReward("x"), "a reward is given, but objective is 'f1'. Say --objective reward"),
        ("accuracy", None, "accuracy is for classification and masked"),
    ],
)
def test_objectives_that_do_not_fit(writer: Generation, name: str, reward: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_objective(writer, name, reward)


def test_text_metrics_need_generation(loaded: tuple[Any, Any]) -> None:
    data = Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), loaded[1], CPU)
    with pytest.raises(DataError, match="objective f1 scores generated texts"):
        with_objective(data, "f1")


def test_a_command_scores(tmp_path: Path) -> None:
    command = (
        f"tee {tmp_path}/sent | {PYTHON} \"import json, sys; print(len(json.load(sys.stdin)['generations']) / 4)\""
    )
    assert OutsideReward(command)(SEEN) == 0.25
    assert json.loads((tmp_path / "sent").read_text()) == {
        "generations": [{"prompt": "Q", "text": "one", "references": ["two"], "row": {"q": "Q"}}]
    }


@pytest.mark.parametrize("answer", ["yes", "[1]", "true", "", "NaN", "-Infinity", "1" * 400, r"\0377", "[" * 20_000])
def test_an_answer_that_is_no_number(answer: str) -> None:
    with pytest.raises(RewardError, match=r"expected one finite number as JSON\. The step is skipped; see that"):
        OutsideReward(f"echo '{answer}'")(SEEN)


def test_a_command_that_fails_is_told_of_in_its_own_words() -> None:
    with pytest.raises(RewardError, match=r"returned non-zero exit status 3: no such model\. The step is skipped"):
        OutsideReward("echo loading >&2; echo no such model >&2; exit 3")(SEEN)


def test_what_a_command_has_started_ends_with_it(tmp_path: Path) -> None:
    """The shell waits for a child, which is told to end as well; left alone, it would write a file."""
    late = tmp_path / "late"
    with pytest.raises(RewardError, match="TimeoutExpired"):
        OutsideReward(f"(sleep 1; echo x > {late}); true", timeout=0.1, tries=1)(SEEN)
    time.sleep(1.5)
    assert not late.exists()


def test_a_command_that_fails_or_hangs_is_tried_again(tmp_path: Path) -> None:
    tried = tmp_path / "tried"
    second = f"echo x >> {tried}; test $(wc -l < {tried}) -ge 2 && echo 0.5"
    assert OutsideReward(second)(SEEN) == 0.5
    tried.unlink()
    with pytest.raises(RewardError, match=r"no answer in 3 tries of 0\.2 s, the last one TimeoutExpired"):
        OutsideReward(f"echo x >> {tried}; exec sleep 5", timeout=0.2)(SEEN)
    assert tried.read_text() == "x\n" * 3


class Server(HTTPServer):
    """Answers what stands in `answers`, one after the other; None hangs until the client has gone.

    An answer is a status and a text, and may name a length that the text does not have.
    """

    answers: list[Any]
    seen: list[Any]


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        answer = self.server.answers.pop(0)
        if answer is None:
            self.connection.settimeout(5)
            self.connection.recv(1)
            return
        self.send_response(answer[0])
        for length in answer[2:]:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(answer[1].encode())

    def log_message(self, *arguments: Any) -> None:
        """Stay quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Answer)
    made.answers, made.seen = [], []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/score"


def test_an_endpoint_scores_after_a_time_out_and_a_fault(server: Server) -> None:
    server.answers = [None, (503, "busy"), (200, "0.5")]
    assert OutsideReward(url(server), timeout=1)(SEEN) == 0.5
    assert [len(sent["generations"]) for sent in server.seen] == [1, 1, 1]


def test_an_answer_that_breaks_off_is_asked_for_again(server: Server) -> None:
    """No OSError: `IncompleteRead`, and `InvalidURL` of an address that is none."""
    server.answers = [(200, "0.5", 10), (200, "0.5")]
    assert OutsideReward(url(server), timeout=5)(SEEN) == 0.5
    with pytest.raises(RewardError, match=r"no answer in 3 tries .* InvalidURL"):
        OutsideReward("http://localhost:80a/score")(SEEN)


def test_a_step_without_a_reward_is_skipped_and_counted(
    loaded: tuple[Any, Any], writer: Generation, server: Server, tmp_path: Path
) -> None:
    """A step asks twice. The second step gets no answer in three tries; the run goes on."""
    ok = (200, "0.5")
    server.answers = [ok, (200, "0.25"), *[(503, "busy")] * 3, ok, (200, "0.75")]
    task = with_objective(writer, "reward", OutsideReward(url(server), timeout=5))
    folder = RunFolder(tmp_path / "run")
    settings = Settings(steps=3, batch_size=2, lr=0.0, eps=1e-2, include=("*.layers.1.*",))
    outcome = run(Job(loaded[0], task, None, settings, folder, {}))
    assert (outcome.steps, outcome.skipped, outcome.finished) == (3, 1, True)
    lines = folder.read_metrics()
    assert [line["step"] for line in lines if "loss" in line] == [1, 3]
    (skipped,) = [line for line in lines if "skipped" in line]
    assert skipped["step"] == 2
    assert "no answer in 3 tries" in skipped["skipped"]


def test_a_reward_that_never_answers_ends_the_run_with_advice(
    loaded: tuple[Any, Any], writer: Generation, tmp_path: Path
) -> None:
    task = with_objective(writer, "reward", OutsideReward("exit 1"))
    settings = Settings(steps=5, batch_size=2, lr=0.0, eps=1e-2, include=("*.layers.1.*",))
    with pytest.raises(RewardError, match=r"3 times in a row\. .* see to the reward, and go on with --resume"):
        run(Job(loaded[0], task, None, settings, RunFolder(tmp_path / "run"), {}))


def test_a_metric_that_is_nan_skips_the_step(loaded: tuple[Any, Any], writer: Generation, tmp_path: Path) -> None:
    values = iter([0.1, 0.2, float("nan"), 0.3, 0.4])
    task = WithObjective(writer, lambda model, batch: next(values))
    settings = Settings(steps=3, batch_size=2, lr=0.0, eps=1e-2, include=("*.layers.1.*",))
    outcome = run(Job(loaded[0], task, None, settings, RunFolder(tmp_path / "run"), {}))
    assert (outcome.steps, outcome.skipped) == (3, 1)


class Slow(BaseHTTPRequestHandler):
    """Answers a byte at a time, each within the timeout of a socket: for ever in its headers, or in its body."""

    def do_POST(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"" if self.path == "/headers" else b"\r\n"))
        for _ in range(100):
            try:
                self.wfile.write(b" ")
            except OSError:
                return
            time.sleep(0.05)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize("where", ["body", "headers"])
def test_an_answer_that_never_ends(where: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(RewardError, match=r"TimeoutError: no whole answer in time\. The step is skipped"):
            OutsideReward(f"http://127.0.0.1:{server.server_port}/{where}", timeout=0.3, tries=2)(SEEN)
        assert time.monotonic() - start < 3
        server.shutdown()


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 3e6])
def test_who_waits_for_ever_says_inf(timeout: float, server: Server) -> None:
    server.answers = [(200, "0.5")]
    assert OutsideReward("echo 0.5", timeout=timeout)(SEEN) == 0.5
    assert OutsideReward(url(server), timeout=timeout)(SEEN) == 0.5


@pytest.mark.parametrize("timeout", [0.0, -1.0, math.nan])
def test_a_timeout_is_above_nothing(timeout: float) -> None:
    with pytest.raises(ValueError, match=r"reward_timeout is .*, expected seconds above 0, or inf to wait for ever"):
        OutsideReward("echo 0.5", timeout=timeout)
