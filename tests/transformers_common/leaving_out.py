"""Tests of an inherited class that do not fit, each with its reason."""

import unittest


def leave_out(reasons: dict[str, str]):
    """Skips tests of an inherited class: {name of a test or the beginning of it: the reason}."""

    def without(test_class: type) -> type:
        for name, reason in reasons.items():
            found = [test for test in dir(test_class) if test.startswith(name)]
            assert found, f"{test_class.__name__} has no test {name!r} to leave out"
            for test in found:
                setattr(test_class, test, unittest.skip(reason)(getattr(test_class, test)))
        return test_class

    return without
