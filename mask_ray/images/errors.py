"""What is wrong with an image that cannot, or must not, be decoded."""


class ImageError(ValueError):
    """The bytes cannot be decoded: empty, not an image, truncated, corrupt, or over a limit."""


class ImageTooLargeError(ImageError):
    """Over `ImageLimits`, in bytes or in pixels, or over 65,535 pixels a side."""


class ImageTooCostlyError(ImageTooLargeError):
    """Decoding would take more time or memory than `ImageLimits` allows."""


class ImageFormatError(ImageError):
    """An image in a format that is not accepted."""


class DecodingStoppedError(ImageError):
    """Decoding took too long, or ended the process that did it, and was given up."""
