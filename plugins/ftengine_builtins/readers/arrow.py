"""Files of Apache Arrow and Parquet, whose columns keep their types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ftengine.api import BrokenRow, FileReader

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = b"ARROW1"


class ParquetReader(FileReader):
    """Parquet files."""

    name = "parquet"
    suffixes = (".parquet",)

    def read(self, source: str) -> pa.RecordBatchReader:
        import pyarrow as pa
        from pyarrow import parquet

        with _readable("Parquet"):
            content = parquet.ParquetFile(source)
            return pa.RecordBatchReader.from_batches(content.schema_arrow, _read("Parquet", content.iter_batches()))


class ArrowReader(FileReader):
    """Arrow files, in either of Arrow's two layouts: file or stream."""

    name = "arrow"
    suffixes = (".arrow",)

    def read(self, source: str) -> pa.RecordBatchReader:
        import pyarrow as pa

        with open(source, "rb") as file:
            whole = file.read(len(_MAGIC)) == _MAGIC
        with _readable("Arrow"):
            if not whole:
                content = pa.ipc.open_stream(pa.OSFile(source))
                return pa.RecordBatchReader.from_batches(content.schema, _read("Arrow", content))
            content = pa.ipc.open_file(pa.OSFile(source))
            batches = (content.get_batch(i) for i in range(content.num_record_batches))
            return pa.RecordBatchReader.from_batches(content.schema, _read("Arrow", batches))


def _read(kind: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches; a file may turn out to be damaged only here.

    Arrow trusts the offsets and texts that it finds, and the process would die of wrong ones.
    """
    with _readable(kind):
        for batch in batches:
            batch.validate(full=True)
            yield batch


@contextmanager
def _readable(kind: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # also of Arrow, for what it cannot decode
        raise BrokenRow("", f"is no {kind} file that can be read: {str(error).strip().rstrip('.')}") from None
