"""The declarative row of a data set, and the standardizer that reads one."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import episodes
from vla_jax.data.standardizers import _expression
from vla_jax.types import VIEWS

METADATA = "episode_metadata/"
KINDS: dict[str, tuple] = {  # of a row's fields
    **dict.fromkeys(("embodiment", "action_space"), (str,)),
    **dict.fromkeys(("views", "proprio", "derived"), (Mapping,)),
    **dict.fromkeys(("action", "episode_id"), (str, Sequence)),
    "language": (str, Sequence, type(None)),
    **dict.fromkeys(("stride", "drop_first", "drop_last"), (int,)),
    **dict.fromkeys(episodes.LOOKS, (bool, str, Sequence)),
}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Row:
    """How one data set maps to our nouns. Columns are named as in features.json, without `steps/`;
    what is said of vectors (action, proprio) is an expression, see _expression.py.

    Attributes:
      embodiment, action_space: names, see embodiments/.
      views: view -> image column.
      action: the action vector, in the order of the action space's groups.
      proprio: group of the embodiment -> its vector; those that the data set has.
      turned, bgr: views whose pictures are stored upside down (turned by 180 degrees, as OpenGL
        has them), or with blue before red (what OpenCV's encoder makes of RGB); True = all views.
        Whoever reads by this row sees them upright, in red, green and blue.
      language: text column (or "column | utf32", code points padded with 0); several: wordings of
        one instruction, of which a step may lack some; None: the data set has no instructions worth
        the name. An empty text is no instruction.
      stride: keep every so many steps; the rate that the data set says is divided by it. An action
        is then one of those kept: absolute targets and `to_next` stay right, commanded deltas would
        not add up.
      drop_first, drop_last: steps to leave out, after the stride.
      derived: a column of your own -> (function, the columns it reads): the way out to Python for
        what no expression says. It is given numpy arrays [T, …] and returns [T, n].
      episode_id: columns of episode_metadata that name an episode together; none: its place in
        the data set's files does.
    """

    embodiment: str
    action_space: str
    views: Mapping[str, str]
    action: str | Sequence[str]
    proprio: Mapping[str, str | Sequence[str]] = dataclasses.field(default_factory=dict)
    turned: bool | str | Sequence[str] = False
    bgr: bool | str | Sequence[str] = False
    language: str | Sequence[str] | None
    stride: int = 1
    drop_first: int = 0
    drop_last: int = 0
    derived: Mapping[str, tuple[Callable, Sequence[str]]] = dataclasses.field(default_factory=dict)
    episode_id: Sequence[str] = ()

    def __repr__(self) -> str:
        """The same in every process, and another when the file of a derived column's function does.

        Sources keep what was made by a row under what it says.
        """
        said = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        said["derived"] = {
            column: (_source(function), *reads)
            for column, (function, reads) in self.derived.items()
        }
        return f"Row({said})"


def row(where: str, written: Row | Mapping) -> Row:
    """A row as it stands in a file (Row) or in a config (a dict of its fields).

    Raises UserError for an unknown or missing field, naming the nearest.
    """
    if isinstance(written, Row):
        return written
    if not isinstance(written, Mapping):
        raise plugin.UserError(f"{where}: got {written!r}, expected a Row or a dict of its fields")
    fields = {field.name: field for field in dataclasses.fields(Row)}
    for name in written:
        if name not in fields:
            raise plugin.UserError(plugin.unknown(where, name, fields))
    free = (dataclasses.MISSING, dataclasses.MISSING)
    missing = [
        name
        for name, field in fields.items()
        if (field.default, field.default_factory) == free and name not in written
    ]
    if missing:
        raise plugin.UserError(f"{where}: missing {missing}; give them (see Row in _table.py)")
    return Row(**written)


class TableStandardizer:
    """Reads raw episodes through one row; UserError where the row is not sound, naming its field.

    Args:
      name: of the row, for messages.
      row: see Row.
    """

    def __init__(self, name: str, row: Row):
        self.name, self.row, where = name, row, f"standardizer row {name!r}"
        for field, kinds in KINDS.items():
            if not isinstance(getattr(row, field), kinds):
                expected = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
                raise plugin.UserError(
                    f"{where}: {field}: got {getattr(row, field)!r}, expected {expected}"
                )
        for view in row.views:
            if view not in VIEWS:
                raise plugin.UserError(plugin.unknown(f"{where}: views", view, VIEWS))
        self.looks = _looks(where, row)
        for field, least in (("stride", 1), ("drop_first", 0), ("drop_last", 0)):
            if getattr(row, field) < least:
                raise plugin.UserError(
                    f"{where}: {field}={getattr(row, field)}, expected at least {least}"
                )
        for column, entry in row.derived.items():
            if not (isinstance(entry, Sequence) and len(entry) == 2 and callable(entry[0])):
                raise plugin.UserError(
                    f"{where}: derived {column!r}: got {entry!r}, expected (function, (columns …))"
                )
        self._vectors = {"action": _expression.vector(f"{where}: action", row.action)}
        for group, spec in row.proprio.items():
            place = f"proprio {group}"
            self._vectors[place] = _expression.vector(f"{where}: {place}", spec)
        for place, vector in self._vectors.items():
            ahead = [part.text for part in vector if part.ahead]
            if ahead and row.drop_last < 1:
                raise plugin.UserError(
                    f"{where}: {place}: {ahead[0]!r} has no value at the last step; drop_last=1"
                )
        self._texts = tuple(_text(f"{where}: language", t) for t in _several(row.language or ()))
        self._id = tuple(METADATA + column for column in _several(row.episode_id))

    def views(self, features: Iterable[str]) -> dict[str, str]:
        """View -> full name of its image column; UserError where the data set lacks it."""
        return {view: self._known(column, features) for view, column in self.row.views.items()}

    def columns(self, features: Iterable[str]) -> set[str]:
        """Full names of the low-dimensional columns that `episode` reads; UserError if absent."""
        wanted = {part.column for vector in self._vectors.values() for part in vector} - {None}
        wanted |= {column for column, _ in self._texts}
        wanted |= {column for _, read in self.row.derived.values() for column in read}
        wanted -= set(self.row.derived)
        wanted |= set(self._id)
        return {self._known(column, features) for column in sorted(wanted)}

    def episode(self, columns: Mapping, length: int, where: str) -> episodes.Episode:
        """The episode in our nouns; `columns` are those named by `columns`."""
        row = self.row
        kept = np.arange(length)[:: row.stride]
        inside = slice(row.drop_first, max(0, len(kept) - row.drop_last))
        steps = kept[inside]
        if len(steps) == 0:
            raise plugin.UserError(
                f"{where}: {length} steps, of which the row {self.name!r} leaves none (stride="
                f"{row.stride}, drop_first={row.drop_first}, drop_last={row.drop_last}); "
                "remove this episode"
            )
        place = f"{where}: standardizer row {self.name!r}"
        made = self._columns(columns, length, place)
        read = {name: values[:: row.stride] for name, values in made.items()}
        vectors = {
            name: np.concatenate(
                [part(read, len(kept), f"{place}: {name}")[inside] for part in vector], axis=1
            ).astype(np.float32)
            for name, vector in self._vectors.items()
        }
        id_ = "#".join(str(columns[column]) for column in self._id)
        return episodes.Episode(
            id=id_ or where.rsplit("/", 1)[-1],  # what is held out stays so where data move
            steps=steps,
            action=vectors["action"],
            proprio={group: vectors[f"proprio {group}"] for group in row.proprio},
            language=self._language(columns, length, steps, place),
            embodiment=row.embodiment,
            action_space=row.action_space,
            looks=self.looks,
            stride=row.stride,
        )

    def _columns(self, columns: Mapping, length: int, where: str) -> dict:
        """The columns that expressions read, the derived ones among them."""
        named = {part.column for vector in self._vectors.values() for part in vector} - {None}
        made = {name: columns[_full(name)] for name in named - set(self.row.derived)}
        for name, (function, reads) in self.row.derived.items():
            try:
                values = np.asarray(function(*(columns[_full(c)] for c in reads)))
            except Exception as error:
                error.add_note(f"{where}: derived {name!r}")
                raise
            made[name] = values
            if values.ndim < 1 or len(values) != length or values.dtype.kind not in "fiub":
                raise plugin.UserError(
                    f"{where}: derived {name!r}: the function returned {values.dtype} "
                    f"{list(values.shape)}, expected numbers [{length}, n]"
                )
        return made

    def _language(self, columns: Mapping, length: int, steps, where: str) -> list:
        texts = [
            TEXTS[form](columns[_full(column)], length, f"{where}: language {column!r}")
            for column, form in self._texts
        ]
        said = []
        for step in steps.tolist():
            given = dict.fromkeys(text[step].strip() for text in texts)
            words = tuple(filter(None, given))
            said.append(words if len(words) > 1 else "".join(words))
        return said

    def _known(self, column: str, features: Iterable[str]) -> str:
        full = _full(column)
        if full not in features:
            where = f"standardizer row {self.name!r}: the data set has no such column"
            prefix = full.removesuffix(column) or METADATA
            known = [f.removeprefix("steps/") for f in features if f.startswith(prefix)]
            raise plugin.UserError(plugin.unknown(where, column, known))
        return full


def _looks(where: str, row: Row) -> dict[str, tuple[str, ...]]:
    """View -> how its pictures are stored, of those that are not upright RGB."""
    found: dict[str, tuple[str, ...]] = {}
    for look in episodes.LOOKS:
        said = getattr(row, look)
        for view in (row.views if said else ()) if isinstance(said, bool) else _several(said):
            if view not in row.views:
                raise plugin.UserError(plugin.unknown(f"{where}: {look}: view", view, row.views))
            found[view] = (*found.get(view, ()), look)
    return found


def _several(spec: str | Sequence[str]) -> tuple[str, ...]:
    return (spec,) if isinstance(spec, str) else tuple(spec)


def _full(column: str) -> str:
    return column if column.startswith(METADATA) else f"steps/{column}"


def _source(function: Callable) -> str:
    """A function's name and a hash of the file it stands in."""
    code = getattr(function, "__code__", None)  # a function of C has none
    file = pathlib.Path(code.co_filename if code else "")
    content = file.read_bytes() if file.is_file() else b""
    mark = hashlib.blake2b(content, digest_size=8).hexdigest()
    named = [getattr(function, name, "") for name in ("__module__", "__qualname__")]
    return f"{'.'.join(named)} of {mark}"


def _text(where: str, spec: str) -> tuple[str, str]:
    """(column, key of TEXTS) of "column" or "column | utf32"."""
    column, _, form = (part.strip() for part in str(spec).partition("|"))
    if form not in TEXTS:
        raise plugin.UserError(plugin.unknown(f"{where}: operation", form, ["utf32"]))
    return column, form


def _strings(values, length: int, where: str) -> list[str]:
    if isinstance(values, str):  # one of the episode's metadata
        values = [values] * length
    if len(values) != length or not all(isinstance(value, str) for value in values):
        raise plugin.UserError(
            f"{where}: got {getattr(values, 'dtype', type(values).__name__)}, expected {length} "
            "texts; of code points say 'column | utf32', or name another column"
        )
    return [str(value) for value in values]


def _utf32(values, length: int, where: str) -> list[str]:
    """Texts of [T, n] code points, each up to the first 0."""
    values = np.asarray(values)
    if values.dtype.kind not in "iu" or values.shape[:1] != (length,):
        raise plugin.UserError(
            f"{where}: got {values.dtype} {list(values.shape)}, expected code points [{length}, n]"
        )
    rows, place = np.unique(values.reshape(length, -1), axis=0, return_inverse=True)
    try:
        texts = ["".join(map(chr, row)).split("\0")[0] for row in rows.tolist()]
    except (ValueError, OverflowError) as error:
        raise plugin.UserError(f"{where}: a number that is no code point ({error})") from error
    return [texts[i] for i in place.reshape(-1)]


TEXTS = {"": _strings, "utf32": _utf32}
