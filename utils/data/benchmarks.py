"""The table of benchmarks in files: one record per set. docs/datasets.md is made from it (utils/report/datasets_page.py).

To add a set: write its reader (utils/data/photo_sets.py has examples) or take one that is here, and add a record.
"""

from __future__ import annotations

from utils.data.cards import Archive, Benchmark, Card, Split
from utils.data.domain_sets import (
    CDDB_HARD,
    CORE50,
    OFFICE_HOME,
    cddb_hard_entries,
    core50_entries,
    office_home_entries,
    split_each_domain,
)
from utils.data.entries import split_of_all, split_per_class
from utils.data.official import cars_entries, cub_entries, folder_entries, imagenet_r_entries, resisc_entries, sketch_entries
from utils.data.photo_sets import (
    aircraft_entries,
    dtd_entries,
    eurosat_entries,
    flowers_entries,
    food101_entries,
    inaturalist_mini_entries,
    pets_entries,
    split_folders,
    sun397_entries,
    tiny_imagenet_entries,
    vtab_entries,
)

PILOT = "https://github.com/LAMDA-CL/LAMDA-PILOT (its README links the archive)"
PILOT_CODE = "LAMDA-PILOT utils/data.py 3450184"
PILOT_SUMS = "RevisitingCIL issue 5 (md5)"
PILOT_LAYOUT = "`train/<class>/*`, `test/<class>/*`"
TORCHVISION = "torchvision 0.29.1 datasets/{}"
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"
AWS_INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2021/"

BENCHMARKS = (
    Benchmark("imagenet-r", 200, "imagenet-r", imagenet_r_entries, "https://github.com/hendrycks/imagenet-r", Card(
        (Split("80/20 of all images, seed 0", 24_000, 6_000, drawn=split_of_all),), (Archive("imagenet-r.tar", 2.2),),
        "MIT (code); images belong to their owners, research use", "`imagenet-r/<wnid>/*.jpg`", "")),
    Benchmark("cub200_224", 200, "cub_200", cub_entries, "https://www.vision.caltech.edu/datasets/cub_200_2011/", Card(
        (Split("official", 5_994, 5_794),),
        (Archive("CUB_200_2011.tgz", 1.15, "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                 "97eceeb196236b17998738112f37df78"),),
        "non-commercial research and education",
        "`images.txt`, `image_class_labels.txt`, `train_test_split.txt`, `classes.txt`, `images/`"), "resize300_crop224"),
    Benchmark("cub200_pilot", 200, "cub", split_folders("CUB-200, LAMDA-PILOT's split"), PILOT, Card(
        (Split("LAMDA-PILOT", 9_430, 2_358),), (Archive("cub.zip", 1.1, md5="85e342a2d5f941e740193602057df7a5"),),
        "non-commercial research and education", PILOT_LAYOUT, f"{PILOT_CODE}; {PILOT_SUMS}")),
    Benchmark("cars196_224", 196, "cars196", cars_entries, "Stanford Cars (its own page is gone; see docs/datasets.md)", Card(
        (Split("official", 8_144, 8_041),),
        (Archive("cars_train.tgz", 0.98, md5="065e5b463ae28d29e77c1b4b166cfe61"),
         Archive("cars_test.tgz", 0.98, md5="4ce7ebf6a94d07f1952d94dd34c4d501"),
         Archive("car_devkit.tgz", 0.001, md5="c3b158d763b6e2245038c8ad08e45376"),
         Archive("cars_test_annos_withlabels.mat", 0.001, md5="b0a2b23655a3edd16d84508592a98d10")),
        "non-commercial research", "`devkit/cars_meta.mat`, `devkit/cars_train_annos.mat`, `cars_test_annos_withlabels.mat`, "
        "`cars_train/`, `cars_test/`; or `cars_annos.mat`, `car_ims/`", "l2p-pytorch continual_datasets.py 87a352d (md5)"),
        "resize300_crop224"),
    Benchmark("resisc45", 45, "resisc45", resisc_entries, "NWPU-RESISC45 (see docs/datasets.md)", Card(
        (Split("80/20 per class, seed 0", 25_200, 6_300, (560, 140), drawn=split_per_class),), (Archive("NWPU-RESISC45.zip", 0.4),),
        "research use", "`NWPU-RESISC45/<class>/*.jpg`"), "resize300_crop224"),
    Benchmark("sketch345_224", 345, "sketch345", sketch_entries, "https://ai.bu.edu/M3SDA/ (domain sketch, cleaned version)", Card(
        (Split("official", 48_212, 20_916),), (Archive("sketch.zip", 2.5), Archive("sketch_train.txt", 0.002),
                                               Archive("sketch_test.txt", 0.001)),
        "non-commercial research, fair use", "`sketch/<class>/*`, `sketch_train.txt`, `sketch_test.txt`"), "resize300_crop224"),
    Benchmark("imagenet100", 100, "imagenet100", folder_entries, "https://www.image-net.org (100 classes of your choice)", Card(
        (), (Archive("ILSVRC2012", 145.0),), "non-commercial research", "`train/<wnid>/*.JPEG`, `val/<wnid>/*.JPEG`"),
        "crop224_bilinear", "resize256_crop224_bilinear"),
    Benchmark("imagenet1000", 1000, "imagenet1000", folder_entries, "https://www.image-net.org", Card(
        (Split("official", 1_281_167, 50_000),), (Archive("ILSVRC2012", 145.0),), "non-commercial research",
        "`train/<wnid>/*.JPEG`, `val/<wnid>/*.JPEG` (sort the validation images into folders first)"),
        "crop224_bilinear_jitter", "resize256_crop224_bilinear"),
    Benchmark("imagenet-a", 200, "imagenet-a", split_folders("ImageNet-A", split_per_class), PILOT, Card(
        (Split("LAMDA-PILOT", 5_981, 1_519, sure=False), Split("80/20 per class, seed 0", drawn=split_per_class)),
        (Archive("ina.zip", 0.7, md5="7f4aaf0b1532b7a0bd670822c152d3c5"),), "MIT (code); images belong to their owners",
        f"{PILOT_LAYOUT}; or the official `imagenet-a/<wnid>/*.jpg`, which has no split", f"{PILOT_CODE}; {PILOT_SUMS}")),
    Benchmark("objectnet", 200, "objectnet", split_folders("ObjectNet"), PILOT, Card(
        (Split("LAMDA-PILOT", 26_509, 6_628, sure=False),), (Archive("objnet.tgz", None, md5="63ff7443a47bd682016a8ec59b8cc1bc"),),
        "CC BY 4.0 with a clause: **may never be used to tune the parameters of a model**", PILOT_LAYOUT, f"{PILOT_CODE}; {PILOT_SUMS}")),
    Benchmark("omnibenchmark", 300, "omnibenchmark", split_folders("OmniBenchmark"), PILOT, Card(
        (Split("LAMDA-PILOT", 89_697, 5_985),), (Archive("omnibenchmark.zip", None, md5="f1c30808a707f9197c6c811ea52e5cbb"),),
        "CC BY-NC-ND 4.0", PILOT_LAYOUT, f"{PILOT_CODE}; {PILOT_SUMS}")),
    Benchmark("omnibenchmark1k", 1000, "omnibenchmark1k", split_folders("OmniBenchmark-1K"),
              "https://huggingface.co/datasets/LMMM2025/OmniBenchmark-1K", Card(
        (Split("CaRE", 168_718, None, sure=False),),
        (Archive("omnibenchmark1k.tar.gz", None,
                 "https://huggingface.co/datasets/LMMM2025/OmniBenchmark-1K/resolve/main/omnibenchmark1k.tar.gz"),),
        "CC BY-NC-ND 4.0, with permission for this derivative", "`omnibenchmark1k/{train,test}/<class>/*`", "CaRE readme.md 1971151")),
    Benchmark("vtab5", 50, "vtab", vtab_entries, PILOT, Card(
        (Split("LAMDA-PILOT", 1_796, 8_619, sure=False), Split("ours from the official layouts, seed 0", first_class="00.resisc45.")),
        (Archive("vtab.zip", None, md5="a9c37bde6105a2516c900b0c33a437c1"),), "that of each of the five sets",
        f"{PILOT_LAYOUT}; or the five sets' official layouts in one folder", f"{PILOT_CODE}; PROOF issue 3 (which classes); {PILOT_SUMS}"),
        beside=("annotations",)),
    Benchmark("food101", 101, "food-101", food101_entries, "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/", Card(
        (Split("official", 75_750, 25_250, (750, 250)),),
        (Archive("food-101.tar.gz", 5.0, "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87"),),
        "images of foodspotting.com, research use", "`meta/{train,test}.json`, `images/<class>/*.jpg`", TORCHVISION.format("food101.py"))),
    Benchmark("aircraft", 100, "fgvc-aircraft-2013b", aircraft_entries, f"{OXFORD}fgvc-aircraft/", Card(
        (Split("official (trainval / test)", 6_667, 3_333),),
        (Archive("fgvc-aircraft-2013b.tar.gz", 2.75, f"{OXFORD}fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"),),
        "non-commercial research", "`data/variants.txt`, `data/images_variant_{trainval,test}.txt`, `data/images/*.jpg`",
        TORCHVISION.format("fgvc_aircraft.py"))),
    Benchmark("flowers102", 102, "flowers-102", flowers_entries, f"{OXFORD}flowers/102/", Card(
        (Split("official (train and valid / test)", 2_040, 6_149),),
        (Archive("102flowers.tgz", 0.34, f"{OXFORD}flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
         Archive("imagelabels.mat", 0.001, f"{OXFORD}flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
         Archive("setid.mat", 0.001, f"{OXFORD}flowers/102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c")),
        "none stated; images belong to their owners", "`imagelabels.mat`, `setid.mat`, `jpg/image_*.jpg`",
        TORCHVISION.format("flowers102.py"))),
    Benchmark("pets", 37, "oxford-iiit-pet", pets_entries, f"{OXFORD}pets/", Card(
        (Split("official (trainval / test)", 3_680, 3_669),),
        (Archive("images.tar.gz", 0.79, f"{OXFORD}pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
         Archive("annotations.tar.gz", 0.02, f"{OXFORD}pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f")),
        "CC BY-SA 4.0", "`annotations/{trainval,test}.txt`, `images/*.jpg`", TORCHVISION.format("oxford_iiit_pet.py")),
        beside=("annotations",)),
    Benchmark("dtd", 47, "dtd", dtd_entries, f"{OXFORD}dtd/", Card(
        (Split("official, partition 1 (train and val / test)", 3_760, 1_880, (80, 40)),),
        (Archive("dtd-r1.0.1.tar.gz", 0.63, f"{OXFORD}dtd/download/dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1"),),
        "research use", "`labels/{train,val,test}1.txt`, `images/<class>/*.jpg`", TORCHVISION.format("dtd.py"))),
    Benchmark("eurosat", 10, "eurosat", eurosat_entries, "https://github.com/phelber/eurosat", Card(
        (Split("80/20 per class, seed 0", 21_600, 5_400, drawn=split_per_class),),
        (Archive("EuroSAT.zip", 0.09, "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                 "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip", "c8fa014336c82ac7804f0398fcb19387"),),
        "MIT", "`2750/<class>/*.jpg`", TORCHVISION.format("eurosat.py"))),
    Benchmark("sun397", 397, "SUN397", sun397_entries, "https://vision.princeton.edu/projects/2010/SUN/", Card(
        (Split("official, partition 1", 19_850, 19_850, (50, 50)),),
        (Archive("SUN397.tar.gz", 37.0, "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz", "8ca2778205c41d23104230ba66911c7a"),
         Archive("Partitions.zip", 0.01, "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip")),
        "research use", "`ClassName.txt`, `<letter>/<class>/sun_*.jpg`, `Training_01.txt`, `Testing_01.txt`",
        TORCHVISION.format("sun397.py"))),
    Benchmark("tiny_imagenet", 200, "tiny-imagenet-200", tiny_imagenet_entries, "http://cs231n.stanford.edu/tiny-imagenet-200.zip", Card(
        (Split("official (train / val)", 100_000, 10_000, (500, 50)),),
        (Archive("tiny-imagenet-200.zip", 0.25, "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),),
        "non-commercial research (ImageNet's)", "`train/<wnid>/images/*.JPEG`, `val/val_annotations.txt`, `val/images/*.JPEG`",
        "l2p-pytorch continual_datasets.py 87a352d"), beside=("test",), official_file="val/val_annotations.txt"),
    Benchmark("inaturalist_mini", 10_000, "inaturalist-mini", inaturalist_mini_entries, "https://github.com/visipedia/inat_comp", Card(
        (Split("official (train_mini / val)", 500_000, 100_000, (50, 10)),),
        (Archive("train_mini.tar.gz", 42.0, f"{AWS_INAT}train_mini.tar.gz", "db6ed8330e634445efc8fec83ae81442"),
         Archive("val.tar.gz", 8.4, f"{AWS_INAT}val.tar.gz", "f6f6e0e242e3d4c9569ba56400938afc")),
        "non-commercial research", "`train_mini/<class>/*.jpg`, `val/<class>/*.jpg`", TORCHVISION.format("inaturalist.py"))),
    Benchmark("office_home", 65, "office-home", office_home_entries, "https://www.hemanthdv.org/officeHomeDataset.html", Card(
        (Split("70/30 per class and domain, seed 0", drawn=split_each_domain),), (Archive("OfficeHomeDataset_10072016.zip", 1.1),),
        "non-commercial research",
        "`<domain>/<class>/*.jpg`, the domain `Real World` with a space", ""), domains=OFFICE_HOME),
    Benchmark("core50", 50, "core50", core50_entries, "https://vlomonaco.github.io/core50/", Card(
        (Split("sessions 3, 7, 10 test", 119_894, 44_972),),
        (Archive("core50_128x128.zip", 4.1, "http://bias.csr.unibo.it/maltoni/download/core50/core50_128x128.zip",
                 "745f3373fed08d69343f1058ee559e13"),),
        "CC BY 4.0", "`core50_128x128/s<session>/o<object>/*.png`",
        "S-Prompts utils/datautils/core50data.py 0fc9d4f; RanPAC trainer.py 698e00c"),
        domains=CORE50),
    Benchmark("cddb_hard", 2, "cddb", cddb_hard_entries, "https://github.com/Coral79/CDDB", Card(
        (Split("official (train / val)"),), (Archive("CDDB.tar", None),), "none stated; research use",
        "`<generator>/{train,val}/{0_real,1_fake}/*`", "S-Prompts configs/cddb_hard_slip.json 1dd23b1, utils/data.py 0fc9d4f"),
        domains=CDDB_HARD),
)
