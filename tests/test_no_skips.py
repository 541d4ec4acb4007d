"""The plugin that turns skips into failures, run by a real inner pytest."""

from __future__ import annotations

import pytest

SKIPS = """
    import pytest

    def test_runs(): pass

    def test_skips(): pytest.skip("no such library")

    @pytest.mark.may_skip("needs a GPU")
    def test_may_skip(): pytest.skip("no GPU")

    @pytest.mark.xfail(strict=True)
    def test_fails_as_expected(): assert False
"""


@pytest.mark.parametrize(("ci", "failed", "skipped"), [("1", 1, 1), ("", 0, 2)])
def test_only_ci_fails_a_skipped_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str, failed: int, skipped: int
) -> None:
    monkeypatch.setenv("ADAFILTER_CI", ci)
    pytester.makeini("[pytest]\nmarkers = may_skip(reason): allowed")
    pytester.makepyfile(SKIPS)
    result = pytester.runpytest_inprocess("-p", "tests.no_skips")
    result.assert_outcomes(passed=1, failed=failed, skipped=skipped, xfailed=1)
    if ci:
        result.stdout.fnmatch_lines(["*CI does not allow*no such library*"])


@pytest.mark.parametrize(("ci", "errors"), [("1", 1), ("", 0)])
def test_only_ci_fails_a_skipped_file(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str, errors: int
) -> None:
    monkeypatch.setenv("ADAFILTER_CI", ci)
    pytester.makepyfile("import pytest\npytest.importorskip('no_such_package')\ndef test(): pass")
    result = pytester.runpytest_inprocess("-p", "tests.no_skips")
    result.assert_outcomes(errors=errors, skipped=1 - errors)
