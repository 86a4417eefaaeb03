"""How many bytes a zip checkpoint's pickle says that its tensors' storages have, compared with what the file holds.

torch 2.6 believes the pickle: a tensor of a storage that claims too much reads memory beyond it.
"""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

_ITEM_BYTES = {
    **{"DoubleStorage": 8, "LongStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16},
    **{"FloatStorage": 4, "IntStorage": 4, "QInt32Storage": 4},
    **{"HalfStorage": 2, "BFloat16Storage": 2, "ShortStorage": 2},
}
"""Of one value; of the types that are not here, 1."""


def check_claims(path: Path) -> None:
    """Check the storages of a zip checkpoint of torch.save, whose pickle calls nothing but what tensors need.

    Raises:
        ValueError: A storage claims more than its entry holds. For what is no pickle, other types.
    """
    with zipfile.ZipFile(path) as archive:
        held = {entry.filename: entry.file_size for entry in archive.infolist()}
        (pickled,) = (name for name in held if name.endswith("/data.pkl"))
        if not any(entry.CRC for entry in archive.infolist()):
            del archive.getinfo(pickled).CRC  # torch can be told to write no checksums; zipfile then compares none
        reader = _Reader(io.BytesIO(archive.read(pickled)))
    reader.load()
    folder = pickled.removesuffix("data.pkl") + "data/"
    for key, num_bytes in reader.claims.items():
        if num_bytes > held.get(folder + key, 0):
            raise ValueError(f"storage {key} claims {num_bytes} bytes and has {held.get(folder + key, 0)}")


class _Reader(pickle._Unpickler):  # the one in C makes a table as long as the largest number in a pickle says
    """Unpickles with nothing in the place of every function and class, and notes what storages claim."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.claims: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in; of a type of storage, one that tells it."""
        return type(name, (_Nothing,), {})

    def persistent_load(self, pid: Any) -> Any:
        """Note the size of a storage: ("storage", type, key, device, number of values)."""
        _, storage_type, key, _, num_values = pid
        num_bytes = int(num_values) * _ITEM_BYTES.get(storage_type.__name__, 1)
        self.claims[str(key)] = max(num_bytes, self.claims.get(str(key), 0))
        return _Nothing()


class _Nothing:
    """Takes whatever a pickle does with an object, and does nothing."""

    def __new__(cls, *args: object, **named: object) -> "_Nothing":
        return super().__new__(cls)

    def __init__(self, *args: object, **named: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None:
        """Take a value of a list."""

    def extend(self, values: object) -> None:
        """Take values of a list."""

    def add(self, value: object) -> None:
        """Take a value of a set."""
