"""What a photo's EXIF says about it, for the picture that is painted from it."""

from PIL import ExifTags, Image

# A whitelist: the rest of a TIFF directory describes how the old pixels were stored, its
# orientation is applied on reading, and an embedded thumbnail would show the old picture.
_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.XResolution,
    ExifTags.Base.YResolution,
    ExifTags.Base.ResolutionUnit,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.HostComputer,
    ExifTags.Base.Rating,
    ExifTags.Base.RatingPercent,
    ExifTags.Base.Copyright,
    ExifTags.Base.XPTitle,
    ExifTags.Base.XPComment,
    ExifTags.Base.XPAuthor,
    ExifTags.Base.XPKeywords,
    ExifTags.Base.XPSubject,
)


def descriptive_exif(image: Image.Image) -> Image.Exif:
    """What the EXIF says about the photo, without what it says about the old file."""
    kept = Image.Exif()
    try:
        exif = image.getexif()
        for tag in _TAGS:
            if tag in exif:
                kept[tag] = exif[tag]
        for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            directory = dict(exif.get_ifd(tag))
            directory.pop(ExifTags.IFD.Interop, None)
            if directory:
                kept[tag] = directory
    except Exception:  # damaged EXIF is no reason to refuse the photo
        return Image.Exif()
    return kept


def exif_bytes(exif: Image.Exif, size: tuple[int, int]) -> bytes:
    """As a file has it, for a picture of this width and height; empty where it says nothing."""
    if not len(exif):
        return b""
    directory = exif.get(ExifTags.IFD.Exif, {})
    for tag, length in zip(
        (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight), size, strict=True
    ):
        if tag in directory:
            directory[tag] = length
    try:
        return exif.tobytes()
    except Exception:  # a tag that can be read need not be one that can be written
        return b""
