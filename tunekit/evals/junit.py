"""Verdicts as JUnit XML, which CI systems show beside their tests."""

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from tunekit.evals.gates import Verdict

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(verdicts: Sequence[Verdict], suite: str) -> str:
    """One `testsuite` with a `testcase` for each gate; a gate that failed is a `failure` with its figure."""
    failures = sum(not each.passed for each in verdicts)
    counts: dict[str, Any] = {"tests": str(len(verdicts)), "failures": str(failures), "errors": "0", "skipped": "0"}
    suite = _legal(suite)
    root = ElementTree.Element("testsuites", name="tunekit", **counts)
    of_run = ElementTree.SubElement(root, "testsuite", name=suite, **counts)
    for each in verdicts:
        name, reason = _legal(f"{each.name} {each.condition}"), _legal(each.reason)
        case = ElementTree.SubElement(of_run, "testcase", classname=f"gate.{suite}", name=name)
        if each.passed:
            ElementTree.SubElement(case, "system-out").text = reason
        else:
            ElementTree.SubElement(case, "failure", message=reason, type="GateFailed").text = reason
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _legal(text: str) -> str:
    """Names of groups come from data, and XML has no way to write most control characters."""
    return _NOT_XML.sub("?", text)
