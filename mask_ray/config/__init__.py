"""Settings of every stage: typed, frozen, and validated once.

Each job and the Serve application has one class. Its fields are the job's flags and the keys of
its YAML file. This package reads no files, does not use Ray, and imports nothing but pydantic.
"""

from mask_ray.config.backbone import ALPHAS, BLOCKS, IMAGE_SIZES
from mask_ray.config.base import (
    CHALLENGER,
    CHAMPION,
    DEFAULT_MODEL_NAME,
    DEFAULT_MODEL_URI,
    PREVIOUS,
    MaskRayError,
    MayChange,
    Settings,
    changeable_fields,
    explain,
    home,
)
from mask_ray.config.data import DataSettings, Repeatable, Source, SplitName
from mask_ray.config.demo import DemoSettings
from mask_ray.config.downloads import DownloadLimits
from mask_ray.config.evaluation import EvaluateSettings, ReportSettings
from mask_ray.config.images import IMAGE_FORMATS, ImageFormat, ImageLimits, readable_formats
from mask_ray.config.ingress import IngressSettings
from mask_ray.config.inspection import InspectSettings
from mask_ray.config.pipeline import PipelineSettings
from mask_ray.config.promotion import PromotionRule
from mask_ray.config.serving import (
    BODY_COPIES,
    DEFAULT_PORT,
    MAX_FORM_FIELDS,
    PORTS_BY_SCHEME,
    QUICK_DECODE_BYTES,
    AllowedHost,
    PayloadLimits,
    RemoteImageSettings,
    ServeSettings,
)
from mask_ray.config.training import RunSettings, TrainSettings
from mask_ray.config.tuning import SEARCH_CHOICES, SEARCH_RANGES, TuneSettings
from mask_ray.config.uris import Uri, UriError, local_tracking_uri, revealed, tracking_uri

__all__ = [
    "ALPHAS",
    "BLOCKS",
    "BODY_COPIES",
    "CHALLENGER",
    "CHAMPION",
    "DEFAULT_MODEL_NAME",
    "DEFAULT_MODEL_URI",
    "DEFAULT_PORT",
    "IMAGE_FORMATS",
    "IMAGE_SIZES",
    "MAX_FORM_FIELDS",
    "PORTS_BY_SCHEME",
    "PREVIOUS",
    "QUICK_DECODE_BYTES",
    "SEARCH_CHOICES",
    "SEARCH_RANGES",
    "AllowedHost",
    "DataSettings",
    "DemoSettings",
    "DownloadLimits",
    "EvaluateSettings",
    "ImageFormat",
    "ImageLimits",
    "IngressSettings",
    "InspectSettings",
    "MaskRayError",
    "MayChange",
    "PayloadLimits",
    "PipelineSettings",
    "PromotionRule",
    "RemoteImageSettings",
    "Repeatable",
    "ReportSettings",
    "RunSettings",
    "ServeSettings",
    "Settings",
    "Source",
    "SplitName",
    "TrainSettings",
    "TuneSettings",
    "Uri",
    "UriError",
    "changeable_fields",
    "explain",
    "home",
    "local_tracking_uri",
    "readable_formats",
    "revealed",
    "tracking_uri",
]
