"""Metrics in the text format of Prometheus, for the textfile collector of node_exporter.

HELP and TYPE once for each name, base units (bytes, seconds, ratios) in the names. What is unknown has no sample, so that
nothing unknown is ever averaged as zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

#: ``{name: (help, kind)}``: what a metric is and whether it is a ``gauge`` or a ``counter``.
Metrics = Mapping[str, tuple[str, str]]
#: ``{name: [(labels, value)]}``
Samples = Mapping[str, Iterable[tuple[Mapping[str, str], float]]]


def render(metrics: Metrics, samples: Samples, prefix: str = "pveguard_") -> str:
    """The text, in the order of ``metrics``; those without a sample are left out."""
    lines: list[str] = []
    for name, (description, kind) in metrics.items():
        found = list(samples.get(name) or ())
        if not found:
            continue
        full = f"{prefix}{name}"
        lines += [f"# HELP {full} {description}.", f"# TYPE {full} {kind}"]
        for labels, value in found:
            shown = ",".join(f'{key}="{_label(each)}"' for key, each in labels.items())
            lines.append(f"{full}{{{shown}}} {number(value)}" if shown else f"{full} {number(value)}")
    return "\n".join([*lines, ""])


def number(value: float) -> str:
    """A value as the format has it: whole numbers exactly, others to nine digits."""
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else f"{value:.9g}"


def _label(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
