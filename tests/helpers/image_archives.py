"""Small sets in the format of the published archives, and prepared for TFDS."""

import gzip
import io
import tarfile

import numpy as np

from jaxdp.datasets import tfds_prepare

TRAIN, TEST = 60, 12


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(head + array.tobytes())


def mnist_archives(folder):
    """Writes the four files of a small MNIST; returns images and labels by split."""
    rng = np.random.default_rng(0)
    made = {}
    for split, prefix, size in (("train", "train", TRAIN), ("test", "t10k", TEST)):
        images = rng.integers(0, 256, (size, 28, 28), np.uint8)
        made[split] = images, rng.integers(0, 10, size, np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(made[split][1]))
    return made


def cifar_archive(folder):
    """Writes the archive of a small CIFAR-10; returns images and labels by split."""
    rng = np.random.default_rng(0)
    files = {f"data_batch_{k}.bin": 6 for k in range(1, 6)} | {"test_batch.bin": 4}
    rows = {name: rng.integers(0, 256, (size, 3073), np.uint8) for name, size in files.items()}
    names = "\n".join(f"class{k}" for k in range(10)) + "\n"
    for array in rows.values():
        array[:, 0] %= 10
    contents = {name: array.tobytes() for name, array in rows.items()}
    contents["batches.meta.txt"] = names.encode()
    inside = {f"cifar-10-batches-bin/{name}": content for name, content in contents.items()}
    write_tar(folder / "cifar-10-binary.tar.gz", inside)
    train = np.concatenate([rows[name] for name in sorted(rows) if name != "test_batch.bin"])
    unpack = lambda r: (r[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), r[:, 0])
    return {"train": unpack(train), "test": unpack(rows["test_batch.bin"])}


def reviews_archive(folder):
    """Writes the archive of a few IMDB reviews; returns texts and labels by split."""
    made, contents = {}, {"aclImdb/imdb.vocab": b"the", "aclImdb/train/labeledBow.feat": b"9 0:9"}
    for split, size in (("train", 5), ("test", 3)):
        texts = {k: [f"{split} {k} {i} caf\u00e9".encode() for i in range(size)] for k in (0, 1)}
        for label, name in ((1, "pos"), (0, "neg")):  # as in the published archive
            for i, text in enumerate(texts[label]):
                contents[f"aclImdb/{split}/{name}/{i}_{7 * label + 1}.txt"] = b" " + text + b"\n"
        made[split] = texts[0] + texts[1], [0] * size + [1] * size
    contents |= {f"aclImdb/train/unsup/{i}_0.txt": b"neither" for i in range(2)}
    made["unsupervised"] = [b"neither"] * 2, [-1] * 2
    write_tar(folder / "aclImdb_v1.tar.gz", contents)
    return made


def write_tar(path, contents):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def accept_checksums(monkeypatch, folder):
    """Lets the builders take the archives in a folder, which are not the published ones."""
    from tensorflow_datasets.core.download import checksums

    original = tfds_prepare._builders

    def builders():
        made = original()
        for builder in made.values():
            builder.url_infos = {
                url: checksums.UrlInfo(
                    **{
                        field: getattr(checksums.compute_url_info(folder / info.filename), field)
                        for field in ("size", "checksum")
                    },
                    filename=info.filename,
                )
                for url, info in builder.url_infos.items()
                if (folder / info.filename).exists()
            }
        return made

    monkeypatch.setattr(tfds_prepare, "_builders", builders)


def prepare_small_mnist(monkeypatch, folder):
    """Prepares a small MNIST; returns the folder of prepared sets."""
    archives, prepared = folder / "archives", folder / "tfds"
    archives.mkdir()
    mnist_archives(archives)
    accept_checksums(monkeypatch, archives)
    tfds_prepare.prepare("mnist", str(prepared), archives=str(archives), tell=lambda line: None)
    return prepared
