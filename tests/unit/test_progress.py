"""Feedback from the writer to the readers of one process."""

import pickle
import threading

from vocbeam.schemas.records import PartitionKey
from vocbeam.transforms.progress import (
    PROGRESS,
    Progress,
    Snapshot,
    model_changes,
    report_committed,
    report_model_changed,
)

KEY = PartitionKey("cluster", "id", "voc.survey", 0)


def test_answer__once_and_only_for_the_thread_it_was_given_on() -> None:
    progress = Progress()
    thread = threading.Thread(target=progress.committed, args=(KEY, 40))
    thread.start()
    thread.join()
    assert progress.answer(KEY) is None
    progress.committed(KEY, 30)
    assert progress.answer(KEY) == 30
    assert progress.answer(KEY) is None
    assert progress.committed_offset(KEY) == 40


def test_snapshot__sums_over_readers() -> None:
    progress = Progress()
    progress.read(3)
    progress.read(4)
    progress.behind(KEY, 9)
    progress.behind(KEY, 5)
    progress.behind(KEY._replace(partition=1), 1)
    assert progress.snapshot() == Snapshot(records=7, lag=6)


def test_sleep__ends_when_a_stop_is_requested() -> None:
    progress = Progress()
    threading.Timer(0.05, progress.request_stop).start()
    progress.sleep(60)
    assert progress.stop_requested()


def test_report_committed__finds_the_registry_of_its_process_after_pickling() -> None:
    PROGRESS.reset()
    pickle.loads(pickle.dumps(report_committed))(KEY, 7)
    assert PROGRESS.answer(KEY) == 7
    PROGRESS.reset()
    assert PROGRESS.committed_offset(KEY) is None


def test_model_changes__every_tagger_of_the_process_sees_each() -> None:
    PROGRESS.reset()
    pickle.loads(pickle.dumps(report_model_changed))()
    report_model_changed()
    assert [pickle.loads(pickle.dumps(model_changes))() for _ in range(2)] == [2, 2]
    PROGRESS.reset()
    assert model_changes() == 0
