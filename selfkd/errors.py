"""The errors selfkd raises on purpose, each with the exit code the command line ends with."""


class SelfkdError(Exception):
    """An expected failure: what happened, where, and what to do about it.

    `where` is a `file:line`, a config path or a run directory; `remedy` is one imperative sentence.
    The command line prints these without a traceback (unless `--debug`) and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy
        self.resume = ""
        """The command that goes on with the run that was stopped, where there is one."""

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.message}" if self.where else self.message]
        if self.remedy:
            parts.append(self.remedy)
        return " — ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and errors cross processes.
        return _rebuild, (type(self), self.message, self.where, self.remedy)


def _rebuild(cls: type[SelfkdError], message: str, where: str, remedy: str) -> SelfkdError:
    return cls(message, where=where, remedy=remedy)


class UsageError(SelfkdError):
    """The command line or the config is wrong (exit 2)."""

    exit_code = 2


class Stopped(SelfkdError):
    """The run stopped on request and can be resumed (exit 3)."""

    exit_code = 3


class DataError(SelfkdError):
    """The data, or what the model or judge made of it, cannot be used (exit 4)."""

    exit_code = 4


class Diverged(DataError):
    """A training met a loss or gradient that is not finite; nothing of it is used (exit 4)."""


class InfrastructureError(SelfkdError):
    """A process, disk, memory or cluster failure (exit 5)."""

    exit_code = 5


class LockHeld(SelfkdError):
    """Another process works on this run (exit 6)."""

    exit_code = 6
