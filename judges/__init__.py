"""The judges that ship with selfkd, one file each; imported as `selfkd.judges`."""

if __name__ != "selfkd.judges":
    # PyPI has packages of this bare name: two copies of one module would register twice.
    raise ImportError("import this package as selfkd.judges, not judges")
