"""The report of a comparison or of a single run: one self-contained HTML file, and its pictures beside it as PNG."""

from pathlib import Path

from shearling.errors import UserError
from shearling.experiments.report.charts import differences, learning_rates, loss_curves, training_curve
from shearling.experiments.report.data import Arm, Comparison, read
from shearling.experiments.report.executed import executed
from shearling.experiments.report.maps import diagnostics
from shearling.experiments.report.page import Album, comparison_page, run_page
from shearling.experiments.report.pictures import png
from shearling.files import write_atomically

COLUMNS = 2
"""Pictures side by side in a PNG."""


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a comparison's folder or a run folder, and a PNG beside it for each kind of picture.

    Returns:
        the page's path.

    Raises:
        UserError: the folder is neither, or cannot be read or written.
    """
    found = read(folder)
    if isinstance(found, Comparison):
        album = {
            "loss_curves": loss_curves(found),
            "differences": differences(found),
            "learning_rates": learning_rates(found),
            "diagnostics": diagnostics(found.arms),
        }
        page = comparison_page(found, album, {arm.name: executed(arm) for arm in found.arms})
    else:
        arm = Arm(found.name, {}, (found.run,))
        album = {"loss_curves": training_curve(found.run), "diagnostics": diagnostics([arm])}
        page = run_page(found, album, executed(arm))
    try:
        return _write(folder, page, album)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written ({error.strerror}): make room or mend that") from error


def _write(folder: Path, page: str, album: Album) -> Path:
    for name, pictures in album.items():
        if pictures:
            write_atomically(folder / f"{name}.png", png(pictures, COLUMNS))
    path = folder / "report.html"
    write_atomically(path, page)
    return path
