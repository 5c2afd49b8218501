"""Large imports, and pandas, which pyarrow takes for granted that everybody wants."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from selfkd.imports import large_imports

EXAMPLE = Path(__file__).parents[1] / "runs" / "example"

SPARED = """
import sys
from selfkd.imports import spare_pandas
spare_pandas()
import numpy as np
import pyarrow as pa
table = pa.table({"word": ["a", None], "numbers": [[1], [2, 3]], "weight": np.array([0.5, 1.5])})
assert table.to_pylist()[1] == {"word": None, "numbers": [2, 3], "weight": 1.5}
print("pandas" in sys.modules)
import pandas as pd
print(table.to_pandas()["weight"].sum(), pa.array(pd.Series([1.0, float("nan")])).null_count)
print(pa.Table.from_pandas(pd.DataFrame({"x": [1, 2]})).num_rows)
"""

KNOWN = """
import pandas as pd
from selfkd.imports import spare_pandas
spare_pandas()
import pyarrow as pa
print(pa.array(pd.Series([1.0, float("nan")])).null_count)
"""

SHOWN = """
import sys
from selfkd.cli import main
sys.argv = ["selfkd", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code
print("pyarrow" in sys.modules, "pandas" in sys.modules)
"""

ASKED = """
from importlib import metadata
from selfkd.imports import large_imports
asked, whole = [], metadata.packages_distributions
def counted():
    asked.append(1)
    return whole()
metadata.packages_distributions = counted
with large_imports():
    import transformers.utils
    import trl.import_utils
print(len(asked), metadata.packages_distributions is counted)
"""


def said(code: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_tables_are_made_without_pandas_and_data_frames_are_there_all_the_same():
    assert said(SPARED) == ["False", "2.0 1", "2"]


def test_who_has_pandas_keeps_it():
    assert said(KNOWN) == ["1"]


def test_a_command_reads_a_run_without_pandas():
    *shown, loaded = said(SHOWN, "show", str(EXAMPLE), "--round", "1")
    assert any("reward" in line for line in shown) and loaded == "True False"


def test_what_is_installed_is_read_once_for_all_who_ask():
    assert said(ASKED) == ["1 True"]


def test_the_collector_works_again_after_an_import_and_leaves_alone_what_came_of_it():
    frozen = gc.get_freeze_count()
    kept: list[list[int]] = []
    with pytest.raises(ImportError), large_imports():
        assert not gc.isenabled()
        kept += [[] for _ in range(1000)]
        raise ImportError
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(kept)
