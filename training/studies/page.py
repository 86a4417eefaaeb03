"""The end of a study on disk: table.json, table.md, README.md with plots and crops. Each file whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.run_folder import whole_file, write_text
from training.studies.report import LEAST, Bytes, Column, Crops, Plot, Report, Value

TABLE, TABLE_TEXT, PAGE = "table.json", "table.md", "README.md"
PLOT_WIDTH_INCHES, PLOT_HEIGHT_INCHES, PLOT_DPI = 4.2, 3.0, 90
JPEG_QUALITY = 90
LABEL_HEIGHT_PX, GAP_PX = 20, 4


def write_report(report: Report, out: Path, words: Mapping[str, Any]) -> None:
    """Write all files of the report; words: the page's other texts, see templates/page.md.jinja."""
    pictures = []
    for plot in report.plots:
        with whole_file(out / f"{plot.name}.png") as file:
            file.write(drawn(plot))
        pictures.append({"file": f"{plot.name}.png", "caption": plot.caption})
    for crops in report.crops:
        with whole_file(out / f"{crops.name}.jpg") as file:
            file.write(jpeg_of(grid(crops)))
        pictures.append({"file": f"{crops.name}.jpg", "caption": crops.caption})
    findings = [
        {"paper": finding.paper, "ours": finding.ours, "verdict": finding.verdict} for finding in report.findings
    ]
    table = table_text(report.columns, report.rows)
    plain = {**words, "rows": [dict(row) for row in report.rows], "findings": findings, "limits": report.limits}
    write_text(out / TABLE, json.dumps(plain, indent=1) + "\n")
    write_text(out / TABLE_TEXT, table + "\n")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training.studies", "templates"),
        autoescape=False,  # Markdown; the words are ours
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    least = ", ".join(f"{value:g} {unit or 'of NIQE'}" for unit, value in LEAST.items())
    page = environment.get_template("page.md.jinja").render(
        **words, findings=findings, least=least, limits=report.limits, table=table, pictures=pictures
    )
    write_text(out / PAGE, page.rstrip() + "\n")


def table_text(columns: Sequence[Column], rows: Sequence[Mapping[str, Value]]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| " + " | ".join(column.heading for column in columns) + " |", "|---" * len(columns) + "|"]
    lines += [
        "| " + " | ".join(_cell(row.get(column.key), column.decimals) for column in columns) + " |" for row in rows
    ]
    return "\n".join(lines)


def _cell(value: Value, decimals: int | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.{decimals or 0}f}"


def drawn(plot: Plot) -> bytes:
    """Return the plot as a PNG file."""
    figure = Figure(figsize=(PLOT_WIDTH_INCHES * plot.num_axes, PLOT_HEIGHT_INCHES), dpi=PLOT_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, plot.num_axes, number + 1) for number in range(plot.num_axes)]
    for one in axes:
        one.grid(alpha=0.3)
    plot.draw(axes)
    made = io.BytesIO()
    figure.savefig(made, format="png", metadata={"Software": None})
    return made.getvalue()


def grid(crops: Crops) -> Bytes:
    """Return the pictures in rows and columns, with the columns' names above."""
    widths = [max(row[number].shape[1] for row in crops.rows) for number in range(len(crops.columns))]
    lines = [[_label(text, width) for text, width in zip(crops.columns, widths, strict=True)], *crops.rows]
    made = []
    for line in lines:
        height = max(picture.shape[0] for picture in line)
        padded = [_padded(picture, height, width + GAP_PX) for picture, width in zip(line, widths, strict=True)]
        made += [
            np.concatenate(padded, axis=1),
            np.full((GAP_PX, sum(widths) + GAP_PX * len(widths), 3), 255, np.uint8),
        ]
    return np.concatenate(made)


def _padded(picture: Bytes, height: int, width: int) -> Bytes:
    missing = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
    return np.pad(picture, missing, constant_values=255)


def _label(text: str, width: int) -> Bytes:
    strip = np.full((LABEL_HEIGHT_PX, width, 3), 255, dtype=np.uint8)
    cv2.putText(strip, text, (2, LABEL_HEIGHT_PX - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def jpeg_of(picture: Bytes) -> bytes:
    """Return a picture as a JPEG file."""
    fine, encoded = cv2.imencode(
        ".jpg", np.ascontiguousarray(picture[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    if not fine:
        raise RuntimeError(f"jpeg_of: OpenCV failed to encode {picture.shape} as JPEG.")
    return encoded.tobytes()
