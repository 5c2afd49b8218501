"""The loops that ship with selfkd, one file each; imported as `selfkd.loops`."""

if __name__ != "selfkd.loops":
    # PyPI has packages of this bare name: two copies of one module would register twice.
    raise ImportError("import this package as selfkd.loops, not loops")
