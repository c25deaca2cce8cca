"""RunConfig: everything one run is made of. configs/base.yaml documents each key with its unit and source."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from model.config import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Limit, ModelConfig, NewRows, Section

Precision = Literal["bf16", "float32"]
Engine = Literal["columns", "hotcoco", "pycocotools"]
Scorer = Literal["coco", "lvis", "cityscapes"]
Decode = Literal["worker", "cluster"]
Resize = Literal["shortest", "jitter"]


@dataclass(frozen=True)
class AugmentConfig(Section):
    """What happens to a picture before it trains. Drawn from (seed, epoch, sample) alone, each kind on its own."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "flip_probability": SHARE,
        "jitter_scale": POSITIVE,
        "crop_probability": SHARE,
        "crop_share": Limit(0, 1, above=True),
        "colour_probability": SHARE,
        "brightness": NOT_NEGATIVE,
        "contrast": NOT_NEGATIVE,
        "saturation": NOT_NEGATIVE,
        "hue": Limit(0, 0.5),
        "copy_paste_probability": SHARE,
    }

    flip_probability: float = 0.5
    resize: Resize = "shortest"  # or large-scale jitter on a square canvas of the batch's size (Ghiasi et al. 2021)
    jitter_scale: tuple[float, float] = (0.1, 2.0)  # times the canvas
    crop_share: tuple[float, float] | None = None  # of each side, before resizing; null: no crop
    crop_probability: float = 1.0
    brightness: float = 0.0  # strengths as torchvision's ColorJitter
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    colour_probability: float = 1.0
    copy_paste_probability: float = 0.0

    def conflicts(self) -> Iterator[str]:
        """Ranges go up."""
        for name, pair in (("jitter_scale", self.jitter_scale), ("crop_share", self.crop_share)):
            if pair is not None and pair[0] > pair[1]:
                yield f"{name} must be [least, most], got {list(pair)}; swap them"


@dataclass(frozen=True)
class DataConfig(Section):
    """Which shards, and how a record becomes an input."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "train_sizes_px": COUNT,
        "train_max_size_px": COUNT,
        "test_size_px": COUNT,
        "test_max_size_px": COUNT,
        "decode_threads": COUNT,
        "prefetch_batches": COUNT,
        "proposals_train": COUNT,
        "proposals_test": COUNT,
        "repeat_threshold": SHARE,
        "mix_weights": NOT_NEGATIVE,
        "max_instance_pixels": COUNT,
        "task_rows": COUNT,
        "read_tasks": COUNT,
        "chunk_mb": COUNT,
        "window_groups": COUNT,
        "aspect_buckets": COUNT,
    }

    train: str | tuple[str, ...] | None = None  # directory or URI of shards, or several that are mixed
    val: str | None = None  # directory or URI of shards
    train_sizes_px: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # shorter side, one drawn a batch
    train_max_size_px: int = 1333  # longer side at most
    test_size_px: int = 800
    test_max_size_px: int = 1333
    proposals_train: int = 2000  # of the shards, the best ones of an image at most; for model.rpn: null alone
    proposals_test: int = 1000
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    drop_empty: bool = True  # images without a trainable object are left out of training (and counted)
    repeat_threshold: float | None = None  # share of images below which a class is repeated; null: no repeating
    mix_weights: tuple[float, ...] | None = None  # shares of samples of each of `train`; null: all samples alike
    max_instance_pixels: int | None = 200_000_000  # instances of the most crowded image x pixels of the padded batch
    decode: Decode = "worker"  # pictures are decoded by threads of the workers, or by Ray tasks on the whole cluster
    decode_threads: int | None = None  # a worker; null: one a CPU of the worker
    prefetch_batches: int = 4  # decoded batches kept ready a worker
    task_rows: int = 128  # rows one Ray Data task reads
    read_tasks: int = 2  # at once, a worker
    chunk_mb: int = 256  # encoded pictures of one Ray data set; a run is a sequence of data sets
    window_groups: int = 512  # Parquet row groups whose rows are shuffled together
    aspect_buckets: int = 2  # batches hold images of one range of width / height

    def conflicts(self) -> Iterator[str]:
        """A shorter side above the limit of the longer one could never be reached."""
        if not self.train_sizes_px:
            yield "train_sizes_px must hold at least one size, got none; the usual ones are [640, ..., 800]"
        for name, size, limit in (
            ("train_max_size_px", max(self.train_sizes_px, default=0), self.train_max_size_px),
            ("test_max_size_px", self.test_size_px, self.test_max_size_px),
        ):
            if size > limit:
                yield f"{name} (longer side) must be at least the shorter side, {size}, got {limit}; change one of them"
        if self.train == ():
            yield "train must hold at least one directory of shards, got none; null leaves it open"
        if self.mix_weights is not None:
            places = 1 if self.train is None or isinstance(self.train, str) else len(self.train)
            if len(self.mix_weights) != places:
                yield (
                    f"mix_weights must hold one weight for each of data.train, {places}, got {len(self.mix_weights)}; "
                    "null takes all samples alike"
                )
            elif not any(self.mix_weights):
                yield "mix_weights must hold a weight above 0, got only zeros; null takes all samples alike"


@dataclass(frozen=True)
class OptimConfig(Section):
    """SGD with linear warm-up and steps."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "lr": NOT_NEGATIVE,
        "lr_batch_images": COUNT,
        "momentum": SHARE,
        "weight_decay": NOT_NEGATIVE,
        "weight_decay_norm": NOT_NEGATIVE,
        "weight_decay_bias": NOT_NEGATIVE,
        "warmup_steps": NOT_NEGATIVE,
        "warmup_factor": SHARE,
        "milestones": COUNT,
        "gamma": SHARE,
        "clip_norm": POSITIVE,
        "layer_decay": Limit(0, 1, above=True),
        "probe_steps": NOT_NEGATIVE,
    }

    lr: float = 0.02  # for a batch of `lr_batch_images`; scales linearly with train.batch_images (Goyal et al. 2017)
    lr_batch_images: int = 16
    momentum: float = 0.9
    weight_decay: float = 1e-4
    weight_decay_norm: float = 0.0  # of normalisation layers
    weight_decay_bias: float = 1e-4
    warmup_steps: int = 1000
    warmup_factor: float = 0.001  # the first step's share of lr
    milestones: tuple[int, ...] = (60000, 80000)  # steps after which lr is multiplied by gamma
    gamma: float = 0.1
    clip_norm: float | None = None  # gradient norm at most; null: no clipping
    lr_factors: dict[str, float] = field(default_factory=dict)  # module -> times lr; the longest name that fits counts
    layer_decay: float = 1.0  # lr of each stage of the body, times that of the stage above it
    freeze: dict[str, int | None] = field(default_factory=dict)  # module -> steps that it stays as it is; null: all
    probe_steps: int = 0  # steps at first that train the layers that end in the classes, and nothing else

    def conflicts(self) -> Iterator[str]:
        """Milestones are passed one after the other; factors and steps of modules are not negative."""
        if list(self.milestones) != sorted(set(self.milestones)):
            yield f"milestones must ascend, got {list(self.milestones)}"
        for name, numbers in (("lr_factors", self.lr_factors), ("freeze", self.freeze)):
            for module, number in numbers.items():
                if number is not None and number < 0:
                    yield f"{name} must hold numbers of at least 0, got {module}: {number}"


@dataclass(frozen=True)
class TrainConfig(Section):
    """The loop."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "steps": COUNT,
        "batch_images": COUNT,
        "seed": NOT_NEGATIVE,
        "log_every_steps": COUNT,
        "checkpoint_every_steps": COUNT,
        "keep_checkpoints": COUNT,
        "max_bad_steps": COUNT,
    }

    name: str | None = None  # of the run; null: made from the config's name and the time. The same name continues.
    steps: int = 90000
    batch_images: int = 16  # global, over all workers; stays fixed when the number of workers changes
    seed: int = 0
    precision: Precision = "bf16"
    log_every_steps: int = 20
    checkpoint_every_steps: int = 2500
    keep_checkpoints: int = 2
    max_bad_steps: int = 10  # consecutive steps with a loss that is not finite before the run stops

    def conflicts(self) -> Iterator[str]:
        """The name becomes a directory."""
        if self.name is not None and (self.name in ("", ".", "..") or "/" in self.name or "\\" in self.name):
            yield f"name must be a plain directory name, got {self.name!r}; runs are kept below cluster.runs_dir"


@dataclass(frozen=True)
class TTAConfig(Section):
    """Test-time augmentation: every picture is seen at every size, as it is and mirrored (Mask R-CNN table 8)."""

    LIMITS: ClassVar[dict[str, Limit]] = {"sizes_px": COUNT, "max_size_px": COUNT}

    sizes_px: tuple[int, ...] = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)  # shorter side
    max_size_px: int = 4000  # longer side at most
    flip: bool = True  # each size mirrored too

    def conflicts(self) -> Iterator[str]:
        """As data.test_size_px."""
        if not self.sizes_px:
            yield "sizes_px must hold at least one size, got none; null turns test-time augmentation off"
        elif max(self.sizes_px) > self.max_size_px:
            yield (
                f"max_size_px (longer side) must be at least the largest of sizes_px, {max(self.sizes_px)}, got "
                f"{self.max_size_px}; change one of them"
            )


@dataclass(frozen=True)
class DuringTrainingConfig(Section):
    """Evaluation of checkpoints while training goes on, on workers of its own: training does not wait for it."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "every_steps": COUNT,
        "max_images": COUNT,
        "patience": COUNT,
        "workers": COUNT,
        "gpus_per_worker": NOT_NEGATIVE,
        "cpus_per_worker": POSITIVE,
    }

    every_steps: int = 5000  # a multiple of train.checkpoint_every_steps
    max_images: int | None = None  # the first so many of data.val, always the same; null: evaluate.max_images
    metric: str | None = None  # that says which checkpoint is best, such as "mask/AP50"; null: AP of the finest task
    patience: int | None = None  # evaluations without a better one after which training stops; null: never
    workers: int = 1
    gpus_per_worker: float | None = None  # null: 1 where the cluster has two or more, else 0
    cpus_per_worker: float = 1.0


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """Evaluation on data.val, after training and perhaps while it goes on."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "batch_images": COUNT,
        "max_images": COUNT,
        "bootstrap": NOT_NEGATIVE,
        "pictures": NOT_NEGATIVE,
        "report_pictures": NOT_NEGATIVE,
    }

    batch_images: int = 8  # a worker
    protocol: Scorer | None = None  # null: that of the data
    engine: Engine = "columns"  # of COCO's protocol
    categories: tuple[str, ...] | None = None  # names of those that are scored; null: all
    max_images: int | None = None  # null: all of data.val
    bootstrap: int = 0  # resamples of the images
    pictures: int = 8  # prediction beside ground truth
    report: bool = True  # also write report/report.html
    report_pictures: int = 6  # in each of its galleries
    submission: bool = False  # also write the files that Cityscapes' server takes
    tta: TTAConfig | None = None  # null: one view of each picture
    during_training: DuringTrainingConfig | None = None


@dataclass(frozen=True)
class TrackConfig(Section):
    """MLflow."""

    uri: str | None = None  # null: the environment's MLFLOW_TRACKING_URI, else sqlite in cluster.runs_dir
    experiment: str = "maskrcnn"


@dataclass(frozen=True)
class ClusterConfig(Section):
    """Ray."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "workers": COUNT,
        "gpus_per_worker": NOT_NEGATIVE,
        "cpus_per_worker": POSITIVE,
        "max_failures": NOT_NEGATIVE,
    }

    runs_dir: str = "runs"  # checkpoints, results, MLflow store; on a cluster a path every node sees
    address: str | None = None  # of a running Ray cluster; null: RAY_ADDRESS, else a Ray of our own
    workers: int | None = None  # null: one a GPU, or on a machine without GPUs one a CPU (at most 8)
    gpus_per_worker: float | None = None  # null: 1 where there are GPUs, else 0
    cpus_per_worker: float | None = None  # null: the CPUs of the cluster shared out
    max_failures: int = 3  # restarts from the last checkpoint before the run fails


@dataclass(frozen=True)
class TransferConfig(Section):
    """Weights of other classes: rows of class layers go by the names of classes."""

    LIMITS: ClassVar[dict[str, Limit]] = {"seed": NOT_NEGATIVE}

    classes: dict[str, str | None] = field(default_factory=dict)  # class of the data -> of the weights; null: new
    new_rows: NewRows = "normal"  # of classes that the weights do not have
    seed: int | None = None  # of rows that are drawn; null: train.seed


@dataclass(frozen=True)
class InitConfig(Section):
    """Where weights come from."""

    weights: str | None = None  # checkpoint directory, or a torchvision state dict (.pth, .safetensors); null: random
    transfer: TransferConfig | None = None  # map classes by name; null: layers of another shape start at random


@dataclass(frozen=True)
class RunConfig(Section):
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def conflicts(self) -> Iterator[str]:
        """Equal shares for workers; proposals of pictures as they are; views merged by boxes; checkpoints evaluated."""
        if self.model.rpn is None and self.data.augment.copy_paste_probability:
            yield (
                f"data.augment.copy_paste_probability must be 0 with model.rpn: null, got "
                f"{self.data.augment.copy_paste_probability}; nothing proposes what is pasted into a picture"
            )
        if self.evaluate.tta is not None and self.model.box is None:
            yield "evaluate.tta must be null with model.box: null, got a section; views of proposals are not merged"
        images, workers = self.train.batch_images, self.cluster.workers
        if workers is not None and images % workers:
            yield (
                f"train.batch_images must divide over cluster.workers: {images} images do not divide over {workers} "
                f"workers; set train.batch_images to a multiple of {workers}"
            )
        during, every = self.evaluate.during_training, self.train.checkpoint_every_steps
        if during is not None and during.every_steps % every:
            yield (
                f"evaluate.during_training.every_steps must be a multiple of train.checkpoint_every_steps ({every}), "
                f"got {during.every_steps}; checkpoints are what is evaluated"
            )
