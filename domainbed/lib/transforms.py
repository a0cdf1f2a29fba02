"""Pictures as networks take them: resized or cropped, changed at random, normalised."""

from torchvision.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    InterpolationMode,
    Normalize,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RESIZE = Resize((224, 224))
CROP = RandomResizedCrop(224, scale=(0.7, 1.0))
CHANGE = (
    RandomHorizontalFlip(),
    ColorJitter(0.3, 0.3, 0.3, 0.3),
    RandomGrayscale(),
)
NORMALIZE = (ToTensor(), Normalize(IMAGENET_MEAN, IMAGENET_STD))

EVALUATE = Compose([RESIZE, *NORMALIZE])
AUGMENT = Compose([CROP, *CHANGE, *NORMALIZE])
AUGMENT_RESIZED = Compose([RESIZE, CROP, *CHANGE, *NORMALIZE])
AUGMENT_UNCROPPED = Compose([RESIZE, *CHANGE, *NORMALIZE])


def size_of(clips: Compose) -> int:
    """The side in pixels of what a CLIP's own transform makes."""
    return next(s.size[0] for s in clips.transforms if isinstance(s, CenterCrop))


def crops(clips: Compose) -> Compose:
    """CoOp's augmentation, crops of 8 to 100 % and flips, as that CLIP sees them."""
    *_, to_tensor, normalize = clips.transforms
    crop = RandomResizedCrop(
        size_of(clips), scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC
    )
    return Compose([crop, RandomHorizontalFlip(), to_tensor, normalize])
