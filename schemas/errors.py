"""Everything vocbeam raises on purpose.

VocbeamError
├── ConfigError            an option, a file or a secret is missing or wrong        exit 2
├── GovernanceError        the governance file breaks a rule (file:line)            exit 2
├── Refused                what a person entered breaks a rule; nothing was stored   exit 2
├── SchemaError            a schema is unknown, unreadable or incompatible          exit 2
├── WorseModel             a new text model is worse than the published one         exit 1
├── BrokerError            the local Kafka broker could not be started or found     exit 1
├── RunnerError            what runs the pipeline can't be started or reached       exit 1
├── MonitoringError        Prometheus or Alertmanager can't be started or asked     exit 1
├── SourceError            Kafka can't be read                                      exit 1
│   └── TopicChanged       another cluster, a recreated or truncated topic          exit 5
├── TagsDrifted            texts differ from those the model learned from           exit 8
├── ReplayStopped          most dead letters of a batch failed again                exit 7
└── SinkError              the warehouse can't be written                           exit 1
    ├── SinkUnavailable    retries are used up                                      exit 1
    ├── Fenced             a newer run owns the ledger                              exit 4
    ├── TaxonomyChanged    the warehouse tags under another taxonomy                exit 6
    ├── ModelChanged       another text model was published again and again         exit 1
    ├── WrongKey           another pseudonymisation key wrote this warehouse        exit 2
    └── BooksDontBalance   reconcile found a difference                             exit 3

A message says what happened, where, and what to do next. It never quotes a customer's data or a secret.
"""

from __future__ import annotations


class VocbeamError(Exception):
    """Base of all errors that vocbeam raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(VocbeamError):
    """An option, a file or a secret is missing or wrong."""

    exit_code = 2


class GovernanceError(VocbeamError):
    """The governance file breaks a rule; the message names file and line."""

    exit_code = 2


class Refused(VocbeamError):
    """What a person entered (a flag, or what is done about a flag or case) breaks a rule; nothing was stored.

    `field` names the entry that is wrong, where it is one.
    """

    exit_code = 2

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class SchemaError(VocbeamError):
    """A schema is unknown, unreadable or incompatible."""

    exit_code = 2


class WorseModel(VocbeamError):
    """A new text model is worse than the published one, beyond what chance explains."""


class BrokerError(VocbeamError):
    """The local Kafka broker could not be started, found or stopped."""


class RunnerError(VocbeamError):
    """What runs the pipeline (Prism, a Flink cluster) could not be built, started or reached."""


class JobGone(RunnerError):
    """A cluster that can't be asked about a job: it doesn't answer, or it no longer knows the job."""


class MonitoringError(VocbeamError):
    """Prometheus or Alertmanager can't be started, doesn't answer, or refuses what it is asked for."""


class SourceError(VocbeamError):
    """Kafka can't be read."""


class TopicChanged(SourceError):
    """Another cluster or topic id stands behind a ledger row, or the log ends before the ledger's position."""

    exit_code = 5


class ReplayStopped(VocbeamError):
    """More than half of a batch of dead letters failed again: going on would not help before the cause is mended."""

    exit_code = 7


class TagsDrifted(VocbeamError):
    """Texts differ from those that the published model learned from, beyond what chance explains."""

    exit_code = 8


class SinkError(VocbeamError):
    """The warehouse can't be written."""


class SinkUnavailable(SinkError):
    """The warehouse refused every attempt within the retry limit."""


class Fenced(SinkError):
    """A run with a higher `run_epoch` owns the ledger row; this pipeline must end."""

    exit_code = 4


class TaxonomyChanged(SinkError):
    """The warehouse's active taxonomy is not the one this chunk was tagged under."""

    exit_code = 6


class ModelChanged(SinkError):
    """The published text model is not the one this chunk was tagged with; tagged again, it can be written."""


class WrongKey(SinkError):
    """The warehouse holds pseudonyms made with another key."""

    exit_code = 2


class BooksDontBalance(SinkError):
    """Reconciliation found a difference between the ledger, the rows and the measures."""

    exit_code = 3
