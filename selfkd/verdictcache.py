"""Verdicts that were paid for, kept for every run of this user.

A judge that declares its verdicts cacheable is asked once for one content. A verdict's key hashes
the judge's identity (source and options), the policy or the server that answers it, and what the
judge is shown: the prompt's messages, answer and columns, the completion, and how it finished.

The file belongs to the user, not to a run, because most of what would be paid twice is asked by
another run: a fork, a re-judged run, the same config after a mistake. A resumed run reads its own
verdicts back from its shards; the cache adds those of the shard that it was killed in. SQLite makes
a commit whole after a kill and lets runs share the file. What is damaged counts as not there.
"""

import json
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfkd.judging import FAILURES, JudgeSpec
from selfkd.models import cache_root
from selfkd.records import Sample, Verdict, content_hash

Positioned = list[tuple[int, Verdict]]
Store = Callable[[Positioned], None]
"""Takes verdicts as they come, each with its sample's place among those that were asked about."""
Ask = Callable[[list[int], Store], list[Verdict]]
"""Verdicts of the samples at the given places."""

WAIT = 30.0
"""Longest wait for another process that writes, seconds."""
_AT_ONCE = 500
"""Keys in one query."""

_TABLE = """
create table if not exists verdicts (
    key text primary key, value text not null, checksum text not null
) without rowid
"""


def cache_file() -> Path:
    """Where verdicts are kept: `$SELFKD_CACHE/verdicts.sqlite3` (default `~/.cache/selfkd`)."""
    return cache_root() / "verdicts.sqlite3"


class VerdictCache:
    """The cached verdicts of one judge; every method may be called from several threads.

    `identity` says everything that a verdict depends on besides the samples, the judging policy's
    fingerprint included where a policy judges. A verdict of a judge that `compares` depends on all
    samples of the prompt.
    """

    def __init__(self, identity: str, *, compares: bool = False, path: Path | None = None) -> None:
        self.path = path or cache_file()
        self.hits = 0
        """Verdicts that were not asked for again."""
        self.complaint = ""
        """Why the cache, or a part of it, is not used; empty while all is well."""
        self._identity = identity
        self._compares = compares
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._try(lambda db: db.execute(_TABLE), self._open)

    @classmethod
    def of(cls, judge: JudgeSpec, policy: str = "", path: Path | None = None) -> "VerdictCache":
        """The cache of a judge; `policy` is the fingerprint of the policy that it asks."""
        # A run may go on at another address of its model, so the server is no part of the judge's
        # identity. Here it is: elsewhere other weights may go by the same name, and this is kept
        # for good.
        server = str(getattr(judge.validate(), "base_url", "")).rstrip("/")
        return cls(f"{judge.identity()} {policy} {server}", compares=judge.compares, path=path)

    def serve(self, samples: Sequence[Sample], ask: Ask) -> list[Verdict]:
        """A verdict for each sample, in order; `ask` is called for those that are not known.

        Failures are not kept, and what is known costs nothing.
        """
        keys = self._keys(samples)
        known = self._find(keys)
        owed = self._owed(samples, keys, known)
        self.hits += len(samples) - len(owed)

        def store(group: Positioned) -> None:
            self._keep((keys[owed[place]], verdict) for place, verdict in group)

        found = dict(zip(owed, ask(owed, store), strict=True)) if owed else {}
        known |= {keys[i]: _fields(v) for i, v in reversed(found.items())}
        return [
            found.get(i) or Verdict(sample.id, sample.prompt.id, *known[key])
            for i, (sample, key) in enumerate(zip(samples, keys, strict=True))
        ]

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
            self._db = None

    # -- keys -------------------------------------------------------------------------------------

    def _keys(self, samples: Sequence[Sample]) -> list[str]:
        own = [_content(s) for s in samples]
        if not self._compares:
            return [content_hash([self._identity, text], 32) for text in own]
        groups: dict[str, list[str]] = defaultdict(list)
        for sample, text in zip(samples, own, strict=True):
            groups[sample.prompt.id].append(text)
        whole = {prompt: content_hash(texts, 32) for prompt, texts in groups.items()}
        return [
            content_hash([self._identity, text, whole[sample.prompt.id]], 32)
            for sample, text in zip(samples, own, strict=True)
        ]

    def _owed(
        self, samples: Sequence[Sample], keys: Sequence[str], known: Mapping[str, Any]
    ) -> list[int]:
        missing = [i for i, key in enumerate(keys) if key not in known]
        if not self._compares:
            return sorted({keys[i]: i for i in reversed(missing)}.values())  # of equals the first
        prompts = {samples[i].prompt.id for i in missing}
        return [i for i, sample in enumerate(samples) if sample.prompt.id in prompts]

    # -- the file ---------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return sqlite3.connect(
            self.path, timeout=WAIT, check_same_thread=False, isolation_level=None
        )

    def _find(self, keys: Sequence[str]) -> dict[str, list[Any]]:
        wanted, rows = sorted(set(keys)), []
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            query = f"select key, value, checksum from verdicts where key in ({marks})"
            rows += self._try(lambda db: db.execute(query, part).fetchall()) or []  # noqa: B023
        whole = {key: value for key, value, checksum in rows if _checksum(key, value) == checksum}
        if len(whole) < len(rows):
            damaged = len(rows) - len(whole)
            self.complaint = (
                f"{damaged} verdicts in {self.path} are damaged and are asked for again"
            )
        return {key: json.loads(value) for key, value in whole.items()}

    def _keep(self, verdicts: Iterable[tuple[str, Verdict]]) -> None:
        rows = []
        for key, verdict in verdicts:
            if verdict.status not in FAILURES:
                value = json.dumps(_fields(verdict))
                rows.append((key, value, _checksum(key, value)))
        if rows:
            insert = "insert or replace into verdicts values (?, ?, ?)"
            self._try(lambda db: _commit(db, insert, rows))

    def _try(
        self,
        action: Callable[[sqlite3.Connection], Any],
        connect: Callable[[], sqlite3.Connection] | None = None,
    ) -> Any:
        """The value of `action`; where the file cannot be used, None from then on."""
        with self._lock:
            try:
                if connect:
                    self._db = connect()
                return None if self._db is None else action(self._db)
            except (sqlite3.Error, OSError) as error:
                self._db = None
                self.complaint = (
                    f"the verdict cache {self.path} cannot be used ({error}): going on without it; "
                    "if it is damaged, delete it"
                )
                return None


def _commit(db: sqlite3.Connection, insert: str, rows: Sequence[tuple[str, str, str]]) -> None:
    db.execute("begin immediate")
    try:
        db.executemany(insert, rows)
        db.execute("commit")
    except sqlite3.Error:
        if db.in_transaction:
            db.execute("rollback")
        raise


def _content(sample: Sample) -> str:
    prompt = sample.prompt
    shown = [prompt.messages, prompt.answer, dict(prompt.columns)]
    return content_hash([*shown, sample.completion, sample.finish], 32)


def _fields(verdict: Verdict) -> list[Any]:
    """All of a verdict but whose it is and what it cost."""
    return [verdict.judge, verdict.reward, verdict.status, verdict.answer, verdict.rationale]


def _checksum(key: str, value: str) -> str:
    return content_hash([key, value])
