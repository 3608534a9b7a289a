"""Where the data sets are published: files, addresses, checksums and licences.

Checksums are those of the publishers, or those that torchvision, OmniRec (Jester) and LensKit's
bookdata (Book-Crossing) check for the same addresses.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFile:
    """One published file."""

    path: str  # in the data folder
    urls: tuple[str, ...] = ()  # tried in order; none where it must be brought by hand
    checksum: str | None = None  # "md5:..." or "sha256:...", in hexadecimal digits
    size: int | None = None  # bytes


GROUPLENS = "https://files.grouplens.org/datasets/movielens/"
ML_1M_FILE = SourceFile(
    "ml-1m.zip", (f"{GROUPLENS}ml-1m.zip",), "md5:c4d9eecfca2ab87c1945afe126590906"
)
ML_100K_FILE = SourceFile(
    "ml-100k.zip", (f"{GROUPLENS}ml-100k.zip",), "md5:0e33842e24a9c977be4e0107933c0723", 4_924_029
)
COMET_SPLIT_FILES = tuple(
    SourceFile(f"movielens-1m-comet-split/{part}.npz") for part in ("train", "val", "test")
)

BERKELEY = "https://eigentaste.berkeley.edu/dataset/archive/"
ARCHIVED = f"https://web.archive.org/web/20250409222630id_/{BERKELEY}"
JESTER_FILES = tuple(
    SourceFile(
        f"jester-data-{part}.zip",
        (f"{BERKELEY}jester_dataset_1_{part}.zip", f"{ARCHIVED}jester_dataset_1_{part}.zip"),
        f"sha256:{digest}",
        size,
    )
    for part, size, digest in (
        (1, 4_171_628, "cb7841756ded125b15f3d95c9f8241224065e96354c132a46ae4214deeab7615"),
        (2, 3_924_205, "4d312fd824d8c8cb2c9c952a7b1fb7c00d1f5fd3ece370f7285aa701d371748b"),
        (3, 2_151_299, "7f548d3762d3506cf7cd37d8cb9e3adb67984a7da7aa2d2096d5e0b1b884758d"),
    )
)

BOOKS_FILE = SourceFile(
    "BX-CSV-Dump.zip",
    ("http://www2.informatik.uni-freiburg.de/~cziegler/BX/BX-CSV-Dump.zip",),
    "md5:37d647ee9e18ba134ea6d78ee4fe5292",
)


def _idx_files(folder: str, hosts: tuple[str, ...], md5: tuple[str, ...]) -> tuple[SourceFile, ...]:
    names = tuple(
        f"{part}-{kind}-ubyte.gz"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )
    return tuple(
        SourceFile(f"{folder}/{name}", tuple(host + name for host in hosts), f"md5:{digest}")
        for name, digest in zip(names, md5, strict=True)
    )


MNIST_FILES = _idx_files(
    "mnist",
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)
FASHION_MNIST_FILES = _idx_files(
    "fashion-mnist",
    (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
)
SVHN_FILES = tuple(
    SourceFile(
        f"svhn/{name}", (f"http://ufldl.stanford.edu/housenumbers/{name}",), f"md5:{digest}", size
    )
    for name, size, digest in (
        ("train_32x32.mat", 182_040_794, "e26dedcc434d2e4c54c9b2d4a06d8373"),
        ("test_32x32.mat", 64_275_384, "eb5a983be6a315427106f1b164d9cef3"),
    )
)

# Published on a drive that wants a browser.
CELEBA_FILES = tuple(
    SourceFile(f"celeba/{name}")
    for name in ("img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt")
)

MOVIELENS_LICENCE = (
    "MovieLens is for research: no redistribution and no commercial use without permission of "
    "GroupLens, University of Minnesota; cite Harper and Konstan (2015)."
)
JESTER_LICENCE = (
    "Jester is free for research that cites Goldberg, Roeder, Gupta and Perkins (2001)."
)
BOOKS_LICENCE = (
    "Book-Crossing is free for research that acknowledges Ziegler, McNee, Konstan and Lausen "
    "(2005); no redistribution."
)
MNIST_LICENCE = "MNIST is by Yann LeCun and Corinna Cortes, under CC BY-SA 3.0."
FASHION_MNIST_LICENCE = "Fashion-MNIST is by Zalando SE, under the MIT licence."
SVHN_LICENCE = "SVHN is for non-commercial use; cite Netzer et al. (2011)."
CELEBA_LICENCE = (
    "CelebA is for non-commercial research, with no redistribution of its pictures; cite Liu, Luo, "
    "Wang and Tang (2015); it is found at mmlab.ie.cuhk.edu.hk/projects/CelebA.html."
)
DIGITS_LICENCE = (
    "The digits come with scikit-learn, from the UCI repository (Alpaydin and Kaynak), "
    "under CC BY 4.0."
)
