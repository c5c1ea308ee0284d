"""Restarts: which errors, how often, how fast, and what is told at the end."""

from collections.abc import Callable

import pytest

from vocbeam.pipelines.supervisor import RestartPolicy, failing_step, original_error, supervise
from vocbeam.schemas.errors import (
    ConfigError,
    Fenced,
    SinkUnavailable,
    TaxonomyChanged,
    TopicChanged,
    VocbeamError,
    WrongKey,
)
from vocbeam.schemas.registry import RegistryUnavailable


class World:
    """A clock, recorded sleeps, and a pipeline that fails as scripted: (seconds it ran, error or None)."""

    def __init__(self, *runs: tuple[float, Exception | None]) -> None:
        self.runs = list(runs)
        self.now = 0.0
        self.sleeps: list[float] = []
        self.stopped = False

    def run_once(self) -> None:
        seconds, error = self.runs.pop(0)
        self.now += seconds
        if error is not None:
            raise error

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def supervise(self, policy: RestartPolicy) -> int:
        return supervise(
            self.run_once,
            policy,
            stop_requested=lambda: self.stopped,
            sleep=self.sleep,
            monotonic=lambda: self.now,
            chance=lambda: 1.0,
        )


DOWN = SinkUnavailable("the warehouse does not answer")


def test_supervise__backs_off_then_succeeds() -> None:
    world = World((1, DOWN), (1, DOWN), (1, DOWN), (1, None))
    assert world.supervise(RestartPolicy(max_restarts=3)) == 3
    assert world.sleeps == [1.0, 2.0, 4.0]


def test_supervise__gives_up_after_the_limit() -> None:
    world = World(*[(1, DOWN)] * 9)
    with pytest.raises(SinkUnavailable, match=r"does not answer \(given up after 2 restarts\)"):
        world.supervise(RestartPolicy(max_restarts=2))
    assert len(world.runs) == 9 - 3


def test_supervise__a_healthy_run_begins_a_new_row() -> None:
    world = World((1, DOWN), (1, DOWN), (700, DOWN), (1, DOWN), (1, None))
    assert world.supervise(RestartPolicy(max_restarts=2)) == 4
    assert world.sleeps == [1.0, 2.0, 1.0, 2.0]


@pytest.mark.parametrize("kind", [Fenced, TopicChanged, TaxonomyChanged, WrongKey, ConfigError])
def test_supervise__permanent_errors_end_at_once_under_their_own_exit_code(kind: type[VocbeamError]) -> None:
    traceback = (
        f"Traceback (most recent call last):\nvocbeam.schemas.errors.{kind.__name__}: no use [while running 'W']"
    )
    world = World((1, RuntimeError(traceback)))
    with pytest.raises(kind, match=r"^no use$") as ended:
        world.supervise(RestartPolicy())
    assert ended.value.exit_code == kind.exit_code
    assert world.sleeps == []


def test_supervise__unknown_errors_are_told_without_their_text() -> None:
    world = World(*[(1, ValueError("ana@example.com [while running 'DecodeChunks']"))] * 2)
    with pytest.raises(VocbeamError, match="ValueError in step DecodeChunks") as ended:
        world.supervise(RestartPolicy(max_restarts=1))
    assert "example.com" not in str(ended.value)


def test_supervise__stop_while_waiting_starts_nothing_more() -> None:
    world = World((1, DOWN), (1, None))

    def stop(_seconds: float) -> None:
        world.stopped = True

    world.sleep = stop  # type: ignore[method-assign,assignment]
    assert world.supervise(RestartPolicy()) == 1
    assert len(world.runs) == 1


def test_supervise__failure_after_a_stop_is_not_retried() -> None:
    world = World((1, DOWN), (1, None))
    world.stopped = True
    with pytest.raises(SinkUnavailable):
        supervise(
            world.run_once,
            RestartPolicy(),
            stop_requested=iter([False, True, True]).__next__,
            sleep=world.sleep,
            monotonic=lambda: world.now,
        )
    assert world.sleeps == []


def raised(raiser: Callable[[], None]) -> Exception:
    with pytest.raises(Exception) as caught:
        raiser()
    return caught.value


def test_original_error__chained() -> None:
    def chain() -> None:
        try:
            raise Fenced("run 8 owns voc.survey[0]")
        except Fenced as error:
            raise RuntimeError("bundle failed") from error

    found = original_error(raised(chain))
    assert type(found) is Fenced
    assert str(found) == "run 8 owns voc.survey[0]"


def test_original_error__text_of_a_worker_names_an_error_outside_the_tree_module() -> None:
    text = "Error from worker\nvocbeam.schemas.registry.RegistryUnavailable: no answer\n\nDuring handling…\nKeyError: 3"
    assert type(original_error(RuntimeError(text))) is RegistryUnavailable


def test_original_error__last_of_several_in_a_text() -> None:
    text = "vocbeam.schemas.errors.SourceError: first\n...\nvocbeam.schemas.errors.TopicChanged: second"
    assert type(original_error(RuntimeError(text))) is TopicChanged


def test_original_error__foreign() -> None:
    assert original_error(ValueError("vocbeam.schemas.errors.NoSuchError: x")) is None
    assert original_error(ValueError("SourceError: not ours")) is None
    assert failing_step(ValueError("x")) is None


def test_policy__delay_is_jittered_and_bounded() -> None:
    policy = RestartPolicy(first_delay_seconds=2, longest_delay_seconds=10)
    assert [policy.delay(failures, 1.0) for failures in (1, 2, 3, 4, 99)] == [2, 4, 8, 10, 10]
    assert policy.delay(2, 0.0) == 2
