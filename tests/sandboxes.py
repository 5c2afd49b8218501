"""Whether generated code can be sandboxed on this machine."""

import pytest

from selfkd.errors import UsageError
from selfkd.sandbox.box import Sandbox


def _missing() -> str:
    try:
        Sandbox().check()
    except UsageError as error:
        return f"no sandbox: {error}"
    return ""


_REASON = _missing()

needs_sandbox = pytest.mark.skipif(bool(_REASON), reason=_REASON or "there is one")
