"""Runs inside the sandbox: tests in one process, the program that they test in another.

The two share no memory, and only plain data and numbered handles cross between them, so a program
cannot make a test pass but by the values it returns: not by ending early, by an `__eq__` that is
always true, by changing what the test uses, or by reading what it expects. Objects of the program's
own classes are handles, which the tests can call, index and iterate; they equal one another if the
program says so, and never equal plain data. A test that calls helper functions of the program
trusts them.

Nothing in here imports anything but the standard library: it runs on whatever Python is shown.
"""
