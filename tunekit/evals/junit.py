"""Verdicts as JUnit XML, which CI systems show beside their tests."""

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from tunekit.evals.gates import Verdict


def junit(verdicts: Sequence[Verdict], suite: str) -> str:
    """One `testsuite` with a `testcase` for each gate; a gate that failed is a `failure` with its figure."""
    failures = sum(not each.passed for each in verdicts)
    counts: dict[str, Any] = {"tests": str(len(verdicts)), "failures": str(failures), "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", name="tunekit", **counts)
    of_run = ElementTree.SubElement(root, "testsuite", name=suite, **counts)
    for each in verdicts:
        case = ElementTree.SubElement(
            of_run, "testcase", classname=f"gate.{suite}", name=f"{each.name} {each.condition}"
        )
        if each.passed:
            ElementTree.SubElement(case, "system-out").text = each.reason
        else:
            ElementTree.SubElement(case, "failure", message=each.reason, type="GateFailed").text = each.reason
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
