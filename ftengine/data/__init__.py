"""Reading, splitting, audit, encoding and batching of data; what readers of any distribution build on is public."""

from ftengine.data.files import check_unfolded, encoding_of, open_file, text_lines

__all__ = ["check_unfolded", "encoding_of", "open_file", "text_lines"]
