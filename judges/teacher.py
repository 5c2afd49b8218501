"""Any judge that asks a language model, answered by one on an OpenAI-compatible server.

The judge inside says what is asked and how answers are read; this one says who answers: a vLLM
server, or a vendor. What was answered is kept in the run's folder `judging`, so that a run that
stops, for its budget or otherwise, pays for nothing twice.
"""

from pydantic import model_validator

from selfkd import Sample, Verdict
from selfkd.judgecalls import Caller
from selfkd.judging import OWN
from selfkd.nested import Nested, NestedJudge, composed
from selfkd.served.calls import server_calls
from selfkd.served.options import ServerOptions, check_server


class TeacherOptions(ServerOptions):
    """Options of the judge `teacher`."""

    judge: NestedJudge
    """The judge whose calls the server answers: a name, or `{use: name, option: value}`."""

    @model_validator(mode="after")
    def _asks_no_policy(self) -> "TeacherOptions":
        if (policy := self.judge.engine) not in (None, OWN):
            raise ValueError(f"the server answers, so the judge inside cannot ask {policy}")
        return self


@composed("teacher", own_caller=True, ready=check_server)
class Teacher:
    """Any judge that asks a language model, answered by one on an OpenAI-compatible server."""

    def __init__(self, options: TeacherOptions, caller: Caller | None = None) -> None:
        # Who would answer otherwise only says where the run keeps things.
        server = server_calls(options, getattr(caller, "folder", None))
        self._inner = Nested(options.judge, server)

    def judge(self, samples: list[Sample]) -> list[Verdict]:
        """A verdict for each sample, by the judge inside."""
        return self._inner.judge(samples)
