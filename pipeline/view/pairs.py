"""Pairs: the rows of a second run beside those of the first, by key, and how far their class shares moved.

In: two indexes of one class map. Out: table `pairs` in the first index, and the columns that it adds there. Shares come
from the rows, so that a million pairs need no mask.
"""

from typing import Any

from pipeline.errors import ConfigError
from pipeline.view.columns import Column, share_name
from pipeline.view.index import RunIndex
from pipeline.view.query import Query, select_matching

COLUMNS = (
    Column(
        "shift",
        "shares moved",
        "share",
        "Half the sum of the absolute changes of the class shares: at least this share of the pixels changed class.",
    ),
    Column("other_status", "in the other run", "word", "Status of the row of the same key in the other run."),
    Column("confidence_gain", "confidence gained", "number", "Confidence of the other run less that of this one."),
)
"""Columns that a second run adds. `shift` is the total variation distance of the two distributions of classes."""


def check_comparable(first: RunIndex, second: RunIndex) -> None:
    """Raise ConfigError for two runs whose class ids have different meanings."""
    if lines := first.classes.differences(second.classes):
        shown = "; ".join(lines[:8])
        raise ConfigError(
            f"the classes of the two runs differ, here / there: {shown}", hint="compare runs of one class map"
        )


def pair_rows(first: RunIndex, second: RunIndex) -> None:
    """Make table `pairs` anew from what both indexes hold now, and show its columns in the first index."""
    shares = [share_name(index) for index in range(len(first.classes))]
    shift = " + ".join(f"abs(here.{name} - there.{name})" for name in shares)
    theirs = ", ".join(f"there.{name} AS other_{name}" for name in shares)
    with second.cursor() as there, first.cursor() as here:
        theirs_now = there.sql(f"SELECT id, key, status, confidence, {', '.join(shares)} FROM rows").to_arrow_table()
        here.register("there", theirs_now)
        here.execute(f"""
            CREATE OR REPLACE TABLE pairs AS
            SELECT here.id, there.id AS other_id, coalesce(there.status, 'no such row') AS other_status,
                (({shift}) / 2)::FLOAT AS shift, there.confidence - here.confidence AS confidence_gain, {theirs}
            FROM rows AS here LEFT JOIN there USING (key)
        """).fetchall()
    first.show_beside("pairs", COLUMNS)


def class_changes(index: RunIndex, query: Query) -> list[dict[str, Any]]:
    """Megapixels of each class in the rows of a query, `before` here and `after` in the other run.

    Rows that lack a mask on either side do not count. Of rows of an older version, which did not store how many pixels
    have no data, all pixels count.
    """
    sums = ", ".join(
        f"sum(megapixels * (1 - coalesce(nodata_share, 0)) * {side}{share_name(number)})"
        for number in range(len(index.classes))
        for side in ("", "other_")
    )
    condition = "other_status = 'ok' AND status = 'ok'"
    ((*values,),) = select_matching(index, query, sums, condition)
    pairs = zip(values[::2], values[1::2], strict=True)
    return [{"before": before or 0.0, "after": after or 0.0} for before, after in pairs]
