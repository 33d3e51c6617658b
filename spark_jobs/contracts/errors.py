"""The project's one root of errors.

Every error says what failed, what was found, what was expected and what to do next; it carries its exit code and
whether the same work may succeed when it is done again unchanged. No error text holds a secret.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal

from spark_jobs.contracts.exit_codes import ExitCode

Operation = Literal["read", "write", "publish"]
"""What a run does with a system outside: by it the settings of its retries are chosen."""


class EtlError(Exception):
    """Root of all errors that this project raises.

    :param what: what failed, one sentence.
    :param found: what was found.
    :param expected: what was expected instead.
    :param cure: what the reader can do next.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.UNEXPECTED
    retryable: ClassVar[bool] = False
    operation: ClassVar[Operation] = "write"
    """What was being done when it failed."""
    tried_again_in_run: ClassVar[bool] = True
    """Whether a run does the same again by itself, where the error is retryable and the pipeline asks for retries."""
    blames_system: ClassVar[bool] = False
    """Whether it says that the system outside does not work: such failures open its circuit breaker."""

    def __init__(self, what: str, *, found: str = "", expected: str = "", cure: str = "") -> None:
        self.what = what
        self.found = found
        self.expected = expected
        self.cure = cure
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [self.what.rstrip(".") + "."]
        parts += [
            f"{label}: {text.rstrip('.')}."
            for label, text in (("Found", self.found), ("Expected", self.expected), ("What to do", self.cure))
            if text
        ]
        return " ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the error as the run's record in PostgreSQL keeps it."""
        return {
            "type": type(self).__name__,
            "exit_code": int(self.exit_code),
            "retryable": self.retryable,
            "what": self.what,
            "found": self.found,
            "expected": self.expected,
            "cure": self.cure,
        }


class ConfigError(EtlError):
    """The pipeline file, a variable or an option is wrong."""

    exit_code = ExitCode.CONFIG_INVALID


class NotSupportedYetError(EtlError):
    """The configuration asks for a capability that this version parses but does not have."""

    exit_code = ExitCode.NOT_SUPPORTED


class ConnectionMissingError(EtlError):
    """A ``credentialId`` could not be resolved."""

    exit_code = ExitCode.CONNECTION_MISSING


class DatabaseUnreachableError(EtlError):
    """PostgreSQL does not answer, or refuses the login."""

    exit_code = ExitCode.DATABASE_UNREACHABLE
    retryable = True
    blames_system = True


class SourceUnreachableError(EtlError):
    """The broker, topic or path cannot be reached or does not exist."""

    exit_code = ExitCode.SOURCE_UNREACHABLE
    retryable = True
    operation: ClassVar[Operation] = "read"


class RecordsNotSentError(SourceUnreachableError):
    """A redrive could not send records to their topic. What was sent of them will not be sent twice."""

    operation = "publish"
    blames_system = True


class RecordsUnwelcomeError(RecordsNotSentError):
    """The broker answers, but does not take the records: trying again unchanged does not help."""

    blames_system = False
    retryable = False


class SourceRefusedError(SourceUnreachableError):
    """The source answers, but refuses this user or what is asked: trying again unchanged does not help."""

    retryable = False


class TargetMismatchError(EtlError):
    """The target table is missing, or its columns, types, keys or privileges do not fit the query."""

    exit_code = ExitCode.TARGET_MISMATCH


class CheckpointMismatchError(EtlError):
    """Checkpoint and ledger disagree: lost, foreign, ahead, or written under another configuration."""

    exit_code = ExitCode.CHECKPOINT_MISMATCH


class CheckpointUnreadableError(EtlError):
    """A checkpoint's files cannot be read from where this runs: its storage is not known, not reachable, or refuses."""

    exit_code = ExitCode.CHECKPOINT_MISMATCH


class FencedError(EtlError):
    """A newer run of the pipeline exists; this driver may not commit any more."""

    exit_code = ExitCode.FENCED


class ExecutorsNotReadyError(EtlError):
    """The executors lack Python, pyarrow or the database driver."""

    exit_code = ExitCode.EXECUTORS_NOT_READY


class DataError(EtlError):
    """A row made an expression fail, or PostgreSQL refused it."""

    exit_code = ExitCode.DATA_ERROR


class RowsSuppressedError(DataError):
    """A trigger or a rule of the target table swallowed rows."""


class BooksDoNotBalanceError(EtlError):
    """The rows counted in and the rows counted out differ. Nothing was committed; the batch can be done again."""

    exit_code = ExitCode.BOOKS_DO_NOT_BALANCE
    retryable = True
    tried_again_in_run = False  # the query runner has done so already, with a limit of its own


class TooManyDeadLettersError(DataError):
    """So many of a batch's rows are bad that the fault is not in the rows. Nothing was committed."""


class DeadLettersTakenError(EtlError):
    """Letters of a replay were taken from it, given back or discarded: its micro-batch commits none of them."""

    exit_code = ExitCode.LEDGER_CONFLICT
    retryable = True


class ReprocessRefusedError(EtlError):
    """A micro-batch cannot be done again so that no row is lost and none comes twice. Nothing of it was written."""

    exit_code = ExitCode.REPROCESS_REFUSED


class DeadLetterRefusedError(DataError):
    """``failFast``: a row became a dead letter. Nothing of its micro-batch was committed."""


class LettersNotPublishedError(EtlError):
    """The copy of the dead letters cannot be written. The micro-batch that has them was not committed."""

    exit_code = ExitCode.LETTERS_NOT_PUBLISHED
    operation = "publish"
    blames_system = True
    retryable = True


class LettersUnwelcomeError(LettersNotPublishedError):
    """The place answers, but does not take the copy of these dead letters: trying again unchanged does not help."""

    blames_system = False
    retryable = False


class TwoPhaseUnavailableError(EtlError):
    """``two_phase`` was asked for, and the server or the target table does not allow it."""

    exit_code = ExitCode.TARGET_MISMATCH


class DecidedPartMissingError(EtlError):
    """Somebody rolled back a prepared transaction of a batch that was decided: only a person can say what now."""

    exit_code = ExitCode.LEDGER_CONFLICT


class GapError(EtlError):
    """Micro-batches in the ledger do not join up, in a way that cannot heal by itself."""

    exit_code = ExitCode.LEDGER_CONFLICT


class SourceRowsLostError(GapError):
    """The source has deleted rows, or made the topic anew, before they were read: no run can read them any more."""


class ClocksDisagreeError(EtlError):
    """The ledger, or the source, has times that the ledger's server has not reached: nothing can be said about ages."""

    exit_code = ExitCode.LEDGER_CONFLICT


class LedgerVersionError(EtlError):
    """The ledger's tables are missing, or of another version than this code."""

    exit_code = ExitCode.LEDGER_VERSION


class LedgerMissingError(LedgerVersionError):
    """There is no ledger there: nothing was ever started with it."""


class LedgerConflictError(EtlError):
    """The ledger holds the same batch identity with other source offsets."""

    exit_code = ExitCode.LEDGER_CONFLICT


class TransientError(EtlError):
    """A passing fault of a server or of the network."""

    exit_code = ExitCode.TRANSIENT
    retryable = True
    blames_system = True


class ContendedError(TransientError):
    """Somebody else was in the way: a lock, a deadlock, a cancelled statement. The server itself does its work."""

    blames_system = False


class TargetAlteredError(TransientError):
    """The target table was altered under a run; the next attempt looks at it anew."""

    blames_system = False


class LoginRefusedError(DatabaseUnreachableError):
    """PostgreSQL answers, but refuses this user, password or database: trying again unchanged does not help."""

    retryable = False
    blames_system = False


class BreakerOpenError(EtlError):
    """A system that kept failing is left alone for a while; nothing was asked of it now.

    :param system: which one, such as ``postgresql://host:5432/database``; no secrets.
    :param until: when somebody may ask it again; knows its time zone.
    :param failure: the last failure that it was seen with, in words.
    :param probing: whether other runs are trying it at this moment.
    """

    exit_code = ExitCode.BREAKER_OPEN
    retryable = True
    tried_again_in_run = False

    def __init__(self, system: str, until: datetime, *, failure: str = "", probing: bool = False) -> None:
        self.system = system
        self.until = until
        self.failure = failure
        moment = until.isoformat(timespec="milliseconds")
        super().__init__(
            f"{system}: breaker open until {moment}",
            found="other runs are trying it, as many as may at once" if probing else failure or "failures in a row",
            expected="a system that works",
            cure="find out why it fails; a run that starts after that time tries it again and closes the breaker. "
            "Sooner: `etl-pipeline breakers reset`",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the error with the system and the time, for whoever started the run."""
        return {**super().to_json(), "system": self.system, "until": self.until.isoformat()}


class ContractVersionError(LedgerVersionError):
    """The side that started the run and the side that carries it out have different versions of the contract."""
