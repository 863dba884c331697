"""How cifar-10-sample.tar.gz was cut from the full data set; the same source gives the same bytes again.

    python tests/cifar_files.py FULL_ARCHIVE_OR_FOLDER

The files are written as CIFAR-10's authors did: pickles of Python 2, which today's pickle module reads, but no longer
writes.
"""

import gzip
import io
import pickle
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent


class Python2Pickler:
    """Just enough of Python 2's pickle protocol 2 to write a batch file, instruction by instruction."""

    def __init__(self):
        self.out, self.memo = bytearray(b"\x80\x02"), 0

    def put(self):
        self.memo += 1
        self.out += b"q" + bytes([self.memo]) if self.memo < 256 else b"r" + struct.pack("<I", self.memo)

    def save(self, value):
        match value:
            case bytes():
                short = len(value) < 256
                self.out += b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))
                self.out += value
                self.put()
            case int():
                code, form = (b"K", "<B") if 0 <= value < 256 else (b"M", "<H") if 0 <= value < 65536 else (b"J", "<i")
                self.out += code + struct.pack(form, value)
            case list():
                self.out += b"]"
                self.put()
                for start in range(0, len(value), 1000):
                    self.out += b"("
                    for item in value[start : start + 1000]:
                        self.save(item)
                    self.out += b"e"
            case dict():
                self.out += b"}"
                self.put()
                self.out += b"("
                for key, item in value.items():
                    self.save(key)
                    self.save(item)
                self.out += b"u"
            case np.ndarray():
                self.save_array(value)
            case _:
                raise TypeError(f"CIFAR-10's files hold no {type(value).__name__}")

    def save_array(self, array):
        self.out += b"cnumpy.core.multiarray\n_reconstruct\n"
        self.put()
        self.out += b"cnumpy\nndarray\n"
        self.put()
        self.out += b"K\x00\x85"  # the tuple (0,)
        self.put()
        self.save(b"b")
        self.out += b"\x87"  # (ndarray, (0,), 'b')
        self.put()
        self.out += b"R"  # _reconstruct(ndarray, (0,), 'b')
        self.put()
        self.out += b"(K\x01"  # the array's state begins: version 1, ...
        self.save(array.shape[0])
        self.save(array.shape[1])
        self.out += b"\x86"
        self.put()
        self.out += b"cnumpy\ndtype\n"
        self.put()
        self.save(array.dtype.str[1:].encode())
        self.out += b"K\x00K\x01\x87"  # dtype('u1', 0, 1)
        self.put()
        self.out += b"R"
        self.put()
        self.out += b"(K\x03"
        self.save(b"|")
        self.out += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
        self.put()
        self.out += b"b\x89"  # ..., dtype, not Fortran order, ...
        self.save(array.tobytes())
        self.out += b"t"
        self.put()
        self.out += b"b"


def python2_pickle(value):
    """Return `value` (dicts, lists, ints, bytes, 2-D arrays) as the bytes of a Python 2 pickle of protocol 2."""
    pickler = Python2Pickler()
    pickler.save(value)
    return bytes(pickler.out + b".")


def tar_bytes(files, folder="cifar-10-batches-py"):
    """Return an uncompressed tar archive of {name: content} as bytes; the same content gives the same bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def cut_sample(source, per_class=30, test_per_class=50):
    """Return the sample's archive as bytes: from each batch the first images of every class, class by turn.

    The order (class 0, 1, … 9, 0, 1, …) keeps every stretch of the sample balanced, its validation split too.
    """
    sys.path.insert(0, str(ROOT))
    import data

    if data.FINGERPRINTS.get(data.fingerprint(data.load_cifar10(source))) != "official":
        raise SystemExit("error: the sample is cut from the official files only")
    classes = [name.encode() for name in data.CLASS_NAMES]
    meta = {b"num_cases_per_batch": 10 * per_class, b"label_names": classes, b"num_vis": 3072}
    files = {"batches.meta": python2_pickle(meta)}
    for name, raw in data.read_files(Path(source)).items():
        batch = pickle.loads(raw, encoding="bytes")
        labels = np.array(batch[b"labels"])
        count = test_per_class if name == "test_batch" else per_class
        chosen = np.stack([np.flatnonzero(labels == label)[:count] for label in range(10)], axis=1).ravel()
        files[name] = python2_pickle(
            {
                b"batch_label": b"sample of " + batch[b"batch_label"],
                b"labels": labels[chosen].tolist(),
                b"data": batch[b"data"][chosen],
                b"filenames": [batch[b"filenames"][i] for i in chosen],
            }
        )
    return gzip.compress(tar_bytes(files), 9, mtime=0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    (ROOT / "cifar-10-sample.tar.gz").write_bytes(cut_sample(sys.argv[1]))
